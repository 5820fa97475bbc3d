//! OCI image archives written without a container engine: one layer of named files, as `ctr images import`
//! and every registry tool read them. The bytes depend on nothing but the content, so that the same binaries
//! give the same digest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The user and group that images run as unless told otherwise; the number that distroless images call
/// `nonroot`.
pub const NONROOT: &str = "65532:65532";

/// Why an image could not be written.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A file could not be read or written.
    #[error("image {image}: cannot {action} {path}: {source}")]
    Io {
        /// The image's name.
        image: String,
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `ldd` names a library that the machine does not have.
    #[error(
        "image {image}: {binary} needs the shared library {library}, which is not on this machine: install the package that brings it"
    )]
    MissingLibrary {
        /// The image's name.
        image: String,
        /// The program.
        binary: PathBuf,
        /// The library's name.
        library: String,
    },
    /// A place in the image that is not absolute.
    #[error(
        "image {image}: {path} is not an absolute path without `..`: name the file's place from the image's root"
    )]
    BadTarget {
        /// The image's name.
        image: String,
        /// The place asked for.
        path: PathBuf,
    },
}

/// An image to be written: `Image::new("localhost/server:dev").file(binary, "/usr/bin/server",
/// 0o755).with_libraries_of(binary)?.entrypoint(["/usr/bin/server"])`.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    files: BTreeMap<PathBuf, Source>,
    entrypoint: Vec<String>,
    user: String,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    mode: u32,
}

impl Image {
    /// An image with nothing but a /tmp that anyone may write to. `name` is complete, with registry and tag,
    /// as a pod names it: `localhost/pause:1`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            files: BTreeMap::new(),
            entrypoint: vec![],
            user: NONROOT.to_owned(),
            labels: BTreeMap::new(),
        }
    }

    /// The image that keeps a pod's namespaces open: busybox asleep.
    pub fn pause(busybox: &Path) -> Result<Self, ImageError> {
        Ok(Self::new(PAUSE).file(busybox, "/busybox", 0o755).with_libraries_of(busybox)?.entrypoint([
            "/busybox",
            "sleep",
            "2147483647",
        ]))
    }

    /// The image's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds the file at `source` as `target`, an absolute path in the image, owned by root with permission
    /// bits `mode`.
    #[must_use]
    pub fn file(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>, mode: u32) -> Self {
        self.files.insert(target.into(), Source { path: source.into(), mode });
        self
    }

    /// Adds the dynamic loader and the shared libraries that `binary` loads at start, at the paths where the
    /// loader looks for them. A static binary adds nothing.
    ///
    /// # Errors
    /// [`ImageError::MissingLibrary`] when a library is not on this machine; [`ImageError::Io`] when `ldd`
    /// can't be run.
    pub fn with_libraries_of(mut self, binary: &Path) -> Result<Self, ImageError> {
        let io = |source| ImageError::Io {
            image: self.name.clone(),
            action: "list the libraries of",
            path: binary.to_path_buf(),
            source,
        };
        let listed =
            crate::tools::system_command("ldd").arg(binary).env("LC_ALL", "C").output().map_err(io)?;
        for dependency in libraries(&String::from_utf8_lossy(&listed.stdout)) {
            match dependency {
                Library::Found(path) => self = self.file(path.clone(), path, 0o755),
                Library::Missing(library) => {
                    return Err(ImageError::MissingLibrary {
                        image: self.name,
                        binary: binary.to_path_buf(),
                        library,
                    });
                }
            }
        }
        Ok(self)
    }

    /// The program that runs, with its first arguments.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Who runs it, as `uid:gid`; [`NONROOT`] unless set.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// A label of the image's configuration, such as `org.opencontainers.image.version`.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Writes the archive to `path`, over what is there.
    ///
    /// # Errors
    /// [`ImageError::BadTarget`] for a place that is not absolute, else [`ImageError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), ImageError> {
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| ImageError::Io { image: self.name.clone(), action, path, source }
        };
        let layer = self.layer()?;
        let config = self.config(&digest(&layer)).to_string().into_bytes();
        let manifest = manifest(&config, &layer).to_string().into_bytes();
        let index = index(&self.name, &manifest).to_string().into_bytes();
        let mut blobs = BTreeMap::from([
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice()),
            ("index.json".to_owned(), &index),
        ]);
        blobs.extend(
            [&layer, &config, &manifest]
                .map(|blob| (format!("blobs/{}", digest(blob).replacen(':', "/", 1)), blob.as_slice())),
        );

        let file = File::create(path).map_err(io("create", path))?;
        let mut archive = tar::Builder::new(BufWriter::new(file));
        for (name, blob) in blobs {
            append(&mut archive, Path::new(&name), tar::EntryType::Regular, 0o644, blob)
                .map_err(io("write", path))?;
        }
        archive.into_inner().and_then(|mut out| out.flush()).map_err(io("write", path))
    }

    /// The layer, an uncompressed tar.
    fn layer(&self) -> Result<Vec<u8>, ImageError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| ImageError::Io { image: self.name.clone(), action: "read", path, source }
        };
        let mut tar = tar::Builder::new(Vec::new());
        for folder in self.folders()? {
            let mode = if folder == Path::new("tmp") { 0o1777 } else { 0o755 };
            append(&mut tar, &folder, tar::EntryType::Directory, mode, &[]).map_err(io(&folder))?;
        }
        for (target, source) in &self.files {
            let content = fs::read(&source.path).map_err(io(&source.path))?;
            let relative = target.strip_prefix("/").unwrap_or(target);
            append(&mut tar, relative, tar::EntryType::Regular, source.mode, &content)
                .map_err(io(&source.path))?;
        }
        tar.into_inner().map_err(io(Path::new("the layer")))
    }

    /// Every folder that a file is in, parents first, and /tmp; relative to the root.
    fn folders(&self) -> Result<BTreeSet<PathBuf>, ImageError> {
        let mut folders = BTreeSet::from([PathBuf::from("tmp")]);
        for target in self.files.keys() {
            let plain =
                target.components().skip(1).all(|part| matches!(part, std::path::Component::Normal(_)));
            let Some(relative) = target.strip_prefix("/").ok().filter(|_| plain) else {
                return Err(ImageError::BadTarget { image: self.name.clone(), path: target.clone() });
            };
            folders.extend(
                relative
                    .ancestors()
                    .skip(1)
                    .filter(|folder| !folder.as_os_str().is_empty())
                    .map(Path::to_path_buf),
            );
        }
        Ok(folders)
    }

    fn config(&self, layer_digest: &str) -> Value {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "User": self.user,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        })
    }
}

