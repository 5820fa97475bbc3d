//! Every way a request can be wrong is answered with the field's path and what was expected there.
#![expect(clippy::unwrap_used, reason = "a test helper that fails should fail the test")]

use gqla_protocol::{ApiError, ChatRequest, CompletionRequest, Prompt, ResponseFormat, Role, Streaming};
use serde_json::{Value, json};

fn completion(extra: Value) -> Result<CompletionRequest, ApiError> {
    let mut body = json!({"model": "m", "prompt": "p"});
    merge(&mut body, extra);
    CompletionRequest::parse(body.to_string().as_bytes())
}

fn chat(extra: Value) -> Result<ChatRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    merge(&mut body, extra);
    ChatRequest::parse(body.to_string().as_bytes())
}

fn merge(body: &mut Value, extra: Value) {
    if let (Value::Object(body), Value::Object(extra)) = (body, extra) {
        body.extend(extra);
    }
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T, ApiError>, param: &str, message: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind.status(), 400);
    assert_eq!(error.param.as_deref(), Some(param), "{error}");
    assert!(error.message.starts_with(&format!("{param}: ")), "{error}");
    assert!(error.message.contains(message), "{error} should contain {message}");
}

#[test]
fn defaults_are_openais() {
    let request = completion(json!({})).unwrap();
    assert_eq!(request.prompts, [Prompt::Text("p".to_owned())]);
    assert_eq!(request.streaming, Streaming::Off);
    let sampling = request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.n), (1.0, 1.0, 0, 1));
    assert_eq!((sampling.max_tokens, sampling.seed, sampling.stop), (None, None, vec![]));
}

#[test]
fn every_way_to_steer_the_draw_is_read() {
    let sampling = completion(json!({
        "min_p": 0.1, "presence_penalty": -2, "frequency_penalty": 1.5, "repetition_penalty": 1.1, "min_tokens": 3,
        "logit_bias": {"7": -100, "8": 2.5}, "stop_token_ids": [5, 6],
        "priority": -3, "cache_salt": "tenant",
    }))
    .unwrap()
    .sampling;
    assert_eq!((sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty), (0.1, -2.0, 1.5));
    assert_eq!((sampling.repetition_penalty, sampling.min_tokens), (1.1, 3));
    assert_eq!(sampling.logit_bias, [(7, -100.0), (8, 2.5)]);
    assert_eq!(sampling.stop_token_ids, [5, 6]);
    assert_eq!((sampling.priority, sampling.cache_salt.as_str()), (-3, "tenant"));
}

#[test]
fn forms_are_read_on_both_routes() {
    let format = |value: Value| completion(json!({"response_format": value})).unwrap().sampling.format;
    assert_eq!(format(json!({"type": "text"})), ResponseFormat::Text);
    assert_eq!(format(json!({"type": "json_object"})), ResponseFormat::JsonObject);
    let schema = json!({"type": "object"});
    let wrapped = json!({"type": "json_schema",
                         "json_schema": {"name": "n", "description": "d", "strict": true, "schema": schema}});
    assert_eq!(format(wrapped.clone()), ResponseFormat::JsonSchema(schema.clone()));
    let request = chat(json!({"response_format": wrapped})).unwrap();
    assert_eq!(request.sampling.format, ResponseFormat::JsonSchema(schema));
}

#[test]
fn every_prompt_form() {
    let tokens = |ids: &[u32]| Prompt::Tokens(ids.to_vec());
    for (value, expected) in [
        (json!(["a", "b"]), vec![Prompt::Text("a".to_owned()), Prompt::Text("b".to_owned())]),
        (json!([1, 2, 3]), vec![tokens(&[1, 2, 3])]),
        (json!([[1, 2], [3]]), vec![tokens(&[1, 2]), tokens(&[3])]),
    ] {
        assert_eq!(completion(json!({"prompt": value})).unwrap().prompts, expected);
    }
}

