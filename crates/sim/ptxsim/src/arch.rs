//! What a block may use on each architecture.

/// Limits of one compute capability, from the CUDA C++ Programming Guide's table of technical specifications. How many
/// registers a thread takes is not in PTX, so it is not checked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Compute capability, 9.0 is (9, 0).
    pub capability: (u32, u32),
    /// Shared memory of a multiprocessor, bytes.
    pub shared_per_multiprocessor: u32,
    /// Shared memory of a block that opted in, bytes.
    pub shared_per_block_optin: u32,
    /// Threads of a multiprocessor.
    pub threads_per_multiprocessor: u32,
}

/// Shared memory of a block that did not opt in, bytes.
pub const SHARED_PER_BLOCK: u32 = 48 << 10;
/// Threads of a block.
pub const THREADS_PER_BLOCK: u32 = 1024;
/// Registers of a block, 32 bits each.
pub const REGISTERS_PER_BLOCK: u32 = 65536;
/// Blocks of a grid along x, y and z.
pub const MAX_GRID: [u32; 3] = [0x7fff_ffff, 65535, 65535];
/// Threads of a block along x, y and z.
pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];

const fn architecture(capability: (u32, u32), shared_kib: u32, block_kib: u32, threads: u32) -> Architecture {
    Architecture {
        capability,
        shared_per_multiprocessor: shared_kib << 10,
        shared_per_block_optin: block_kib << 10,
        threads_per_multiprocessor: threads,
    }
}

const KNOWN: [Architecture; 8] = [
    // Nothing of ours is to run there.
    architecture((7, 5), 64, 64, 1024),
    architecture((8, 0), 164, 163, 2048),
    architecture((8, 6), 100, 99, 1536),
    architecture((8, 9), 100, 99, 1536),
    architecture((9, 0), 228, 227, 2048),
    architecture((10, 0), 228, 227, 2048),
    architecture((10, 3), 228, 227, 2048),
    architecture((12, 0), 100, 99, 1536),
];

impl Architecture {
    /// The limits of compute capability `major.minor`, if they are known here.
    pub fn of(major: u32, minor: u32) -> Option<Self> {
        KNOWN.into_iter().find(|known| known.capability == (major, minor))
    }

    /// Whether PTX for `target` (`sm_80`) may be compiled for this architecture: its number must not be higher, and a
    /// target with a letter (`sm_90a`) is good for its own architecture only.
    pub fn runs(&self, target: &str) -> bool {
        let Some(name) = target.split(',').next().and_then(|first| first.trim().strip_prefix("sm_")) else {
            return false;
        };
        let own = self.capability.0 * 10 + self.capability.1;
        let digits = name.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        match digits.parse::<u32>() {
            Ok(number) if digits.len() == name.len() => number <= own,
            Ok(number) => number == own,
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_runs_on_its_own_and_later_architectures() {
        let (ampere, hopper) = (Architecture::of(8, 0).unwrap(), Architecture::of(9, 0).unwrap());
        for (target, on_ampere, on_hopper) in [
            ("sm_80", true, true),
            ("sm_90", false, true),
            ("sm_90a", false, true),
            ("sm_80, debug", true, true),
            ("sm_100a", false, false),
            ("compute_80", false, false),
            ("sm_", false, false),
        ] {
            assert_eq!(ampere.runs(target), on_ampere, "{target}");
            assert_eq!(hopper.runs(target), on_hopper, "{target}");
        }
        assert!(!Architecture::of(10, 0).unwrap().runs("sm_90a"), "a letter ties PTX to one architecture");
        assert_eq!(Architecture::of(7, 0), None);
        assert!(!Architecture::of(7, 5).unwrap().runs("sm_80"), "PTX is compiled for what comes later");
    }
}
