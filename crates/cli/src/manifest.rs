//! Kubernetes objects out of files, as kubectl prints and takes them: JSON or YAML, one or several, in Lists or not.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// The objects in `path`, or in standard input where it is `-`, which may have `most` bytes.
///
/// # Errors
/// When there are more bytes, or they are not Kubernetes objects.
pub fn read(path: &Path, most: u64) -> anyhow::Result<Vec<Value>> {
    let shown = || format!("cannot read `{}`", path.display());
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(shown)?)
    };
    bounded(source, most).and_then(|text| parse(&text)).with_context(shown)
}

fn bounded(source: impl Read, most: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    source.take(most.saturating_add(1)).read_to_string(&mut text)?;
    ensure!(
        text.len() as u64 <= most,
        "it has more than {} MB; leave out what is not needed, such as managedFields and the images of nodes",
        most / 1_000_000
    );
    Ok(text)
}

/// The objects in `text`, those of Lists one by one.
///
/// # Errors
/// When it is neither JSON nor YAML, or holds something else than objects.
pub fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents = if text.trim_start().starts_with('{') { json(text)? } else { yaml(text)? };
    ensure!(!documents.is_empty(), "it is empty");
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Object(mut list) if list_kind(&list).is_some() => {
                let Some(Value::Array(items)) = list.remove("items") else {
                    bail!("it is a List without items")
                };
                let kind = list_kind(&list).unwrap_or_default().to_owned();
                objects.extend(items.into_iter().map(|item| of_kind(item, &kind)));
            }
            Value::Object(_) => objects.push(document),
            other => bail!("it holds {}, expected Kubernetes objects", name(&other)),
        }
    }
    Ok(objects)
}

fn json(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Result<_, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
    documents.context("it is not the JSON that `kubectl get -o json` prints")
}

/// The bound on bytes is the caller's; nesting and aliases are bounded by the parser's defaults.
fn yaml(text: &str) -> anyhow::Result<Vec<Value>> {
    // Two events to a byte, as in `{a,b}`, and those of the stream itself.
    let many = text.len().saturating_mul(2).saturating_add(1024);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: many, max_nodes: many, max_total_scalar_bytes: many },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options)
        .context("it is neither JSON nor YAML of Kubernetes objects")
}

/// The kind of a List's items; empty where each says its own.
fn list_kind(object: &serde_json::Map<String, Value>) -> Option<&str> {
    object.get("kind")?.as_str()?.strip_suffix("List")
}

/// Items of a typed List carry no kind of their own.
fn of_kind(mut item: Value, kind: &str) -> Value {
    if let Value::Object(fields) = &mut item
        && !kind.is_empty()
    {
        fields.entry("kind").or_insert_with(|| kind.into());
    }
    item
}

/// The kind of `object`, if it says one.
pub fn kind(object: &Value) -> Option<&str> {
    object.get("kind")?.as_str()
}

fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json_and_yaml_are_read_alike() {
        let (a, b) = (json!({"kind": "A", "n": 1}), json!({"kind": "B"}));
        let typed = json!({"kind": "AList", "items": [{"n": 1}]});
        for (text, expected) in [
            ("kind: A\nn: 1\n---\nkind: B\n".to_owned(), vec![a.clone(), b.clone()]),
            ("# nothing\n---\nkind: B\n---\n".to_owned(), vec![b.clone()]),
            (format!("{a}\n{b}"), vec![a.clone(), b.clone()]),
            (json!({"kind": "List", "items": [a, b]}).to_string(), vec![a.clone(), b]),
            (typed.to_string(), vec![a]),
        ] {
            let mut read = parse(&text).unwrap();
            read.iter_mut().for_each(|object| object.sort_all_objects());
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn what_holds_no_objects_is_told() {
        for (text, words) in [
            ("", "it is empty"),
            ("# only a comment", "it is empty"),
            ("{\"kind\": ", "not the JSON"),
            ("a: [", "neither JSON nor YAML"),
            ("just text", "it holds a text"),
            ("[1, 2]", "it holds an array"),
            ("{\"kind\": \"NodeList\"}", "a List without items"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
        let bytes: &[u8] = &[b'a'; 8];
        assert_eq!(bounded(bytes, 8).unwrap(), "aaaaaaaa");
        let error = bounded(bytes, 7).unwrap_err().to_string();
        assert!(error.starts_with("it has more than 0 MB"), "{error}");
        assert!(bounded(&[0xff_u8][..], 8).is_err(), "not UTF-8");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<Vec<u8>>()) {
            let _ = parse(&String::from_utf8_lossy(&text));
        }

        #[test]
        fn no_list_panics(kind in "[A-Za-z]{0,6}(List)?", items in "[\\[\\]{}:,a\"0 \n-]{0,60}") {
            let _ = parse(&format!("kind: {kind}\nitems: {items}"));
        }
    }
}
