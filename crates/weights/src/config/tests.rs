use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::Dtype;

fn converted() -> Value {
    json!({
        "model_type": "llama_gqla", "hidden_size": 128, "intermediate_size": 224, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
        "kv_lora_rank": 36, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
        "q_lora_rank": null, "qk_latent_layernorm": false, "rope_interleave": true,
        "bos_token_id": 0, "eos_token_id": 1,
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut config = converted();
    config[field] = value;
    config
}

fn parse(config: &Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::parse(&config.to_string(), Path::new("m/config.json"))
}

#[test]
fn a_converted_model_is_latent() {
    let config = parse(&converted()).unwrap();
    let AttentionConfig::Latent { shape, q_lora_rank: None, qk_latent_layernorm: false } = config.attention
    else {
        panic!("{:?}", config.attention)
    };
    assert_eq!((shape.num_attention_heads, shape.num_key_value_heads, shape.kv_lora_rank), (8, 2, 36));
    assert_eq!(config.eos_token_ids, [1]);
    assert_eq!(config.rms_norm_eps, 1e-5);
}

#[test]
fn a_plain_model_may_leave_head_dim_and_groups_out() {
    let config = json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rope_parameters": { "rope_type": "default", "rope_theta": 1e5 }, "eos_token_id": [2, 7],
    });
    let config = parse(&config).unwrap();
    let plain = AttentionConfig::Plain { num_attention_heads: 9, num_key_value_heads: 9, head_dim: 64 };
    assert_eq!((config.attention, config.rope_theta), (plain, 1e5));
    assert_eq!(config.eos_token_ids, [2, 7]);
}

#[test]
fn mla_without_groups_has_one_per_head() {
    let config = parse(&with("num_key_value_heads", Value::Null)).unwrap();
    let AttentionConfig::Latent { shape, .. } = config.attention else { panic!() };
    assert_eq!(shape.num_key_value_heads, 8);
}

#[test]
fn layers_may_have_groups_of_their_own() {
    let layers = parse(&with("num_key_value_heads", json!(2))).unwrap().num_hidden_layers;
    let list = |groups: fn(usize) -> u32| (0..layers).map(groups).collect::<Vec<_>>();
    let mixed = list(|layer| if layer == 0 { 4 } else { 2 });
    let config = parse(&with("num_key_value_heads", json!(mixed))).unwrap();
    assert_eq!(config.num_key_value_heads_per_layer.as_ref(), Some(&mixed));
    let shape = config.model_shape(None).unwrap();
    assert_eq!((shape.validate(), shape.attention.num_key_value_heads), (Ok(()), 4));
    assert_eq!(parse(&Value::Object(config.to_json(Dtype::BF16))).unwrap(), config);
    let equal = parse(&with("num_key_value_heads", json!(list(|_| 2)))).unwrap();
    assert_eq!(equal, parse(&with("num_key_value_heads", json!(2))).unwrap(), "which is one number");
    let refusal = |list: Vec<u32>| parse(&with("num_key_value_heads", json!(list))).unwrap_err().to_string();
    assert!(refusal(vec![2]).contains("one for each of num_hidden_layers"));
    assert!(refusal(list(|_| 3)).contains("a divisor of num_attention_heads=8 for every layer"));
}

