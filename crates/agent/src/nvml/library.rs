//! Where libnvidia-ml is, and what it means when it cannot be used.

use std::path::PathBuf;

use gqla_api::inventory::DriverState;
use nvml_wrapper::{Nvml, error::NvmlError};

use crate::facts::Refusal;

/// Name of the library.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// Folders of a driver root that distributions put it in.
const FOLDERS: [&str; 4] = ["usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib64"];

/// Where to look for the library.
#[derive(Clone, Debug)]
pub struct Search {
    /// Ask the loader first, which knows what a container runtime injected.
    pub loader: bool,
    /// Root of a driver installation, such as the GPU operator's driver container.
    pub driver_root: PathBuf,
}

impl Search {
    /// Loads the library and connects to the driver.
    pub(super) fn open(&self) -> Result<Nvml, Refusal> {
        if self.loader {
            match Nvml::init() {
                Err(NvmlError::LibloadingError(_)) => {}
                answered => return answered.map_err(|error| refusal("NVML", &error)),
            }
        }
        let places = FOLDERS.map(|folder| self.driver_root.join(folder).join(LIBRARY));
        match places.iter().find(|place| place.exists()) {
            Some(place) => {
                Nvml::builder().lib_path(place.as_os_str()).init().map_err(|error| refusal("NVML", &error))
            }
            None => Err(Refusal {
                state: DriverState::Missing,
                message: format!(
                    "no {LIBRARY}: neither the loader nor {} has one; install the NVIDIA driver, run the agent with the \
                     NVIDIA container runtime, or name the driver's root",
                    self.driver_root.display()
                ),
            }),
        }
    }
}

/// What an error of `what` makes of the driver. The same error says the same at opening and later: a node is written when
/// its sentence changes.
pub(super) fn refusal(what: &str, error: &NvmlError) -> Refusal {
    let (state, advice) = match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            (DriverState::Missing, "reinstall the NVIDIA driver")
        }
        NvmlError::DriverNotLoaded => (DriverState::Missing, "load the nvidia kernel module"),
        NvmlError::NoPermission | NvmlError::OperatingSystem => (
            DriverState::NoPermission,
            "give the agent the NVIDIA container runtime, which injects the devices",
        ),
        NvmlError::LibRmVersionMismatch => (
            DriverState::Failing,
            "the driver was upgraded under a running kernel module; reload the module or restart the node",
        ),
        _ => (DriverState::Failing, "see the node's kernel log for lines of NVRM"),
    };
    Refusal { state, message: format!("{what}: {error}; {advice}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_states_and_sentences() {
        let cases = [
            (NvmlError::DriverNotLoaded, DriverState::Missing, "load the nvidia kernel module"),
            (NvmlError::NoPermission, DriverState::NoPermission, "container runtime"),
            (NvmlError::OperatingSystem, DriverState::NoPermission, "container runtime"),
            (NvmlError::LibRmVersionMismatch, DriverState::Failing, "restart the node"),
            (NvmlError::Unknown, DriverState::Failing, "NVRM"),
        ];
        for (error, state, words) in cases {
            let refusal = refusal("NVML", &error);
            assert_eq!(refusal.state, state, "{error}");
            assert!(refusal.message.starts_with("NVML: ") && refusal.message.contains(words), "{refusal:?}");
        }
    }

    #[test]
    fn a_missing_library_names_where_it_was_looked_for() {
        let search = Search { loader: false, driver_root: "/nowhere".into() };
        let refusal = search.open().unwrap_err();
        assert_eq!(refusal.state, DriverState::Missing);
        assert!(refusal.message.contains("/nowhere"), "{}", refusal.message);
    }
}
