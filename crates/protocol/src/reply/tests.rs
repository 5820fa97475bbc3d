use super::*;
use crate::TokenText;

fn reply(dialect: Dialect, include_usage: bool) -> Reply {
    Reply { dialect, id: "id-1".to_owned(), created: 7, model: "m".to_owned(), include_usage }
}

fn token(text: &str) -> TokenText {
    TokenText { text: text.to_owned(), bytes: Some(text.as_bytes().to_vec()) }
}

fn scored() -> ScoredToken {
    ScoredToken {
        token: token("a"),
        logprob: -0.5,
        top: vec![(token("b"), -0.25), (token("c"), f32::NEG_INFINITY)],
        text_offset: 3,
    }
}

#[test]
fn chat_stream_bytes() {
    let reply = reply(Dialect::Chat, false);
    let head = r#"data: {"id":"id-1","object":"chat.completion.chunk","created":7,"model":"m","choices":["#;
    assert_eq!(
        reply.opening(0).unwrap(),
        format!(
            "{head}{}]}}\n\n",
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#
        )
    );
    assert_eq!(
        reply.delta(0, "Hi\n", None),
        format!(
            "{head}{}]}}\n\n",
            r#"{"index":0,"delta":{"content":"Hi\n"},"logprobs":null,"finish_reason":null}"#
        )
    );
    assert_eq!(
        reply.closing(0, FinishReason::Length),
        format!("{head}{}]}}\n\n", r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}"#)
    );
    assert_eq!(reply.usage(Usage::new(1, 2)), None);
    assert_eq!(DONE, "data: [DONE]\n\n");
}

#[test]
fn usage_chunk_has_no_choices_and_the_others_a_null() {
    let reply = reply(Dialect::Completion, true);
    assert_eq!(
        reply.usage(Usage::new(5, 2)).unwrap(),
        "data: {\"id\":\"id-1\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\",\"choices\":[],\
         \"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}\n\n"
    );
    assert_eq!(
        reply.delta(1, "x", None),
        "data: {\"id\":\"id-1\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\",\"choices\":[\
         {\"index\":1,\"text\":\"x\",\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n"
    );
    assert_eq!(reply.opening(0), None);
}

#[test]
fn whole_bodies() {
    let choice =
        Choice { index: 0, text: "Hi".to_owned(), logprobs: None, finish_reason: FinishReason::Stop };
    let body = |dialect| -> Value {
        let text = reply(dialect, false).whole(std::slice::from_ref(&choice), Usage::new(3, 1)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let chat = body(Dialect::Chat);
    assert_eq!(chat["object"], "chat.completion");
    assert_eq!(chat["choices"][0]["message"], json!({"role": "assistant", "content": "Hi"}));
    assert_eq!(chat["choices"][0]["finish_reason"], "stop");
    assert_eq!(chat["usage"]["total_tokens"], 4);
    let completion = body(Dialect::Completion);
    assert_eq!(completion["object"], "text_completion");
    assert_eq!(completion["choices"][0]["text"], "Hi");
}

#[test]
fn logprobs_in_both_dialects() {
    let value = |dialect| -> Value {
        let event = reply(dialect, false).delta(0, "a", Some(&[scored()]));
        let chunk: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        chunk["choices"][0]["logprobs"].clone()
    };
    assert_eq!(
        value(Dialect::Chat),
        json!({"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
            {"token": "b", "logprob": -0.25, "bytes": [98]}, {"token": "c", "logprob": -9999.0, "bytes": [99]}]}]})
    );
    assert_eq!(
        value(Dialect::Completion),
        json!({"tokens": ["a"], "token_logprobs": [-0.5], "text_offset": [3],
               "top_logprobs": [{"a": -0.5, "b": -0.25, "c": -9999.0}]})
    );
}
