use proptest::prelude::*;

use super::*;
use crate::{
    calibration::{Calibration, Provenance},
    catalogue::{CPU_CLASS, Catalogue},
    models::{ModelName, shape},
    plan::plan_calibrated,
};

/// A pod that is never idle, by what the planner is to find out of it.
#[derive(Clone, Copy, Debug)]
struct Steady {
    step_ms: f64,
    batch: f64,
    prompt: f64,
    answer: f64,
    seconds: f64,
    /// Drafts per step, and how many of them are accepted.
    drafts: Option<(f64, f64)>,
    /// Whether the engine notes an interval per token rather than one per step.
    per_token: bool,
}

const STEADY: Steady = Steady {
    step_ms: 20.0,
    batch: 16.0,
    prompt: 256.0,
    answer: 2048.0,
    seconds: 6000.0,
    drafts: None,
    per_token: false,
};

impl Steady {
    /// What it counts from `start` on.
    fn counters(&self, start: f64) -> LiveCounters {
        let passes = self.seconds * 1e3 / self.step_ms * self.batch;
        let per_step = 1.0 + self.drafts.map_or(0.0, |(_, accepted)| accepted);
        let decoded = passes * per_step;
        let requests = decoded / (self.answer - 1.0);
        let observed = |sum: f64, count: f64| Observed { sum: start + sum, count: start + count };
        LiveCounters {
            generated_tokens: start + decoded + requests,
            prompt_tokens: start + requests * self.prompt,
            first_tokens: start + requests,
            intervals: observed(self.batch * self.seconds, if self.per_token { decoded } else { passes }),
            prompts: observed(requests * self.prompt, requests),
            answers: observed(requests * self.answer, requests),
            drafts: self.drafts.map(|(drafted, accepted)| DraftCounters {
                passes: start + passes,
                drafted: start + passes * drafted,
                accepted: start + passes * accepted,
            }),
        }
    }

    fn load(&self) -> Result<LiveLoad, LiveError> {
        let before = LiveCounters::default();
        let before = LiveCounters { drafts: self.drafts.map(|_| DraftCounters::default()), ..before };
        LiveLoad::between(&before, &self.counters(0.0), self.seconds)
    }
}

fn gpu(class: &str) -> GpuSpec {
    Catalogue::builtin().get(class).unwrap().spec.clone()
}

fn close(left: f64, right: f64) -> bool {
    (left / right - 1.0).abs() < 1e-3
}

#[test]
fn a_steady_pod_is_seen_as_it_is_whatever_it_did_before() {
    let steady = STEADY;
    let idle = Steady { step_ms: f64::INFINITY, ..steady };
    let before = LiveCounters { intervals: Observed { sum: 5e3, count: 5e3 }, ..idle.counters(5e3) };
    let load = LiveLoad::between(&before, &steady.counters(5e3), steady.seconds).unwrap();
    assert!(close(load.batch, 16.0) && close(load.step_ms, 20.0), "{load:?}");
    assert!(close(load.time_per_output_token_ms, 20.0) && load.drafts == 0, "{load:?}");
    assert!(close(load.context(), 256.0 + 1024.0), "{load:?}");
    // The first of 2048 tokens comes with the prompt.
    assert!(close(load.tokens_per_second, 16.0 / 0.02 * 2048.0 / 2047.0), "{load:?}");
    assert!(close(load.steps(), steady.seconds / 0.02), "{load:?}");
}

#[test]
fn a_step_with_drafts_yields_several_tokens_however_intervals_are_noted() {
    for per_token in [false, true] {
        let load = Steady { drafts: Some((2.0, 1.5)), per_token, ..STEADY }.load().unwrap();
        assert_eq!(load.drafts, 2);
        assert!(close(load.tokens_per_step, 2.5) && close(load.step_ms, 20.0), "{load:?}");
        assert!(close(load.time_per_output_token_ms, 8.0), "{load:?}");
    }
    // The same drafts in every second step.
    let mut now_and_then = Steady { drafts: Some((2.0, 1.5)), ..STEADY }.counters(0.0);
    now_and_then.drafts.as_mut().unwrap().passes /= 2.0;
    let none = LiveCounters { drafts: Some(DraftCounters::default()), ..LiveCounters::default() };
    let load = LiveLoad::between(&none, &now_and_then, STEADY.seconds).unwrap();
    assert_eq!(load.drafts, 2);
    assert!(close(load.tokens_per_step, 2.5) && close(load.step_ms, 20.0), "{load:?}");
    // Counters that an engine has and does not use.
    let load = Steady { drafts: Some((0.0, 0.0)), ..STEADY }.load().unwrap();
    assert_eq!((load.drafts, load.tokens_per_step), (0, 1.0));
}

