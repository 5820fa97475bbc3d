//! GQLADeployments and a fleet out of files.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use gqla_api::{GPUClass, GQLADeployment};
use gqla_decide::FleetSnapshot;
use gqla_fleet::{FleetNode, NodeSlice, classes, slice_facts};
use gqla_model::ModelShape;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::Args;
use crate::{
    calibration, gpu_classes, manifest, model,
    nodes::{Sources, agents, sort},
    schema,
};

/// Most bytes a file may have: some thousand nodes with all their images.
const LARGEST: u64 = 100_000_000;

/// Everything a decision is made of.
pub(super) struct Input {
    pub objects: Vec<Object>,
    pub fleet: FleetSnapshot,
    /// What an inspect Job would find.
    pub shape: Option<ModelShape>,
    /// A sentence for each GPUClass that cannot be used.
    pub refused_classes: Vec<String>,
}

/// A GQLADeployment as a file has it.
pub(super) struct Object {
    pub name: String,
    pub namespace: String,
    /// A sentence where it is none.
    pub deployment: Result<GQLADeployment, String>,
}

impl Input {
    pub(super) fn read(args: &Args) -> anyhow::Result<Self> {
        let shape = args.model.as_deref().map(model::resolve).transpose()?;
        let calibration = calibration::read(args.calibration.as_deref())?;
        let (objects, mut declared) = deployments(manifest::read(&args.file, LARGEST)?)
            .with_context(|| format!("nothing to explain in `{}`", args.file.display()))?;
        if let Some(file) = &args.classes {
            declared.extend(gpu_classes::read(file)?);
        }
        let mut sources = sort(manifest::read(&args.nodes, LARGEST)?).with_context(|| {
            format!("`{}` is not what `kubectl get nodes -o json` prints", args.nodes.display())
        })?;
        if !args.resource_slices {
            sources.slices.clear();
        }
        sources.classes.extend(declared);
        let (fleet, refused_classes) = fleet(sources, Timestamp::now());
        let fleet = fleet.calibrated(Arc::new(calibration));
        Ok(Self { objects, fleet, shape, refused_classes })
    }
}

/// The GQLADeployments and GPUClasses among `objects`.
pub(super) fn deployments(objects: Vec<Value>) -> anyhow::Result<(Vec<Object>, Vec<GPUClass>)> {
    let kinds: Vec<String> =
        objects.iter().map(|object| manifest::kind(object).unwrap_or("no kind").to_owned()).collect();
    let (mut found, mut declared) = (Vec::new(), Vec::new());
    for (object, kind) in objects.into_iter().zip(&kinds) {
        match kind.as_str() {
            "GQLADeployment" => found.push(Object::of(object)),
            "GPUClass" => declared.push(gpu_classes::of(object)?),
            _ => {}
        }
    }
    ensure!(!found.is_empty(), "expected a GQLADeployment, got {}", kinds.join(", "));
    Ok((found, declared))
}

impl Object {
    /// Completed with what kubectl and the API server would set.
    fn of(mut object: Value) -> Self {
        let name = text(&object, "name").unwrap_or_default();
        let namespace = text(&object, "namespace").unwrap_or_else(|| "default".to_owned());
        let deployment = if name.is_empty() {
            Err("metadata.name is missing".to_owned())
        } else {
            object["metadata"]["namespace"] = namespace.clone().into();
            object["metadata"]["uid"] = text(&object, "uid").unwrap_or_default().into();
            typed(object)
        };
        Self { name, namespace, deployment }
    }
}

fn typed(object: Value) -> Result<GQLADeployment, String> {
    let (expected, version) = ("gqla.dev/v1alpha1", object["apiVersion"].as_str().unwrap_or("none"));
    if version != expected {
        return Err(format!("apiVersion is {version}, expected {expected}"));
    }
    let violations = schema::violations("GQLADeployment", &object);
    if !violations.is_empty() {
        return Err(violations.join("; "));
    }
    serde_json::from_value(object).map_err(|error| error.to_string())
}

/// A field of the metadata.
fn text(object: &Value, field: &str) -> Option<String> {
    object.get("metadata")?.get(field)?.as_str().map(str::to_owned)
}

/// The fleet that the operator would see, and a sentence for each GPUClass it would not use.
pub(super) fn fleet(sources: Sources, now: Timestamp) -> (FleetSnapshot, Vec<String>) {
    let agents = sources.pods.as_deref().map(|pods| agents(pods, now));
    let classes = classes(&sources.classes);
    let slices: Vec<_> = sources.slices.iter().filter_map(NodeSlice::of).collect();
    // The operator's index orders nodes by name, once each.
    let mut nodes: Vec<_> = sources.nodes.into_iter().map(|node| Arc::new(FleetNode::new(node))).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes.dedup_by(|a, b| a.name == b.name);
    let fleet = FleetSnapshot::new(nodes, &classes, &slice_facts(slices.iter()), agents.as_ref());
    (fleet, classes.refused)
}
