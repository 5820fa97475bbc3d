//! What an inspect Job answered, from the objects it left. Pure.

use gqla_model::ModelShape;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStatus, Pod},
};
use serde::Deserialize;

/// Longest termination message a kubelet keeps.
const LONGEST_ANSWER: usize = 4096;

/// How far the inspection is.
#[derive(Clone, Debug, PartialEq)]
pub enum Inspection {
    /// No answer yet; the sentence says what is being waited for.
    Pending(String),
    /// The files were read.
    Found {
        /// Dimensions of the model.
        shape: ModelShape,
        /// Bytes of all weights.
        weight_bytes: Option<u64>,
    },
    /// The files cannot be read; the sentence names the file.
    Failed(String),
}

/// The contract with `gqla-server inspect`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    shape: Option<ModelShape>,
    weight_bytes: Option<u64>,
    error: Option<String>,
}

/// Judges an inspect Job by its pods and, where they are silent, by its own conditions.
pub fn inspection(job: Option<&Job>, pods: &[Pod]) -> Inspection {
    let statuses: Vec<&ContainerStatus> = pods
        .iter()
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| status.container_statuses.iter().flatten())
        .collect();
    if let Some(answer) = statuses.iter().find_map(|status| answered(status)) {
        return answer;
    }
    if let Some(sentence) = job.and_then(failure) {
        return Inspection::Failed(sentence);
    }
    let waiting = statuses.iter().find_map(|status| status.state.as_ref()?.waiting.as_ref());
    Inspection::Pending(match waiting.and_then(|waiting| waiting.reason.as_deref()) {
        Some(reason) => format!("the inspect pod is waiting: {reason}"),
        None if pods.is_empty() => "the inspect Job has no pod yet".to_owned(),
        None => {
            unscheduled(pods).unwrap_or_else(|| "the inspect pod is reading the model's files".to_owned())
        }
    })
}

fn answered(status: &ContainerStatus) -> Option<Inspection> {
    let message = status.state.as_ref()?.terminated.as_ref()?.message.as_deref()?;
    parse(message)
}

/// Reads a termination message; `None` when it is empty.
fn parse(message: &str) -> Option<Inspection> {
    if message.trim().is_empty() {
        return None;
    }
    if message.len() > LONGEST_ANSWER {
        return Some(Inspection::Failed(format!(
            "the inspect Job's answer has {} bytes, expected at most {LONGEST_ANSWER}; is runtime.image a gqla-server?",
            message.len()
        )));
    }
    Some(match serde_json::from_str::<Answer>(message) {
        Ok(Answer { error: Some(sentence), .. }) => Inspection::Failed(sentence),
        Ok(Answer { shape: Some(shape), weight_bytes, error: None }) => {
            Inspection::Found { shape, weight_bytes }
        }
        Ok(Answer { shape: None, error: None, .. }) => {
            Inspection::Failed("the inspect Job answered with neither a shape nor an error".to_owned())
        }
        Err(error) => Inspection::Failed(format!(
            "the inspect Job's answer is not what gqla-server inspect writes ({error}); is runtime.image a gqla-server?"
        )),
    })
}

fn failure(job: &Job) -> Option<String> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let failed =
        conditions.iter().find(|condition| condition.type_ == "Failed" && condition.status == "True")?;
    Some(format!(
        "the inspect Job failed without an answer: {}; see its pod's log",
        failed.message.as_deref().or(failed.reason.as_deref()).unwrap_or("no reason given")
    ))
}

fn unscheduled(pods: &[Pod]) -> Option<String> {
    let conditions =
        pods.iter().filter_map(|pod| pod.status.as_ref()).flat_map(|status| status.conditions.iter());
    let pending = conditions
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    Some(format!(
        "the inspect pod is not scheduled: {}",
        pending.message.as_deref().unwrap_or("no reason given")
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn pod(state: Value) -> Pod {
        from_value(json!({ "status": { "containerStatuses": [{
            "name": "server", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": state,
        }]}}))
        .unwrap()
    }

    fn judged(message: &str) -> Inspection {
        inspection(None, &[pod(json!({ "terminated": { "exitCode": 1, "message": message } }))])
    }

    #[test]
    fn answers() {
        let shape = json!({
            "numAttentionHeads": 9, "numKeyValueHeads": 3, "kvLoraRank": 320, "qkNopeHeadDim": 64, "qkRopeHeadDim": 64,
            "vHeadDim": 64, "hiddenSize": 576, "numHiddenLayers": 30, "parameters": 134_515_008,
            "maxPositionEmbeddings": 2048,
        });
        let found = judged(&json!({ "shape": shape, "weightBytes": 5 }).to_string());
        assert!(matches!(found, Inspection::Found { weight_bytes: Some(5), .. }), "{found:?}");
        let sentence = "/model/config.json: no such file";
        assert_eq!(
            judged(&json!({ "error": sentence }).to_string()),
            Inspection::Failed(sentence.to_owned())
        );
        for malformed in ["{}", "[1]", "thread panicked", &"x".repeat(5000)] {
            assert!(matches!(judged(malformed), Inspection::Failed(_)), "{malformed}");
        }
    }

    #[test]
    fn silence_is_explained() {
        assert_eq!(inspection(None, &[]), Inspection::Pending("the inspect Job has no pod yet".to_owned()));
        let waiting = pod(json!({ "waiting": { "reason": "ImagePullBackOff" } }));
        assert_eq!(
            inspection(None, &[waiting]),
            Inspection::Pending("the inspect pod is waiting: ImagePullBackOff".to_owned())
        );
        let failed: Job = from_value(json!({ "status": { "conditions": [
            { "type": "Failed", "status": "True", "message": "Job was active longer than specified deadline" },
        ]}}))
        .unwrap();
        assert!(matches!(inspection(Some(&failed), &[]), Inspection::Failed(s) if s.contains("deadline")));
    }
}
