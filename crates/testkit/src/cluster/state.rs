//! The folders that clusters keep their files in, and the remains of clusters whose supervisor was killed.

use std::fs;
use std::path::Path;

use super::cgroup;
use super::error::{ClusterError, io};
use super::layout::Layout;
use super::supervisor::is_alive;
use crate::tools::cache_folder;

const FOLDER: &str = "clusters";

/// Makes a cluster's folder: the one asked for, which is kept at the end, or a fresh one in the cache folder,
/// which is not.
pub(crate) fn create(asked: Option<&Path>) -> Result<Layout, ClusterError> {
    let folder = match asked {
        Some(folder) => empty_folder(folder)?,
        None => fresh_folder()?,
    };
    let layout = Layout::new(folder);
    fs::create_dir(layout.logs()).map_err(io("create the folder", &layout.logs()))?;
    if asked.is_some() {
        fs::write(layout.keep_mark(), "").map_err(io("write", &layout.keep_mark()))?;
    }
    Ok(layout)
}

fn empty_folder(folder: &Path) -> Result<std::path::PathBuf, ClusterError> {
    fs::create_dir_all(folder).map_err(io("create the folder", folder))?;
    let folder = folder.canonicalize().map_err(io("find the folder", folder))?;
    let mut entries = fs::read_dir(&folder).map_err(io("read the folder", &folder))?;
    if entries.next().is_some() {
        let value = folder.display().to_string();
        return Err(ClusterError::Invalid {
            what: "state folder",
            value,
            problem: "is not empty: name an empty or a new folder",
        });
    }
    Ok(folder)
}

fn fresh_folder() -> Result<std::path::PathBuf, ClusterError> {
    let parent = cache_folder()?.join(FOLDER);
    fs::create_dir_all(&parent).map_err(io("create the folder", &parent))?;
    let folder = tempfile::Builder::new()
        .prefix("c")
        .tempdir_in(&parent)
        .map_err(io("create a folder in", &parent))?;
    Ok(folder.keep())
}

/// Removes what clusters left whose supervisor is gone.
pub(crate) fn sweep() {
    cgroup::sweep(Path::new(cgroup::MOUNT), is_alive);
    let Ok(clusters) = cache_folder().map(|folder| folder.join(FOLDER)) else { return };
    for folder in
        fs::read_dir(clusters).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
    {
        // A folder without the file belongs to a cluster that is about to start its supervisor.
        let supervisor =
            fs::read_to_string(folder.join("supervisor.pid")).ok().and_then(|text| text.trim().parse().ok());
        if supervisor.is_some_and(|pid| !is_alive(pid)) {
            // What can't be removed is left for the next time.
            let _ = fs::remove_dir_all(folder);
        }
    }
}
