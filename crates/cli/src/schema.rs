//! What an API server's schema refuses: types, ranges, lengths, patterns, choices, required and unknown fields.
//!
//! It walks the very definition that is installed, over the keywords its generated schemas use; a test finds a keyword that
//! is not among them. A crate for JSON Schema would read the schema as another dialect: structural schemas have
//! int-or-string values and lists with keys, and drop nulls.

use gqla_api::crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use regex::Regex;
use serde_json::{Map, Value};

/// Violations that are told; an object with more is something else altogether.
const MOST: usize = 8;
/// Characters of a value that are repeated in a sentence.
const LONGEST_VALUE: usize = 60;
/// What the API server checks by rules of its own, or takes from another endpoint.
const ELSEWHERE: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// Why the API server would refuse `object` by the schema of `kind`: a sentence per field, none where it would not.
pub fn violations(kind: &str, object: &Value) -> Vec<String> {
    let definitions = crds();
    let definition = definitions.iter().find(|definition| definition.spec.names.kind == kind);
    let mut walk = Walk::default();
    if let (Some(schema), Value::Object(fields)) = (definition.and_then(schema), object) {
        let own = fields.iter().filter(|(name, _)| !ELSEWHERE.contains(&name.as_str()));
        let own: Map<_, _> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        walk.value(schema, "", &Value::Object(own));
    }
    walk.found.truncate(MOST);
    walk.found
}

fn schema(definition: &CustomResourceDefinition) -> Option<&JSONSchemaProps> {
    let mut versions = definition.spec.versions.iter();
    versions.find_map(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref())
}

#[derive(Default)]
struct Walk {
    found: Vec<String>,
}

impl Walk {
    fn refuse(&mut self, path: &str, value: &Value, expected: &str) {
        self.found.push(format!("{path} is {}, expected {expected}", shown(value)));
    }

    fn value(&mut self, schema: &JSONSchemaProps, path: &str, value: &Value) {
        if value.is_null() {
            return;
        }
        if let Some(expected) = wrong_type(schema, value) {
            return self.refuse(path, value, expected);
        }
        if let Some(choices) =
            schema.enum_.as_ref().filter(|choices| !choices.iter().any(|one| one.0 == *value))
        {
            let choices: Vec<_> = choices.iter().map(|one| bare(&one.0)).collect();
            return self.refuse(path, value, &format!("one of {}", choices.join(", ")));
        }
        match value {
            Value::Number(number) => self.number(schema, path, number.as_f64().unwrap_or(f64::NAN), value),
            Value::String(text) => self.text(schema, path, text, value),
            Value::Array(items) => self.list(schema, path, items),
            Value::Object(fields) => self.object(schema, path, fields),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn number(&mut self, schema: &JSONSchemaProps, path: &str, number: f64, value: &Value) {
        if let Some(least) = schema.minimum.filter(|least| number < *least) {
            self.refuse(path, value, &format!("at least {least}"));
        }
        if let Some(most) = schema.maximum.filter(|most| number > *most) {
            self.refuse(path, value, &format!("at most {most}"));
        }
    }

    fn text(&mut self, schema: &JSONSchemaProps, path: &str, text: &str, value: &Value) {
        self.count(path, text.chars().count(), "characters", schema.min_length, schema.max_length);
        let Some(pattern) = &schema.pattern else { return };
        // A pattern that is none would be a broken definition, which the API server refuses to install.
        if Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text)) {
            self.refuse(path, value, &format!("a text that matches {pattern}"));
        }
    }

    fn list(&mut self, schema: &JSONSchemaProps, path: &str, items: &[Value]) {
        self.count(path, items.len(), "items", schema.min_items, schema.max_items);
        self.repeated(schema, path, items);
        if let Some(JSONSchemaPropsOrArray::Schema(of_item)) = &schema.items {
            for (index, item) in items.iter().enumerate() {
                self.value(of_item, &format!("{path}[{index}]"), item);
            }
        }
    }

