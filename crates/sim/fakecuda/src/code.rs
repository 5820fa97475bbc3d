//! CUDA's error codes.

use std::ffi::{CStr, c_int};

/// A refusal: any `CUresult` but success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(pub c_int);

macro_rules! codes {
    ($($constant:ident = $number:literal, $name:literal;)+) => {
        impl Code {
            $(pub const $constant: Self = Self($number);)+

            /// The code's name, as `cuGetErrorName` gives it.
            pub fn name(number: c_int) -> Option<&'static CStr> {
                match number {
                    0 => Some(c"CUDA_SUCCESS"),
                    $($number => Some($name),)+
                    _ => None,
                }
            }
        }
    };
}

codes! {
    INVALID_VALUE = 1, c"CUDA_ERROR_INVALID_VALUE";
    OUT_OF_MEMORY = 2, c"CUDA_ERROR_OUT_OF_MEMORY";
    NOT_INITIALIZED = 3, c"CUDA_ERROR_NOT_INITIALIZED";
    NO_DEVICE = 100, c"CUDA_ERROR_NO_DEVICE";
    INVALID_DEVICE = 101, c"CUDA_ERROR_INVALID_DEVICE";
    INVALID_IMAGE = 200, c"CUDA_ERROR_INVALID_IMAGE";
    INVALID_CONTEXT = 201, c"CUDA_ERROR_INVALID_CONTEXT";
    NO_BINARY_FOR_GPU = 209, c"CUDA_ERROR_NO_BINARY_FOR_GPU";
    INVALID_PTX = 218, c"CUDA_ERROR_INVALID_PTX";
    UNSUPPORTED_PTX_VERSION = 222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
    INVALID_HANDLE = 400, c"CUDA_ERROR_INVALID_HANDLE";
    NOT_FOUND = 500, c"CUDA_ERROR_NOT_FOUND";
    NOT_READY = 600, c"CUDA_ERROR_NOT_READY";
    ILLEGAL_ADDRESS = 700, c"CUDA_ERROR_ILLEGAL_ADDRESS";
    LAUNCH_OUT_OF_RESOURCES = 701, c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
    LAUNCH_TIMEOUT = 702, c"CUDA_ERROR_LAUNCH_TIMEOUT";
    MISALIGNED_ADDRESS = 716, c"CUDA_ERROR_MISALIGNED_ADDRESS";
    LAUNCH_FAILED = 719, c"CUDA_ERROR_LAUNCH_FAILED";
    NOT_SUPPORTED = 801, c"CUDA_ERROR_NOT_SUPPORTED";
}
