//! An exponential the compiler can turn into vector code.

use crate::simd::Simd;

/// eˣ within 2 ulp on [-87.3, 88], clamped outside; NaN stays NaN.
///
/// Cephes' `expf`: x = n ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for eʳ, and n added to the exponent. Adding
/// 1.5·2²³ rounds to the nearest integer without a rounding instruction.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    exp_by(x, |a, b, c| a * b + c)
}

/// The same with the products and sums that `S` fuses.
#[inline(always)]
pub(crate) fn exp_of<S: Simd>(x: f32) -> f32 {
    if S::FUSES { exp_by(x, f32::mul_add) } else { exp(x) }
}

#[inline(always)]
fn exp_by(x: f32, mul_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.0);
    let shifted = mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add(n, -LN2_LOW, mul_add(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    p = mul_add(p, r, 1.398_199_9e-3);
    p = mul_add(p, r, 8.333_452e-3);
    p = mul_add(p, r, 4.166_579_6e-2);
    p = mul_add(p, r, 1.666_666_5e-1);
    p = mul_add(p, r, 5.0e-1);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    (mul_add(p * r, r, r) + 1.0) * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    use super::{exp, exp_by};

    #[test]
    fn exp_is_as_good_as_single_precision_gets() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let expected = f64::from(x).exp();
            for exp in [exp(x), exp_by(x, f32::mul_add)] {
                let error = (f64::from(exp) - expected).abs() / expected;
                assert!(error < 2.5e-7, "{x}: {error}");
            }
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }
}
