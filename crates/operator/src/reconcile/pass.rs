//! The pipeline, and what its end means for the queue.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gqla_api::{
    ConditionReason, GQLADeployment, GQLADeploymentStatus, ModelStatus,
    labels::{POOL, STATUS_MANAGER},
};
use gqla_decide::{
    Identity, PoolPlan, Shape, ValidatedDeployment, ValidationError, identity, plan, source_hash, validate,
};
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    core::DeserializeGuard,
    runtime::controller::Action,
};
use serde_json::json;

use super::{
    Context, ReconcileError,
    apply::{apply, scale_to_zero},
    build, fetch,
    fetch::Observed,
    handover::hand_over,
    inspection::{Inspection, inspection},
    measured,
    status::{Facts, Verdict, status},
};

/// Reconciles one object. Counted, timed, bounded in time.
///
/// # Errors
/// When the pass has to be tried again.
pub async fn reconcile(
    object: Arc<DeserializeGuard<GQLADeployment>>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let started = Instant::now();
    let key = key(&object);
    let result = match &object.0 {
        Ok(object) => tokio::time::timeout(context.timeout, pass(object, &context))
            .await
            .unwrap_or(Err(ReconcileError::Timeout(context.timeout))),
        Err(invalid) => Err(ReconcileError::Malformed(invalid.error.clone())),
    };
    context.metrics.observe(started.elapsed(), result.as_ref().err().map(ReconcileError::kind));
    match result {
        Ok(action) => {
            context.backoff.succeeded(&key);
            Ok(action)
        }
        // Only a change of the object can help.
        Err(ReconcileError::Malformed(sentence)) => {
            tracing::warn!(object = key, sentence, "malformed GQLADeployment is left alone");
            context.events.warn(&object.object_ref(&()), "Malformed", &sentence).await;
            Ok(Action::await_change())
        }
        Err(error) => Err(error),
    }
}

/// Says when a failed object is tried again.
pub fn error_policy(
    object: Arc<DeserializeGuard<GQLADeployment>>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    let key = key(&object);
    let delay = context.backoff.failed(&key);
    let chain = error.chain();
    if error.is_conflict() {
        tracing::info!(object = key, ?delay, "another writer was faster: {chain}");
    } else {
        tracing::error!(object = key, ?delay, "reconciliation failed: {chain}");
        let reference = object.object_ref(&());
        tokio::spawn(async move { context.events.warn(&reference, "ReconcileFailed", &chain).await });
    }
    Action::requeue(delay)
}

fn key(object: &DeserializeGuard<GQLADeployment>) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

async fn pass(object: &GQLADeployment, context: &Context) -> Result<Action, ReconcileError> {
    if object.metadata.deletion_timestamp.is_some() {
        // Owner references take everything along.
        return Ok(Action::await_change());
    }
    let identity = identity(object).map_err(|error| ReconcileError::Malformed(error.to_string()))?;
    let observed = fetch::fetch(&context.client, &identity).await?;
    let model = current_model(object);
    let carried_out = carry_out(object, model.clone(), &observed, context).await;
    let (mut outcome, failed) = match carried_out {
        Ok(outcome) => (outcome, None),
        // Told in the status, and tried again all the same: what is in the way may be removed.
        Err(error) => match error.refusal() {
            Some((reason, sentence)) => {
                (stopped(&observed, model, Verdict::Refused { reason, sentence }), Some(error))
            }
            None => return Err(error),
        },
    };
    if object.spec.replicas == 0 {
        // Pools without a plan too: stopping must not depend on being able to plan.
        outcome.deployments =
            scale_to_zero(&context.client, &identity.namespace, outcome.deployments).await?;
    }
    let action = finish(object, &identity, outcome, context).await?;
    failed.map_or(Ok(action), Err)
}