#[test]
fn each_refusal_names_file_field_and_reason() {
    let cases = [
        (with("hidden_size", Value::Null), "`m/config.json` has no field `hidden_size`"),
        (
            with("hidden_size", json!("128")),
            "`hidden_size` in `m/config.json` is \"128\", expected a whole number",
        ),
        (with("hidden_size", json!(0)), "is 0, expected a whole number from 1"),
        (with("num_key_value_heads", json!(3)), "(8 mod 3 = 2)"),
        (with("qk_rope_head_dim", json!(7)), "shape.qkRopeHeadDim=7 is odd"),
        (
            with("attention_bias", json!(true)),
            "`attention_bias` in `m/config.json` is true, which is not supported",
        ),
        (with("hidden_act", json!("gelu")), "is gelu, which is not supported: only `silu`"),
        (with("rope_scaling", json!({"rope_type": "dynamic"})), "rope_type `dynamic`"),
        (
            with("rope_parameters", json!({"type": "longrope"})),
            "only unscaled frequencies, `llama3` and `yarn`",
        ),
        (with("rope_scaling", json!({"rope_type": "yarn"})), "`m/config.json` has no field `factor`"),
        (with("rope_scaling", json!({"type": "yarn", "factor": -4})), "`factor` in `m/config.json` is -4"),
        (with("rope_interleave", json!(false)), "latent rotary keys are interleaved pairs"),
        (with("eos_token_id", json!("x")), "expected a token id or a list of token ids"),
        (with("rope_theta", json!(-1.0)), "is -1, expected a positive number"),
    ];
    for (config, expected) in cases {
        let message = parse(&config).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

#[test]
fn plain_groups_must_divide_heads() {
    let mut config = with("kv_lora_rank", Value::Null);
    config["num_key_value_heads"] = json!(3);
    let message = parse(&config).unwrap_err().to_string();
    assert!(message.contains("a divisor of num_attention_heads=8 (8 mod 3 = 2)"), "{message}");
}

fn glm() -> Value {
    json!({
        "model_type": "glm4_moe_lite", "hidden_size": 2048, "intermediate_size": 10240, "num_hidden_layers": 47,
        "num_attention_heads": 20, "num_key_value_heads": 4, "vocab_size": 154880,
        "max_position_embeddings": 202752, "kv_lora_rank": 512, "q_lora_rank": 768, "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64, "v_head_dim": 256, "num_nextn_predict_layers": 1, "rope_theta": 1e6,
        "n_routed_experts": 64, "num_experts_per_tok": 4, "n_shared_experts": 1, "moe_intermediate_size": 1536,
        "mlp_layer_types": ["dense", "sparse", "sparse"], "routed_scaling_factor": 1.8, "n_group": 4, "topk_group": 2,
    })
}

#[test]
fn glm_is_read_with_its_experts() {
    let config = glm();
    let mut quantised = config.clone();
    quantised["quantization_config"] = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    assert_eq!(parse(&quantised).unwrap().weight_format(), WeightFormat::Fp8Block);
    let config = parse(&config).unwrap();
    let routing = Routing { n_group: 4, topk_group: 2, norm_topk_prob: true, routed_scaling_factor: 1.8 };
    assert_eq!(config.routing, Some(routing));
    assert_eq!(config.feed_forward(0), Some(FeedForward::Dense));
    assert_eq!(config.feed_forward(47), Some(FeedForward::Experts(config.experts.unwrap(), routing)));
    assert_eq!(parse(&Value::Object(config.to_json(Dtype::BF16))).unwrap(), config);
    let shape = config.model_shape(None).unwrap();
    shape.validate().unwrap();
    let experts = shape.weights.experts.unwrap();
    assert_eq!((experts.n_routed_experts, experts.first_k_dense_replace), (64, 1));
    // 29.9 billion are published, for 20 groups.
    assert_eq!((shape.parameters as f64 / 1e8).round(), 298.0);
    assert_eq!(config.num_nextn_predict_layers, 1);
    assert!(matches!(
        config.attention,
        AttentionConfig::Latent { q_lora_rank: Some(768), qk_latent_layernorm: true, .. }
    ));
}

#[test]
fn a_mixture_that_is_not_computed_is_refused() {
    let cases = [
        ("scoring_func", json!("softmax"), "is softmax, which is not supported: only `sigmoid` is computed"),
        ("topk_method", json!("greedy"), "only `noaux_tc` is computed"),
        ("moe_layer_freq", json!(2), "is 2, which is not supported"),
        ("mlp_layer_types", json!(["dense", "sparse", "dense"]), "a list with `dense` after `sparse`"),
        ("n_group", json!(5), "is 5, expected a divisor of n_routed_experts=64"),
        ("topk_group", json!(5), "expected at most n_group=4"),
        ("num_experts_per_tok", json!(33), "expected at most 32, the experts of topk_group=2 of 4 groups"),
        ("n_routed_experts", json!(65_537), "shape.experts.nRoutedExperts is 65537"),
        ("routed_scaling_factor", Value::Null, "has no field `routed_scaling_factor`"),
        ("partial_rotary_factor", json!(0.5), "only 1 is computed"),
    ];
    for (field, value, expected) in cases {
        let mut config = glm();
        config[field] = value;
        let message = parse(&config).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
    let mut other = glm();
    other["model_type"] = json!("deepseek_v2");
    other["scoring_func"] = json!("softmax");
    let config = parse(&other).unwrap();
    assert_eq!((config.routing, config.feed_forward(1)), (None, None), "read for its shape");
    assert!(config.experts.is_some());
}

/// DeepSeek-V3's, in the words of transformers 4.
#[test]
fn a_scaled_rope_is_read_from_either_place() {
    let yarn = json!({
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0,
        "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
    });
    let config = parse(&with("rope_scaling", yarn)).unwrap();
    let Some(RopeScaling::Yarn(yarn)) = &config.rope_scaling else { panic!("{:?}", config.rope_scaling) };
    assert_eq!(
        (yarn.factor, yarn.mscale, yarn.attention_factor, yarn.truncate),
        (40.0, Some(1.0), None, true)
    );
    let llama3 = json!({
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    });
    let mut config = with("rope_parameters", llama3.clone());
    config["rope_theta"] = Value::Null;
    let config = parse(&config).unwrap();
    assert!(matches!(config.rope_scaling, Some(RopeScaling::Llama3 { factor: 8.0, .. })));
    assert_eq!(config.rope_theta, 5e5);
    let mut upside_down = llama3;
    upside_down["low_freq_factor"] = json!(4.0);
    let message = parse(&with("rope_scaling", upside_down)).unwrap_err().to_string();
    assert!(message.contains("`high_freq_factor` in `m/config.json` is 4, expected more than"), "{message}");
}

fn scaling() -> impl Strategy<Value = RopeScaling> {
    let numbers = (1u32..99, 1u32..9999, proptest::option::of(1u32..9), any::<bool>());
    numbers.prop_map(|(factor, original, mscale, truncate)| {
        let (factor, original_max_position_embeddings) = (f64::from(factor) / 4.0, original);
        if truncate && mscale.is_none() {
            let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
            return RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            };
        }
        RopeScaling::Yarn(gqla_model::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate,
            attention_factor: mscale.filter(|one| *one > 4).map(f64::from),
            mscale: mscale.map(f64::from),
            mscale_all_dim: mscale.map(|one| f64::from(one) / 2.0),
        })
    })
}

proptest! {
    #[test]
    fn parse_reads_back_what_to_json_writes(
        groups in 1u32..8, per_group in 1u32..8, rank in 1u32..999, half_rope in 1u32..64, eps in 1e-9f32..1e-2,
        theta in 1u32..10_000_000, eos in proptest::collection::vec(0u32..999, 0..3), plain: bool, tied: bool,
        q_lora_rank in proptest::option::of(1usize..99), norm: bool, rope_scaling in proptest::option::of(scaling()),
    ) {
        let attention = if plain {
            AttentionConfig::Plain {
                num_attention_heads: (groups * per_group) as usize,
                num_key_value_heads: groups as usize,
                head_dim: 2 * half_rope as usize,
            }
        } else {
            let shape = AttentionShape {
                num_attention_heads: groups * per_group, num_key_value_heads: groups, kv_lora_rank: rank,
                qk_nope_head_dim: 16, qk_rope_head_dim: 2 * half_rope, v_head_dim: 8,
            };
            AttentionConfig::Latent { shape, q_lora_rank, qk_latent_layernorm: norm }
        };
        let config = ModelConfig {
            model_type: if plain { "llama" } else { "llama_gqla" }.to_owned(), attention,
            num_key_value_heads_per_layer: None, hidden_size: 64,
            intermediate_size: 96, num_hidden_layers: 2, vocab_size: 999, max_position_embeddings: 128,
            rms_norm_eps: eps, rope_theta: f64::from(theta), rope_scaling, tie_word_embeddings: tied, bos_token_id: None,
            eos_token_ids: eos, num_nextn_predict_layers: 0,
            experts: None, routing: None, quantization: None,
        };
        prop_assert_eq!(parse(&Value::Object(config.to_json(Dtype::BF16))).unwrap(), config);
    }

    #[test]
    fn any_text_parses_or_errs(text in "\\PC*") {
        let _ = ModelConfig::parse(&text, Path::new("m/config.json"));
    }
}
