//! GPUs of real nodes. A node without one gets stand-ins for NVML and CUDA where NVIDIA's driver container puts
//! the real ones, and a device plugin; the kubelet, the pods and everything in them meet the real interfaces. What
//! the stand-ins show is a file, and changing it is how cards fail.

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

/// The first driver that reads the PTX of the last NVRTC of CUDA 12, which is what the stand-in for CUDA executes.
const DRIVER: &str = "575.57.08";
/// Its CUDA as NVML counts: 12.9.
const CUDA: i32 = 12_090;
/// Name under which programs look for CUDA's driver.
const CUDA_LIBRARY: &str = "libcuda.so.1";

/// What stands in for GPUs: build the packages gqla-fakenvml, gqla-fakecuda and gqla-deviceplugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandIns {
    /// `libgqla_fakenvml.so`.
    pub nvml: PathBuf,
    /// `libgqla_fakecuda.so`.
    pub cuda: PathBuf,
    /// `gqla-deviceplugin`.
    pub device_plugin: PathBuf,
}

impl StandIns {
    /// The same files by paths that are good in every folder.
    pub(crate) fn find(&self) -> Result<Self, ClusterError> {
        let find = |path: &Path| path.canonicalize().map_err(io("find the stand-in", path));
        Ok(Self {
            nvml: find(&self.nvml)?,
            cuda: find(&self.cuda)?,
            device_plugin: find(&self.device_plugin)?,
        })
    }
}

/// The GPUs a node is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GpuSpec {
    /// One profile for each, by index.
    pub(crate) profiles: Vec<String>,
    pub(crate) driver_missing: bool,
}

/// NVML inside a node.
pub(crate) fn library_inside() -> PathBuf {
    Path::new(DRIVER_ROOT).join(LIBRARIES).join(LIBRARY_NAME)
}

/// A node's GPUs and their driver, to be looked at and broken; see
/// [`Cluster::gpus`](super::Cluster::gpus). GPUs count from 0. A change is seen by the next call of NVML in
/// every process of the node, by the kubelet a few seconds later, and by programs that use CUDA when they start.
#[derive(Debug, Clone)]
pub struct NodeGpus {
    folder: PathBuf,
    /// Where the driver's libraries come from, by name.
    libraries: [(&'static str, PathBuf); 2],
}

impl NodeGpus {
    /// Writes the driver folder `root` of a node.
    pub(crate) fn create(
        node: &str,
        root: &Path,
        spec: &GpuSpec,
        stand_ins: &StandIns,
    ) -> Result<Self, ClusterError> {
        let folder = root.join(LIBRARIES);
        std::fs::create_dir_all(&folder).map_err(io("create the folder", &folder))?;
        let libraries = [(CUDA_LIBRARY, stand_ins.cuda.clone()), (LIBRARY_NAME, stand_ins.nvml.clone())];
        let gpus = Self { folder, libraries };
        let card =
            |(index, profile): (usize, &String)| Gpu { uuid: Some(uuid(node, index)), ..Gpu::new(profile) };
        let cards = spec.profiles.iter().enumerate().map(card).collect();
        let failure = spec.driver_missing.then_some(Failure::DriverNotLoaded);
        let state = State {
            driver_version: DRIVER.to_owned(),
            nvml_version: format!("12.{DRIVER}"),
            cuda_version: CUDA,
            gpus: cards,
            failure,
            ..State::default()
        };
        state.write(&gpus.state_file())?;
        if !spec.driver_missing {
            gpus.copy_libraries()?;
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

    /// Takes the driver from the node: the libraries are gone, and NVML refuses those who have it open.
    ///
    /// # Errors
    /// As [`NodeGpus::change`], and [`ClusterError::Io`] when a library can't be removed.
    pub fn remove_driver(&self) -> Result<(), ClusterError> {
        self.fail(Some(Failure::DriverNotLoaded))?;
        self.libraries.iter().try_for_each(|(name, _)| {
            let library = self.folder.join(name);
            std::fs::remove_file(&library).map_err(io("remove", &library))
        })
    }

    /// Gives the node a driver that answers, as an installer does while pods are running.
    ///
    /// # Errors
    /// As [`NodeGpus::change`], and [`ClusterError::Io`] when a library can't be copied.
    pub fn install_driver(&self) -> Result<(), ClusterError> {
        self.fail(None)?;
        self.copy_libraries()
    }

    /// By way of another name: a file may be mapped into processes, which die when it is overwritten. NVML comes last,
    /// since whoever finds it takes the driver for complete.
    fn copy_libraries(&self) -> Result<(), ClusterError> {
        self.libraries.iter().try_for_each(|(name, from)| {
            let (library, next) = (self.folder.join(name), self.folder.join("next"));
            std::fs::copy(from, &next).map_err(io("copy the stand-in to", &next))?;
            std::fs::rename(&next, &library).map_err(io("write", &library))
        })
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
        let built = |name: &str| {
            let library = folder.path().join(name);
            std::fs::write(&library, format!("{name} as built")).unwrap();
            library
        };
        let stand_ins = StandIns {
            nvml: built("nvml"),
            cuda: built("cuda"),
            device_plugin: folder.path().join("plugin"),
        };
        let spec = GpuSpec { profiles: vec!["H20".to_owned(), "H100".to_owned()], driver_missing };
        let gpus = NodeGpus::create("a", &folder.path().join("driver"), &spec, &stand_ins).unwrap();
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
        let libraries = [("libnvidia-ml.so.1", "nvml as built"), ("libcuda.so.1", "cuda as built")]
            .map(|(name, built)| (folder.path().join("driver/usr/lib/x86_64-linux-gnu").join(name), built));
        assert!(libraries.iter().all(|(library, _)| !library.exists()));
        gpus.install_driver().unwrap();
        for (library, built) in &libraries {
            assert_eq!(std::fs::read_to_string(library).unwrap(), *built);
        }
        assert_eq!(gpus.state().unwrap().failure, None);
        gpus.remove_driver().unwrap();
        assert!(libraries.iter().all(|(library, _)| !library.exists()));
        assert_eq!(gpus.state().unwrap().failure, Some(Failure::DriverNotLoaded));
    }
}