async fn carry_out(
    object: &GQLADeployment,
    model: Option<ModelStatus>,
    observed: &Observed,
    context: &Context,
) -> Result<Outcome, ReconcileError> {
    match validate(object, &context.server_image) {
        Err(error) => Ok(refused(observed, model, &error)),
        Ok(validated) => match validated.shape.clone() {
            Shape::Known(shape) => settle(&validated, &shape, model, observed, context).await,
            Shape::Unknown => inspect(object, &validated, model, observed, context).await,
        },
    }
}

/// Where a pass ended, before the status is written.
struct Outcome {
    verdict: Verdict,
    model: Option<ModelStatus>,
    can_draft: Option<bool>,
    deployments: Vec<Deployment>,
}

/// What the status remembers of the files the spec names now.
fn current_model(object: &GQLADeployment) -> Option<ModelStatus> {
    let model = object.status.as_ref()?.model.clone()?;
    (model.source_hash == source_hash(&object.spec)).then_some(model)
}

fn refused(observed: &Observed, model: Option<ModelStatus>, error: &ValidationError) -> Outcome {
    stopped(observed, model, Verdict::Refused { reason: error.reason(), sentence: error.to_string() })
}

/// The end of a pass that changed no Deployment.
fn stopped(observed: &Observed, model: Option<ModelStatus>, verdict: Verdict) -> Outcome {
    Outcome { verdict, model, can_draft: None, deployments: observed.deployments.clone() }
}

async fn settle(
    validated: &ValidatedDeployment,
    shape: &gqla_model::ModelShape,
    model: Option<ModelStatus>,
    observed: &Observed,
    context: &Context,
) -> Result<Outcome, ReconcileError> {
    let plan = plan(validated, shape, &context.fleet.snapshot());
    let (plan, keep_others) = hand_over(plan, &observed.deployments);
    let keeps = |pool: &str| keep_others || plan.keeps(pool);
    let desired = build::build(validated, &plan);
    let applied = apply(&context.client, &validated.identity, &desired, observed, keeps).await?;
    let kept = observed
        .deployments
        .iter()
        .filter(|old| applied.deployments.iter().all(|new| new.name_any() != old.name_any()))
        .filter(|old| old.labels().get(POOL).is_some_and(|pool| keeps(pool)));
    let deployments = applied.deployments.iter().chain(kept).cloned().collect();
    let can_draft = Some(shape.num_nextn_predict_layers > 0);
    Ok(Outcome { verdict: Verdict::Planned(plan), model, can_draft, deployments })
}

/// Has the model's files read. What already runs stays as it is until the answer is there.
async fn inspect(
    object: &GQLADeployment,
    validated: &ValidatedDeployment,
    model: Option<ModelStatus>,
    observed: &Observed,
    context: &Context,
) -> Result<Outcome, ReconcileError> {
    let desired = build::inspect(validated);
    apply(&context.client, &validated.identity, &desired, observed, |_| true).await?;
    let name = desired.job.as_ref().map(kube::ResourceExt::name_any).unwrap_or_default();
    let pods = fetch::inspect_pods(&context.client, &validated.identity, &name).await?;
    let job = observed.jobs.iter().find(|job| job.name_any() == name);
    let unanswered = |verdict, model| stopped(observed, model, verdict);
    let unreadable =
        |sentence: String| Verdict::Refused { reason: ConditionReason::ModelUnreadable, sentence };
    let source_hash = validated.source_hash.clone();
    match inspection(job, &pods) {
        Inspection::Found { shape, weight_bytes } => {
            let model = ModelStatus { source_hash, shape: Some(shape), weight_bytes, error: None };
            let mut informed = object.clone();
            informed.status.get_or_insert_default().model = Some(model.clone());
            match validate(&informed, &context.server_image) {
                Ok(ValidatedDeployment { shape: Shape::Known(shape), .. }) => {
                    settle(validated, &shape, Some(model), observed, context).await
                }
                Ok(_) => {
                    Ok(unanswered(Verdict::Inspecting("the answer is being read".to_owned()), Some(model)))
                }
                Err(error) => Ok(refused(observed, Some(model), &error)),
            }
        }
        Inspection::Failed(sentence) => {
            let model = ModelStatus { source_hash, error: Some(sentence.clone()), ..ModelStatus::default() };
            Ok(unanswered(unreadable(sentence), Some(model)))
        }
        // A model that could not be read stays unreadable while a new Job tries again.
        Inspection::Pending(waiting) => {
            let verdict = match model.as_ref().and_then(|model| model.error.clone()) {
                Some(sentence) => unreadable(sentence),
                None => Verdict::Inspecting(waiting),
            };
            Ok(unanswered(verdict, model))
        }
    }
}

