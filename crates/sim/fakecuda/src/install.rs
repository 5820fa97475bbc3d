//! Puts the library where a program looks for CUDA's.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Name under which programs look for the driver.
pub const LIBRARY_NAME: &str = "libcuda.so.1";
/// Name under which programs look for CUDA 12's cuBLASLt.
const CUBLASLT_NAME: &str = "libcublasLt.so.12";
/// Name under which cargo builds the stand-in. Were it `libcuda.so`, programs that cargo starts would find it unasked.
const BUILT_NAME: &str = "libgqla_fakecuda.so";

/// Why the stand-in cannot be put in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It was not built.
    #[error("no {BUILT_NAME} beside `{}` or in its parent; build it with `cargo build -p gqla-fakecuda`", beside.display())]
    NotBuilt {
        /// The program that looked.
        beside: PathBuf,
    },
    /// The file system refuses.
    #[error("cannot put the stand-in at `{}`: {source}", path.display())]
    Io {
        /// Where it should go.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The library that cargo built along with the running program.
///
/// # Errors
/// When there is none.
pub fn built_library() -> Result<PathBuf, InstallError> {
    let program =
        std::env::current_exe().map_err(|source| InstallError::Io { path: BUILT_NAME.into(), source })?;
    let folders = program.ancestors().skip(1).take(2).map(|folder| folder.join(BUILT_NAME));
    folders.into_iter().find(|path| path.exists()).ok_or(InstallError::NotBuilt { beside: program })
}

/// Copies the library into `folder` as [`LIBRARY_NAME`] and returns the copy's path. A program that has the folder in
/// `LD_LIBRARY_PATH` from its start finds it.
///
/// # Errors
/// When the library was not built or the folder cannot be written.
pub fn install(folder: &Path) -> Result<PathBuf, InstallError> {
    let path = folder.join(LIBRARY_NAME);
    std::fs::copy(built_library()?, &path)
        .map_err(|source| InstallError::Io { path: path.clone(), source })?;
    Ok(path)
}

/// Lets programs find the library that [`install`] put into `folder` as cuBLASLt, too. By a link: two copies would be two
/// libraries, neither of which sees the other's memory.
///
/// # Errors
/// When the folder cannot be written.
pub fn install_cublaslt(folder: &Path) -> Result<(), InstallError> {
    let path = folder.join(CUBLASLT_NAME);
    std::os::unix::fs::symlink(LIBRARY_NAME, &path).map_err(|source| InstallError::Io { path, source })
}
