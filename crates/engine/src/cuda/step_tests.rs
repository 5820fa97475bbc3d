//! Prompts that are stored as latents and attend in groups, on the stand-in for libcuda. What is exact is the GQA path, which
//! `tests/cuda` holds to independent numbers.

use std::path::Path;

use gqla_kernels::{attention::Segment, device::PromptAttention};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use crate::cuda::{CudaEngineConfig, CudaModel, forward::Workspace, tests::on_stand_in};

fn model(fixture: &str, path: DecodePath, prompt_attention: PromptAttention) -> CudaModel {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(fixture);
    let config = CudaEngineConfig { path: Some(path), prompt_attention, ..CudaEngineConfig::default() };
    CudaModel::prepare(&Checkpoint::open(&fixture).unwrap(), &config).unwrap()
}

fn grouped(fixture: &str) -> CudaModel {
    model(fixture, DecodePath::MqaAbsorb, PromptAttention::Groups)
}

/// Blocks, tokens that are cached, and rows of a step.
type Sequence = (&'static [u32], usize, usize);

fn segment((blocks, start, rows): Sequence, first_row: usize) -> Segment<'static> {
    Segment { first_row, rows, start, blocks }
}

fn text(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * 37 % 512).collect()
}

/// Over two chunks, of which the second attends to what the first stored.
#[test]
fn a_prompt_has_the_bits_of_the_gqa_path() {
    on_stand_in("cuda::step::tests::a_prompt_has_the_bits_of_the_gqa_path", || {
        for fixture in ["llama_a/llama_gqla_a", "glm_a/gqla"] {
            let text = text(135);
            let gqa = model(fixture, DecodePath::Gqa, PromptAttention::Groups);
            let expected = gqa.logits(&text).unwrap();
            assert!(expected == grouped(fixture).logits(&text).unwrap(), "{fixture}");
            let latents = model(fixture, DecodePath::MqaAbsorb, PromptAttention::Latents);
            assert!(expected != latents.logits(&text).unwrap(), "{fixture}: nothing was tried");
        }
    });
}

/// In pages that are no neighbours, and in a step with tokens that are decoded before, between and after prompts.
#[test]
fn rows_have_the_bits_that_they_have_alone() {
    on_stand_in("cuda::step::tests::rows_have_the_bits_that_they_have_alone", || {
        let (model, text) = (grouped("llama_a/llama_gqla_a"), text(80));
        let workspace = || Workspace::new(&model, 8, [96, 128], 8).unwrap();
        let sequences: [Sequence; 5] =
            [(&[0], 20, 1), (&[5, 2], 60, 9), (&[1], 30, 1), (&[7, 3], 0, 70), (&[4], 12, 1)];
        let prefill = |workspace: &mut Workspace, (blocks, start, _): Sequence| {
            if start > 0 {
                let past = segment((blocks, 0, start), 0);
                model.forward(workspace, &text[..start], &[past], &[]).unwrap();
            }
        };
        let alone = sequences.map(|sequence| {
            let (mut workspace, (_, start, rows)) = (workspace(), sequence);
            prefill(&mut workspace, sequence);
            let tokens = &text[start..start + rows];
            model.forward(&mut workspace, tokens, &[segment(sequence, 0)], &[rows - 1]).unwrap();
            model.kept_logits(&workspace, 1).unwrap()
        });
        let mut workspace = workspace();
        let (mut tokens, mut segments, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in sequences {
            prefill(&mut workspace, sequence);
            let (_, start, rows) = sequence;
            segments.push(segment(sequence, tokens.len()));
            tokens.extend_from_slice(&text[start..start + rows]);
            wanted.push(tokens.len() - 1);
        }
        model.forward(&mut workspace, &tokens, &segments, &wanted).unwrap();
        let together = model.kept_logits(&workspace, wanted.len()).unwrap();
        assert!(together == alone.concat());
    });
}

#[test]
fn after_a_change_of_path_prompts_are_the_paths() {
    on_stand_in("cuda::step::tests::after_a_change_of_path_prompts_are_the_paths", || {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a/llama_gqla_a");
        let config = CudaEngineConfig {
            path: Some(DecodePath::MqaAbsorb),
            prompt_attention: PromptAttention::Groups,
            expandable: true,
            ..CudaEngineConfig::default()
        };
        let mut model = CudaModel::prepare(&Checkpoint::open(&fixture).unwrap(), &config).unwrap();
        let text = text(80);
        let expected = model.logits(&text).unwrap();
        let mut workspace = Workspace::new(&model, 2, [80, 80], 80).unwrap();
        let part = |start, rows| Segment { first_row: 0, rows, start, blocks: &[1, 0] };
        model.forward(&mut workspace, &text[..40], &[part(0, 40)], &[]).unwrap();
        model.expand(&mut workspace, &[0, 1]).unwrap();
        let wanted: Vec<usize> = (0..40).collect();
        model.forward(&mut workspace, &text[40..], &[part(40, 40)], &wanted).unwrap();
        let changed = model.kept_logits(&workspace, 40).unwrap();
        assert!(changed == expected[expected.len() / 2..]);
    });
}
