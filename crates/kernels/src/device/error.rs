//! What can go wrong with a device.

use std::path::PathBuf;

use cudarc::driver::DriverError;

use super::NoKernel;

/// Why a device cannot do what was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// There is no driver.
    #[error(
        "libcuda.so.1 is not on this machine, expected the NVIDIA driver's: run on a GPU node whose container runtime \
         mounts the driver, or use the CPU"
    )]
    NoDriver,
    /// There is no such device.
    #[error("CUDA device {ordinal} cannot be opened: {reason}; see `nvidia-smi` on the node")]
    NoDevice {
        /// Its number.
        ordinal: usize,
        /// What the driver says.
        reason: String,
    },
    /// The driver refused or a kernel failed. Errors of kernels stay: the process must end.
    #[error("{doing} failed: {reason}")]
    Driver {
        /// What was being done.
        doing: String,
        /// What the driver says.
        reason: String,
    },
    /// Memory is short.
    #[error("{what} take {bytes} bytes of device memory, {free} of {total} are free: {advice}")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much.
        bytes: usize,
        /// What is left.
        free: usize,
        /// What the device has.
        total: usize,
        /// What to do.
        advice: &'static str,
    },
    /// An image cannot be made.
    #[error("cannot make the image `{}`: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// NVRTC's log, or what the system says.
        reason: String,
    },
    /// No image of a program loads.
    #[error(
        "no image of the kernels `{program}` loads on {device}; put NVRTC 12 where libraries are found, or make images with \
         `gqla kernels build --model MODEL --out FOLDER` and pass --kernel-images FOLDER: {}",
        refusals.join("; ")
    )]
    NoImage {
        /// The program.
        program: String,
        /// Name and compute capability.
        device: String,
        /// One reason for each step.
        refusals: Vec<String>,
    },
    /// The device computes something else than the reference.
    #[error(
        "`{kernel}` on {device} is off by {error:.1e} from the float64 reference, expected at most {bound:.0e}: the model is \
         not served; use the CPU and report this with `nvidia-smi -q`"
    )]
    SelfTest {
        /// The kernel.
        kernel: String,
        /// The device's name.
        device: String,
        /// Relative root mean square error.
        error: f64,
        /// What would pass.
        bound: f64,
    },
    /// cuBLASLt was asked for, and is not there.
    #[error(
        "`libcublasLt.so.12` (or `libcublasLt.so`) is neither in LD_LIBRARY_PATH ({}) nor where the system keeps libraries: \
         install CUDA 12's cuBLAS (PyPI: nvidia-cublas-cu12, its folder nvidia/cublas/lib) and name its folder in \
         LD_LIBRARY_PATH, or multiply prompts with `--prompt-gemm own`",
        if searched.is_empty() { "not set" } else { searched }
    )]
    NoCublasLt {
        /// `LD_LIBRARY_PATH`.
        searched: String,
    },
    /// cuBLASLt refused.
    #[error("cuBLASLt, {doing}: {status}; multiply prompts with `--prompt-gemm own`")]
    CublasLt {
        /// What was being done.
        doing: &'static str,
        /// The library's own name of what is wrong.
        status: String,
    },
    /// No kernel fits.
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    /// Arguments do not fit together: a mistake of the caller.
    #[error("{kernel}: {reason}")]
    Arguments {
        /// The kernel.
        kernel: &'static str,
        /// What does not fit.
        reason: String,
    },
}

impl DeviceError {
    pub(super) fn driver(doing: impl Into<String>) -> impl FnOnce(DriverError) -> Self {
        let doing = doing.into();
        move |error| Self::Driver { doing, reason: reason_of(error) }
    }

    pub(super) fn arguments(kernel: &'static str, reason: impl Into<String>) -> Self {
        Self::Arguments { kernel, reason: reason.into() }
    }
}

/// The driver's own name and text for an error.
pub(super) fn reason_of(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    let (name, meaning) = (text(error.error_name()), text(error.error_string()));
    if name == meaning {
        format!("{name} ({})", error.0 as u32)
    } else {
        format!("{name} ({}): {meaning}", error.0 as u32)
    }
}
