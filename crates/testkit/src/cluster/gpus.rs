//! GPUs of real nodes. A node without one gets a stand-in for NVML where NVIDIA's driver container puts the
//! real one, and a device plugin; the kubelet, the pods and everything in them meet the real interfaces. What
//! the stand-in shows is a file, and changing it is how cards fail.

use std::path::{Path, PathBuf};

use gqla_fakenvml::state::STATE_FILE;
use gqla_fakenvml::{Failure, Gpu, LIBRARY_NAME, State};
use sha2::{Digest, Sha256};

use super::error::{ClusterError, io};

/// Where every node has its driver.
pub(crate) const DRIVER_ROOT: &str = "/run/nvidia/driver";
/// The folder of libraries in it.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// The XID of a card that has fallen off the bus.
const OFF_THE_BUS: u64 = 79;

/// What stands in for GPUs: build the packages gqla-fakenvml and gqla-deviceplugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandIns {
    /// `libgqla_fakenvml.so`.
    pub nvml: PathBuf,
    /// `gqla-deviceplugin`.
    pub device_plugin: PathBuf,
}

impl StandIns {
    /// The same files by paths that are good in every folder.
    pub(crate) fn find(&self) -> Result<Self, ClusterError> {
        let find = |path: &Path| path.canonicalize().map_err(io("find the stand-in", path));
        Ok(Self { nvml: find(&self.nvml)?, device_plugin: find(&self.device_plugin)? })
    }
}

/// The GPUs a node is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GpuSpec {
    /// One profile for each, by index.
    pub(crate) profiles: Vec<String>,
    pub(crate) driver_missing: bool,
}

/// The library inside a node.
pub(crate) fn library_inside() -> PathBuf {
    Path::new(DRIVER_ROOT).join(LIBRARIES).join(LIBRARY_NAME)
}

/// A node's GPUs and their driver, to be looked at and broken; see
/// [`Cluster::gpus`](super::Cluster::gpus). GPUs count from 0. A change is seen by the next call of NVML in
/// every process of the node, and by the kubelet a few seconds later.
#[derive(Debug, Clone)]
pub struct NodeGpus {
    folder: PathBuf,
    nvml: PathBuf,
}

impl NodeGpus {
    /// Writes the driver folder `root` of a node.
    pub(crate) fn create(node: &str, root: &Path, spec: &GpuSpec, nvml: &Path) -> Result<Self, ClusterError> {
        let folder = root.join(LIBRARIES);
        std::fs::create_dir_all(&folder).map_err(io("create the folder", &folder))?;
        let gpus = Self { folder, nvml: nvml.to_path_buf() };
        let card =
            |(index, profile): (usize, &String)| Gpu { uuid: Some(uuid(node, index)), ..Gpu::new(profile) };
        let cards = spec.profiles.iter().enumerate().map(card).collect();
        let failure = spec.driver_missing.then_some(Failure::DriverNotLoaded);
        State { gpus: cards, failure, ..State::default() }.write(&gpus.state_file())?;
        if !spec.driver_missing {
            gpus.copy_library()?;
        }
        Ok(gpus)
    }

    /// What NVML shows now.
    ///
    /// # Errors
    /// [`ClusterError::Gpus`] when the state can't be read.
    pub fn state(&self) -> Result<State, ClusterError> {
        Ok(State::read(&self.state_file())?)
    }

    /// Changes what NVML shows, in one step. Not for two callers at once.
    ///
    /// # Errors
    /// [`ClusterError::Gpus`] when the state can't be read or written.
    pub fn change(&self, change: impl FnOnce(&mut State)) -> Result<(), ClusterError> {
        let mut state = self.state()?;
        change(&mut state);
        Ok(state.write(&self.state_file())?)
    }

    /// A GPU falls off the bus, which raises XID 79.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] when there is no such GPU, else as [`NodeGpus::change`].
    pub fn pull(&self, index: usize) -> Result<(), ClusterError> {
        self.change_gpu(index, |gpu| {
            gpu.lost = true;
            gpu.xids.push(OFF_THE_BUS);
        })
    }

    /// A GPU is back on the bus.
    ///
    /// # Errors
    /// As [`NodeGpus::pull`].
    pub fn restore(&self, index: usize) -> Result<(), ClusterError> {
        self.change_gpu(index, |gpu| gpu.lost = false)
    }

    /// A GPU raises an XID.
    ///
    /// # Errors
    /// As [`NodeGpus::pull`].
    pub fn raise_xid(&self, index: usize, xid: u64) -> Result<(), ClusterError> {
        self.change_gpu(index, |gpu| gpu.xids.push(xid))
    }

    /// Every call of NVML takes this long from now on; 0 ends it.
    ///
    /// # Errors
    /// As [`NodeGpus::change`].
    pub fn hang(&self, seconds: f64) -> Result<(), ClusterError> {
        self.change(|state| state.hang_seconds = seconds)
    }

