//! Balance between keys and values before they share one principal component analysis.
//!
//! Keys are often much larger than values; left alone they would take nearly all of the kept rank.

use faer::MatRef;

use crate::geometry::Geometry;

/// How many times the keys without position are larger than the values: the mean over channels of each channel's
/// L2 norm over all tokens, times `1 / balance`. `latent` is the second moment `[2 G d - d_rope, same]` of
/// `[K_nope ; V]`.
///
/// The mean over values leaves out the first `d_rope` value channels, as TransMLA's code does; results are compared
/// with that code, so the quirk is kept.
pub fn balance_ratio(
    geometry: &Geometry,
    latent: MatRef<'_, f64>,
    balance: f64,
) -> Result<f64, BalanceError> {
    let norm = |channel: usize| latent[(channel, channel)].max(0.0).sqrt();
    let mean = |from: usize, to: usize| (from..to).map(norm).sum::<f64>() / (to - from) as f64;
    let (nope, full) = (geometry.nope_width(), geometry.full_rank());
    let (keys, values) = (mean(0, nope), mean(nope + geometry.rope_dim(), full));
    let ratio = keys / (values * balance);
    if ratio.is_finite() && ratio > 0.0 { Ok(ratio) } else { Err(BalanceError { keys, values, balance }) }
}

/// Keys and values cannot be put in proportion.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "keys (mean channel norm {keys}) and values ({values}) cannot be balanced with --balance-kv-ratio {balance}: \
     both norms and the ratio must be positive; check the source's k_proj and v_proj"
)]
pub struct BalanceError {
    keys: f64,
    values: f64,
    balance: f64,
}