    /// Items of a list with keys differ in them, those of a set differ.
    fn repeated(&mut self, schema: &JSONSchemaProps, path: &str, items: &[Value]) {
        let keys = schema.x_kubernetes_list_map_keys.as_deref();
        let identity = |item: &Value| match (schema.x_kubernetes_list_type.as_deref(), keys) {
            (Some("map"), Some(keys)) => Some(keys.iter().map(|key| item[key].clone()).collect()),
            (Some("set"), _) => Some(vec![item.clone()]),
            _ => None,
        };
        let identities: Vec<Option<Vec<Value>>> = items.iter().map(identity).collect();
        for (index, identity) in identities.iter().enumerate() {
            let Some(identity) = identity else { continue };
            if let Some(first) = identities[..index].iter().position(|one| one.as_ref() == Some(identity)) {
                let told: Vec<_> = identity.iter().map(shown).collect();
                self.found.push(format!("{path}[{index}] repeats {} of {path}[{first}]", told.join(", ")));
            }
        }
    }

    fn object(&mut self, schema: &JSONSchemaProps, path: &str, fields: &Map<String, Value>) {
        self.count(path, fields.len(), "entries", schema.min_properties, schema.max_properties);
        let under = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        for name in schema.required.iter().flatten() {
            if fields.get(name).is_none_or(Value::is_null) {
                self.found.push(format!("{} is missing", under(name)));
            }
        }
        for (name, value) in fields {
            let known = schema.properties.as_ref().and_then(|properties| properties.get(name));
            match (known, &schema.additional_properties) {
                (Some(of_field), _) => self.value(of_field, &under(name), value),
                (None, Some(JSONSchemaPropsOrBool::Schema(of_any))) => {
                    self.value(of_any, &under(name), value)
                }
                (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
                (None, _) => self.found.push(unknown(schema, &under(name))),
            }
        }
    }

    fn count(&mut self, path: &str, count: usize, unit: &str, least: Option<i64>, most: Option<i64>) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        if let Some(least) = least.filter(|least| count < *least) {
            self.found.push(format!("{path} has {count} {unit}, expected at least {least}"));
        }
        if let Some(most) = most.filter(|most| count > *most) {
            self.found.push(format!("{path} has {count} {unit}, expected at most {most}"));
        }
    }
}

/// The API server drops such fields, and kubectl refuses them before.
fn unknown(schema: &JSONSchemaProps, path: &str) -> String {
    let known: Vec<_> =
        schema.properties.iter().flat_map(|fields| fields.keys().map(String::as_str)).collect();
    format!("{path} is no field, expected one of {}", known.join(", "))
}