    /// Every call of NVML is refused from now on; `None` ends it.
    ///
    /// # Errors
    /// As [`NodeGpus::change`].
    pub fn fail(&self, failure: Option<Failure>) -> Result<(), ClusterError> {
        self.change(|state| state.failure = failure)
    }

    /// Takes the driver from the node: the library is gone, and refuses those who have it open.
    ///
    /// # Errors
    /// As [`NodeGpus::change`], and [`ClusterError::Io`] when the library can't be removed.
    pub fn remove_driver(&self) -> Result<(), ClusterError> {
        self.fail(Some(Failure::DriverNotLoaded))?;
        let library = self.folder.join(LIBRARY_NAME);
        std::fs::remove_file(&library).map_err(io("remove", &library))
    }

    /// Gives the node a driver that answers, as an installer does while pods are running.
    ///
    /// # Errors
    /// As [`NodeGpus::change`], and [`ClusterError::Io`] when the library can't be copied.
    pub fn install_driver(&self) -> Result<(), ClusterError> {
        self.fail(None)?;
        self.copy_library()
    }

    /// By way of another name: the file may be mapped into processes, which die when it is overwritten.
    fn copy_library(&self) -> Result<(), ClusterError> {
        let (library, next) = (self.folder.join(LIBRARY_NAME), self.folder.join("next"));
        std::fs::copy(&self.nvml, &next).map_err(io("copy the stand-in to", &next))?;
        std::fs::rename(&next, &library).map_err(io("write", &library))
    }

    fn change_gpu(&self, index: usize, change: impl FnOnce(&mut Gpu)) -> Result<(), ClusterError> {
        let mut state = self.state()?;
        let Some(gpu) = state.gpus.get_mut(index) else {
            return Err(ClusterError::Invalid {
                what: "GPU",
                value: index.to_string(),
                problem: "is none of the node's, which count from 0",
            });
        };
        change(gpu);
        Ok(state.write(&self.state_file())?)
    }

    fn state_file(&self) -> PathBuf {
        self.folder.join(STATE_FILE)
    }
}

/// A UUID of its own for every card of a cluster, and the same one in every run.
fn uuid(node: &str, index: usize) -> String {
    let hash = Sha256::digest(format!("{node}/{index}"));
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("GPU-{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(driver_missing: bool) -> (tempfile::TempDir, NodeGpus) {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("built.so");
        std::fs::write(&library, "a library").unwrap();
        let spec = GpuSpec { profiles: vec!["H20".to_owned(), "H100".to_owned()], driver_missing };
        let gpus = NodeGpus::create("a", &folder.path().join("driver"), &spec, &library).unwrap();
        (folder, gpus)
    }

    #[test]
    fn cards_fail_and_come_back_one_by_one() {
        let (_folder, gpus) = node(false);
        gpus.pull(1).unwrap();
        gpus.raise_xid(0, 31).unwrap();
        gpus.hang(2.5).unwrap();
        let state = gpus.state().unwrap();
        assert_eq!(state.gpus.iter().map(|gpu| gpu.profile.as_str()).collect::<Vec<_>>(), ["H20", "H100"]);
        assert_eq!((state.gpus[0].lost, state.gpus[1].lost), (false, true));
        assert_eq!((&state.gpus[0].xids, &state.gpus[1].xids), (&vec![31], &vec![79]));
        assert!((state.hang_seconds - 2.5).abs() < f64::EPSILON);
        gpus.restore(1).unwrap();
        assert!(!gpus.state().unwrap().gpus[1].lost);
        let refusal = gpus.pull(2).unwrap_err().to_string();
        assert!(refusal.contains("GPU \"2\" is none of the node's"), "{refusal}");
    }

    #[test]
    fn every_card_has_a_uuid_of_its_own() {
        let uuids: std::collections::BTreeSet<_> =
            [("a", 0), ("a", 1), ("b", 0)].map(|(node, index)| uuid(node, index)).into();
        assert_eq!(uuids.len(), 3);
        assert!(uuids.iter().all(|uuid| uuid.len() == "GPU-fef8089b-4820-abfc-e83e-94318197576e".len()));
    }

    #[test]
    fn a_driver_goes_and_comes() {
        let (folder, gpus) = node(true);
        let library = folder.path().join("driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1");
        assert!(!library.exists());
        gpus.install_driver().unwrap();
        assert_eq!(std::fs::read_to_string(&library).unwrap(), "a library");
        assert_eq!(gpus.state().unwrap().failure, None);
        gpus.remove_driver().unwrap();
        assert!(!library.exists());
        assert_eq!(gpus.state().unwrap().failure, Some(Failure::DriverNotLoaded));
    }
}
