//! GPUClasses out of files, and the catalogue they extend and override.

use std::path::Path;

use anyhow::{Context as _, ensure};
use gqla_api::GPUClass;
use gqla_fleet::{Classes, classes};
use serde_json::Value;

use crate::{manifest, schema};

/// Most bytes a file may have: some thousand classes.
const LARGEST: u64 = 10_000_000;

/// A GPUClass that the API server would take.
pub fn of(object: Value) -> anyhow::Result<GPUClass> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let violations = schema::violations("GPUClass", &object);
    ensure!(violations.is_empty(), "the API server refuses GPUClass {name}: {}", violations.join("; "));
    serde_json::from_value(object).with_context(|| format!("GPUClass {name} is malformed"))
}

/// The GPUClasses in a file that holds nothing else.
pub fn read(file: &Path) -> anyhow::Result<Vec<GPUClass>> {
    let one = |object: Value| {
        let kind = manifest::kind(&object).unwrap_or("an object without kind");
        ensure!(kind == "GPUClass", "`{}`: expected GPUClasses, got {kind}", file.display());
        of(object).with_context(|| format!("`{}`", file.display()))
    };
    manifest::read(file, LARGEST)?.into_iter().map(one).collect()
}

/// The built-in catalogue, extended and overridden by the file's GPUClasses if there is one. A class that cannot be used is a
/// warning, as it is for the operator.
pub fn catalogue(file: Option<&Path>) -> anyhow::Result<Classes> {
    let declared = file.map(read).transpose()?.unwrap_or_default();
    let classes = classes(&declared);
    for sentence in &classes.refused {
        eprintln!("warning: {sentence}");
    }
    Ok(classes)
}
