//! The Job that reads a model's shape from its files and answers in its pod's termination message.

use gqla_api::labels::{COMPONENT, COMPONENT_INSPECT, MANAGED_BY, MANAGER, OWNER_UID, SOURCE_HASH};
use gqla_decide::{
    ValidatedDeployment,
    names::{hash, object_name},
};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{metadata, pod};

/// A failed Job is removed after this, which makes the next pass try again.
const SECONDS_AFTER_FINISH: i32 = 300;

/// Longest a Job may wait for its volume and read.
const DEADLINE_SECONDS: i64 = 900;

/// The Job of `validated`. Its name changes with the source and the image, because a Job cannot be changed.
pub(super) fn of(validated: &ValidatedDeployment) -> Job {
    let identity = &validated.identity;
    let digest = hash(&[&validated.source_hash, &validated.image], 8);
    let mut metadata =
        metadata(identity, object_name(&[&identity.name, "inspect", &digest]), COMPONENT_INSPECT);
    metadata.labels.get_or_insert_default().insert(SOURCE_HASH.to_owned(), validated.source_hash.clone());
    // Without the deployment label: the Service over all pools selects by it.
    let own = [
        (MANAGED_BY, MANAGER.to_owned()),
        (COMPONENT, COMPONENT_INSPECT.to_owned()),
        (OWNER_UID, identity.uid.clone()),
        (SOURCE_HASH, validated.source_hash.clone()),
    ];
    let user = &validated.spec.pod_template;
    let mut labels = user.labels.clone();
    labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
    let pod_metadata = ObjectMeta {
        labels: Some(labels),
        annotations: (!user.annotations.is_empty()).then(|| user.annotations.clone()),
        ..ObjectMeta::default()
    };
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(1),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            ttl_seconds_after_finished: Some(SECONDS_AFTER_FINISH),
            template: PodTemplateSpec {
                metadata: Some(pod_metadata),
                spec: Some(pod::inspecting(validated)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}
