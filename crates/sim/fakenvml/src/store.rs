//! The state of this library: the machine it read last, who initialised it, and who waits for events.

use std::{
    collections::HashMap,
    ffi::{CStr, OsStr, c_void},
    fs::Metadata,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use crate::state::{STATE_ENV, STATE_FILE, STATE_PATH, State};

/// One registration of an event set, and what of it was already told.
pub(crate) struct Registration {
    pub gpu: usize,
    pub types: u64,
    pub xids: usize,
    pub double_bit_errors: u64,
    pub lost: bool,
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Library {
    pub initialised: u32,
    pub sets: HashMap<usize, Vec<Registration>>,
    pub next_set: usize,
    path: PathBuf,
    stamp: Option<Stamp>,
    machine: Option<Arc<State>>,
}

/// What tells one version of a file from the next; a rename always changes the inode.
#[derive(PartialEq)]
struct Stamp(u64, u64, i64, i64);

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self(file.ino(), file.size(), file.mtime(), file.mtime_nsec())
    }
}

pub(crate) fn library() -> MutexGuard<'static, Library> {
    static LIBRARY: LazyLock<Mutex<Library>> =
        LazyLock::new(|| Mutex::new(Library { path: state_path(), ..Library::default() }));
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Library {
    /// The machine as the file has it now; as it was when the file cannot be read; `None` when it never could.
    pub fn machine(&mut self) -> Option<Arc<State>> {
        let stamp = std::fs::metadata(&self.path).ok().as_ref().map(Stamp::of);
        if stamp != self.stamp {
            match State::read(&self.path) {
                Ok(state) => self.machine = Some(Arc::new(state)),
                Err(error) => eprintln!("gqla-fakenvml: {error}"),
            }
            self.stamp = stamp;
        }
        self.machine.clone()
    }
}

/// Where the state file is, for the library that this code is in: see [`crate::state`].
pub fn state_path() -> PathBuf {
    if let Some(path) = std::env::var_os(STATE_ENV) {
        return path.into();
    }
    let beside = own_path().map(|library| library.with_file_name(STATE_FILE));
    beside.filter(|path| path.exists()).unwrap_or_else(|| STATE_PATH.into())
}

/// Where this library was loaded from.
fn own_path() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let inside: *const c_void = (own_path as fn() -> Option<PathBuf>) as *const c_void;
    // SAFETY: dladdr only looks `inside` up among the loaded objects, and writes `info`, which is ours.
    let found = unsafe { libc::dladdr(inside, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr answered, so the name is a C string that lives as long as this object stays loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}