/// Whatever share of a step floors have: with the scaled device the plan takes as long as the pod did.
#[test]
fn the_plan_for_the_scaled_device_takes_as_long_as_the_pod() {
    use DecodePath::{Gqa, MqaAbsorb};
    use Runtime::{Native, Vllm};
    for (model, class, runtime, path, tensor_parallel, batch, drafts) in [
        (ModelName::Llama38bGqla, "H100", Native, MqaAbsorb, 1, 16, None),
        (ModelName::Llama38bGqla, "H20", Native, Gqa, 1, 1, None),
        (ModelName::Glm47FlashGqla, "H20", Vllm, MqaAbsorb, 2, 32, None),
        (ModelName::DeepseekV3Gqla, "B300", Vllm, Gqa, 8, 32, Some((1.0, 0.8))),
        (ModelName::Smollm2135mGqla, CPU_CLASS, Native, Gqa, 1, 4, None),
    ] {
        let (shape, gpu) = (shape(model), gpu(class));
        let pod = LivePod { shape: &shape, gpu: &gpu, runtime, path, tensor_parallel };
        let (batch_f, case) = (f64::from(batch), format!("{model:?} on {class}"));
        let steady = Steady { batch: batch_f, drafts, ..STEADY };
        // What the class would take is read off a first measurement.
        let class_ms = pod.fit(&steady.load().unwrap()).unwrap().class_step_ms;
        for factor in [0.9, 1.0, 1.3, 4.0] {
            let load = Steady { step_ms: class_ms * factor, ..steady }.load().unwrap();
            let fit = pod.fit(&load).unwrap();
            assert_eq!((fit.batch, fit.context), (batch, 1280), "{case}");
            assert!(close(fit.step_ms, load.step_ms), "{case} × {factor}: {fit:?}");
            // Floors do not scale, so the rates change by at least as much as the time.
            let times = 1.0 / factor;
            assert!((fit.scale - times) * (times - 1.0).signum() > -1e-6, "{case} × {factor}: {fit:?}");
            let provenance = Provenance {
                tool: "test".into(),
                device: class.into(),
                build: "1".into(),
                measured_at: "2026-01-02T03:04:05Z".into(),
                samples: load.decoded_tokens as u32,
            };
            let device = fit.rates.device(class, provenance).unwrap();
            let calibration = Calibration { devices: vec![device], ..Calibration::default() };
            let (goal, constraints) = (pod.goal(&load), pod.constraints(&load));
            let plan = plan_calibrated(&shape, &gpu, &goal, &constraints, &calibration).unwrap();
            let planned_ms = plan.chosen.step.total_us() / 1e3;
            assert!(close(planned_ms, load.step_ms), "{case} × {factor}: {planned_ms} {load:?}");
            assert_eq!(plan.calibrated.len(), 1, "{case}");
        }
    }
}

#[test]
fn counters_that_tell_nothing_are_refused_in_a_sentence() {
    let started = STEADY.counters(0.0);
    let between = |after: LiveCounters, seconds: f64| {
        LiveLoad::between(&LiveCounters::default(), &after, seconds).unwrap_err().to_string()
    };
    for seconds in [0.0, -3.0, f64::NAN, f64::INFINITY] {
        let sentence = between(started, seconds);
        assert!(sentence.starts_with(&format!("the pages are {seconds} s apart")), "{sentence}");
    }
    let swapped =
        LiveLoad::between(&started, &LiveCounters::default(), STEADY.seconds).unwrap_err().to_string();
    assert!(swapped.contains("to 0: the pod restarted between the pages, or they are swapped"), "{swapped}");
    for (after, words) in [
        (LiveCounters { prompt_tokens: f64::NAN, ..started }, "vllm:prompt_tokens_total went from 0 to NaN"),
        (LiveCounters { prompt_tokens: -1.0, ..started }, "vllm:prompt_tokens_total went from 0 to -1"),
        (
            LiveCounters { generated_tokens: started.first_tokens + 99.0, ..started },
            "99 tokens were decoded between the pages besides first ones, expected at least 100",
        ),
        (LiveCounters { intervals: Observed::default(), ..started }, "tokens were decoded between"),
        (
            LiveCounters { answers: Observed::default(), ..started },
            "no request began or none finished in 6000 s",
        ),
        (
            LiveCounters { prompts: Observed::default(), ..started },
            "no request began or none finished in 6000 s",
        ),
        (
            LiveCounters { intervals: Observed { sum: 2900.0, ..started.intervals }, ..started },
            "sequences waited 2900.0 s for their tokens in 6000 s, so the pod was idle most of the time",
        ),
        (
            LiveCounters { drafts: None, ..Steady { drafts: Some((1.0, 0.5)), ..STEADY }.counters(0.0) },
            "1.50 tokens came at a time, so the pod drafts",
        ),
        (
            LiveCounters {
                drafts: Some(DraftCounters { passes: 10.0, drafted: 10.0, accepted: 11.0 }),
                ..started
            },
            "10 steps verified 10 drafted tokens and accepted 11, expected at most 15 drafts a step",
        ),
    ] {
        let sentence = between(after, STEADY.seconds);
        assert!(sentence.contains(words), "{sentence}");
    }
}

