//! Machine code, which the stand-in cannot execute: it executes the PTX of the same kernels where it is shown both.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gqla_ptxsim::Architecture;

use crate::code::Code;

/// The PTX beside the cubin in `folder` that `is` the one that somebody loads: `NAME-compute_80.ptx` beside
/// `NAME-sm_90.cubin`. Where there is none, or the device is none that the cubin is for, it is refused as a driver refuses
/// machine code of other devices.
pub(crate) fn ptx_of(
    is: impl Fn(&[u8]) -> bool,
    folder: Option<&Path>,
    architecture: Architecture,
) -> Result<Vec<u8>, Code> {
    let ptx = || {
        let folder = folder.ok_or("no folder shows the PTX of cubins")?;
        let (path, cubin) = find(folder, is).ok_or("its PTX is not known")?;
        let made_for = architecture_of(&cubin).ok_or("its header has no architecture that is known here")?;
        if !runs(made_for, architecture) {
            return Err(format!("it is for sm_{made_for}, the device has {:?}", architecture.capability));
        }
        fs::read(&path).map_err(|error| format!("its PTX `{}`: {error}", path.display()))
    };
    ptx().map_err(|reason: String| {
        eprintln!("gqla-fakecuda: cubin refused: {reason}");
        Code::NO_BINARY_FOR_GPU
    })
}

/// The bytes of that cubin, and where its PTX should be.
fn find(folder: &Path, is: impl Fn(&[u8]) -> bool) -> Option<(PathBuf, Vec<u8>)> {
    fs::read_dir(folder).ok()?.flatten().find_map(|file| {
        let name = file.file_name();
        let (stem, _) = name.to_str()?.strip_suffix(".cubin")?.rsplit_once("-sm_")?;
        let cubin = fs::read(file.path()).ok().filter(|cubin| !cubin.is_empty() && is(cubin))?;
        Some((folder.join(format!("{stem}-compute_80.ptx")), cubin))
    })
}

/// The number in the `sm_90` that a cubin is for, from its ELF header's flags. Where they have it depends on the version of
/// CUDA's ABI: LLVM's `BinaryFormat/ELF.h` has both.
fn architecture_of(cubin: &[u8]) -> Option<u32> {
    let flags = u32::from_le_bytes(*cubin.get(0x30..)?.first_chunk()?);
    match cubin[8] {
        7 => Some(flags & 0xff),
        8 => Some(flags >> 8 & 0xff),
        _ => None,
    }
}

/// Machine code runs on its own major version, from its own minor version on.
fn runs(made_for: u32, architecture: Architecture) -> bool {
    let (major, minor) = architecture.capability;
    made_for / 10 == major && made_for % 10 <= minor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(abi: u8, flags: u32) -> Vec<u8> {
        let mut header = b"\x7fELF\x02\x01\x01\x33".to_vec();
        header.push(abi);
        header.resize(0x30, 0);
        header.extend(flags.to_le_bytes());
        header
    }

    /// Flags as NVRTC 12.9 writes them.
    #[test]
    fn a_cubin_says_what_it_is_for() {
        for (abi, flags, expected) in [
            (7, 0x0050_0550, Some(80)),
            (7, 0x0059_0559, Some(89)),
            (7, 0x005a_055a, Some(90)),
            (8, 0x0600_6402, Some(100)),
            (8, 0x0600_7802, Some(120)),
            (9, 0x0600_7802, None),
        ] {
            assert_eq!(architecture_of(&header(abi, flags)), expected, "{flags:x}");
        }
        assert_eq!(architecture_of(b"\x7fELF\x02"), None);
    }

    #[test]
    fn machine_code_runs_on_its_own_major_version() {
        for (made_for, device, expected) in [
            (80, (8, 0), true),
            (80, (8, 9), true),
            (89, (8, 0), false),
            (80, (9, 0), false),
            (90, (9, 0), true),
            (100, (10, 3), true),
            (120, (10, 0), false),
        ] {
            let architecture = Architecture::of(device.0, device.1).unwrap();
            assert_eq!(runs(made_for, architecture), expected, "sm_{made_for} on {device:?}");
        }
    }

    #[test]
    fn the_ptx_beside_a_known_cubin_is_executed_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
        let (hopper, ampere) = (header(7, 0x005a_055a), header(7, 0x0050_0550));
        write("a-sm_90.cubin", &hopper);
        write("a-sm_80.cubin", &ampere);
        write("a-compute_80.ptx", b"ptx of a");
        write("empty-sm_90.cubin", b"");
        let device = Architecture::of(9, 0).unwrap();
        let of = |image: &[u8]| ptx_of(|cubin| image.starts_with(cubin), Some(folder.path()), device);
        assert_eq!(of(&hopper), Ok(b"ptx of a".to_vec()));
        // Of another device, and of nobody knows what.
        assert_eq!(of(&ampere), Err(Code::NO_BINARY_FOR_GPU));
        assert_eq!(of(&header(7, 0x005a_055b)), Err(Code::NO_BINARY_FOR_GPU));
        assert_eq!(ptx_of(|_| true, None, device), Err(Code::NO_BINARY_FOR_GPU));
    }
}
