//! The three questions a kubelet asks. Answers must be cheap: they are given on the admin thread while every other
//! core may be busy, and a probe that waits for a lock held by the work it watches turns slowness into a restart.

/// The answer to one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// HTTP 200.
    Ok,
    /// HTTP 503 with this sentence as the body; it shows in `kubectl describe pod`.
    NotOk(String),
}

/// State of a process as the kubelet sees it. Implementations read atomics or take short locks, and never wait.
pub trait Health: Send + Sync + 'static {
    /// `/livez`: should the process be left running? Not Ok makes the kubelet restart the container.
    fn live(&self) -> Probe;

    /// `/readyz`: should traffic be sent here? Not Ok takes the pod out of its Services.
    fn ready(&self) -> Probe;

    /// `/startupz`: is start-up over? Until Ok the kubelet asks neither of the other two.
    fn started(&self) -> Probe;
}
