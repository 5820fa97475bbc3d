//! Nodes out of a file.

use std::path::Path;

use anyhow::{Context, bail};
use gqla_api::GPUClass;
use serde_json::Value;

use super::{Args, Sources};
use crate::manifest;

/// More than 10,000 nodes with all their images.
const LARGEST: u64 = 1 << 30;

pub(super) fn read(path: &Path, args: &Args) -> anyhow::Result<Sources> {
    if args.selector.is_some() {
        bail!(
            "--selector needs a cluster, whose server knows its rules; print all nodes of the file with -o json and select \
             by jq. A file with some of the nodes is judged as if there were no others"
        );
    }
    let mut sources = sort(manifest::read(path, LARGEST)?)
        .with_context(|| format!("`{}` is not what `kubectl get nodes -o json` prints", path.display()))?;
    if !args.resource_slices {
        sources.slices.clear();
    }
    Ok(sources)
}

/// Puts objects where they belong.
///
/// # Errors
/// When one of them tells nothing of a fleet, or none is a Node.
pub fn sort(objects: Vec<Value>) -> anyhow::Result<Sources> {
    let mut sources = Sources::default();
    for (index, item) in objects.into_iter().enumerate() {
        let Some(kind) = manifest::kind(&item).map(str::to_owned) else { bail!("item {index} has no kind") };
        let malformed = || format!("item {index} is not a {kind}");
        match kind.as_str() {
            "Node" => sources.nodes.push(serde_json::from_value(item).with_context(malformed)?),
            "GPUClass" => {
                sources.classes.push(serde_json::from_value::<GPUClass>(item).with_context(malformed)?)
            }
            "ResourceSlice" => sources.slices.push(serde_json::from_value(item).with_context(malformed)?),
            "Pod" => {
                sources
                    .pods
                    .get_or_insert_default()
                    .push(serde_json::from_value(item).with_context(malformed)?);
            }
            other => bail!("item {index} is a {other}, expected Node, GPUClass, Pod or ResourceSlice"),
        }
    }
    if sources.nodes.is_empty() {
        bail!("it holds no Node");
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sorted(object: &Value) -> anyhow::Result<Sources> {
        sort(manifest::parse(&object.to_string()).unwrap())
    }

    #[test]
    fn a_list_is_sorted_by_kind_and_anything_else_is_named() {
        let node = json!({"kind": "Node", "metadata": {"name": "a"}});
        let list = json!({"kind": "List", "items": [node, {"kind": "Pod", "metadata": {}}]});
        let sources = sorted(&list).unwrap();
        assert_eq!((sources.nodes.len(), sources.pods.map(|pods| pods.len())), (1, Some(1)));
        assert_eq!(sorted(&node).unwrap().nodes.len(), 1);
        // The items of a NodeList carry no kind of their own.
        let typed = json!({"kind": "NodeList", "items": [{"metadata": {}}]});
        assert_eq!(sorted(&typed).unwrap().nodes.len(), 1);
        let wrong = [
            (json!({"kind": "List", "items": [{"kind": "Service"}]}), "item 0 is a Service, expected Node"),
            (json!({"kind": "List", "items": []}), "holds no Node"),
            (json!({"kind": "List", "items": [{"kind": "Node", "metadata": 3}]}), "item 0 is not a Node"),
            (json!({"items": [node]}), "item 0 has no kind"),
        ];
        for (object, words) in wrong {
            let error = sorted(&object).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
