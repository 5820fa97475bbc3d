//! Pods: what runs, where it may run, and with how little privilege.

use gqla_api::{Device, labels::NVIDIA_GPU};
use gqla_decide::{PoolPlan, ValidatedDeployment};
use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction,
        NodeAffinity, NodeSelector, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, Probe,
        ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

/// Name of the scratch volume.
pub(super) const SCRATCH: &str = "tmp";
const MODEL: &str = "model";
const MODEL_MOUNT: &str = "/model";
const CONTAINER: &str = "server";
/// The image's unprivileged user.
const USER: i64 = 65532;
/// Seconds a pod gets to finish its streams after SIGTERM.
const DRAIN_SECONDS: i64 = 60;

/// A pod that serves `pool`.
pub(super) fn serving(validated: &ValidatedDeployment, pool: &PoolPlan) -> PodSpec {
    let container = Container {
        args: Some(arguments(validated, pool)),
        ports: Some(vec![port("http", 8000), port("admin", 9090)]),
        // Reading the weights may take half an hour on slow storage; after that silence means trouble.
        startup_probe: Some(probe("/startupz", 2, 900)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 3)),
        resources: resources(validated, pool),
        ..container(validated)
    };
    PodSpec {
        affinity: Some(affinity(pool)),
        termination_grace_period_seconds: Some(DRAIN_SECONDS),
        ..pod(validated, container)
    }
}

/// A pod that reads the model's shape and ends.
pub(super) fn inspecting(validated: &ValidatedDeployment) -> PodSpec {
    let arguments = ["inspect", "--model", &model_path(validated), "--output", "/dev/termination-log"];
    let container = Container {
        args: Some(arguments.map(str::to_owned).into()),
        resources: validated.spec.runtime.resources.clone().map(without_gpus),
        ..container(validated)
    };
    PodSpec { restart_policy: Some("Never".to_owned()), ..pod(validated, container) }
}

fn pod(validated: &ValidatedDeployment, container: Container) -> PodSpec {
    let template = &validated.spec.pod_template;
    let claim = &validated.spec.model.source.persistent_volume_claim;
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        containers: vec![container],
        image_pull_secrets: (!template.image_pull_secrets.is_empty())
            .then(|| template.image_pull_secrets.clone()),
        priority_class_name: template.priority_class_name.clone(),
        runtime_class_name: template.runtime_class_name.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: None,
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        tolerations: Some(validated.tolerations.clone()),
        volumes: Some(vec![
            Volume {
                name: MODEL.to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.claim_name.clone(),
                    read_only: Some(true),
                }),
                ..Volume::default()
            },
            Volume {
                name: SCRATCH.to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    size_limit: Some(Quantity("1Gi".to_owned())),
                    ..EmptyDirVolumeSource::default()
                }),
                ..Volume::default()
            },
        ]),
        ..PodSpec::default()
    }
}

fn container(validated: &ValidatedDeployment) -> Container {
    let runtime = &validated.spec.runtime;
    let env: Vec<_> = runtime
        .env
        .iter()
        .map(|variable| EnvVar {
            name: variable.name.clone(),
            value: Some(variable.value.clone()),
            ..EnvVar::default()
        })
        .collect();
    Container {
        name: CONTAINER.to_owned(),
        image: Some(validated.image.clone()),
        env: (!env.is_empty()).then_some(env),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            VolumeMount {
                name: MODEL.to_owned(),
                mount_path: MODEL_MOUNT.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            },
            VolumeMount { name: SCRATCH.to_owned(), mount_path: "/tmp".to_owned(), ..VolumeMount::default() },
        ]),
        ..Container::default()
    }
}

fn model_path(validated: &ValidatedDeployment) -> String {
    let path = validated.spec.model.source.persistent_volume_claim.path.trim_matches('/');
    if path.is_empty() { MODEL_MOUNT.to_owned() } else { format!("{MODEL_MOUNT}/{path}") }
}

fn arguments(validated: &ValidatedDeployment, pool: &PoolPlan) -> Vec<String> {
    let chosen = &pool.decision.chosen;
    let device = if pool.device == Device::Cpu { "cpu" } else { "cuda" };
    let mut arguments: Vec<String> = [
        ("--model", model_path(validated)),
        ("--served-model-name", validated.served_name.clone()),
        ("--decode-path", chosen.path.flag().to_owned()),
        ("--tp", chosen.tensor_parallel.to_string()),
        ("--mtp", chosen.multi_token_prediction.to_string()),
        ("--device", device.to_owned()),
        ("--listen", "0.0.0.0:8000".to_owned()),
        ("--admin-listen", "0.0.0.0:9090".to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    let limits = [
        ("--max-model-len", validated.spec.goal.context_length),
        ("--max-num-seqs", validated.spec.goal.concurrency),
    ];
    for (flag, limit) in limits {
        arguments.extend(limit.into_iter().flat_map(|limit| [flag.to_owned(), limit.to_string()]));
    }
    arguments.extend(validated.spec.runtime.extra_args.iter().cloned());
    arguments
}

fn resources(validated: &ValidatedDeployment, pool: &PoolPlan) -> Option<ResourceRequirements> {
    let mut resources = validated.spec.runtime.resources.clone();
    if pool.device != Device::Cpu {
        let degree = Quantity(pool.decision.chosen.tensor_parallel.to_string());
        let limits = &mut resources.get_or_insert_default().limits;
        limits.get_or_insert_default().insert(NVIDIA_GPU.to_owned(), degree);
    }
    resources
}

/// Reading a model's shape must not wait for a GPU.
fn without_gpus(mut resources: ResourceRequirements) -> ResourceRequirements {
    for quantities in [&mut resources.requests, &mut resources.limits].into_iter().flatten() {
        quantities.retain(|name, _| !name.starts_with("nvidia.com/"));
    }
    resources
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// Required, because autoscalers look at nothing else when they choose which nodes to add.
fn affinity(pool: &PoolPlan) -> Affinity {
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: pool.node_terms.clone(),
            }),
            preferred_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    }
}
