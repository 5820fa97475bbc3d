//! What the stand-in for libcuda counted: a file that gets a line of JSON per launch.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Deserialize;

/// One launch; the stand-in writes more.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Launch {
    pub kernel: String,
    pub grid: [u64; 3],
    pub counters: Counters,
    /// By address.
    buffers: BTreeMap<String, Traffic>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Counters {
    pub warp_instructions: u64,
    pub mma: u64,
    pub ldmatrix: u64,
    pub barriers: u64,
    pub global_loads: Requests,
    pub global_stores: Requests,
    pub shared_bytes_read: u64,
    pub shared_bytes_written: u64,
    shared: Wavefronts,
    ldmatrix_shared: Wavefronts,
    cp_async_shared: Wavefronts,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Requests {
    pub bytes: u64,
    pub sectors: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Wavefronts {
    actual: u64,
    ideal: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Traffic {
    read: u64,
}

impl Launch {
    /// Bytes read of the buffers at these addresses.
    pub(super) fn bytes_read(&self, addresses: &[u64]) -> u64 {
        let of = |address: &u64| self.buffers.get(&address.to_string()).map_or(0, |buffer| buffer.read);
        addresses.iter().map(of).sum()
    }
}

impl Counters {
    /// Passes through the banks of shared memory that conflicts made necessary.
    pub(super) fn shared_conflicts(&self) -> u64 {
        [&self.shared, &self.ldmatrix_shared, &self.cp_async_shared]
            .map(|wavefronts| wavefronts.actual - wavefronts.ideal)
            .iter()
            .sum()
    }
}

/// The file, read up to some place.
pub(super) struct LaunchLog {
    file: Option<PathBuf>,
    read: u64,
}

impl LaunchLog {
    /// What is in the file already is of no interest.
    pub(super) fn new(file: Option<&Path>) -> Self {
        let read = file.and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        Self { file: file.map(Path::to_owned), read }
    }

    /// Launches since the last call; none where nobody counts.
    pub(super) fn take(&mut self) -> anyhow::Result<Vec<Launch>> {
        let Some(path) = &self.file else { return Ok(Vec::new()) };
        let mut text = String::new();
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_string(&mut text)
        });
        match read {
            Ok(bytes) => self.read += bytes as u64,
            // A driver that counts nothing writes nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
        let launches = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        launches.with_context(|| format!("{} has a line that is no launch", path.display()))
    }
}
