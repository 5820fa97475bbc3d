//! `cargo xtask gen`: writes what is derived from the API types, and tells whether the committed copies still agree.
//!
//! The chart carries its own copy of each definition, because Helm cannot read outside the chart.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::shell::repo_root;

const FOLDERS: [&str; 2] = ["crds", "charts/gqla-operator/crds-files"];

/// Write generated files: the CRDs and the chart's copy of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only compare, and fail where a committed file differs
    #[arg(long)]
    check: bool,
}

/// Writes or compares.
pub fn run(args: &Args) -> Result<()> {
    if args.check { check() } else { write() }
}

fn write() -> Result<()> {
    let root = repo_root()?;
    for path in stale(&root)? {
        fs::remove_file(root.join(&path)).with_context(|| format!("cannot remove {}", path.display()))?;
        println!("removed {}", path.display());
    }
    for (path, text) in generated()? {
        let target = root.join(&path);
        fs::create_dir_all(target.parent().unwrap_or(&root))?;
        fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// Fails naming every committed file that differs from what [`write()`] would leave.
pub fn check() -> Result<()> {
    let root = repo_root()?;
    let differs = |(path, text): &(&PathBuf, &String)| {
        fs::read_to_string(root.join(path)).map_or(true, |committed| committed != **text)
    };
    let generated = generated()?;
    let different = generated.iter().filter(differs).map(|(path, _)| path.clone());
    let wrong: Vec<String> = different.chain(stale(&root)?).map(|path| path.display().to_string()).collect();
    if !wrong.is_empty() {
        bail!(
            "not what the API types say: {}; run `cargo xtask gen` and commit the result",
            wrong.join(", ")
        );
    }
    Ok(())
}

/// Every generated file, by its path in the repository.
fn generated() -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for crd in gqla_api::crds() {
        let (name, text) = gqla_api::render(&crd)?;
        files.extend(FOLDERS.map(|folder| (Path::new(folder).join(&name), text.clone())));
    }
    Ok(files)
}

/// Files in the generated folders that nothing generates any more.
fn stale(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let generated = generated()?;
    let mut stale = BTreeSet::new();
    for folder in FOLDERS.map(Path::new) {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries {
            let path = folder.join(entry?.file_name());
            if !generated.contains_key(&path) {
                stale.insert(path);
            }
        }
    }
    Ok(stale)
}
