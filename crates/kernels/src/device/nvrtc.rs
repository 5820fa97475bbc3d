//! NVRTC: from a text to PTX or to a device's own machine code, in memory.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_char},
};

use cudarc::nvrtc::{
    result::{self, NvrtcError},
    sys,
};

use super::{Program, Resources};

/// What NVRTC makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// PTX for `compute_XY`, which the driver compiles.
    Ptx(u32, u32),
    /// Machine code for `sm_XY`.
    Cubin(u32, u32),
}

/// The loader's handle of a program; destroyed with it.
struct Handle(sys::nvrtcProgram);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `create_program` and destroyed once. There is nothing to do about a failure.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles a program; the error is NVRTC's log or why there is no NVRTC.
pub(super) fn compile(program: &Program, target: Target) -> Result<Vec<u8>, String> {
    let handle = compiled(program, target, None)?;
    image(&handle, target).map_err(|error| error.to_string())
}

/// What each kernel of a program takes on `sm_XY`, by the assembler's own account.
pub(super) fn resources(
    program: &Program,
    (major, minor): (u32, u32),
) -> Result<BTreeMap<String, Resources>, String> {
    let handle = compiled(program, Target::Cubin(major, minor), Some("--ptxas-options=-v"))?;
    Ok(resources_in(&log(&handle)))
}

/// Reads lines such as `Function properties for KERNEL`, then `8 bytes stack frame, 0 bytes spill stores, …`, then
/// `Used 198 registers, used 1 barriers, 32 bytes smem`.
fn resources_in(log: &str) -> BTreeMap<String, Resources> {
    let mut kernels = BTreeMap::new();
    let (mut kernel, mut local_bytes) = (None, None);
    for line in log.lines() {
        let before = |what: &str| -> Option<u32> {
            line[..line.find(what)?].split_whitespace().next_back()?.parse().ok()
        };
        if let Some((_, name)) = line.split_once("Function properties for ") {
            kernel = Some(name.trim().to_owned());
        } else if let Some(bytes) = before(" bytes stack frame") {
            local_bytes = Some(bytes);
        } else if let (Some(registers), Some(local_bytes)) = (before(" registers"), local_bytes) {
            let shared_bytes = before(" bytes smem").unwrap_or(0);
            let resources = Resources { registers, local_bytes, shared_bytes };
            kernels.extend(kernel.take().map(|kernel| (kernel, resources)));
        }
    }
    kernels
}

fn compiled(program: &Program, target: Target, option: Option<&str>) -> Result<Handle, String> {
    // SAFETY: it only tries to open the library, whose initialisers its vendor vouches for.
    if !unsafe { sys::is_culib_present() } {
        return Err("libnvrtc.so.12 is not on this machine".to_owned());
    }
    let architecture = match target {
        Target::Ptx(major, minor) => format!("--gpu-architecture=compute_{major}{minor}"),
        Target::Cubin(major, minor) => format!("--gpu-architecture=sm_{major}{minor}"),
    };
    let mut options = program.options();
    options.push(architecture);
    options.extend(option.map(str::to_owned));
    let text = CString::new(program.text()).map_err(|_| "the kernels' text has a NUL".to_owned())?;
    let failed = |error: NvrtcError| error.to_string();
    let handle = Handle(result::create_program(&text, None).map_err(failed)?);
    // SAFETY: the handle is alive, as in all calls below.
    let compiled = unsafe { result::compile_program(handle.0, &options) };
    compiled.map_err(|error| format!("{error}: {}", log(&handle)))?;
    Ok(handle)
}

fn image(handle: &Handle, target: Target) -> Result<Vec<u8>, NvrtcError> {
    if matches!(target, Target::Ptx(..)) {
        // SAFETY: the program was compiled.
        return Ok(bytes(unsafe { result::get_ptx(handle.0) }?));
    }
    let mut size = 0usize;
    // SAFETY: the program was compiled, and `size` is ours.
    unsafe { sys::nvrtcGetCUBINSize(handle.0, &raw mut size) }.result()?;
    let mut image: Vec<c_char> = vec![0; size];
    // SAFETY: NVRTC writes as many bytes as it said.
    unsafe { sys::nvrtcGetCUBIN(handle.0, image.as_mut_ptr()) }.result()?;
    Ok(bytes(image))
}

fn bytes(text: Vec<c_char>) -> Vec<u8> {
    text.into_iter().map(|byte| byte.cast_unsigned()).collect()
}

fn log(handle: &Handle) -> String {
    // SAFETY: the program exists, compiled or not.
    let log = unsafe { result::get_program_log(handle.0) };
    log.map_or_else(
        |error| error.to_string(),
        |log| String::from_utf8_lossy(&bytes(log)).trim_end_matches('\0').to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assembler_tells_registers_and_local_memory() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'append' for 'sm_90'\n\
                   ptxas info    : Function properties for append\n\
                   ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                   ptxas info    : Used 22 registers, used 0 barriers\n\
                   ptxas info    : Compile time = 136.320 ms\n\
                   ptxas info    : Function properties for rms_norm_f32\n\
                   ptxas         .     16 bytes stack frame, 12 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 255 registers, used 1 barriers, 32 bytes smem\n";
        let expected = [("append", [22, 0, 0]), ("rms_norm_f32", [255, 16, 32])];
        let expected = expected.map(|(kernel, [registers, local_bytes, shared_bytes])| {
            (kernel.to_owned(), Resources { registers, local_bytes, shared_bytes })
        });
        assert_eq!(resources_in(log), BTreeMap::from(expected));
        assert!(resources_in("nvrtc says nothing of the kind").is_empty());
    }
}
