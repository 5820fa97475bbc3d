//! A folder of built programs. Each lives in a subfolder named after everything that went into it, and
//! appears there by one rename, so that a name that exists is whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::ToolsError;

/// The folder.
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where `program` of the build `key` is, or will be.
    pub(super) fn path(&self, key: &str, program: &str) -> PathBuf {
        self.root.join(key).join(program)
    }

    /// Returns `program` of the build `key`; when it is not there, has `build` make it in a fresh folder
    /// first. Another process that builds the same key is waited for.
    pub(super) fn get_or_build(
        &self,
        key: &str,
        program: &str,
        build: impl FnOnce(&Path) -> Result<(), ToolsError>,
    ) -> Result<PathBuf, ToolsError> {
        let wanted = self.path(key, program);
        if wanted.is_file() {
            return Ok(wanted);
        }
        fs::create_dir_all(&self.root).map_err(io("create the folder", &self.root))?;
        let lock_path = self.root.join(format!("{key}.lock"));
        let lock = File::create(&lock_path).map_err(io("create the lock", &lock_path))?;
        lock.lock().map_err(io("lock", &lock_path))?;
        if wanted.is_file() {
            return Ok(wanted);
        }
        let unfinished = self.root.join(format!("{key}.unfinished"));
        remove(&unfinished)?;
        fs::create_dir_all(&unfinished).map_err(io("create the folder", &unfinished))?;
        build(&unfinished)?;
        let finished = self.root.join(key);
        remove(&finished)?;
        fs::rename(&unfinished, &finished).map_err(io("rename the built folder", &unfinished))?;
        Ok(wanted)
    }
}

fn remove(folder: &Path) -> Result<(), ToolsError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("remove the old folder", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Turns an I/O error into a sentence.
pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ToolsError {
    let path = path.to_path_buf();
    move |source| ToolsError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_once_and_never_shows_a_half_built_folder() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("tools"));
        let failed = cache.get_or_build("thing-v1", "thing", |into| {
            fs::write(into.join("thing"), "half").unwrap();
            Err(ToolsError::NoCacheFolder)
        });
        assert!(failed.is_err());
        assert!(!cache.path("thing-v1", "thing").exists());

        let build = |into: &Path| {
            assert!(!into.join("thing").exists(), "what an interrupted build left is gone");
            fs::write(into.join("thing"), "whole").map_err(io("write", into))
        };
        let built = cache.get_or_build("thing-v1", "thing", build).unwrap();
        assert_eq!(fs::read_to_string(&built).unwrap(), "whole");
        let again = cache.get_or_build("thing-v1", "thing", |_| panic!("built twice")).unwrap();
        assert_eq!(again, built);
    }

    #[test]
    fn two_at_once_build_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_path_buf());
        let builds = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    cache
                        .get_or_build("thing-v1", "thing", |into| {
                            builds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            std::thread::sleep(std::time::Duration::from_millis(50));
                            fs::write(into.join("thing"), "").map_err(io("write", into))
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }
}
