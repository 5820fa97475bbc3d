//! What is particular to plans for vLLM.

use super::*;

/// Published: the plugin for vLLM stores 4096 bytes of GLM-4.7-Flash and 6144 of DeepSeek-V3 per layer, which takes an
/// H20 1.536 ns at its peak bandwidth.
#[test]
fn a_step_of_vllm_reads_the_cache_its_plugin_stores() {
    let gqa = Constraints {
        runtime: Runtime::Vllm,
        path: Some(DecodePath::Gqa),
        efficiency: Efficiency::Peak,
        ..one_gpu()
    };
    let chosen = |model, constraints: &Constraints| {
        let shape = models::shape(model);
        all(plan(&shape, &gpu("H20"), &Goal::default(), constraints)).swap_remove(0)
    };
    assert_eq!(chosen(ModelName::Glm47FlashGqla, &gqa).bytes_per_token_layer, 4096);
    let deepseek =
        chosen(ModelName::DeepseekAttention, &Constraints { multi_token_prediction: Some(0), ..gqa });
    assert_eq!(deepseek.bytes_per_token_layer, 6144);
    assert!((deepseek.attention_ns_per_query_token - 1.536).abs() < 1e-9);
    let native = Constraints { runtime: Runtime::Native, ..gqa };
    assert_eq!(chosen(ModelName::Glm47FlashGqla, &native).bytes_per_token_layer, 3712);
    let core = Constraints { scope: Scope::AttentionOnly, ..gqa };
    assert_eq!(chosen(ModelName::Glm47FlashGqla, &core).bytes_per_token_layer, 3712, "as kernels were timed");
}

/// Its plugin would compute wrong answers.
#[test]
fn vllm_gets_no_group_cut_in_pieces() {
    let sixteen = |runtime| {
        let fixed = Constraints {
            runtime,
            path: Some(DecodePath::Gqa),
            tensor_parallel: Some(16),
            ..Constraints::default()
        };
        plan(&models::shape(ModelName::DeepseekAttention), &gpu("H100"), &Goal::default(), &fixed)
    };
    assert!(sixteen(Runtime::Native).is_ok());
    let refusal = sixteen(Runtime::Vllm).unwrap_err().to_string();
    assert!(refusal.contains("tensorParallel=16 exceeds numKeyValueHeads=8"), "{refusal}");
}

/// Sixteen heads share what the plugin for vLLM repeats for each of them: 16 layers of 120 times 512 × 256.
#[test]
fn vllm_repeats_up_projections_on_the_absorb_path() {
    let capacity = |runtime| {
        let fixed = Constraints {
            runtime,
            path: Some(DecodePath::MqaAbsorb),
            multi_token_prediction: Some(0),
            ..one_gpu()
        };
        decide(ModelName::DeepseekAttention, "H100", &Goal::default(), &fixed).chosen.kv_capacity_tokens
            as f64
    };
    let tokens = f64::from(16 * 120 * 512 * 256) / f64::from(16 * 576);
    assert!((capacity(Runtime::Native) - capacity(Runtime::Vllm) - tokens).abs() <= 1.0);
}
