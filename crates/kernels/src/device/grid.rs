//! How many blocks of a kernel a device runs at once: pure arithmetic over what a multiprocessor has.

/// Shared memory that every block takes besides its own, bytes, since compute capability 8.0 (CUDA C++ Programming Guide).
const RESERVED_SHARED: u32 = 1 << 10;
/// Registers of a multiprocessor.
const REGISTERS: u32 = 1 << 16;
/// Registers come to a warp in pieces of so many, and a quarter of a multiprocessor has its own.
const REGISTER_PIECE: u32 = 256;
const QUARTERS: u32 = 4;
const WARP: u32 = 32;

/// What blocks that run at once share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiprocessors {
    /// Multiprocessors.
    pub count: u32,
    /// Threads of each.
    pub threads: u32,
    /// Shared memory of each, bytes.
    pub shared_bytes: u32,
}

impl Multiprocessors {
    /// Blocks of `threads` threads and `shared_bytes` bytes of shared memory that run at once, by all counts; where nobody says
    /// how many `registers` a thread takes, these count for nothing. One on each multiprocessor at least.
    pub fn blocks(&self, threads: u32, shared_bytes: u32, registers: Option<u32>) -> u32 {
        self.count * self.resident(threads, shared_bytes, registers).max(1)
    }

    fn resident(&self, threads: u32, shared_bytes: u32, registers: Option<u32>) -> u32 {
        let by_threads = self.threads / threads.max(1);
        let by_shared = self.shared_bytes / (shared_bytes + RESERVED_SHARED);
        let by_registers = registers.map(|registers| {
            let of_warp = (registers * WARP).next_multiple_of(REGISTER_PIECE).max(REGISTER_PIECE);
            REGISTERS / QUARTERS / of_warp * QUARTERS / threads.div_ceil(WARP).max(1)
        });
        by_threads.min(by_shared).min(by_registers.unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CUDA's occupancy calculator gives.
    #[test]
    fn what_is_short_first_decides() {
        let h200 = Multiprocessors { count: 132, threads: 2048, shared_bytes: 228 << 10 };
        let l40s = Multiprocessors { count: 142, threads: 1536, shared_bytes: 100 << 10 };
        for (device, threads, shared_bytes, registers, resident) in [
            (h200, 128, 81_920, Some(174), 2),
            (h200, 256, 231_424, Some(222), 1),
            (h200, 128, 49_152, Some(148), 3),
            (h200, 128, 49_152, Some(128), 4),
            (h200, 128, 49_152, None, 4),
            (h200, 128, 0, Some(48), 10),
            (h200, 128, 0, None, 16),
            (l40s, 128, 0, Some(33), 12),
            (l40s, 256, 81_920, Some(175), 1),
        ] {
            let blocks = device.blocks(threads, shared_bytes, registers);
            assert_eq!(blocks, device.count * resident, "{threads} {shared_bytes} {registers:?}");
        }
        // What the driver would refuse is its to refuse.
        assert_eq!(l40s.blocks(2048, 1 << 20, Some(255)), l40s.count);
    }
}
