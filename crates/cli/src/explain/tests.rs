use std::collections::BTreeMap;

use gqla_decide::{fixtures, record};
use gqla_model::DecodePath;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, from_value, json, to_value};

use super::*;
use crate::{manifest, nodes::sort};

const NODES: &str = include_str!("../../tests/fixtures/nodes.json");
const DEEPSEEK: &str = include_str!("../../../../deploy/samples/deepseek-attention.yaml");
const SMOLLM2: &str = include_str!("../../../../deploy/samples/smollm2.yaml");

fn input(objects: &str, nodes: &str) -> anyhow::Result<Input> {
    let (objects, classes) = input::deployments(manifest::parse(objects)?)?;
    let mut sources = sort(manifest::parse(nodes)?)?;
    sources.classes.extend(classes);
    let (fleet, refused_classes) = input::fleet(sources, Timestamp::UNIX_EPOCH);
    Ok(Input { objects, fleet, shape: None, refused_classes })
}

/// What `-o json` prints.
fn json(input: &Input) -> Value {
    let explained = explain_all(input).unwrap();
    let view = View::of(&explained);
    assert!(table::table(&view).contains(&explained[0].name));
    to_value(&view).unwrap()
}

fn sample(text: &str) -> Value {
    manifest::parse(text).unwrap().remove(0)
}

/// The sentences about the first GQLADeployment.
fn failures(object: &Value) -> Vec<(String, String)> {
    let told = json(&input(&object.to_string(), NODES).unwrap());
    let failures = told["deployments"][0]["failures"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    failures.map(|failure| (text(&failure["reason"]), text(&failure["sentence"]))).collect()
}

/// The same object and nodes, once through files and once as the operator has them.
#[test]
fn what_is_explained_is_what_the_operator_would_write() {
    let nodes = [
        fixtures::node("h100", Some("NVIDIA-H100-80GB-HBM3"), 8),
        fixtures::node("h20", Some("NVIDIA-H20"), 8),
        fixtures::node("cpu", None, 0),
    ];
    let list = json!({ "kind": "NodeList", "items": nodes }).to_string();
    let cuda = json!({ "device": "CUDA" });
    let specs = [
        json!({ "runtime": cuda }),
        json!({ "runtime": { "device": "CPU" }, "replicas": 3 }),
        json!({ "runtime": cuda, "placement": { "strategy": "Throughput" } }),
        json!({ "runtime": cuda, "pools": [
            { "name": "a", "gpuClass": "H20", "decode": { "path": "MQAAbsorb" } },
            { "name": "b", "gpuClass": "A100" }] }),
    ];
    for spec in specs {
        let told =
            json(&input(&to_value(fixtures::deployment(spec.clone())).unwrap().to_string(), &list).unwrap());
        let valid = fixtures::validated(spec.clone());
        let Shape::Known(shape) = valid.shape.clone() else { panic!("the fixture has a shape") };
        let plan = plan(&valid, &shape, &fixtures::mixed());
        let records: Vec<_> = plan.pools.iter().map(record).collect();
        let read: Vec<gqla_api::PoolStatus> = from_value(told["deployments"][0]["pools"].clone()).unwrap();
        assert_eq!(read, records, "{spec}");
        assert!(!records.is_empty(), "{spec}");
        let sentences: Vec<_> = plan.failures.iter().map(|failure| failure.sentence.as_str()).collect();
        let failures = told["deployments"][0]["failures"].as_array().unwrap();
        let told: Vec<_> = failures.iter().filter_map(|failure| failure["sentence"].as_str()).collect();
        assert_eq!(told, sentences, "{spec}");
    }
}

#[test]
fn classes_beside_the_object_count() {
    let dear = "---\napiVersion: gqla.dev/v1alpha1\nkind: GPUClass\nmetadata: {name: h100}\nspec: {costPerGpuHour: 100}\n";
    let cheap = "---\napiVersion: gqla.dev/v1alpha1\nkind: GPUClass\nmetadata: {name: h20}\nspec: {costPerGpuHour: 1}\n";
    let broken = "---\nkind: GPUClass\nmetadata: {name: x9}\nspec: {}\n";
    let cost = DEEPSEEK.replace("strategy: Spread", "strategy: Cost");
    let input = input(&format!("{cost}{dear}{cheap}{broken}"), NODES).unwrap();
    assert!(input.refused_classes[0].starts_with("GPUClass x9: "), "{:?}", input.refused_classes);
    let told = json(&input);
    assert_eq!(told["deployments"][0]["pools"][0]["gpuClass"], "H20", "{told}");
}

#[test]
fn refusals_are_those_of_the_server_and_of_the_operator() {
    let mut degree = sample(DEEPSEEK);
    degree["spec"]["decode"] = json!({ "path": "GQA", "tensorParallel": 3 });
    let mut groups = sample(DEEPSEEK);
    groups["spec"]["model"]["shape"]["numKeyValueHeads"] = json!(12);
    let mut zero = sample(DEEPSEEK);
    zero["spec"]["model"]["shape"]["kvLoraRank"] = json!(0);
    let mut untyped = sample(DEEPSEEK);
    untyped["spec"]["replicas"] = json!("two");
    let mut version = sample(DEEPSEEK);
    version["apiVersion"] = json!("gqla.dev/v2");
    let mut nameless = sample(DEEPSEEK);
    nameless["metadata"] = json!({});
    let cases = [
        (degree, "Invalid", "(8 mod 3 = 2, 3 mod 8 = 3): on path GQA a rank would hold part of a group"),
        (
            groups,
            "Invalid",
            "the API server refuses it: spec.model.shape.numKeyValueHeads=12 does not divide",
        ),
        (zero, "Invalid", "the API server refuses it: spec.model.shape.kvLoraRank is 0, expected at least 1"),
        (untyped, "Invalid", "the API server refuses it: spec.replicas is \"two\", expected an integer"),
        (version, "Invalid", "apiVersion is gqla.dev/v2, expected gqla.dev/v1alpha1"),
        (nameless, "Invalid", "metadata.name is missing"),
        (sample(SMOLLM2), "InspectingModel", "give the files, or the name of a built-in shape, with --model"),
    ];
    for (object, reason, words) in cases {
        let failures = failures(&object);
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert_eq!(failures[0].0, reason, "{failures:?}");
        assert!(failures[0].1.contains(words), "{failures:?}");
    }
}

#[test]
fn a_given_model_stands_for_the_inspect_job() {
    let mut known = input(SMOLLM2, NODES).unwrap();
    known.shape = Some(crate::model::resolve("smollm2-135m-gqla").unwrap());
    let told = json(&known);
    assert_eq!(told["deployments"][0]["failures"], json!([]));
    let names: Vec<_> =
        told["deployments"][0]["pools"].as_array().unwrap().iter().map(|pool| &pool["name"]).collect();
    assert_eq!(names, ["cpu", "h100", "h20"]);
    let mut stated = input(DEEPSEEK, NODES).unwrap();
    stated.shape = known.shape;
    let error = explain_all(&stated).err().unwrap().to_string();
    assert!(error.starts_with("--model is given, but every GQLADeployment states its shape"), "{error}");
}

#[test]
fn files_that_hold_something_else_are_told() {
    let error = |objects: &str, nodes: &str| format!("{:#}", input(objects, nodes).err().unwrap());
    let cases = [
        (
            error("kind: Service\n---\nkind: ConfigMap\n", NODES),
            "expected a GQLADeployment, got Service, ConfigMap",
        ),
        (error(DEEPSEEK, "kind: PodList\nitems: []\n"), "it holds no Node"),
        (error(DEEPSEEK, DEEPSEEK), "item 0 is a GQLADeployment, expected Node"),
        (error(DEEPSEEK, "kind: List\nitems: []\n"), "it holds no Node"),
        (error("", NODES), "it is empty"),
        (
            error(&format!("{DEEPSEEK}---\nkind: GPUClass\nmetadata: {{name: a}}\n"), NODES),
            "the API server refuses GPUClass a: spec is missing",
        ),
    ];
    for (error, words) in cases {
        assert!(error.contains(words), "{error}");
    }
}

/// Every value in `value` that is no object or array.
fn leaves<'v>(value: &'v mut Value, found: &mut Vec<&'v mut Value>) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|field| leaves(field, found)),
        Value::Array(items) => items.iter_mut().for_each(|item| leaves(item, found)),
        leaf => found.push(leaf),
    }
}

