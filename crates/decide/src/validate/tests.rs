use serde_json::json;

use super::*;
use crate::fixtures::{deepseek_shape, deployment, glm_shape};

#[test]
fn defaults_are_filled_in() {
    let valid = validate(&deployment(json!({})), "server:1").unwrap();
    assert_eq!((valid.image.as_str(), valid.served_name.as_str()), ("server:1", "d"));
    assert!(valid.tolerations.iter().any(|toleration| toleration.key.as_deref() == Some("nvidia.com/gpu")));
    assert!(matches!(valid.shape, Shape::Known(_)));
}

#[test]
fn a_model_without_shape_is_unknown_until_its_files_were_read() {
    let source = json!({ "persistentVolumeClaim": { "claimName": "m" } });
    let mut object = deployment(json!({ "model": { "source": source } }));
    assert_eq!(validate(&object, "i").unwrap().shape, Shape::Unknown);
    let read = ModelStatus {
        source_hash: source_hash(&object.spec),
        shape: serde_json::from_value(glm_shape()).unwrap(),
        ..ModelStatus::default()
    };
    object.status.get_or_insert_default().model = Some(read);
    assert!(matches!(validate(&object, "i").unwrap().shape, Shape::Known(_)));
    object.spec.model.source.persistent_volume_claim.path = "other".to_owned();
    assert_eq!(validate(&object, "i").unwrap().shape, Shape::Unknown, "another source is another model");
}

/// Every way to be refused, and the sentence.
#[test]
fn refusals_name_field_and_arithmetic() {
    let mut odd = deepseek_shape();
    odd["numKeyValueHeads"] = json!(12);
    let source = json!({ "persistentVolumeClaim": { "claimName": "m" } });
    let mut mismatch = deployment(json!({}));
    mismatch.status.get_or_insert_default().model = Some(ModelStatus {
        source_hash: source_hash(&mismatch.spec),
        shape: serde_json::from_value({
            let mut found = deepseek_shape();
            found["numHiddenLayers"] = json!(17);
            found
        })
        .unwrap(),
        ..ModelStatus::default()
    });
    let mut nameless = deployment(json!({}));
    nameless.metadata.uid = None;
    let cases = [
        (
            deployment(json!({ "model": { "source": source, "shape": odd } })),
            "spec.model.shape.numKeyValueHeads=12 does not divide shape.numAttentionHeads=128 (128 mod 12 = 8): every \
             group must serve the same number of heads",
        ),
        (
            mismatch,
            "spec.model.shape.numHiddenLayers is 16, but the model's files say 17; correct it or leave \
             spec.model.shape out",
        ),
        (
            deployment(json!({ "pools": [{ "name": "a" }] })),
            "spec.pools[a] must set exactly one of gpuClass and nodeSelector",
        ),
        (nameless, "metadata.uid is missing: the object does not come from an API server"),
    ];
    for (object, sentence) in cases {
        assert_eq!(validate(&object, "i").unwrap_err().to_string(), sentence);
    }
}
