//! How many blocks the cache gets.

use std::{fs, path::Path};

use gqla_kernels::attention::BLOCK_TOKENS;

/// What the cache may take. Its pages are touched only as far as they are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheMemory {
    /// So many bytes.
    Bytes(u64),
    /// A share, above 0 and at most 1, of what is free once the weights are loaded and a step's buffers set aside.
    FreeShare(f64),
}

/// What a model's cache is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Bytes of a block in all layers.
    pub block: u64,
    /// Bytes of a step's buffers.
    pub workspace: u64,
    /// Blocks without which the engine does not start.
    pub needed: u64,
    /// Blocks that sequences can use at most.
    pub useful: u64,
}

/// Why the cache is too small.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CacheTooSmall {
    /// A fixed size.
    #[error(
        "a cache of {bytes} bytes holds {blocks} blocks, expected at least {needed}: a block of {} tokens takes \
         {block} bytes; give the cache {} bytes, or lower the context length",
        BLOCK_TOKENS, needed * block
    )]
    Bytes {
        /// Bytes allowed.
        bytes: u64,
        /// Whole blocks in them.
        blocks: u64,
        /// Blocks needed.
        needed: u64,
        /// Bytes of a block.
        block: u64,
    },
    /// A share of what is free.
    #[error(
        "{free} bytes are free after the weights, a step's buffers take {workspace}, and {share} of the rest is \
         {bytes}: that holds {blocks} cache blocks, expected at least {needed}, as a block of {} tokens takes {block} \
         bytes; raise the memory limit or the cache's share, or lower the context length",
        BLOCK_TOKENS
    )]
    Share {
        /// Bytes free.
        free: u64,
        /// Bytes of a step's buffers.
        workspace: u64,
        /// The cache's share.
        share: f64,
        /// What it comes to.
        bytes: u64,
        /// Whole blocks in it.
        blocks: u64,
        /// Blocks needed.
        needed: u64,
        /// Bytes of a block.
        block: u64,
    },
    /// No share can be taken.
    #[error("how much memory is free cannot be told: {reason}; give the cache a number of bytes")]
    Unknown {
        /// What is wrong.
        reason: String,
    },
    /// No share at all.
    #[error("the cache's share of the free memory is {share}, expected a number above 0, at most 1")]
    NoShare {
        /// What was asked for.
        share: f64,
    },
}

/// Blocks of the cache: as many as fit, and no more than can be used. `free` is asked only where a share is wanted.
pub(crate) fn blocks(
    memory: CacheMemory,
    demand: Demand,
    free: impl FnOnce() -> Result<u64, String>,
) -> Result<u64, CacheTooSmall> {
    let Demand { block, workspace, needed, useful } = demand;
    let blocks = |bytes: u64| bytes / block.max(1);
    let (bytes, short) = match memory {
        CacheMemory::Bytes(bytes) => {
            (bytes, CacheTooSmall::Bytes { bytes, blocks: blocks(bytes), needed, block })
        }
        CacheMemory::FreeShare(share) if share > 0.0 && share <= 1.0 => {
            let free = free().map_err(|reason| CacheTooSmall::Unknown { reason })?;
            let bytes = (free.saturating_sub(workspace) as f64 * share) as u64;
            let blocks = blocks(bytes);
            (bytes, CacheTooSmall::Share { free, workspace, share, bytes, blocks, needed, block })
        }
        CacheMemory::FreeShare(share) => return Err(CacheTooSmall::NoShare { share }),
    };
    if blocks(bytes) < needed { Err(short) } else { Ok(blocks(bytes).min(useful.max(needed))) }
}

/// Bytes this process can still take: what the machine has, and what its control groups allow.
pub(crate) fn free() -> Result<u64, String> {
    let meminfo = fs::read_to_string("/proc/meminfo").map_err(|error| format!("/proc/meminfo: {error}"))?;
    let available = field(&meminfo, "MemAvailable:")
        .ok_or("/proc/meminfo has no MemAvailable, expected Linux 3.14 or later")?;
    let available = available.saturating_mul(1024);
    Ok(group_room().map_or(available, |room| room.min(available)))
}

/// The tightest of the groups this process is in; `None` where none has a limit.
fn group_room() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let read = |group: &Path, name: &str| {
        fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join(name)).ok()
    };
    let room = |group: &Path| {
        let [limit, current, stat] =
            ["memory.max", "memory.current", "memory.stat"].map(|name| read(group, name));
        room(&limit?, &current?, &stat?)
    };
    Path::new(own).ancestors().filter_map(room).min()
}

/// What a group leaves; pages of files do not count, since the system takes them back.
fn room(limit: &str, current: &str, stat: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let files: u64 = ["inactive_file", "active_file"].iter().filter_map(|name| field(stat, name)).sum();
    Some(limit.saturating_sub(current.saturating_sub(files)))
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand { block: 1000, workspace: 500, needed: 3, useful: 50 };

    fn of(memory: CacheMemory, free: u64) -> Result<u64, CacheTooSmall> {
        blocks(memory, DEMAND, || Ok(free))
    }

    #[test]
    fn as_many_blocks_as_fit_and_can_be_used() {
        assert_eq!(of(CacheMemory::Bytes(7999), 0), Ok(7));
        assert_eq!(of(CacheMemory::Bytes(1 << 30), 0), Ok(50));
        assert_eq!(of(CacheMemory::FreeShare(0.5), 20_500), Ok(10));
        assert_eq!(of(CacheMemory::FreeShare(1.0), 3_500), Ok(3));
    }

    #[test]
    fn too_little_is_told_with_the_arithmetic() {
        let message = |memory, free| of(memory, free).unwrap_err().to_string();
        assert_eq!(
            message(CacheMemory::Bytes(2999), 0),
            "a cache of 2999 bytes holds 2 blocks, expected at least 3: a block of 64 tokens takes 1000 bytes; give \
             the cache 3000 bytes, or lower the context length"
        );
        assert_eq!(
            message(CacheMemory::FreeShare(0.5), 4500),
            "4500 bytes are free after the weights, a step's buffers take 500, and 0.5 of the rest is 2000: that \
             holds 2 cache blocks, expected at least 3, as a block of 64 tokens takes 1000 bytes; raise the memory \
             limit or the cache's share, or lower the context length"
        );
        assert!(message(CacheMemory::FreeShare(0.5), 100).contains("0.5 of the rest is 0"));
        for share in [0.0, 1.5, f64::NAN] {
            assert!(message(CacheMemory::FreeShare(share), 100_000).contains("above 0, at most 1"));
        }
        let unknown = blocks(CacheMemory::FreeShare(0.5), DEMAND, || Err("no /proc".to_owned())).unwrap_err();
        assert!(unknown.to_string().contains("no /proc"), "{unknown}");
    }

    #[test]
    fn a_group_leaves_what_its_limit_and_its_anonymous_pages_say() {
        let stat = "anon 300\ninactive_file 100\nactive_file 50\n";
        assert_eq!(room("1000\n", "450\n", stat), Some(700));
        assert_eq!(room("200\n", "450\n", stat), Some(0));
        assert_eq!(room("max\n", "450\n", stat), None);
        assert_eq!(field("MemFree: 1 kB\nMemAvailable:   77 kB\n", "MemAvailable:"), Some(77));
        assert!(free().unwrap() > 0);
    }
}
