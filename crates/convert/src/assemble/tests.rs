use proptest::prelude::*;

use super::*;
use crate::{
    balance::balance_ratio,
    geometry::{SourceAttention, Target},
    rorope::Rotation,
};

const HIDDEN: usize = 12;

/// Uniform numbers in [-1, 1) that depend on `seed` alone.
fn random(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
    let mut state = seed;
    Mat::from_fn(rows, columns, |_, _| {
        // splitmix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    })
}

/// Second moments of `width` random features.
fn moments(width: usize, seed: u64) -> Mat<f64> {
    let samples = random(width, 2 * width, seed);
    &samples * samples.transpose()
}

fn largest_difference(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> f64 {
    (left - right).norm_max()
}

prop_compose! {
    fn geometries()(
        groups in 1usize..4, per_group in 1usize..4, folds in 1usize..3, kept in 1usize..3, collapse in 1usize..3,
    ) -> Option<Geometry> {
        let head_dim = 2 * folds * kept * collapse;
        let source = SourceAttention { heads: groups * per_group, groups, head_dim };
        let rope = head_dim / collapse;
        let target = Target {
            qk_rope_head_dim: rope,
            kv_lora_rank: (2 * groups * head_dim).saturating_sub(rope),
            freqfold: kept * collapse,
            collapse: None,
        };
        Geometry::new(source, target).ok()
    }
}

proptest! {
    #[test]
    fn rotations_are_orthogonal(geometry in geometries(), seed: u64) {
        prop_assume!(geometry.is_some());
        let geometry = geometry.unwrap();
        let rotation = Rotation::of_keys(&geometry, moments(geometry.kv_width(), seed).as_ref()).unwrap();
        let product = &rotation.matrix * rotation.matrix.transpose();
        let identity = Mat::<f64>::identity(geometry.kv_width(), geometry.kv_width());
        prop_assert!(largest_difference(product.as_ref(), identity.as_ref()) < 1e-12);
        prop_assert!(rotation.rope_energy > 0.0 && rotation.rope_energy <= 1.0);
    }

    /// Where RoPE turns nothing (both tokens at position 0), scores are the source's times the scale's correction.
    #[test]
    fn scores_without_positions_are_the_sources(geometry in geometries(), seed: u64) {
        prop_assume!(geometry.is_some());
        let geometry = geometry.unwrap();
        let (d, rope, full_rank) = (geometry.head_dim(), geometry.rope_dim(), geometry.full_rank());
        let width = geometry.kv_width();
        let plain = PlainWeights {
            q: random(geometry.heads() * d, HIDDEN, seed),
            k: random(width, HIDDEN, seed ^ 1),
            v: random(width, HIDDEN, seed ^ 2),
        };
        let rotation = Rotation::of_keys(&geometry, moments(width, seed ^ 3).as_ref()).unwrap();
        let latent = partial_rope(&geometry, &plain, rotation.matrix.as_ref());
        let up = &latent.kv_b * latent.kv_a.subrows(0, full_rank);
        let factor = ((d + rope) as f64 / d as f64).sqrt();
        for head in 0..geometry.heads() {
            let group = head / (geometry.heads() / geometry.groups());
            let query = latent.q.subrows(head * (d + rope), d + rope);
            let score = query.subrows(0, d).transpose() * up.subrows(group * 2 * d, d)
                + query.subrows(d, rope).transpose() * latent.kv_a.subrows(full_rank, rope);
            let expected =
                plain.q.subrows(head * d, d).transpose() * plain.k.subrows(group * d, d) * faer::Scale(factor);
            prop_assert!(largest_difference(score.as_ref(), expected.as_ref()) < 1e-10);
            let value = up.subrows(group * 2 * d + d, d);
            prop_assert!(largest_difference(value, plain.v.subrows(group * d, d)) < 1e-12);
        }
    }

    /// At full rank the basis only turns the latent, so keys and values stay what they were.
    #[test]
    fn full_rank_keeps_the_partial_rope_model(geometry in geometries(), seed: u64) {
        prop_assume!(geometry.is_some());
        let geometry = geometry.unwrap();
        let width = geometry.kv_width();
        let plain = PlainWeights {
            q: random(geometry.heads() * geometry.head_dim(), HIDDEN, seed),
            k: random(width, HIDDEN, seed ^ 1),
            v: random(width, HIDDEN, seed ^ 2),
        };
        let rotation = Rotation::of_keys(&geometry, moments(width, seed ^ 3).as_ref()).unwrap();
        let full = partial_rope(&geometry, &plain, rotation.matrix.as_ref());
        let latent = moments(geometry.full_rank(), seed ^ 4);
        let ratio = balance_ratio(&geometry, latent.as_ref(), 1.0).unwrap();
        let basis = LatentBasis::of_latent(&geometry, latent.as_ref(), ratio).unwrap();
        let kept = compress(&geometry, full.clone(), &basis);
        let map = |weights: &LatentWeights| &weights.kv_b * weights.kv_a.subrows(0, geometry.full_rank());
        prop_assert!(largest_difference(map(&kept).as_ref(), map(&full).as_ref()) < 1e-10);
        let rope = |weights: &LatentWeights| weights.kv_a.subrows(geometry.full_rank(), geometry.rope_dim()).to_owned();
        prop_assert_eq!(rope(&kept), rope(&full));
        prop_assert_eq!(kept.q, full.q);
        prop_assert!((basis.energy - 1.0).abs() < 1e-12);
    }
}