/// The name of [`Image::pause`].
pub const PAUSE: &str = "localhost/pause:1";

/// What one line of `ldd` says.
#[derive(Debug, PartialEq, Eq)]
enum Library {
    Found(PathBuf),
    Missing(String),
}

/// Reads `ldd`: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`,
/// `libx.so => not found`. The vdso has no file and is skipped.
fn libraries(ldd: &str) -> Vec<Library> {
    let read = |line: &str| {
        let (name, place) = line.trim().split_once(" => ").unwrap_or(("", line.trim()));
        if place.starts_with("not found") {
            return Some(Library::Missing(name.to_owned()));
        }
        let path = place.rsplit_once(" (0x").map_or(place, |(path, _)| path);
        path.starts_with('/').then(|| Library::Found(path.into()))
    };
    ldd.lines().filter_map(read).collect()
}

/// The machine's architecture by the name that OCI uses.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(blob: &[u8]) -> String {
    let hex: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(blob), "size": blob.len()})
}

fn manifest(config: &[u8], layer: &[u8]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config),
        "layers": [descriptor("layer.v1.tar", layer)],
    })
}

fn index(name: &str, manifest: &[u8]) -> Value {
    let mut entry = descriptor("manifest.v1+json", manifest);
    entry["annotations"] = json!({"io.containerd.image.name": name});
    json!({"schemaVersion": 2, "manifests": [entry]})
}

/// Appends one entry that says nothing about this machine: root's, at time 0.
fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &Path,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content)
}

#[cfg(test)]
mod tests;