/// What is expected where `value` is of another type.
fn wrong_type(schema: &JSONSchemaProps, value: &Value) -> Option<&'static str> {
    let whole =
        value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0);
    if schema.x_kubernetes_int_or_string == Some(true) {
        return (!whole && !value.is_string()).then_some("an integer or a text");
    }
    let (fits, expected) = match schema.type_.as_deref()? {
        "integer" => (whole, "an integer"),
        "number" => (value.is_number(), "a number"),
        "string" => (value.is_string(), "a text"),
        "boolean" => (value.is_boolean(), "true or false"),
        "array" => (value.is_array(), "a list"),
        _ => (value.is_object(), "an object"),
    };
    (!fits).then_some(expected)
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A choice without the quotes of JSON.
fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Keywords that say nothing about what is valid, are checked as rules, or are walked above.
    const KNOWN: [&str; 23] = [
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-validations",
    ];

    fn keywords(schema: &Value, found: &mut BTreeSet<String>) {
        let Value::Object(fields) = schema else { return };
        found.extend(fields.keys().cloned());
        for nested in ["items", "additionalProperties"] {
            keywords(&schema[nested], found);
        }
        if let Some(properties) = schema["properties"].as_object() {
            properties.values().for_each(|property| keywords(property, found));
        }
    }

    #[test]
    fn no_keyword_of_the_definitions_is_overlooked() {
        let mut found = BTreeSet::new();
        for definition in crds() {
            let schema = serde_json::to_value(schema(&definition).unwrap()).unwrap();
            keywords(&schema, &mut found);
        }
        assert!(found.contains("minimum") && found.contains("pattern"), "{found:?}");
        let unknown: Vec<_> = found.iter().filter(|keyword| !KNOWN.contains(&keyword.as_str())).collect();
        assert!(unknown.is_empty(), "{unknown:?} need a check in `Walk`");
    }

    #[test]
    fn every_sentence_names_the_field_and_what_bounds_it() {
        let model = json!({ "source": { "persistentVolumeClaim": { "claimName": "m" } } });
        let refusal = |field: &str, value: Value| {
            let mut spec = json!({ "model": model });
            spec[field] = value;
            violations("GQLADeployment", &json!({ "spec": spec }))
        };
        assert_eq!(refusal("replicas", json!(3)), [""; 0]);
        assert_eq!(refusal("replicas", json!(null)), [""; 0]);
        assert_eq!(refusal("replicas", json!(-1)), ["spec.replicas is -1, expected at least 0"]);
        assert_eq!(refusal("replicas", json!("two")), ["spec.replicas is \"two\", expected an integer"]);
        assert_eq!(refusal("replicas", json!(1.5)), ["spec.replicas is 1.5, expected an integer"]);
        assert_eq!(
            refusal("decode", json!({ "path": "MLA", "tensorParallel": 2048 })),
            [
                "spec.decode.path is \"MLA\", expected one of Auto, MQAAbsorb, GQA",
                "spec.decode.tensorParallel is 2048, expected at most 1024",
            ]
        );
        assert_eq!(
            refusal("decode", json!({ "tensorParallel": "many" })),
            ["spec.decode.tensorParallel is \"many\", expected a text that matches ^Auto$"]
        );
        assert_eq!(
            refusal("decode", json!({ "tensorParallel": [] })),
            ["spec.decode.tensorParallel is [], expected an integer or a text"]
        );
        let pools = json!([{ "name": "a", "gpuClass": "H20" }, { "gpuClass": "H20" }, { "name": "a", "gpuClass": "H100" }]);
        assert_eq!(
            refusal("pools", pools),
            ["spec.pools[2] repeats \"a\" of spec.pools[0]", "spec.pools[1].name is missing"]
        );
        let typo = refusal("gaol", json!({}));
        assert!(
            typo[0].starts_with("spec.gaol is no field, expected one of ") && typo[0].contains("goal"),
            "{typo:?}"
        );
        assert_eq!(violations("GQLADeployment", &json!({})), ["spec is missing"]);
        assert_eq!(violations("GQLADeployment", &json!({ "spec": {} })), ["spec.model is missing"]);
    }

    #[test]
    fn long_values_are_cut_and_many_violations_counted_off() {
        let arguments: Vec<_> = (0..40).map(|_| "x".repeat(300)).collect();
        let model = json!({ "source": { "persistentVolumeClaim": { "claimName": "m" } } });
        let object = json!({ "spec": { "model": model, "runtime": { "extraArgs": arguments, "device": "ü".repeat(99) } } });
        let found = violations("GQLADeployment", &object);
        assert_eq!(found.len(), MOST);
        assert!(found.iter().all(|sentence| sentence.chars().count() < 250), "{found:?}");
        assert!(
            found.iter().any(|sentence| sentence.contains("has 40 items, expected at most 32")),
            "{found:?}"
        );
    }

    proptest! {
        #[test]
        fn no_object_panics(key in "[a-z.\\[\\]]{0,12}", text in "\\PC{0,80}", number in any::<f64>(), deep in 0usize..6) {
            let leaf = json!({ key.clone(): [number, text, null, { key.clone(): number }] });
            let nested = (0..deep).fold(leaf, |inner, level| match level % 3 {
                0 => json!({ "spec": inner }),
                1 => json!({ "model": inner, "goal": inner, "pools": [inner] }),
                _ => json!({ "source": inner, "name": inner }),
            });
            for kind in ["GQLADeployment", "GPUClass", "Pod"] {
                let _ = violations(kind, &json!({ "spec": nested }));
                let _ = violations(kind, &nested);
            }
        }
    }
}