#[test]
fn refused_completions_name_the_field() {
    for (extra, param, message) in [
        (json!({"prompt": null}), "prompt", "required"),
        (json!({"model": 3}), "model", "expected a string, got 3"),
        (json!({"prompt": []}), "prompt", "at least one"),
        (json!({"prompt": [1, -2]}), "prompt[1]", "expected a token id, got -2"),
        (json!({"prompt": [1, 4294967296u64]}), "prompt[1]", "expected a token id"),
        (json!({"prompt": [[1], []]}), "prompt[1]", "at least one token id"),
        (json!({"prompt": [true]}), "prompt[0]", "got true"),
        (json!({"prompt": vec!["a"; 65]}), "prompt", "at most 64 prompts, got 65"),
        (json!({"max_tokens": 0}), "max_tokens", "an integer from 1 to 4294967295, got 0"),
        (json!({"max_tokens": 1.5}), "max_tokens", "got 1.5"),
        (
            json!({"max_tokens": 2, "max_completion_tokens": 3}),
            "max_completion_tokens",
            "contradicts max_tokens=2",
        ),
        (json!({"temperature": 2.1}), "temperature", "a number from 0 to 2, got 2.1"),
        (json!({"temperature": "hot"}), "temperature", "got a string"),
        (json!({"top_p": 0}), "top_p", "above 0"),
        (json!({"top_p": 1.01}), "top_p", "a number from 0 to 1"),
        (json!({"top_k": -2}), "top_k", "an integer from -1"),
        (json!({"n": 17}), "n", "an integer from 1 to 16, got 17"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "at most 4 strings, got 5"),
        (json!({"stop": [""]}), "stop", "1 to 256 bytes"),
        (json!({"stop": [1]}), "stop[0]", "expected a string"),
        (json!({"stop": {}}), "stop", "got an object"),
        (json!({"logprobs": 21}), "logprobs", "an integer from 0 to 20"),
        (json!({"echo": true}), "echo", "does not support"),
        (json!({"best_of": 2}), "best_of", "expected n=1"),
        (json!({"user": "u".repeat(513)}), "user", "at most 512 bytes"),
        (json!({"frequency_penalty": 2.5}), "frequency_penalty", "a number from -2 to 2, got 2.5"),
        (json!({"presence_penalty": "a"}), "presence_penalty", "got a string"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", "above 0"),
        (json!({"repetition_penalty": 2.5}), "repetition_penalty", "from 0 to 2"),
        (json!({"min_p": 1.5}), "min_p", "a number from 0 to 1, got 1.5"),
        (json!({"min_tokens": 9, "max_tokens": 8}), "min_tokens", "an integer from 0 to 8, got 9"),
        (json!({"logit_bias": [1]}), "logit_bias", "an object of token ids and numbers, got an array"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias.a", "a token id"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5", "a number from -100 to 100, got 101"),
        (json!({"stop_token_ids": [1, -1]}), "stop_token_ids[1]", "expected a token id, got -1"),
        (json!({"stop_token_ids": vec![1; 65]}), "stop_token_ids", "at most 64 token ids, got 65"),
        (json!({"priority": 101}), "priority", "an integer from -100 to 100, got 101"),
        (json!({"cache_salt": "s".repeat(257)}), "cache_salt", "at most 256 bytes"),
        (json!({"stop_token_ids": 3}), "stop_token_ids", "an array of token ids, got 3"),
        (json!({"stream": "yes"}), "stream", "true or false"),
        (json!({"stream_options": {}}), "stream_options", "only allowed when stream is true"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x", "unknown field"),
        (json!({"temprature": 1}), "temprature", "unknown field, expected one of model, prompt"),
    ] {
        assert_refused(completion(extra), param, message);
    }
}

#[test]
fn refused_chats_name_the_field() {
    let schema = |value: Value| json!({"response_format": {"type": "json_schema", "json_schema": value}});
    let message = |value: Value| json!({"messages": [{"role": "user", "content": "a"}, value]});
    for (extra, param, expected) in [
        (json!({"messages": []}), "messages", "at least one"),
        (json!({"messages": "hi"}), "messages", "expected an array"),
        (message(json!("hi")), "messages[1]", "expected an object"),
        (message(json!({"role": "robot", "content": ""})), "messages[1].role", "`assistant`"),
        (message(json!({"role": "user"})), "messages[1].content", "required"),
        (message(json!({"role": "user", "content": 1})), "messages[1].content", "array of text parts"),
        (
            message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
            "messages[1].content[0].type",
            "expected `text`",
        ),
        (message(json!({"role": "user", "content": "", "mood": 1})), "messages[1].mood", "unknown field"),
        (json!({"top_logprobs": 2}), "top_logprobs", "only allowed when logprobs is true"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "from 0 to 20"),
        (json!({"tools": [{}]}), "tools", "does not support"),
        (json!({"response_format": "json_object"}), "response_format", "expected an object, got a string"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type", "`json_schema`"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema", "required"),
        (schema(json!({"name": "n"})), "response_format.json_schema.schema", "required"),
        (
            schema(json!({"schema": []})),
            "response_format.json_schema.schema",
            "expected an object, got an array",
        ),
        (schema(json!({"schema": {}, "x": 1})), "response_format.json_schema.x", "unknown field"),
        (
            schema(json!({"schema": {"title": "t".repeat(65536)}})),
            "response_format.json_schema.schema",
            "at most 65536 bytes, got 65548",
        ),
        (json!({"prompt": "x"}), "prompt", "unknown field"),
    ] {
        assert_refused(chat(extra), param, expected);
    }
}

#[test]
fn values_that_change_nothing_are_accepted() {
    let request = chat(json!({
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": null, "user": "u",
        "response_format": {"type": "text"}, "stream": true, "stream_options": {"include_usage": true},
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null},
        ],
    }))
    .unwrap();
    assert_eq!(request.streaming, Streaming::On { include_usage: true });
    assert_eq!((request.messages[0].role, request.messages[0].content.as_str()), (Role::System, "ab"));
}

#[test]
fn bodies_that_are_no_object_are_refused() {
    for (body, message) in
        [("[1]", "an array, expected a JSON object"), ("{", "not valid JSON"), ("", "not valid JSON")]
    {
        let error = CompletionRequest::parse(body.as_bytes()).unwrap_err();
        assert_eq!((error.kind.status(), error.param.as_deref()), (400, None));
        assert!(error.message.contains(message), "{error}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(ChatRequest::parse(deep.as_bytes()).unwrap_err().kind.status(), 400);
}

#[test]
fn quoted_names_are_short() {
    let error = completion(json!({"x".repeat(10_000): 1})).unwrap_err();
    assert!(error.message.len() < 700, "{}", error.message.len());
}
