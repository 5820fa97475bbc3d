//! Looks for what a cluster left behind, in the kernel's own lists: processes, mounts, namespaces, cgroups,
//! and its folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What belongs to a running cluster, noted while it ran.
pub struct Remains {
    state: PathBuf,
    cgroup: String,
    namespaces: BTreeSet<PathBuf>,
}

impl Remains {
    /// Notes everything of the running cluster whose folder is `state`.
    pub fn of(state: &Path) -> Self {
        let supervisor = fs::read_to_string(state.join("supervisor.pid")).unwrap();
        let own = namespaces(Path::new("/proc/self"));
        let inside = processes().into_iter().filter(|process| mentions(&process.join("cmdline"), state));
        let namespaces: BTreeSet<_> = inside
            .flat_map(|process| namespaces(&process))
            .filter(|namespace| !own.contains(namespace))
            .collect();
        let remains =
            Self { state: state.to_path_buf(), cgroup: format!("gqla-{}", supervisor.trim()), namespaces };
        let found = remains.found();
        for kind in ["process", "mount", "namespace", "cgroup", "folder"] {
            assert!(
                found.iter().any(|line| line.starts_with(kind)),
                "a running cluster has no {kind}, so the look for it is blind: {found:#?}"
            );
        }
        remains
    }

    /// Fails when something is still there after the few seconds that a kernel may take.
    pub fn assert_gone(&self) {
        let started = Instant::now();
        while !self.found().is_empty() && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.found(), Vec::<String>::new());
    }

    fn found(&self) -> Vec<String> {
        let mut found = vec![];
        for process in processes() {
            let name = process.display();
            if mentions(&process.join("cmdline"), &self.state) {
                found.push(format!("process {name}"));
            }
            if mentions(&process.join("mountinfo"), &self.state) {
                found.push(format!("mount seen by {name}"));
            }
            found.extend(
                namespaces(&process)
                    .intersection(&self.namespaces)
                    .map(|namespace| format!("namespace {} of {name}", namespace.display())),
            );
        }
        found.extend(
            cgroups(Path::new("/sys/fs/cgroup"), 2)
                .into_iter()
                .filter(|path| path.ends_with(&self.cgroup))
                .map(|path| format!("cgroup {}", path.display())),
        );
        if self.state.exists() {
            found.push(format!("folder {}", self.state.display()));
        }
        found
    }
}

fn processes() -> Vec<PathBuf> {
    let is_process = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(is_process)
        .collect()
}

/// The PID, mount and network namespaces of a process, by their numbers; none of a process that has ended.
fn namespaces(process: &Path) -> BTreeSet<PathBuf> {
    ["pid", "mnt", "net"]
        .iter()
        .filter_map(|kind| fs::read_link(process.join("ns").join(kind)).ok())
        .collect()
}

fn mentions(file: &Path, state: &Path) -> bool {
    let text = fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&text).contains(&*state.to_string_lossy())
}

fn cgroups(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let below = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below
        .flat_map(|entry| {
            if depth > 1 {
                [vec![entry.path()], cgroups(&entry.path(), depth - 1)].concat()
            } else {
                vec![entry.path()]
            }
        })
        .collect()
}
