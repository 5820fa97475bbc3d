//! Scaled rotary frequencies.

use gqla_model::{RopeScaling, Yarn};
use serde_json::{Value, json};

use super::{ConfigError, fields::Fields};

/// transformers 4 writes `rope_scaling`, transformers 5 `rope_parameters`; some writers emit both.
pub(super) fn scaling(fields: &Fields<'_>) -> Result<Option<RopeScaling>, ConfigError> {
    whole_rope(fields)?;
    let mut found = None;
    for field in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = fields.object(field)? else { continue };
        whole_rope(&rope)?;
        let kind = rope.optional_string("rope_type")?.or(rope.optional_string("type")?);
        let scaling = match kind.as_deref() {
            None | Some("default") => None,
            Some("llama3") => Some(llama3(&rope)?),
            Some("yarn") => Some(RopeScaling::Yarn(yarn(&rope)?)),
            Some(other) => {
                let kind = format!("rope_type `{other}`");
                let reason = "only unscaled frequencies, `llama3` and `yarn` are computed";
                return Err(fields.unsupported(field, &kind, reason));
            }
        };
        found = found.or(scaling);
    }
    Ok(found)
}

/// `partial_rotary_factor` turns a part of what is said to be rotary.
fn whole_rope(fields: &Fields<'_>) -> Result<(), ConfigError> {
    match fields.optional_f64("partial_rotary_factor")?.filter(|factor| *factor != 1.0) {
        None => Ok(()),
        Some(factor) => Err(fields.unsupported(
            "partial_rotary_factor",
            &factor.to_string(),
            "only 1 is computed: all rotary channels turn",
        )),
    }
}

fn llama3(rope: &Fields<'_>) -> Result<RopeScaling, ConfigError> {
    let low = positive(rope, "low_freq_factor", None)?;
    let high = positive(rope, "high_freq_factor", None)?;
    if high <= low {
        return Err(rope.wrong("high_freq_factor", high, format!("more than low_freq_factor={low}")));
    }
    Ok(RopeScaling::Llama3 {
        factor: positive(rope, "factor", None)?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: rope.u32("original_max_position_embeddings")?,
    })
}

fn yarn(rope: &Fields<'_>) -> Result<Yarn, ConfigError> {
    let attention_factor = match rope.optional_f64("attention_factor")? {
        None => None,
        Some(_) => Some(positive(rope, "attention_factor", None)?),
    };
    Ok(Yarn {
        factor: positive(rope, "factor", None)?,
        original_max_position_embeddings: rope.u32("original_max_position_embeddings")?,
        beta_fast: positive(rope, "beta_fast", Some(32.0))?,
        beta_slow: positive(rope, "beta_slow", Some(1.0))?,
        truncate: rope.bool_or("truncate", true)?,
        attention_factor,
        mscale: rope.optional_f64("mscale")?,
        mscale_all_dim: rope.optional_f64("mscale_all_dim")?,
    })
}

fn positive(rope: &Fields<'_>, field: &str, default: Option<f64>) -> Result<f64, ConfigError> {
    let number = match (rope.optional_f64(field)?, default) {
        (Some(number), _) => number,
        (None, Some(default)) => default,
        (None, None) => rope.f64(field)?,
    };
    if number.is_finite() && number > 0.0 {
        Ok(number)
    } else {
        Err(rope.wrong(field, number, "a positive number"))
    }
}

/// The fields [`scaling`] reads back, `rope_theta` among them.
pub(super) fn to_json(theta: f64, scaling: Option<&RopeScaling>) -> Value {
    match scaling {
        None => json!({ "rope_type": "default", "rope_theta": theta }),
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => json!({
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        Some(RopeScaling::Yarn(yarn)) => json!({
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "truncate": yarn.truncate,
            "attention_factor": yarn.attention_factor,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        }),
    }
}