async fn finish(
    object: &GQLADeployment,
    identity: &Identity,
    outcome: Outcome,
    context: &Context,
) -> Result<Action, ReconcileError> {
    let previous = object.status.as_ref();
    let last = context.rates_written.lock().get(&identity.uid).copied();
    let rates = context.throughput.of_deployment(&identity.namespace, &identity.label());
    let measured = measured::to_publish(previous, rates, last, Instant::now());
    let facts = Facts {
        verdict: &outcome.verdict,
        model: outcome.model,
        can_draft: outcome.can_draft,
        deployments: &outcome.deployments,
        measured: &measured,
        now: Time(Timestamp::now()),
    };
    let next = status(object, identity, &facts);
    if previous != Some(&next) {
        write_status(object, identity, &next, context).await?;
        note_rates(identity, previous, &measured, context);
        let pools: &[PoolPlan] = match &outcome.verdict {
            Verdict::Planned(plan) => &plan.pools,
            _ => &[],
        };
        context.events.tell(&object.object_ref(&()), previous, &next, pools).await;
    }
    Ok(Action::requeue(next_look(&outcome.verdict, &next)))
}

async fn write_status(
    object: &GQLADeployment,
    identity: &Identity,
    status: &GQLADeploymentStatus,
    context: &Context,
) -> Result<(), ReconcileError> {
    let api: Api<GQLADeployment> = Api::namespaced(context.client.clone(), &identity.namespace);
    let patch = json!({
        "apiVersion": GQLADeployment::api_version(&()),
        "kind": GQLADeployment::kind(&()),
        "metadata": { "name": object.name_any(), "uid": identity.uid },
        "status": status,
    });
    let params = PatchParams::apply(STATUS_MANAGER).force();
    match api.patch_status(&identity.name, &params, &Patch::Apply(patch)).await {
        Ok(_) => Ok(()),
        // Deleted meanwhile.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(ReconcileError::Status(source)),
    }
}

fn note_rates(
    identity: &Identity,
    previous: Option<&GQLADeploymentStatus>,
    measured: &BTreeMap<String, f64>,
    context: &Context,
) {
    let before: BTreeMap<String, f64> = previous
        .into_iter()
        .flat_map(|status| &status.pools)
        .filter_map(|pool| Some((pool.name.clone(), pool.measured_tokens_per_second?)))
        .collect();
    if before != *measured {
        let mut written = context.rates_written.lock();
        written.retain(|_, at| at.elapsed() < Duration::from_secs(3600));
        written.insert(identity.uid.clone(), Instant::now());
    }
}

/// Watches wake a pass for nearly everything; the rest is looked at again after this.
fn next_look(verdict: &Verdict, status: &GQLADeploymentStatus) -> Duration {
    let seconds = match verdict {
        // Why a pod waits is not watched.
        Verdict::Inspecting(_) => 3,
        Verdict::Refused { .. } => 60,
        Verdict::Planned(_)
            if status.ready_replicas < status.pools.iter().map(|pool| pool.replicas).sum() =>
        {
            15
        }
        Verdict::Planned(_) if status.ready_replicas > 0 => 30,
        Verdict::Planned(_) => 300,
    };
    Duration::from_secs(seconds)
}
