//! What people see of a benchmark of attention.

use std::fmt::Write as _;

use gqla_engine::cpu::measure::AttentionCase;
use gqla_model::DecodePath;

use super::{Bench, Pass, PathBench};
use crate::{
    bench::{host::percent, machine::caution},
    table::columns,
};

pub(super) fn table(bench: &Bench) -> String {
    let header = [
        "path",
        "heads",
        "batch",
        "context",
        "s_q",
        "ns/token·layer",
        "spread",
        "GB/s",
        "of roof",
        "GFLOP/s",
        "of roof",
        "call µs",
    ];
    let rows: Vec<_> = bench
        .paths
        .iter()
        .flat_map(|path| path.times.passes.iter().map(|pass| row(bench, path.times.path, pass)))
        .collect();
    let mut text = format!("{}\n{}\n", bench.place.table(), columns(header, &rows));
    for path in &bench.paths {
        let _ = writeln!(text, "{}", calibrated(path));
        if let Some(caution) = caution(path.times.cache_bytes, bench.place.last_level_cache()) {
            let _ = writeln!(text, "{caution}");
        }
    }
    if bench.left_out > 0 {
        let _ = writeln!(text, "caution: time was up before {} passes; raise --seconds", bench.left_out);
    }
    let format = bench.place.cache_format().name();
    text + &format!(
        "(medians of reading one layer's {format} cache, per query token and cached token; `call` adds storing the new \
         tokens and the path's own projections)\n"
    )
}

fn row(Bench { place, gpu, .. }: &Bench<'_>, path: DecodePath, pass: &Pass) -> [String; 12] {
    let Pass { shape, case, times } = pass;
    let AttentionCase { batch, context, query_tokens } = *case;
    let tokens = batch as f64 * context as f64;
    let seconds = times.core.median;
    let bytes = tokens * shape.cached_token(path).bytes(place.cache_format()) as f64 / seconds;
    let of_token = f64::from(shape.num_attention_heads) * shape.flops_per_head(path) as f64;
    let flops = of_token * query_tokens as f64 * tokens / seconds;
    [
        path.flag().to_owned(),
        shape.num_attention_heads.to_string(),
        batch.to_string(),
        context.to_string(),
        query_tokens.to_string(),
        format!("{:.3}", seconds * 1e9 / tokens / query_tokens as f64),
        percent(times.core.spread()),
        format!("{:.2}", bytes / 1e9),
        percent(bytes / gpu.bytes_per_second),
        format!("{:.1}", flops / 1e9),
        percent(flops / gpu.flops_per_second),
        format!("{:.0}", times.call.median * 1e6),
    ]
}

/// What the calibration says of a path.
fn calibrated(path: &PathBench) -> String {
    let kernel = &path.fit.kernel;
    format!(
        "calibration of {}: floor {:.1} µs, bandwidth {:.3}, arithmetic {:.3} of the roof; off by {} on average",
        path.times.path.flag(),
        kernel.floor_us,
        kernel.bandwidth,
        kernel.arithmetic,
        percent(path.fit.error)
    )
}
