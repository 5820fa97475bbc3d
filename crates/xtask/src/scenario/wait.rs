//! Waiting for the cluster to get somewhere, with a sentence about where it got to instead when it does not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gqla_api::{GQLADeployment, GQLADeploymentStatus};
use kube::Api;

const POLL_EVERY: Duration = Duration::from_millis(250);

/// Asks `probe` until it answers `Ok(value)`; `Err(sentence)` says what is still missing.
pub async fn until<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Result<T, String>>>,
{
    let start = Instant::now();
    loop {
        match probe().await.with_context(|| format!("while waiting for {what}"))? {
            Ok(value) => return Ok(value),
            Err(missing) if start.elapsed() > limit => {
                bail!("waited {} s for {what}: {missing}", limit.as_secs())
            }
            Err(_) => tokio::time::sleep(POLL_EVERY).await,
        }
    }
}

/// Waits until the current generation's status satisfies `good`, and returns it.
pub async fn status(
    api: &Api<GQLADeployment>,
    name: &str,
    what: &str,
    limit: Duration,
    good: impl Fn(&GQLADeploymentStatus) -> bool,
) -> Result<GQLADeploymentStatus> {
    until(&format!("{name} {what}"), limit, || async {
        let object = api.get(name).await?;
        let status = object.status.clone().unwrap_or_default();
        if status.observed_generation == object.metadata.generation && good(&status) {
            return Ok(Ok(status));
        }
        Ok(Err(format!("status is {}", serde_json::to_string(&status)?)))
    })
    .await
}

/// Whether a condition is `True`.
pub fn is_true(status: &GQLADeploymentStatus, condition: &str) -> bool {
    status.conditions.iter().any(|c| c.type_ == condition && c.status == "True")
}
