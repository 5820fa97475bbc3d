//! The demonstration model as a read-only claim that pods on every node can mount.

use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

const FIELD_MANAGER: &str = "gqla-xtask";

/// Binds `claim` in `namespace` to `folder`, a folder that all nodes see.
pub async fn publish(client: &Client, namespace: &str, claim: &str, folder: &Path) -> Result<()> {
    let path = folder.to_str().context("the model's folder is not UTF-8")?;
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": claim},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": path, "type": "Directory"},
        },
    });
    let request = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": claim,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    let apply = PatchParams::apply(FIELD_MANAGER).force();
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.patch(claim, &apply, &Patch::Apply(volume)).await.context("cannot create the model's volume")?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    claims.patch(claim, &apply, &Patch::Apply(request)).await.context("cannot create the model's claim")?;
    Ok(())
}
