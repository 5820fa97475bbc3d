//! Events on GQLADeployments: what was decided and what failed, where `kubectl describe` shows it.

use gqla_api::{GQLADeploymentStatus, labels::MANAGER};
use gqla_decide::{PoolPlan, text::cut};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// Longest note the API server takes, in bytes.
const LONGEST_NOTE: usize = 1024;

/// Publishes Events. A failure to do so is logged and otherwise ignored: an Event is never worth a failed pass.
pub struct Events(Recorder);

/// What is worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether something is wrong.
    pub warning: bool,
    /// One word for programs.
    pub reason: String,
    /// One sentence for people.
    pub note: String,
    /// Pool it is about. Events are counted together when all but the note is equal, so two pools must differ here.
    pub pool: Option<String>,
}

impl Events {
    /// Events reported by the process `identity`.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Tells a failure.
    pub async fn warn(&self, object: &ObjectReference, reason: &str, note: &str) {
        let news = News { warning: true, reason: reason.to_owned(), note: note.to_owned(), pool: None };
        self.publish(object, &news).await;
    }

    /// Tells what is new in a status.
    pub async fn tell(
        &self,
        object: &ObjectReference,
        previous: Option<&GQLADeploymentStatus>,
        next: &GQLADeploymentStatus,
        pools: &[PoolPlan],
    ) {
        for news in news(previous, next).into_iter().chain(troubles(previous, pools)) {
            self.publish(object, &news).await;
        }
    }

    async fn publish(&self, object: &ObjectReference, news: &News) {
        let event = Event {
            type_: if news.warning { EventType::Warning } else { EventType::Normal },
            reason: news.reason.clone(),
            note: Some(cut(news.note.clone(), LONGEST_NOTE)),
            action: news.pool.as_ref().map_or_else(|| "Reconcile".to_owned(), |pool| format!("Plan {pool}")),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, object).await {
            tracing::warn!(%error, reason = news.reason, "an Event could not be published");
        }
    }
}

/// What is newly wrong with the nodes of pools, pure. What a pool's note told before is no news, so neither another pass
/// nor another process repeats it.
pub fn troubles(previous: Option<&GQLADeploymentStatus>, pools: &[PoolPlan]) -> Vec<News> {
    let told = |pool: &PoolPlan, sentence: &str| {
        let old = previous.and_then(|status| status.pools.iter().find(|old| old.name == pool.name));
        old.and_then(|old| old.note.as_ref()).is_some_and(|note| note.contains(sentence))
    };
    let each = pools.iter().flat_map(|pool| pool.troubles.iter().map(move |trouble| (pool, trouble)));
    each.filter(|(pool, trouble)| !told(pool, &trouble.sentence))
        .map(|(pool, trouble)| News {
            warning: true,
            reason: trouble.kind.as_str().to_owned(),
            note: format!("pool {}: {}", pool.name, trouble.sentence),
            pool: Some(pool.name.clone()),
        })
        .collect()
}

/// Decisions that are new and conditions that changed, pure.
pub fn news(previous: Option<&GQLADeploymentStatus>, next: &GQLADeploymentStatus) -> Vec<News> {
    let decisions = next.pools.iter().filter_map(|pool| {
        let old = previous.and_then(|status| status.pools.iter().find(|old| old.name == pool.name));
        let what =
            |pool: &gqla_api::PoolStatus| (pool.path, pool.tensor_parallel, pool.multi_token_prediction);
        let changed = old.is_none_or(|old| what(old) != what(pool));
        let before = old.map(|old| format!(", was {}", old.path.api_name())).unwrap_or_default();
        changed.then(|| News {
            warning: false,
            reason: "PathChosen".to_owned(),
            note: format!("pool {}: {}{before}: {}", pool.name, pool.path.api_name(), pool.reason),
            pool: Some(pool.name.clone()),
        })
    });
    let judgements = next.conditions.iter().filter_map(|condition| {
        let told = ["Planned", "Available", "HardwareRecognized"].contains(&condition.type_.as_str());
        let same = previous.into_iter().flat_map(|status| &status.conditions).any(|old| {
            old.type_ == condition.type_
                && old.status == condition.status
                && old.reason == condition.reason
                // Which node is in doubt stands in the message only.
                && (condition.type_ != "HardwareRecognized" || old.message == condition.message)
        });
        let good = condition.status == "True";
        // A condition that holds from the start is no news, nor that pods are not there yet, and Unknown is no trouble.
        let first = previous.is_none_or(|status| status.conditions.is_empty());
        let expected = first && (good || condition.type_ == "Available");
        let worth = told && !same && condition.status != "Unknown" && !expected;
        (worth && !(good && condition.type_ == "Planned")).then(|| News {
            warning: !good,
            reason: condition.reason.clone(),
            note: condition.message.clone(),
            pool: None,
        })
    });
    decisions.chain(judgements).collect()
}
