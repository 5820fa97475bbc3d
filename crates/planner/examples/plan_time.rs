//! Times a plan of every built-in model on every built-in class and prints median and slowest. `cargo xtask bench planner`
//! builds it for release and names the machine.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use gqla_planner::{Catalogue, Constraints, Goal, ModelName, Runtime, plan, shape};

/// Timings of one pair, of which the median counts: a plan that another process interrupted says nothing.
const REPEATS: usize = 31;

fn main() {
    let catalogue = Catalogue::builtin();
    let goal = Goal { prompt_tokens: 1024, max_time_per_output_token_ms: Some(50.0), ..Goal::default() };
    let mut plans = Vec::new();
    for runtime in [Runtime::Native, Runtime::Vllm] {
        let constraints = Constraints { runtime, ..Constraints::default() };
        for model in ModelName::ALL {
            let shape = shape(model);
            for class in catalogue.iter() {
                let once = || {
                    let start = Instant::now();
                    // A refusal has priced every candidate as well.
                    let _ = black_box(plan(black_box(&shape), &class.spec, &goal, &constraints));
                    start.elapsed()
                };
                let taken = median((0..REPEATS).map(|_| once()).collect());
                plans.push((taken, format!("{model} on {} with {}", class.name(), runtime.name())));
            }
        }
    }
    let all = median(plans.iter().map(|(taken, _)| *taken).collect());
    println!("{} plans, each timed {REPEATS} times: median {all:?}", plans.len());
    if let Some((slowest, what)) = plans.iter().max() {
        println!("slowest {slowest:?}: {what}");
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
