//! Conversions held against numbers made by the reference implementation in PyTorch.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod support;

use gqla_convert::{Report, Target};
use gqla_weights::Checkpoint;
use support::{
    Golden, convert, fixture, key_value_map, largest_difference, logits, relative_distance, target,
};

/// f32 activations against the reference's, amplified by three layers.
const LOGITS: f32 = 2e-4;
/// Second moments of f32 activations.
const MOMENTS: f64 = 1e-4;

fn converted(variant: char) -> (tempfile::TempDir, Report, Golden) {
    let golden = Golden::open(&format!("llama_gqla_{variant}"));
    let (directory, report) = convert("llama_untied", target(variant), golden.ids("calib_ids"));
    (directory, report, golden)
}

#[test]
fn eigenvalues_and_ratios_are_the_references() {
    for variant in ['a', 'b'] {
        let (_directory, report, golden) = converted(variant);
        let rope: Vec<f64> = report.layers.iter().flat_map(|layer| layer.rope_spectra.concat()).collect();
        let latent: Vec<f64> = report.layers.iter().flat_map(|layer| layer.latent_spectrum.clone()).collect();
        let ratio: Vec<f64> = report.layers.iter().map(|layer| layer.ratio).collect();
        for (name, ours) in [("rorope_eig", rope), ("kv_eig", latent), ("ratio", ratio)] {
            let reference = golden.f64(name);
            assert_eq!(ours.len(), reference.len(), "{variant} {name}");
            for (index, (ours, reference)) in ours.iter().zip(&reference).enumerate() {
                let error = (ours / reference - 1.0).abs();
                assert!(error < MOMENTS, "{variant} {name}[{index}]: {ours}, expected {reference}");
            }
        }
    }
}

#[test]
fn logits_are_the_references() {
    for variant in ['a', 'b'] {
        let (directory, _, golden) = converted(variant);
        for prompt in 0..3 {
            let ours = logits(directory.path(), &golden.ids(&format!("ids_{prompt}")));
            let worst = largest_difference(&ours, &golden.f32(&format!("logits_{prompt}")));
            assert!(worst < LOGITS, "{variant} prompt {prompt}: {worst}");
        }
    }
}

#[test]
fn keys_and_values_are_the_published_checkpoints() {
    let (directory, _, _) = converted('a');
    for layer in 0..3 {
        let ours = key_value_map(directory.path(), layer);
        let distance = relative_distance(&ours, &key_value_map(&fixture("llama_gqla_a"), layer));
        assert!(distance < 1e-4, "layer {layer}: {distance}");
    }
}

#[test]
fn config_says_what_the_published_one_says() {
    let (directory, _, _) = converted('a');
    let (ours, published) =
        (Checkpoint::open(directory.path()).unwrap(), Checkpoint::open(&fixture("llama_gqla_a")).unwrap());
    assert_eq!(ours.config(), published.config());
    assert_eq!(ours.names().collect::<Vec<_>>(), published.names().collect::<Vec<_>>());
}

#[test]
fn at_full_rank_only_the_rope_is_lost() {
    for variant in ['a', 'b'] {
        let golden = Golden::open(&format!("llama_gqla_{variant}"));
        let full = Target { kv_lora_rank: 64 - target(variant).qk_rope_head_dim, ..target(variant) };
        let (directory, report) = convert("llama_untied", full, golden.ids("calib_ids"));
        let worst = largest_difference(
            &logits(directory.path(), &golden.ids("ids_1")),
            &golden.f32("partial_rope_logits_1"),
        );
        assert!(worst < LOGITS, "{variant}: {worst}");
        assert!(report.layers.iter().all(|layer| (layer.latent_energy - 1.0).abs() < 1e-12));
    }
}
