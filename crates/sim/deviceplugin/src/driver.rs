//! The driver's files on a node, laid out as NVIDIA's driver container does: a root folder with
//! `usr/lib/x86_64-linux-gnu` in it.

use std::path::{Path, PathBuf};

use crate::api::Mount;

/// Where libraries are, in the driver's root and in a pod.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where a stand-in that was mounted alone looks for its state.
const STATE: &str = "/run/gqla-fakenvml";

/// A driver's root folder.
#[derive(Clone, Debug)]
pub struct Driver {
    libraries: PathBuf,
}

impl Driver {
    /// The driver in `root`, which need not be there yet.
    pub fn new(root: &Path) -> Self {
        Self { libraries: root.join(LIBRARIES) }
    }

    /// NVML.
    pub fn nvml(&self) -> PathBuf {
        self.libraries.join("libnvidia-ml.so.1")
    }

    /// What a pod with a GPU gets: every library as a file of its own, because the image's own are in the same
    /// folder, and the whole folder once more for the stand-ins' state, because a file mounted alone would not
    /// follow when it is replaced. Read-only, and sorted so that equal folders give equal answers.
    ///
    /// # Errors
    /// What the system says when the folder can't be read.
    pub fn mounts(&self) -> std::io::Result<Vec<Mount>> {
        let mut names = vec![];
        for entry in std::fs::read_dir(&self.libraries)? {
            let name = entry?.file_name();
            names.extend(name.to_str().filter(|name| is_library(name)).map(str::to_owned));
        }
        names.sort();
        let file = |name: String| mount(format!("/{LIBRARIES}/{name}"), &self.libraries.join(name));
        let state = mount(STATE.to_owned(), &self.libraries);
        Ok(names.into_iter().map(file).chain([state]).collect())
    }
}

/// `libcuda.so`, `libcuda.so.1`, `libcuda.so.575.57.08`.
fn is_library(name: &str) -> bool {
    name.starts_with("lib") && (name.ends_with(".so") || name.contains(".so."))
}

fn mount(container_path: String, host_path: &Path) -> Mount {
    Mount { container_path, host_path: host_path.display().to_string(), read_only: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_every_library_and_the_state_but_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(LIBRARIES);
        std::fs::create_dir_all(&folder).unwrap();
        for name in
            ["libnvidia-ml.so.1", "libcuda.so.575.57.08", "libcuda.so", "gqla-fakenvml.json", "notes.so.txt"]
        {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let mounts = Driver::new(root.path()).mounts().unwrap();
        let paths: Vec<_> = mounts.iter().map(|mount| mount.container_path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/usr/lib/x86_64-linux-gnu/libcuda.so",
                "/usr/lib/x86_64-linux-gnu/libcuda.so.575.57.08",
                "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
                "/run/gqla-fakenvml",
            ]
        );
        assert!(mounts.iter().all(|mount| mount.read_only));
        assert_eq!(mounts[2].host_path, folder.join("libnvidia-ml.so.1").display().to_string());
        assert_eq!(mounts[3].host_path, folder.display().to_string());
    }

    #[test]
    fn a_driver_that_is_gone_is_an_error() {
        assert!(Driver::new(Path::new("/nonexistent")).mounts().is_err());
    }
}