#[test]
fn what_no_rates_explain_is_refused_in_a_sentence() {
    let refusal = |class: &str, tensor_parallel, model, steady: Steady| {
        let (shape, gpu) = (shape(model), gpu(class));
        let (runtime, path) = (Runtime::Vllm, DecodePath::MqaAbsorb);
        let pod = LivePod { shape: &shape, gpu: &gpu, runtime, path, tensor_parallel };
        pod.fit(&steady.load().unwrap()).unwrap_err()
    };
    let (llama, step) = (ModelName::Llama38bGqla, |step_ms| Steady { step_ms, ..STEADY });
    let long_prompts = Steady { prompt: 4096.0, answer: 128.0, ..STEADY };
    let much_too_long = Steady { answer: 1e6, seconds: 6e5, ..STEADY };
    for (error, words) in [
        (refusal("H100", 1, llama, step(0.2)), "which launches, all-reduces and caches take on H100"),
        (refusal("H100", 1, llama, step(5e3)), "which it takes on H100 at a 100th of its rates"),
        (refusal("H20", 1, llama, long_prompts), "of 4096 tokens takes"),
        (refusal("H100", 1, ModelName::DeepseekV3Gqla, STEADY), "check that model, GPU class"),
        (refusal("H100", 3, llama, STEADY), "tensorParallel=3"),
        (refusal("H100", 1, llama, much_too_long), "maxPositionEmbeddings"),
        (refusal("H100", 1, llama, Steady { drafts: Some((3.0, 1.0)), ..STEADY }), "prediction layers"),
    ] {
        let sentence = error.to_string();
        assert!(sentence.contains(words), "{sentence}");
    }
}

prop_compose! {
    fn counters()(values in prop::array::uniform12(prop_oneof![0.0..1e6f64, any::<f64>()]), drafts: bool) -> LiveCounters {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = values;
        let observed = |sum, count| Observed { sum, count };
        LiveCounters {
            generated_tokens: a,
            prompt_tokens: b,
            first_tokens: c,
            intervals: observed(d, e),
            prompts: observed(f, g),
            answers: observed(h, i),
            drafts: drafts.then_some(DraftCounters { passes: j, drafted: k, accepted: l }),
        }
    }
}

proptest! {
    #[test]
    fn no_counters_panic_and_what_fits_takes_as_long_as_the_pod(after in counters(), seconds in 1.0..1e5f64) {
        let (shape, gpu) = (shape(ModelName::Llama38bGqla), gpu("H20"));
        let pod = LivePod {
            shape: &shape, gpu: &gpu, runtime: Runtime::Native, path: DecodePath::Gqa, tensor_parallel: 1,
        };
        if let Ok(load) = LiveLoad::between(&LiveCounters::default(), &after, seconds)
            && let Ok(fit) = pod.fit(&load)
        {
            prop_assert!(close(fit.step_ms, load.step_ms), "{load:?} {fit:?}");
        }
    }

    #[test]
    fn a_slower_pod_has_lower_rates(step_ms in 12.0..200.0f64, batch in 1u32..64, slower in 1.01..2.0f64) {
        let (shape, gpu) = (shape(ModelName::Llama38bGqla), gpu("H20"));
        let pod = LivePod {
            shape: &shape, gpu: &gpu, runtime: Runtime::Native, path: DecodePath::Gqa, tensor_parallel: 1,
        };
        let steady = Steady { step_ms, batch: batch.into(), prompt: 16.0, ..STEADY };
        let scale = |steady: Steady| pod.fit(&steady.load().unwrap()).unwrap().scale;
        let (slow, fast) = (scale(Steady { step_ms: step_ms * slower, ..steady }), scale(steady));
        prop_assert!(slow < fast, "{slow} {fast}");
    }
}
