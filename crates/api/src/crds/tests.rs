use serde_json::{Value, from_value, json};

use super::*;

fn deployment(heads: u32, groups: u32, decode: Value) -> Value {
    json!({
        "apiVersion": "gqla.dev/v1alpha1",
        "kind": "GQLADeployment",
        "metadata": { "name": "sample" },
        "spec": {
            "model": {
                "source": { "persistentVolumeClaim": { "claimName": "sample" } },
                "shape": {
                    "numAttentionHeads": heads, "numKeyValueHeads": groups, "kvLoraRank": 512,
                    "qkNopeHeadDim": 128, "qkRopeHeadDim": 64, "vHeadDim": 128, "hiddenSize": 2048,
                    "numHiddenLayers": 16, "parameters": 2_500_000_000_u64, "maxPositionEmbeddings": 32768,
                    "numNextnPredictLayers": 0,
                },
            },
            "decode": decode,
        },
    })
}

/// The rules' sentences about an object, evaluated without a server.
fn verdict(object: Value) -> Vec<String> {
    let object: GQLADeployment = from_value(object).unwrap();
    match kube::core::cel::validate_cel(&object) {
        Ok(()) => Vec::new(),
        Err(errors) => {
            let mut sentences: Vec<_> = errors.iter().map(|error| error.message.clone()).collect();
            sentences.sort();
            sentences
        }
    }
}

#[test]
fn committed_files_match_the_types() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for crd in crds() {
        let (name, text) = render(&crd).unwrap();
        for directory in ["crds", "charts/gqla-operator/crds-files"] {
            let committed = std::fs::read_to_string(root.join(directory).join(&name)).unwrap_or_default();
            assert!(committed == text, "{directory}/{name} differs from the types: run `cargo xtask gen`");
        }
    }
}

#[test]
fn impossible_degrees_are_refused_by_field_and_arithmetic() {
    assert_eq!(
        verdict(deployment(128, 8, json!({ "path": "GQA", "tensorParallel": 3 }))),
        [
            "spec.decode.tensorParallel=3 and spec.model.shape.numKeyValueHeads=8 do not divide each other \
             (8 mod 3 = 2, 3 mod 8 = 3): on path GQA a rank would hold part of a group",
            "spec.decode.tensorParallel=3 does not divide spec.model.shape.numAttentionHeads=128 (128 mod 3 = 2)",
        ]
    );
    assert_eq!(verdict(deployment(9, 3, json!({ "path": "GQA", "tensorParallel": 3 }))), [""; 0]);
    assert_eq!(verdict(deployment(120, 8, json!({ "path": "MQAAbsorb", "tensorParallel": 3 }))), [""; 0]);
    assert_eq!(verdict(deployment(128, 8, json!({ "path": "GQA", "tensorParallel": 16 }))), [""; 0]);
    assert_eq!(
        verdict(deployment(128, 12, json!({}))),
        ["spec.model.shape.numKeyValueHeads=12 does not divide spec.model.shape.numAttentionHeads=128 \
          (128 mod 12 = 8): every group must serve the same number of heads"]
    );
}

#[test]
fn pools_obey_the_same_rules_with_their_effective_settings() {
    let mut object = deployment(120, 8, json!({ "path": "MQAAbsorb", "tensorParallel": 3 }));
    object["spec"]["pools"] = json!([
        { "name": "fast", "gpuClass": "H100" },
        { "name": "slow", "gpuClass": "H20", "decode": { "path": "GQA" } },
    ]);
    assert_eq!(
        verdict(object.clone()),
        [
            "spec.pools[slow].decode.tensorParallel=3 and spec.model.shape.numKeyValueHeads=8 do not divide each other \
          (8 mod 3 = 2, 3 mod 8 = 3): on path GQA a rank would hold part of a group"
        ]
    );
    object["spec"]["pools"][1]["decode"]["tensorParallel"] = json!(4);
    assert_eq!(verdict(object.clone()), [""; 0]);
    object["spec"]["pools"][0]["nodeSelector"] = json!({ "zone": "a" });
    assert_eq!(
        verdict(object),
        ["pool fast must set exactly one of gpuClass and nodeSelector, it sets both"]
    );
}

#[test]
fn drafts_need_layers_that_make_them() {
    let mut object = deployment(128, 8, json!({ "multiTokenPrediction": 1 }));
    assert_eq!(
        verdict(object.clone()),
        ["spec.decode.multiTokenPrediction=1 needs prediction layers, but \
          spec.model.shape.numNextnPredictLayers=0"]
    );
    object["spec"]["model"]["shape"]["numNextnPredictLayers"] = json!(1);
    assert_eq!(verdict(object), [""; 0]);
}

#[test]
fn fields_the_operator_sets_cannot_be_set_twice() {
    let mut object = deployment(128, 8, json!({}));
    object["spec"]["runtime"] = json!({ "extraArgs": ["--max-queued-requests=4", "--tp=2"] });
    object["spec"]["podTemplate"] = json!({ "labels": { "gqla.dev/path": "gqa" } });
    object["spec"]["goal"] = json!({ "contextLength": 40_000 });
    assert_eq!(
        verdict(object),
        [
            "podTemplate.labels: gqla.dev/path is set by the operator",
            "runtime.extraArgs: --tp=2 is set by the operator from other fields of the spec",
            "spec.goal.contextLength=40000 exceeds spec.model.shape.maxPositionEmbeddings=32768",
        ]
    );
}

/// Strings and lists that a rule looks at need a maximum, or the API server refuses the rule's cost.
#[test]
fn every_string_list_and_map_of_the_spec_has_a_maximum() {
    fn walk(path: &str, schema: &Value, missing: &mut Vec<String>) {
        let bounded = |key: &str| schema.get(key).is_some();
        let open = match schema["type"].as_str() {
            Some("string") => !bounded("maxLength") && !bounded("enum"),
            Some("array") => !bounded("maxItems"),
            Some("object") => schema.get("additionalProperties").is_some() && !bounded("maxProperties"),
            _ => false,
        };
        if open {
            missing.push(path.to_owned());
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), property, missing);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(key) {
                walk(&format!("{path}[]"), inner, missing);
            }
        }
    }
    let mut missing = Vec::new();
    for crd in crds() {
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        walk(&crd.spec.names.kind, &schema["openAPIV3Schema"]["properties"]["spec"], &mut missing);
    }
    assert_eq!(missing, [""; 0]);
}

/// `kubectl explain` is only as good as the descriptions.
#[test]
fn every_field_is_described_and_uses_formats_the_server_knows() {
    fn walk(path: &str, schema: &Value, problems: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if property["description"].as_str().is_none_or(str::is_empty) {
                problems.push(format!("{path} has no description"));
            }
            if property["format"].as_str().is_some_and(|format| format.starts_with("uint")) {
                problems.push(format!("{path} has an unsigned format"));
            }
            walk(&path, property, problems);
            walk(&path, &property["items"], problems);
        }
    }
    let mut problems = Vec::new();
    for crd in crds() {
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        for part in ["spec", "status"] {
            walk(&crd.spec.names.kind, &schema["openAPIV3Schema"]["properties"][part], &mut problems);
        }
    }
    assert_eq!(problems, [""; 0]);
}
