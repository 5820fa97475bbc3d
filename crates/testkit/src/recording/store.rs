//! Objects by path, and the rules of the real server that reconcilers trip over.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{refusal, request::Target};

#[derive(Default)]
pub(super) struct Store {
    objects: BTreeMap<String, Value>,
    /// Counts writes: resourceVersions and UIDs.
    writes: u64,
}

impl Store {
    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        self.objects.get(path)
    }

    pub(super) fn get_mut(&mut self, path: &str) -> Option<&mut Value> {
        self.objects.get_mut(path)
    }

    pub(super) fn put(&mut self, path: &str, object: Value) {
        self.objects.insert(path.to_owned(), object);
    }

    pub(super) fn names(&self, plural: &str) -> Vec<String> {
        let of = |path: &String| {
            let (parent, name) = path.rsplit_once('/')?;
            parent.ends_with(&format!("/{plural}")).then(|| name.to_owned())
        };
        self.objects.keys().filter_map(of).collect()
    }

    pub(super) fn handle(&mut self, method: &str, target: &Target, body: &Value) -> (u16, Value) {
        match method {
            "GET" => self.read(target),
            "POST" => self.create(target, body),
            "PATCH" => self.apply(target, body),
            "DELETE" => self.delete(target, body),
            other => (405, refusal(405, &format!("{other} is not supported by the recording server"))),
        }
    }

    fn read(&self, target: &Target) -> (u16, Value) {
        if let Some(object) = self.objects.get(&target.path) {
            return (200, object.clone());
        }
        if target.names_object() {
            return (404, refusal(404, "no such object"));
        }
        let below = format!("{}/", target.path);
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(path, _)| path.strip_prefix(&below).is_some_and(|name| !name.contains('/')))
            .map(|(_, object)| object)
            .filter(|object| target.selects(object))
            .collect();
        (200, json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": items }))
    }

    fn create(&mut self, target: &Target, body: &Value) -> (u16, Value) {
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("{}/{name}", target.path);
        if self.objects.contains_key(&path) {
            let mut answer = refusal(409, &format!("{name} already exists"));
            answer["reason"] = json!("AlreadyExists");
            return (409, answer);
        }
        match refused(&path, None, body) {
            Some(sentence) => (422, refusal(422, &sentence)),
            None => (201, self.stored(&path, body.clone())),
        }
    }

    /// Server-side apply, simplified: the applied fields replace the stored ones, a status is kept apart.
    fn apply(&mut self, target: &Target, body: &Value) -> (u16, Value) {
        let old = self.objects.get(&target.path).cloned();
        if target.status {
            let Some(mut object) = old else { return (404, refusal(404, "no such object")) };
            object["status"] = body["status"].clone();
            return (200, self.stored(&target.path, object));
        }
        if let Some(sentence) = refused(&target.path, old.as_ref(), body) {
            return (422, refusal(422, &sentence));
        }
        let mut object = body.clone();
        let code = if old.is_some() { 200 } else { 201 };
        if let Some(old) = old {
            object["status"] = old["status"].clone();
            let same = old["spec"] == object["spec"];
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(1) + i64::from(!same);
            object["metadata"]["uid"] = old["metadata"]["uid"].clone();
            object["metadata"]["generation"] = json!(generation);
        }
        (code, self.stored(&target.path, object))
    }

    /// A JSON merge patch (RFC 7386) of an object that exists.
    pub(super) fn merge(&mut self, target: &Target, patch: &Value) -> (u16, Value) {
        let Some(mut object) = self.objects.get(&target.path).cloned() else {
            return (404, refusal(404, "no such object"));
        };
        merge(&mut object, patch);
        self.apply(target, &object)
    }

    fn delete(&mut self, target: &Target, body: &Value) -> (u16, Value) {
        let Some(object) = self.objects.get(&target.path) else {
            return (404, refusal(404, "no such object"));
        };
        let wanted = &body["preconditions"]["uid"];
        if !wanted.is_null() && wanted != &object["metadata"]["uid"] {
            return (409, refusal(409, "the UID in the precondition does not match"));
        }
        self.objects.remove(&target.path);
        (200, json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success" }))
    }

    fn stored(&mut self, path: &str, mut object: Value) -> Value {
        self.writes += 1;
        object["metadata"]["resourceVersion"] = json!(self.writes.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.writes));
        }
        if object["metadata"]["generation"].is_null() {
            object["metadata"]["generation"] = json!(1);
        }
        if object["status"].is_null()
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

fn merge(object: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            object.as_object_mut().and_then(|object| object.remove(key));
        } else {
            merge(&mut object[key], value);
        }
    }
}

/// Why the real server would refuse an object.
fn refused(path: &str, old: Option<&Value>, new: &Value) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let events = path.contains("/events/");
    if !events && !is_dns_label(name) {
        return Some(format!("metadata.name: Invalid value: \"{name}\""));
    }
    let maps = [&new["metadata"]["labels"], &new["spec"]["template"]["metadata"]["labels"]];
    let long = maps.into_iter().flat_map(|map| map.as_object().into_iter().flatten());
    if let Some((key, value)) = long.into_iter().find(|(_, value)| !is_label_value(value)) {
        return Some(format!("metadata.labels: Invalid value: {value} of {key}"));
    }
    let controllers = |object: &Value| {
        let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        owners
            .into_iter()
            .filter(|owner| owner["controller"] == json!(true))
            .map(|owner| owner["uid"].clone())
            .next()
    };
    let old = old?;
    if path.contains("/deployments/") && old["spec"]["selector"] != new["spec"]["selector"] {
        return Some("spec.selector: Invalid value: field is immutable".to_owned());
    }
    if path.contains("/jobs/") && old["spec"]["template"] != new["spec"]["template"] {
        return Some("spec.template: Invalid value: field is immutable".to_owned());
    }
    match (controllers(old), controllers(new)) {
        (Some(old), Some(new)) if old != new => Some(
            "metadata.ownerReferences: Invalid value: only one reference can have Controller set to true"
                .to_owned(),
        ),
        _ => None,
    }
}

fn is_dns_label(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_label_value(value: &Value) -> bool {
    let Some(text) = value.as_str() else { return false };
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}
