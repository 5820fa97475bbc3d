//! Runs a kernel: blocks one after another, the warps of a block in turns from barrier to barrier.

mod block;
mod memory;
mod step;
mod warp;

use block::Block;

use crate::{
    arch::{Architecture, MAX_BLOCK, MAX_GRID, SHARED_PER_BLOCK, THREADS_PER_BLOCK},
    global::GlobalMemory,
    program::Kernel,
    report::Report,
};

/// In which order the warps of a block take turns. A correct kernel gives the same result in any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// By number, each until it waits.
    Forward,
    /// The same from the last to the first.
    Reverse,
    /// Shuffled every turn, and interrupted at any place; the number seeds the shuffling.
    Shuffled(u64),
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// What runs.
    pub kernel: &'a Kernel,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of shared memory besides what the kernel declares.
    pub dynamic_shared: u32,
    /// The parameters' bytes, each at its offset.
    pub params: &'a [u8],
    /// Whose limits hold.
    pub architecture: Architecture,
    /// Order of warps.
    pub schedule: Schedule,
    /// Instructions of warps after which the launch counts as endless.
    pub instruction_limit: u64,
}

impl Launch<'_> {
    /// Shared memory of a block, bytes. [`check`] keeps the sum small.
    fn shared_bytes(&self) -> u32 {
        match self.dynamic_shared {
            0 => self.kernel.static_shared,
            dynamic => self.kernel.dynamic_offset.saturating_add(dynamic),
        }
    }
}

/// Why a launch is refused before anything runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Nothing to do, or more than there can be.
    #[error(
        "{kernel}: a grid of {grid:?} blocks of {block:?} threads; at most {MAX_GRID:?} and {MAX_BLOCK:?}, and not 0"
    )]
    Dimensions {
        /// Which kernel.
        kernel: String,
        /// Blocks.
        grid: [u32; 3],
        /// Threads.
        block: [u32; 3],
    },
    /// A block is too large.
    #[error("{kernel}: {threads} threads in a block, at most {limit}")]
    Threads {
        /// Which kernel.
        kernel: String,
        /// Threads of a block.
        threads: u64,
        /// What the kernel was compiled for, or the architecture allows.
        limit: u32,
    },
    /// More shared memory than a block may have.
    #[error("{kernel}: {declared} bytes of shared memory declared and {dynamic} asked for, a block of sm_{}{} has at most {limit}", .capability.0, .capability.1)]
    SharedMemory {
        /// Which kernel.
        kernel: String,
        /// Bytes it declares.
        declared: u32,
        /// Bytes the launch adds.
        dynamic: u32,
        /// Compute capability.
        capability: (u32, u32),
        /// The most there can be.
        limit: u32,
    },
    /// The parameters are not those of the kernel.
    #[error("{kernel}: {got} bytes of parameters, expected {expected}")]
    Params {
        /// Which kernel.
        kernel: String,
        /// Bytes handed over.
        got: usize,
        /// Bytes it takes.
        expected: u32,
    },
}

/// Runs `launch` on `memory`. Faults do not stop it, so that they can be counted; only an endless one stops.
///
/// # Errors
/// When the launch breaks a limit, before anything runs.
pub fn launch(launch: &Launch<'_>, memory: &mut GlobalMemory) -> Result<Report, LaunchError> {
    check(launch)?;
    memory.take_traffic();
    let mut report = Report::default();
    let mut block = Block::new(launch, memory, &mut report);
    'grid: for z in 0..launch.grid[2] {
        for y in 0..launch.grid[1] {
            for x in 0..launch.grid[0] {
                if !block.run([x, y, z]) {
                    break 'grid;
                }
            }
        }
    }
    report.buffers = memory.take_traffic();
    Ok(report)
}

/// Whether the launch keeps to the limits, without running it.
///
/// # Errors
/// When it does not.
pub fn check(launch: &Launch<'_>) -> Result<(), LaunchError> {
    let kernel = launch.kernel;
    let name = || kernel.name.clone();
    let within = |n: [u32; 3], most: [u32; 3]| n.iter().zip(most).all(|(n, most)| (1..=most).contains(n));
    let (grid, block) = (launch.grid, launch.block);
    if !within(grid, MAX_GRID) || !within(block, MAX_BLOCK) {
        return Err(LaunchError::Dimensions { kernel: name(), grid, block });
    }
    let threads: u64 = block.iter().map(|n| u64::from(*n)).product();
    let limit = kernel.max_threads.unwrap_or(THREADS_PER_BLOCK).min(THREADS_PER_BLOCK);
    if threads > limit.into() {
        return Err(LaunchError::Threads { kernel: name(), threads, limit });
    }
    let (declared, dynamic) = (kernel.static_shared, launch.dynamic_shared);
    let (capability, limit) = (launch.architecture.capability, launch.architecture.shared_per_block_optin);
    if declared > SHARED_PER_BLOCK || launch.shared_bytes() > limit {
        return Err(LaunchError::SharedMemory { kernel: name(), declared, dynamic, capability, limit });
    }
    let (got, expected) = (launch.params.len(), kernel.param_bytes());
    if got != expected as usize {
        return Err(LaunchError::Params { kernel: name(), got, expected });
    }
    Ok(())
}
