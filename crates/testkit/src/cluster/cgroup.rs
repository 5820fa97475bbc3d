//! The cgroups that kubelets put their pods in: `gqla-PID/NODE` in every version-1 hierarchy, or once in
//! version 2, where PID is the supervisor's. They are the one thing that a kernel does not take back when the
//! processes are gone, so those of supervisors that are no more are swept when a cluster starts.
//!
//! Version 1 is what this was run on. Version 2 follows the kernel's documentation and has not been tried.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{ClusterError, io};

/// Where cgroups are mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "gqla-";

/// How the machine's cgroups are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// One tree for each controller or group of controllers.
    V1 {
        /// The root of each tree.
        trees: Vec<PathBuf>,
    },
    /// A single tree.
    V2 {
        /// Its root.
        tree: PathBuf,
    },
}

/// The name of the cgroup of the supervisor with this PID.
pub(crate) fn name(supervisor: u32) -> String {
    format!("{PREFIX}{supervisor}")
}

impl Hierarchy {
    /// Looks at `mount`; `None` when no controller is there.
    pub fn detect(mount: &Path) -> Option<Self> {
        if mount.join("cgroup.controllers").is_file() {
            return Some(Self::V2 { tree: mount.to_path_buf() });
        }
        // Symbolic links are second names of joint trees, and `unified` has no controllers where version 1
        // has them.
        let is_tree = |entry: &fs::DirEntry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir())
                && entry.file_name() != "unified"
                && entry.path().join("cgroup.procs").is_file()
        };
        let mut trees: Vec<_> = fs::read_dir(mount)
            .ok()?
            .filter_map(Result::ok)
            .filter(is_tree)
            .map(|entry| entry.path())
            .collect();
        trees.sort();
        (!trees.is_empty()).then_some(Self::V1 { trees })
    }

    fn trees(&self) -> &[PathBuf] {
        match self {
            Self::V1 { trees } => trees,
            Self::V2 { tree } => std::slice::from_ref(tree),
        }
    }

    /// Makes `group` and one cgroup for each of `nodes` below it.
    pub(crate) fn create<'a>(
        &self,
        group: &str,
        nodes: impl Iterator<Item = &'a str>,
    ) -> Result<(), ClusterError> {
        let nodes: Vec<_> = nodes.collect();
        for tree in self.trees() {
            let top = tree.join(group);
            self.prepare(tree, &top)?;
            for node in &nodes {
                self.prepare(&top, &top.join(node))?;
            }
        }
        Ok(())
    }

    /// Makes `child` and gives it what its parent has.
    fn prepare(&self, parent: &Path, child: &Path) -> Result<(), ClusterError> {
        match self {
            Self::V1 { .. } => {
                fs::create_dir_all(child).map_err(io("create the cgroup", child))?;
                // A new cpuset is empty, and nothing can run in it.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let (from, to) = (parent.join(file), child.join(file));
                    if from.exists() {
                        fs::read(&from).and_then(|value| fs::write(&to, value)).map_err(io("set", &to))?;
                    }
                }
            }
            Self::V2 { .. } => {
                let available = fs::read_to_string(parent.join("cgroup.controllers"))
                    .map_err(io("read the controllers of", parent))?;
                let control = parent.join("cgroup.subtree_control");
                for controller in available.split_whitespace() {
                    fs::write(&control, format!("+{controller}"))
                        .map_err(io("enable controllers in", &control))?;
                }
                fs::create_dir_all(child).map_err(io("create the cgroup", child))?;
            }
        }
        Ok(())
    }
}

/// Removes the cgroups below `mount` of supervisors that are not `alive`, in every tree: runc also makes them in
/// `unified`. What can't be removed is left for the next time.
pub(crate) fn sweep(mount: &Path, alive: impl Fn(u32) -> bool) {
    let trees = std::iter::once(mount.to_path_buf()).chain(folders(mount));
    for group in trees.flat_map(|tree| folders(&tree)) {
        let name = group.file_name().and_then(|name| name.to_str());
        let supervisor = name.and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        if supervisor.is_some_and(|pid| !alive(pid)) {
            remove_tree(&group);
        }
    }
}

/// The folders in `folder`, symbolic links not among them.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup and those below it. Its files are the kernel's and need no removal.
fn remove_tree(group: &Path) {
    folders(group).iter().for_each(|below| remove_tree(below));
    // Fails while a process is in it, which then is not ours to end.
    let _ = fs::remove_dir(group);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: &Path, name: &str) -> PathBuf {
        let path = root.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cgroup.procs"), "").unwrap();
        path
    }

    #[test]
    fn version_1_has_a_tree_for_each_controller_and_cpusets_are_copied_down() {
        let mount = tempfile::tempdir().unwrap();
        let cpuset = tree(mount.path(), "cpuset");
        let memory = tree(mount.path(), "memory");
        tree(mount.path(), "unified");
        fs::write(cpuset.join("cpuset.cpus"), "0-1").unwrap();
        fs::write(cpuset.join("cpuset.mems"), "0").unwrap();
        let hierarchy = Hierarchy::detect(mount.path()).unwrap();
        assert_eq!(hierarchy, Hierarchy::V1 { trees: vec![cpuset.clone(), memory.clone()] });

        hierarchy.create("gqla-7", ["a", "b"].into_iter()).unwrap();
        assert_eq!(fs::read_to_string(cpuset.join("gqla-7/b/cpuset.cpus")).unwrap(), "0-1");
        assert!(memory.join("gqla-7/a").is_dir());
    }

    #[test]
    fn version_2_has_one_tree_whose_controllers_are_enabled() {
        let mount = tempfile::tempdir().unwrap();
        for folder in ["", "gqla-7"] {
            fs::create_dir_all(mount.path().join(folder)).unwrap();
            fs::write(mount.path().join(folder).join("cgroup.controllers"), "memory").unwrap();
        }
        let hierarchy = Hierarchy::detect(mount.path()).unwrap();
        hierarchy.create("gqla-7", ["a"].into_iter()).unwrap();
        assert_eq!(fs::read_to_string(mount.path().join("cgroup.subtree_control")).unwrap(), "+memory");
        assert!(mount.path().join("gqla-7/a").is_dir());
    }

    #[test]
    fn nothing_mounted_is_no_hierarchy() {
        assert_eq!(Hierarchy::detect(tempfile::tempdir().unwrap().path()), None);
        assert_eq!(Hierarchy::detect(Path::new("/nonexistent")), None);
    }

    #[test]
    fn only_cgroups_of_dead_supervisors_are_swept() {
        let mount = tempfile::tempdir().unwrap();
        let memory = tree(mount.path(), "memory");
        let unified = tree(mount.path(), "unified/gqla-1");
        fs::remove_file(unified.join("cgroup.procs")).unwrap();
        for group in ["gqla-1/a/pod", "gqla-2/a", "gqla-x", "user"] {
            fs::create_dir_all(memory.join(group)).unwrap();
        }
        sweep(mount.path(), |pid| pid == 2);
        assert!(!unified.exists());
        let left: Vec<_> = ["gqla-1", "gqla-2", "gqla-x", "user"]
            .into_iter()
            .filter(|group| memory.join(group).exists())
            .collect();
        assert_eq!(left, ["gqla-2", "gqla-x", "user"]);
    }
}
