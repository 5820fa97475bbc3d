//! The two decode paths and the three spellings each has.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which of the two equal computations a pod decodes with.
///
/// The Kubernetes API spells it `MQAAbsorb` / `GQA`, flags and files `mqa-absorb` / `gqa`, metric labels
/// `mqa_absorb` / `gqa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DecodePath {
    /// Cache one latent row per token that every query head reads.
    #[serde(rename = "MQAAbsorb")]
    MqaAbsorb,
    /// Cache per-group keys and values, with the shared rope key stored once.
    #[serde(rename = "GQA")]
    Gqa,
}

impl DecodePath {
    /// Both paths, in the order tables print them.
    pub const ALL: [Self; 2] = [Self::MqaAbsorb, Self::Gqa];

    /// The name in Kubernetes objects.
    pub const fn api_name(self) -> &'static str {
        match self {
            Self::MqaAbsorb => "MQAAbsorb",
            Self::Gqa => "GQA",
        }
    }

    /// The name in flags and files.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::MqaAbsorb => "mqa-absorb",
            Self::Gqa => "gqa",
        }
    }

    /// The value of the `path` label in metrics.
    pub const fn metric_label(self) -> &'static str {
        match self {
            Self::MqaAbsorb => "mqa_absorb",
            Self::Gqa => "gqa",
        }
    }
}

impl fmt::Display for DecodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.flag())
    }
}

/// A path name that is neither `mqa-absorb` nor `gqa`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown decode path `{0}`: expected `mqa-absorb` or `gqa`")]
pub struct UnknownPath(String);

impl FromStr for DecodePath {
    type Err = UnknownPath;

    fn from_str(name: &str) -> Result<Self, UnknownPath> {
        Self::ALL.into_iter().find(|path| path.flag() == name).ok_or_else(|| UnknownPath(name.to_owned()))
    }
}
