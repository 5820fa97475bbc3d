//! Models whose layers have different numbers of groups.

use super::*;

/// Half of the layers at 8 groups and half at 4 take and hold the average of both.
#[test]
fn layers_with_different_groups_add_up() {
    let base = models::shape(ModelName::DeepseekAttention);
    let uniform = |groups| {
        let attention = AttentionShape { num_key_value_heads: groups, ..base.attention };
        ModelShape { attention, ..base.clone() }
    };
    let list = (0..16).map(|layer| if layer % 2 == 0 { 8 } else { 4 }).collect();
    let mixed = ModelShape { num_key_value_heads_per_layer: Some(list), ..uniform(8) };
    for path in DecodePath::ALL {
        let goal = Goal { concurrency: 4, ..Goal::default() };
        let fixed = Constraints { path: Some(path), multi_token_prediction: Some(0), ..one_gpu() };
        let of = |shape: &ModelShape| plan(shape, &gpu("H100"), &goal, &fixed).unwrap().chosen;
        let [eight, four, mixed] = [&uniform(8), &uniform(4), &mixed].map(of);
        assert_eq!(2 * mixed.bytes_per_token_layer, eight.bytes_per_token_layer + four.bytes_per_token_layer);
        let average = f64::midpoint(eight.step.total_us(), four.step.total_us());
        assert!((mixed.step.total_us() / average - 1.0).abs() < 1e-9, "{path}: {mixed:?}");
    }
    let equal = ModelShape { num_key_value_heads_per_layer: Some(vec![8; 16]), ..uniform(8) };
    let decision = |shape: &ModelShape| plan(shape, &gpu("H20"), &Goal::default(), &Constraints::default());
    assert_eq!(decision(&equal), decision(&base));
}

/// Three ranks share 6 groups, but not the 4 of the other layers.
#[test]
fn a_degree_has_to_divide_every_layer() {
    let base = models::shape(ModelName::DeepseekAttention);
    let attention = AttentionShape { num_attention_heads: 24, num_key_value_heads: 6, ..base.attention };
    let shape = ModelShape { attention, ..base };
    let three =
        Constraints { path: Some(DecodePath::Gqa), tensor_parallel: Some(3), ..Constraints::default() };
    let decide = |shape: &ModelShape| plan(shape, &gpu("H100"), &Goal::default(), &three);
    assert!(decide(&shape).is_ok());
    let list = (0..16).map(|layer| if layer == 7 { 4 } else { 6 }).collect();
    let mixed = ModelShape { num_key_value_heads_per_layer: Some(list), ..shape };
    let refusal = decide(&mixed).unwrap_err().to_string();
    assert!(
        refusal.starts_with("tensorParallel=3 and numKeyValueHeads=4 do not divide each other"),
        "{refusal}"
    );
}
