//! Condition types and the reasons they carry. Reasons are part of the API: alerts and scripts match on them.

/// Types of conditions on a GQLADeployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    /// Whether every pool has a plan.
    Planned,
    /// Whether pods are moving towards the plan.
    Progressing,
    /// Whether every pool has its replicas ready.
    Available,
    /// Whether the GPUs of all nodes in reach are in the catalogue.
    HardwareRecognized,
    /// Whether any pool decodes with drafts.
    MTPActive,
}

impl ConditionType {
    /// The `type` of the condition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "Planned",
            Self::Progressing => "Progressing",
            Self::Available => "Available",
            Self::HardwareRecognized => "HardwareRecognized",
            Self::MTPActive => "MTPActive",
        }
    }
}

/// Reasons of conditions, over all types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionReason {
    /// Planned=True: every pool has a plan.
    Decided,
    /// Planned=Unknown: the inspect Job has not answered.
    InspectingModel,
    /// Planned=False: the model's files cannot be read; the message names the file.
    ModelUnreadable,
    /// Planned=False: the shape given is not the shape of the files.
    ShapeMismatch,
    /// Planned=False: the shape is impossible.
    InvalidShape,
    /// Planned=False: something else in the spec is impossible.
    InvalidSpec,
    /// Planned=False: an object that is needed exists and belongs to something else; the message names it.
    NameTaken,
    /// Planned=False: the API server refuses an object of the plan; the message is its own.
    Refused,
    /// Planned=False: no plan fits the GPUs.
    NoFeasiblePlan,
    /// Planned=False: no usable node of a class that may be used.
    NoUsableNodes,
    /// Planned=False: more replicas were asked for than all pools together may have; the rest is planned.
    ReplicasUnplaced,
    /// Progressing=True: pods are being rolled out.
    RollingOut,
    /// Progressing=True: every pod runs the plan.
    RolledOut,
    /// Progressing=False: no progress within rollout.progressDeadlineSeconds.
    DeadlineExceeded,
    /// Progressing or Available=False: there is no plan to follow.
    NotPlanned,
    /// Available=True: every pool has its replicas ready.
    AllReady,
    /// Available=True: zero replicas were asked for.
    ScaledToZero,
    /// Available=False: fewer replicas are ready than were asked for.
    ReplicasNotReady,
    /// HardwareRecognized=True: the GPUs of all nodes in reach are in the catalogue.
    AllRecognized,
    /// HardwareRecognized=False: nodes have a GPU that the catalogue does not have.
    UnknownProduct,
    /// HardwareRecognized=False: a label says another class than NVML, which wins.
    LyingLabel,
    /// HardwareRecognized=False: a node has GPUs of several kinds, and gets no pod.
    MixedModels,
    /// HardwareRecognized=False: a node's GPUs are cut into MIG slices that no class claims.
    MigSlice,
    /// HardwareRecognized=False: pods share a node's GPUs.
    SharedGpu,
    /// HardwareRecognized=False: a node has a GPU, and nothing says which.
    NotLabelled,
    /// HardwareRecognized=False: label gqla.dev/gpu-class of a node names no class.
    UnknownClass,
    /// HardwareRecognized=False: labels or facts contradict each other, and none of them knows better.
    ContradictingFacts,
    /// HardwareRecognized=False: a node's annotation gqla.dev/gpu-inventory cannot be believed.
    BadAnnotation,
    /// MTPActive=True: at least one pool drafts.
    Drafting,
    /// MTPActive=False: the checkpoint has no prediction layers.
    NoPredictionLayers,
    /// MTPActive=False: spec.decode says Off, or no plan gains from drafts.
    NotUsed,
}

impl ConditionReason {
    /// The `reason` of the condition: the variant's own name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decided => "Decided",
            Self::InspectingModel => "InspectingModel",
            Self::ModelUnreadable => "ModelUnreadable",
            Self::ShapeMismatch => "ShapeMismatch",
            Self::InvalidShape => "InvalidShape",
            Self::InvalidSpec => "InvalidSpec",
            Self::NameTaken => "NameTaken",
            Self::Refused => "Refused",
            Self::NoFeasiblePlan => "NoFeasiblePlan",
            Self::NoUsableNodes => "NoUsableNodes",
            Self::ReplicasUnplaced => "ReplicasUnplaced",
            Self::RollingOut => "RollingOut",
            Self::RolledOut => "RolledOut",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::NotPlanned => "NotPlanned",
            Self::AllReady => "AllReady",
            Self::ScaledToZero => "ScaledToZero",
            Self::ReplicasNotReady => "ReplicasNotReady",
            Self::AllRecognized => "AllRecognized",
            Self::UnknownProduct => "UnknownProduct",
            Self::LyingLabel => "LyingLabel",
            Self::MixedModels => "MixedModels",
            Self::MigSlice => "MigSlice",
            Self::SharedGpu => "SharedGpu",
            Self::NotLabelled => "NotLabelled",
            Self::UnknownClass => "UnknownClass",
            Self::ContradictingFacts => "ContradictingFacts",
            Self::BadAnnotation => "BadAnnotation",
            Self::Drafting => "Drafting",
            Self::NoPredictionLayers => "NoPredictionLayers",
            Self::NotUsed => "NotUsed",
        }
    }
}
