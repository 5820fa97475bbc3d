//! What this machine reaches, measured while the model is still to be loaded.

use std::time::Duration;

use gqla_engine::cpu::{
    CacheMemory, InstructionSet, Pool, WeightFormat,
    measure::{multiply_rate, read_rate},
};
use gqla_planner::HostRates;

/// Time for both rates. With samples that are under way when time is up they stay below 0.3 s, which a start can spare,
/// as long as the machine gives the threads their cores.
const READING: Duration = Duration::from_millis(120);
const MULTIPLYING: Duration = Duration::from_millis(50);

/// Memory read for the measurement at most. Caches of up to half of it cannot answer for memory.
const MOST_BYTES: usize = 256 << 20;

/// Upper quartiles of bytes/s and FLOP/s, since whatever else starts on the machine only ever slows a sample. Measured by
/// the kernels on all the threads the engine will use. The buffer takes no more than the cache was given in bytes, which is
/// not there yet (but at least 16 MiB), and is gone afterwards.
pub(crate) fn measure(kv_cache: CacheMemory) -> Result<HostRates, String> {
    let most = match kv_cache {
        CacheMemory::Bytes(bytes) => usize::try_from(bytes).map_or(MOST_BYTES, |bytes| bytes.min(MOST_BYTES)),
        CacheMemory::FreeShare(_) => MOST_BYTES,
    };
    let pool = Pool::new(None).map_err(|error| format!("the machine could not be measured: {error}"))?;
    let read = read_rate(&pool, most, READING);
    let multiplied = multiply_rate(&pool, InstructionSet::in_use(), WeightFormat::F32, MULTIPLYING);
    tracing::debug!(
        buffer_bytes = read.buffer_bytes,
        read_samples = read.rate.samples,
        read_spread = read.rate.spread(),
        multiply_samples = multiplied.samples,
        multiply_spread = multiplied.spread(),
        "machine measured"
    );
    Ok(HostRates { flops_per_second: multiplied.upper, bytes_per_second: read.rate.upper })
}
