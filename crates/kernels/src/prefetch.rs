//! Asking for memory by hand, ahead of what reads it.

use std::sync::OnceLock;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Bytes between where a stream is read and where it is asked for. Measured: with half and with double of it a row's products
/// gain less.
const AHEAD: usize = 2048;

/// Asks for the cache line at `p` to be brought near, though not nearest; nothing happens where there is no such memory.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads nothing; all processors of this architecture have it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for what a stream that is now at `p` will read in a while, so many lines of it, as near as can be.
#[inline(always)]
pub(crate) fn prefetch_stream(p: *const u8, lines: usize) {
    for line in 0..lines {
        let p = p.wrapping_add(AHEAD + line * LINE);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }
}

/// Whether this processor reads narrow weights, and a cache under any number of products, faster when they are asked for by hand. Measured:
/// an Intel core does (family 6, model 207), probably because it waits for few lines at once; AMD's lose by it where memory never rests.
pub(crate) fn always_pays() -> bool {
    static INTEL: OnceLock<bool> = OnceLock::new();
    *INTEL.get_or_init(|| vendor() == *b"GenuineIntel")
}

/// As the processor gives it.
#[cfg(target_arch = "x86_64")]
fn vendor() -> [u8; 12] {
    let id = std::arch::x86_64::__cpuid(0);
    let mut vendor = [0; 12];
    for (to, word) in vendor.chunks_exact_mut(4).zip([id.ebx, id.edx, id.ecx]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    vendor
}

#[cfg(not(target_arch = "x86_64"))]
fn vendor() -> [u8; 12] {
    [0; 12]
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[test]
    fn a_vendor_is_a_word() {
        let vendor = super::vendor();
        assert!(vendor.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' '), "{vendor:?}");
        assert!(vendor.iter().any(u8::is_ascii_alphabetic), "{vendor:?}");
    }
}