fn any_leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        (0..300_u32).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!({})),
        Just(json!([])),
    ]
}

fn changed(text: &str, changes: &BTreeMap<usize, Value>) -> String {
    let mut object = Value::Array(manifest::parse(text).unwrap());
    let mut found = Vec::new();
    leaves(&mut object, &mut found);
    let count = found.len();
    for (index, value) in changes {
        *found[index % count] = value.clone();
    }
    json!({ "kind": "List", "items": object }).to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_bytes_panic(objects in any::<Vec<u8>>(), nodes in any::<Vec<u8>>()) {
        let _ = input(&String::from_utf8_lossy(&objects), &String::from_utf8_lossy(&nodes));
    }

    /// Files in which a few values are others are explained, or refused with a sentence.
    #[test]
    fn no_values_panic(
        spec in prop::collection::btree_map(any::<usize>(), any_leaf(), 0..3),
        nodes in prop::collection::btree_map(any::<usize>(), any_leaf(), 0..3),
    ) {
        match input(&changed(DEEPSEEK, &spec), &changed(NODES, &nodes)) {
            Ok(input) => {
                let explained = explain_all(&input).unwrap();
                prop_assert!(table::table(&View::of(&explained)).starts_with("GQLADeployment "));
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn figures_of_the_sample_are_the_published_decision() {
    let told = json(&input(DEEPSEEK, NODES).unwrap());
    let pools: Vec<gqla_api::PoolStatus> = from_value(told["deployments"][0]["pools"].clone()).unwrap();
    let decided: Vec<_> = pools
        .iter()
        .map(|pool| (pool.name.as_str(), pool.path, pool.tensor_parallel, pool.multi_token_prediction))
        .collect();
    assert_eq!(decided, [("h100", DecodePath::MqaAbsorb, 1, 1), ("h20", DecodePath::Gqa, 1, 1)]);
}
