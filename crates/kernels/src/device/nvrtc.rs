//! NVRTC: from a text to PTX or to a device's own machine code, in memory.

use std::ffi::{CString, c_char};

use cudarc::nvrtc::{
    result::{self, NvrtcError},
    sys,
};

use super::Program;

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
    let text = CString::new(program.text()).map_err(|_| "the kernels' text has a NUL".to_owned())?;
    let failed = |error: NvrtcError| error.to_string();
    let handle = Handle(result::create_program(&text, None).map_err(failed)?);
    // SAFETY: the handle is alive, as in all calls below.
    let compiled = unsafe { result::compile_program(handle.0, &options) };
    compiled.map_err(|error| format!("{error}: {}", log(&handle)))?;
    image(&handle, target).map_err(failed)
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
