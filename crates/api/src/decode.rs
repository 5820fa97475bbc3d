//! How a model is decoded: path, tensor parallelism and drafts, each left to the planner or fixed.
//!
//! `Auto|n` fields are int-or-string in the schema. Deserialising refuses anything else with a sentence, although
//! the API server's rules already did, because objects stored before a rule existed are still read.

use std::fmt;

use gqla_model::DecodePath;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::schema;

/// Which decode path pods use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathChoice {
    /// The planner compares both paths on the pool's GPU class.
    #[default]
    Auto,
    /// Cache one latent row per token that every query head reads.
    #[serde(rename = "MQAAbsorb")]
    MqaAbsorb,
    /// Cache keys and values per group.
    #[serde(rename = "GQA")]
    Gqa,
}

impl PathChoice {
    /// The path asked for, if one was.
    pub const fn fixed(self) -> Option<DecodePath> {
        match self {
            Self::Auto => None,
            Self::MqaAbsorb => Some(DecodePath::MqaAbsorb),
            Self::Gqa => Some(DecodePath::Gqa),
        }
    }
}

/// Ranks one replica is split over: `Auto` or a number of GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TensorParallel {
    /// The planner compares every degree the shape and the nodes allow.
    #[default]
    Auto,
    /// This many ranks.
    Degree(u32),
}

/// Tokens drafted per step by the model's own prediction layers: `Auto`, `Off` or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MultiTokenPrediction {
    /// Draft where the planner expects it to pay.
    #[default]
    Auto,
    /// Never draft.
    Off,
    /// This many drafts per step.
    Drafts(u32),
}

/// What an int-or-string field held.
enum Raw {
    Number(u32),
    Word(String),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl de::Visitor<'_> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word or a number")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        u32::try_from(value).map(Raw::Number).map_err(|_| E::custom(format!("{value} is too large")))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        u32::try_from(value).map(Raw::Number).map_err(|_| E::custom(format!("{value} is out of range")))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Word(value.to_owned()))
    }
}

impl Serialize for TensorParallel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("Auto"),
            Self::Degree(degree) => serializer.serialize_u32(*degree),
        }
    }
}

impl<'de> Deserialize<'de> for TensorParallel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Raw::deserialize(deserializer)? {
            Raw::Number(degree @ 1..) => Ok(Self::Degree(degree)),
            Raw::Number(0) => Err(de::Error::custom("tensorParallel is 0, expected Auto or at least 1")),
            Raw::Word(word) if word == "Auto" => Ok(Self::Auto),
            Raw::Word(word) => {
                Err(de::Error::custom(format!("tensorParallel is \"{word}\", expected Auto or a number")))
            }
        }
    }
}

impl Serialize for MultiTokenPrediction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("Auto"),
            Self::Off => serializer.serialize_str("Off"),
            Self::Drafts(drafts) => serializer.serialize_u32(*drafts),
        }
    }
}

impl<'de> Deserialize<'de> for MultiTokenPrediction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Raw::deserialize(deserializer)? {
            Raw::Number(0) => Ok(Self::Off),
            Raw::Number(drafts) => Ok(Self::Drafts(drafts)),
            Raw::Word(word) if word == "Auto" => Ok(Self::Auto),
            Raw::Word(word) if word == "Off" => Ok(Self::Off),
            Raw::Word(word) => Err(de::Error::custom(format!(
                "multiTokenPrediction is \"{word}\", expected Auto, Off or a number"
            ))),
        }
    }
}

/// Decode settings of every pool that does not override them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DecodeSpec {
    /// Decode path: Auto lets the planner choose per GPU class.
    pub path: PathChoice,
    /// GPUs one replica is split over: Auto or a number. It must divide numAttentionHeads; on the GQA path it and
    /// numKeyValueHeads must also divide each other.
    #[schemars(schema_with = "schema::tensor_parallel")]
    pub tensor_parallel: TensorParallel,
    /// Tokens drafted per step by the checkpoint's own prediction layers: Auto, Off or a number. A number above 0
    /// needs numNextnPredictLayers above 0.
    #[schemars(schema_with = "schema::multi_token_prediction")]
    pub multi_token_prediction: MultiTokenPrediction,
}

/// A pool's exceptions from spec.decode. An absent field means spec.decode's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecodeOverrides {
    /// Decode path of this pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathChoice>,
    /// GPUs one replica of this pool is split over: Auto or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::tensor_parallel")]
    pub tensor_parallel: Option<TensorParallel>,
    /// Tokens drafted per step in this pool: Auto, Off or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::multi_token_prediction")]
    pub multi_token_prediction: Option<MultiTokenPrediction>,
}

impl DecodeSpec {
    /// These settings with a pool's exceptions applied.
    pub fn with(self, overrides: Option<DecodeOverrides>) -> Self {
        let overrides = overrides.unwrap_or_default();
        Self {
            path: overrides.path.unwrap_or(self.path),
            tensor_parallel: overrides.tensor_parallel.unwrap_or(self.tensor_parallel),
            multi_token_prediction: overrides.multi_token_prediction.unwrap_or(self.multi_token_prediction),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn words_and_numbers_round_trip() {
        for value in [json!("Auto"), json!(1), json!(8)] {
            let parsed: TensorParallel = from_value(value.clone()).unwrap();
            assert_eq!(to_value(parsed).unwrap(), value);
        }
        for value in [json!("Auto"), json!("Off"), json!(2)] {
            let parsed: MultiTokenPrediction = from_value(value.clone()).unwrap();
            assert_eq!(to_value(parsed).unwrap(), value);
        }
        assert_eq!(from_value::<MultiTokenPrediction>(json!(0)).unwrap(), MultiTokenPrediction::Off);
    }

    #[test]
    fn what_is_neither_is_named() {
        let error = from_value::<TensorParallel>(json!("auto")).unwrap_err().to_string();
        assert_eq!(error, "tensorParallel is \"auto\", expected Auto or a number");
        for value in [json!(0), json!(-1), json!(1.5), json!("8"), json!(null), json!(5_000_000_000_u64)] {
            assert!(from_value::<TensorParallel>(value.clone()).is_err(), "{value}");
        }
        assert!(from_value::<MultiTokenPrediction>(json!("on")).is_err());
    }

    #[test]
    fn a_pool_overrides_only_what_it_names() {
        let spec = DecodeSpec { tensor_parallel: TensorParallel::Degree(2), ..DecodeSpec::default() };
        let overrides = DecodeOverrides { path: Some(PathChoice::Gqa), ..DecodeOverrides::default() };
        let pool = spec.with(Some(overrides));
        assert_eq!((pool.path, pool.tensor_parallel), (PathChoice::Gqa, TensorParallel::Degree(2)));
        assert_eq!(spec.with(None), spec);
    }
}
