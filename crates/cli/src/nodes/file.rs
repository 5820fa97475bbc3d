//! Nodes out of a file.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, bail};
use gqla_api::GPUClass;
use serde_json::Value;

use super::{Args, Sources};

/// More than 10,000 nodes with all their images.
const LARGEST: u64 = 1 << 30;

pub(super) fn read(path: &Path, args: &Args) -> anyhow::Result<Sources> {
    if args.selector.is_some() {
        bail!(
            "--selector needs a cluster, whose server knows its rules; print all nodes of the file with -o json and select \
             by jq. A file with some of the nodes is judged as if there were no others"
        );
    }
    let shown = || format!("cannot read `{}`", path.display());
    let mut text = String::new();
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(shown)?)
    };
    source.take(LARGEST).read_to_string(&mut text).with_context(shown)?;
    let object: Value = serde_json::from_str(&text).with_context(|| {
        format!("`{}` is not the JSON that `kubectl get nodes -o json` prints", path.display())
    })?;
    let mut sources = sort(object).with_context(shown)?;
    if !args.resource_slices {
        sources.slices.clear();
    }
    Ok(sources)
}

/// Puts the objects of a List, or a single one, where they belong.
fn sort(object: Value) -> anyhow::Result<Sources> {
    let mut sources = Sources::default();
    let items = match object {
        Value::Object(mut list) if list.get("kind").and_then(Value::as_str).is_some_and(is_list) => {
            match list.remove("items") {
                Some(Value::Array(items)) => items,
                _ => bail!("it is a List without items"),
            }
        }
        object => vec![object],
    };
    for (index, item) in items.into_iter().enumerate() {
        let kind = item.get("kind").and_then(Value::as_str).unwrap_or("Node").to_owned();
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

fn is_list(kind: &str) -> bool {
    kind.ends_with("List")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_sorted_by_kind_and_anything_else_is_named() {
        let node = json!({"kind": "Node", "metadata": {"name": "a"}});
        let list = json!({"kind": "List", "items": [node, {"kind": "Pod", "metadata": {}}]});
        let sources = sort(list).unwrap();
        assert_eq!((sources.nodes.len(), sources.pods.map(|pods| pods.len())), (1, Some(1)));
        assert_eq!(sort(node).unwrap().nodes.len(), 1);
        // The items of a NodeList carry no kind of their own.
        assert_eq!(sort(json!({"kind": "NodeList", "items": [{"metadata": {}}]})).unwrap().nodes.len(), 1);
        let wrong = [
            (json!({"kind": "List", "items": [{"kind": "Service"}]}), "item 0 is a Service, expected Node"),
            (json!({"kind": "List"}), "without items"),
            (json!({"kind": "List", "items": []}), "holds no Node"),
            (json!({"kind": "List", "items": [{"kind": "Node", "metadata": 3}]}), "item 0 is not a Node"),
        ];
        for (object, words) in wrong {
            let error = sort(object).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
