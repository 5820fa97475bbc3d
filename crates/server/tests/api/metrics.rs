//! What Prometheus sees.

use serde_json::json;

use crate::client::Server;

#[tokio::test]
async fn the_prompt_of_an_empty_answer_is_billed() {
    let server = Server::saying("");
    let body = server.complete(json!({"prompt": "abc"})).await.json();
    assert_eq!(body["usage"]["prompt_tokens"], 3);
    assert_eq!(body["usage"]["completion_tokens"], 0);
    assert!(server.metrics().contains(r#"vllm:prompt_tokens_total{engine="0",model_name="m"} 3"#));
}

#[tokio::test]
async fn counters_are_the_sum_of_the_clients_usage() {
    let server = Server::saying("one STOP two");
    let mut usage = [0, 0];
    for fields in [
        json!({"max_tokens": 5}),
        json!({"prompt": ["ab", "c"], "n": 2, "max_tokens": 30}),
        json!({"stop": "STOP", "max_tokens": 30}),
        json!({"temperature": 9}),
    ] {
        let body = server.complete(fields).await.json();
        usage[0] += body["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
        usage[1] += body["usage"]["completion_tokens"].as_u64().unwrap_or(0);
    }
    let text = server.metrics();
    let [prompt, completion] = usage;
    assert_eq!((prompt, completion), (5, 5 + 4 * 12 + 8));
    for line in [
        format!(r#"vllm:prompt_tokens_total{{engine="0",model_name="m"}} {prompt}"#),
        format!(r#"vllm:generation_tokens_total{{engine="0",model_name="m"}} {completion}"#),
        format!(r#"gqla_generated_tokens_total{{engine="0",model_name="m",path="mqa_absorb"}} {completion}"#),
        r#"vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 5"#.to_owned(),
        r#"vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 1"#.to_owned(),
        r#"vllm:e2e_request_latency_seconds_count{engine="0",model_name="m"} 6"#.to_owned(),
        r#"vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 6"#.to_owned(),
        format!(r#"vllm:inter_token_latency_seconds_count{{engine="0",model_name="m"}} {}"#, completion - 6),
        r#"gqla_decode_path{engine="0",model_name="m",path="mqa_absorb",reason="requested"} 1"#.to_owned(),
        r#"gqla_kv_bytes_per_token{engine="0",model_name="m",path="mqa_absorb"} 20"#.to_owned(),
        r#"gqla_rank_weight_bytes{engine="0",model_name="m",rank="0"} 30"#.to_owned(),
        r#"gqla_rank_kv_bytes_per_token{engine="0",model_name="m",rank="0"} 20"#.to_owned(),
        r#"gqla_weights_load_seconds{engine="0",model_name="m"} 2"#.to_owned(),
        r#"vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25"#.to_owned(),
        r#"vllm:num_requests_waiting{engine="0",model_name="m"} 0"#.to_owned(),
        r#"vllm:prefix_cache_queries_total{engine="0",model_name="m"} 128"#.to_owned(),
        r#"vllm:prefix_cache_hits_total{engine="0",model_name="m"} 64"#.to_owned(),
        r#"gqla_kv_cache_bytes{engine="0",model_name="m"} 2560"#.to_owned(),
        r#"gqla_kv_cache_used_bytes{engine="0",model_name="m"} 640"#.to_owned(),
        r#"vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 5"#.to_owned(),
        r#"vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 9"#.to_owned(),
        r#"vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 6"#.to_owned(),
        per_position(0, 4),
        per_position(1, 2),
        r#"vllm:num_preemptions_total{engine="0",model_name="m"} 3"#.to_owned(),
        r#"vllm:cache_config_info{block_size="16",engine="0",model_name="m",num_gpu_blocks="8"} 1"#
            .to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "missing {line} in\n{text}");
    }
    assert!(!text.contains(r#"position="2""#), "the engine drafts two tokens");
}

fn per_position(position: usize, accepted: u32) -> String {
    let labels = format!(r#"engine="0",model_name="m",position="{position}""#);
    format!("vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels}}} {accepted}")
}
