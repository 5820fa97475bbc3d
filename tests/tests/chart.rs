//! The chart's calibration, as Helm renders it: the file that the operator is told to read is mounted where it is told, and
//! what stands in it changes the operator's plan.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{fs, path::Path, process::Command, sync::Arc};

use gqla_decide::{SERVER_BUILD, fixtures, parse_calibration, plan};
use gqla_model::{DecodePath, ModelShape};
use gqla_testkit::{progress::Progress, tools::Tools};
use serde_json::{Value, from_value, json};

/// Absorb as no H20 is, so that DeepSeek's shape, which takes GQA there, takes it.
fn calibration() -> Value {
    json!({ "kernels": [{
        "gpu": "H20", "runtime": "native", "build": SERVER_BUILD, "path": "GQA",
        "floor_us": 9.5, "bandwidth": 0.02, "arithmetic": 0.02, "tile_rows": 16,
        "provenance": { "tool": "timer", "device": "NVIDIA H20", "build": "0", "measured_at": "2026-01-02T03:04:05Z", "samples": 9 },
    }]})
}

/// The object of `template` as `helm template` renders it.
fn rendered(helm: &Path, template: &str, values: &[&str]) -> Value {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/gqla-operator");
    let mut command = Command::new(helm);
    command.args([
        "template",
        "r",
        chart.to_str().unwrap(),
        "--namespace",
        "models",
        "--show-only",
        template,
    ]);
    let output = command.args(values).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_saphyr::from_str(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}

/// The file behind the operator's `--calibration`, found as a kubelet would: flag, mount, volume, ConfigMap, key.
fn mounted(helm: &Path, values: &[&str]) -> String {
    let deployment = rendered(helm, "templates/deployment.yaml", values);
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let arguments = container["args"].as_array().unwrap().iter().filter_map(Value::as_str);
    let file = arguments.filter_map(|argument| argument.strip_prefix("--calibration=")).next().unwrap();
    let (folder, key) = file.rsplit_once('/').unwrap();
    let named = |list: &Value, field: &str, value: &Value| {
        list.as_array().unwrap().iter().find(|item| item[field] == *value).unwrap().clone()
    };
    let mount = named(&container["volumeMounts"], "mountPath", &folder.into());
    let volume = named(&pod["volumes"], "name", &mount["name"]);
    let map = rendered(helm, "templates/calibration.yaml", values);
    assert_eq!(
        (&volume["configMap"]["name"], &map["metadata"]["namespace"]),
        (&map["metadata"]["name"], &json!("models"))
    );
    map["data"][key].as_str().unwrap().to_owned()
}

fn path_on_h20(calibration: &str) -> DecodePath {
    let fleet = fixtures::mixed().calibrated(Arc::new(parse_calibration(calibration).unwrap()));
    let spec = json!({ "runtime": { "device": "CUDA" }, "pools": [{ "name": "a", "gpuClass": "H20" }] });
    let shape: ModelShape = from_value(fixtures::deepseek_shape()).unwrap();
    let plan = plan(&fixtures::validated(spec), &shape, &fleet);
    plan.pools[0].decision.chosen.path
}

#[test]
fn a_calibration_in_the_values_reaches_the_operator_and_changes_its_plan() {
    let helm = Tools::obtain(&Progress::silent()).unwrap().helm;
    let folder = tempfile::tempdir().unwrap();
    let as_text = folder.path().join("calibration.json");
    fs::write(&as_text, calibration().to_string()).unwrap();
    let as_values = folder.path().join("values.yaml");
    fs::write(&as_values, json!({ "calibration": calibration() }).to_string()).unwrap();
    assert_eq!(path_on_h20("{}"), DecodePath::Gqa);
    let file = format!("calibration={}", as_text.display());
    for values in [["--set-file", &file], ["--values", as_values.to_str().unwrap()]] {
        assert_eq!(path_on_h20(&mounted(&helm, &values)), DecodePath::MqaAbsorb, "{values:?}");
    }
}
