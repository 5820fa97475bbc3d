//! What no number may do: panic, or decide by the unit it is in.

use super::*;

/// Any bits of a float: subnormal, infinite and not a number too.
fn any_float() -> impl Strategy<Value = f64> {
    any::<u64>().prop_map(f64::from_bits)
}

proptest! {
    #[test]
    fn no_device_and_no_goal_panics(
        model in any_model(), constraints in any_constraints(), rates in (any_float(), any_float()), memory: u64,
        counts in any::<[u32; 4]>(), shares in (any_float(), any_float()),
        bounds in prop::option::of((any_float(), any_float(), any_float())), batch in prop::option::of(any::<u32>()),
        capability in prop::option::of(any::<(u8, u8)>()), derived: bool,
    ) {
        let gpu = GpuSpec {
            name: "any".into(),
            flops_per_second: rates.0,
            bytes_per_second: rates.1,
            memory_bytes: memory,
            compute_capability: capability.map(|(major, minor)| crate::ComputeCapability { major, minor }),
            derived,
        };
        let [context_length, concurrency, prompt_tokens, output_tokens] = counts;
        let goal = Goal {
            context_length,
            concurrency,
            prompt_tokens,
            output_tokens,
            acceptance: shares.0,
            memory_fraction: shares.1,
            max_time_per_output_token_ms: bounds.map(|bounds| bounds.0),
            max_time_to_first_token_ms: bounds.map(|bounds| bounds.1),
            cost_per_gpu_hour: bounds.map(|bounds| bounds.2),
            ..Goal::default()
        };
        let shape = models::shape(model);
        for goal in [goal, Goal { acceptance: 0.5, memory_fraction: 0.9, prompt_tokens: 0, ..goal }] {
            let _ = plan(&shape, &gpu, &goal, &Constraints { batch, ..constraints });
        }
    }

    /// Costs in another currency, whatever the objective.
    #[test]
    fn no_choice_depends_on_the_currency(
        model in any_model(), gpu in any_class(), goal in any_goal(), constraints in any_constraints(),
        cost in 0.01f64..100.0, exponent in -20i32..20,
    ) {
        let shape = models::shape(model);
        let rate = 2f64.powi(exponent);
        let priced = |cost: f64| {
            let goal = Goal { cost_per_gpu_hour: Some(cost), ..goal };
            all(plan(&shape, &gpu, &goal, &constraints))
        };
        let (ours, theirs) = (priced(cost), priced(cost * rate));
        prop_assert_eq!(ours.len(), theirs.len());
        for (one, other) in ours.iter().zip(&theirs) {
            let exchanged = one.cost_per_million_tokens.map(|cost| cost * rate);
            prop_assert_eq!(exchanged, other.cost_per_million_tokens);
            let without = |candidate: &Candidate| Candidate { cost_per_million_tokens: None, ..candidate.clone() };
            prop_assert_eq!(without(one), without(other));
        }
    }
}
