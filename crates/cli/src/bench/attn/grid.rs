//! Which passes to time, and whether they fit.

use std::iter::once;

use anyhow::{Context, bail};
use gqla_engine::cpu::measure::AttentionCase;
use gqla_kernels::attention::BLOCK_TOKENS;
use gqla_model::{AttentionShape, CacheFormat, DecodePath, TensorParallelSplit};

/// More would be timed too briefly to mean anything.
const MOST_CASES: usize = 256;
/// Ranks of a server.
const MOST_RANKS: u32 = 8;
/// Query tokens of a pass, as plans have them.
const MOST_QUERIES: usize = 16;
const MIB: u64 = 1 << 20;

/// Every batch with every context and every number of query tokens.
pub(in crate::bench) fn cases(
    batches: &[usize],
    contexts: &[usize],
    queries: &[usize],
) -> anyhow::Result<Vec<AttentionCase>> {
    let count = batches.len().saturating_mul(contexts.len()).saturating_mul(queries.len());
    if count > MOST_CASES {
        bail!(
            "{} batches × {} contexts × {} values of --s-q are {count} passes, expected at most {MOST_CASES}: name fewer",
            batches.len(),
            contexts.len(),
            queries.len()
        );
    }
    if let Some(more) = queries.iter().find(|queries| **queries > MOST_QUERIES) {
        bail!("--s-q {more}: expected 1 to {MOST_QUERIES}");
    }
    let pairs = batches.iter().flat_map(|batch| contexts.iter().map(move |context| (*batch, *context)));
    let all = pairs.flat_map(|(batch, context)| {
        queries.iter().map(move |queries| AttentionCase { batch, context, query_tokens: *queries })
    });
    let cases: Vec<_> = all.collect();
    for case in &cases {
        let AttentionCase { batch, context, query_tokens } = *case;
        case.validate()
            .with_context(|| format!("--batch {batch} --context {context} --s-q {query_tokens}"))?;
    }
    Ok(cases)
}

/// Heads and groups of one of `degree` ranks, where they divide on both paths.
pub(in crate::bench) fn share(shape: &AttentionShape, degree: u32) -> Option<AttentionShape> {
    let split = TensorParallelSplit::new(shape, DecodePath::Gqa, degree).ok()?;
    Some(AttentionShape {
        num_attention_heads: split.heads_per_rank,
        num_key_value_heads: split.groups_per_rank,
        ..*shape
    })
}

/// The layer, and one of fewer heads: these wait for memory where many keep the arithmetic busy. One per group, or what a
/// tensor-parallel rank has of those that are.
pub(super) fn shapes(shape: &AttentionShape) -> Vec<AttentionShape> {
    let groups = shape.num_key_value_heads;
    let fewer = if groups < shape.num_attention_heads {
        Some(AttentionShape { num_attention_heads: groups, ..*shape })
    } else {
        (2..=MOST_RANKS).rev().find_map(|degree| share(shape, degree))
    };
    once(*shape).chain(fewer).collect()
}

/// Bytes that one block of a layer takes.
pub(in crate::bench) fn block_bytes(shape: &AttentionShape, path: DecodePath, format: CacheFormat) -> u64 {
    shape.cached_token(path).bytes(format).saturating_mul(BLOCK_TOKENS as u64)
}

/// Refuses passes that take more than `memory` bytes, `scratch` among them, with the arithmetic.
pub(in crate::bench) fn check_memory(
    shape: &AttentionShape,
    format: CacheFormat,
    cases: &[AttentionCase],
    (memory, scratch): (u64, impl Fn(DecodePath, &AttentionCase) -> u64),
) -> anyhow::Result<()> {
    for path in DecodePath::ALL {
        for case in cases {
            let block = block_bytes(shape, path, format);
            let blocks = case.blocks() as u64;
            let activations = activation_bytes(shape, case).saturating_add(scratch(path, case));
            let bytes = blocks.saturating_mul(block).saturating_add(activations);
            if bytes > memory {
                let AttentionCase { batch, context, query_tokens } = *case;
                bail!(
                    "--batch {batch} --context {context} --s-q {query_tokens} along {}: {blocks} cache blocks × {block} \
                     bytes + {activations} bytes of activations are {} MiB, over --memory-mib {}: ask for fewer or \
                     shorter sequences, or raise it",
                    path.flag(),
                    bytes.div_ceil(MIB),
                    memory / MIB
                );
            }
        }
    }
    Ok(())
}

/// Bytes of queries, absorbed queries, weighted latents, new keys and values, and outputs of all rows, in f32.
fn activation_bytes(shape: &AttentionShape, case: &AttentionCase) -> u64 {
    let dim = u64::from;
    let (rope, nope, value) =
        (dim(shape.qk_rope_head_dim), dim(shape.qk_nope_head_dim), dim(shape.v_head_dim));
    let rank = dim(shape.kv_lora_rank);
    let per_head = (nope + rope) + (rank + rope) + rank + value;
    let per_group = nope + value;
    let per_row = dim(shape.num_attention_heads)
        .saturating_mul(per_head)
        .saturating_add(dim(shape.num_key_value_heads).saturating_mul(per_group))
        .saturating_add(rank + rope);
    (case.batch as u64).saturating_mul(case.query_tokens as u64).saturating_mul(per_row).saturating_mul(4)
}

/// Blocks to allocate: for the largest pass, or for twice the last-level cache if that is more and there is memory.
pub(in crate::bench) fn blocks(
    shape: &AttentionShape,
    path: DecodePath,
    format: CacheFormat,
    cases: &[AttentionCase],
    memory: u64,
    last_level_cache: u64,
) -> usize {
    let block = block_bytes(shape, path, format).max(1);
    let needed = cases.iter().map(AttentionCase::blocks).max().unwrap_or(0).max(1);
    let activations = cases.iter().map(|case| activation_bytes(shape, case)).max().unwrap_or(0);
    let wanted = last_level_cache.saturating_mul(2).div_ceil(block);
    let affordable = memory.saturating_sub(activations) / block;
    usize::try_from(wanted.min(affordable)).unwrap_or(usize::MAX).max(needed)
}

#[cfg(test)]
mod tests {
    use gqla_planner::{ModelName, shape};

    use super::*;

    #[test]
    fn every_combination_is_a_pass() {
        let cases = cases(&[1, 8], &[64, 128], &[1, 2]).unwrap();
        assert_eq!(cases.len(), 8);
        assert_eq!(cases[7], AttentionCase { batch: 8, context: 128, query_tokens: 2 });
    }

    #[test]
    fn a_layer_is_timed_with_few_heads_too() {
        let llama = shape(ModelName::Llama370bGqla).attention;
        let mla = AttentionShape { num_attention_heads: 20, num_key_value_heads: 20, ..llama };
        let one = AttentionShape { num_attention_heads: 1, num_key_value_heads: 1, ..llama };
        for (shape, expected) in
            [(llama, vec![(64, 8), (8, 8)]), (mla, vec![(20, 20), (4, 4)]), (one, vec![(1, 1)])]
        {
            let timed = shapes(&shape).into_iter();
            let timed: Vec<_> =
                timed.map(|shape| (shape.num_attention_heads, shape.num_key_value_heads)).collect();
            assert_eq!(timed, expected);
        }
    }

    #[test]
    fn what_cannot_be_timed_is_refused_by_its_flag() {
        for (batches, contexts, queries, words) in [
            (&[0][..], &[64][..], &[1][..], "--batch 0 --context 64 --s-q 1"),
            (&[1][..], &[2][..], &[4][..], "--batch 1 --context 2 --s-q 4"),
            (&[1][..], &[64][..], &[17][..], "--s-q 17: expected 1 to 16"),
            (&[1; 20][..], &[64; 20][..], &[1][..], "400 passes, expected at most 256"),
        ] {
            let sentence = format!("{:#}", cases(batches, contexts, queries).unwrap_err());
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn memory_is_refused_with_its_arithmetic_and_never_overflows() {
        let shape = shape(ModelName::Llama38bGqla).attention;
        let one = [AttentionCase { batch: 1, context: 4096, query_tokens: 1 }];
        check_memory(&shape, CacheFormat::F32, &one, (64 * MIB, |_, _| 0)).unwrap();
        let sentence =
            check_memory(&shape, CacheFormat::F32, &one, (32 * MIB, |_, _| 0)).unwrap_err().to_string();
        // 64 blocks of 64 tokens of 8 × 256 + 64 numbers of 4 bytes.
        assert!(sentence.contains("along gqa: 64 cache blocks × 540672 bytes + "), "{sentence}");
        assert!(sentence.contains("over --memory-mib 32"), "{sentence}");
        let endless = [AttentionCase { batch: usize::MAX, context: usize::MAX, query_tokens: 16 }];
        assert!(check_memory(&shape, CacheFormat::F32, &endless, (1 << 40, |_, _| 0)).is_err());
    }

    #[test]
    fn blocks_outgrow_the_cache_where_there_is_memory() {
        let shape = shape(ModelName::Llama38bGqla).attention;
        let case = [AttentionCase { batch: 1, context: 640, query_tokens: 1 }];
        let blocks =
            |memory, cache| blocks(&shape, DecodePath::MqaAbsorb, CacheFormat::F32, &case, memory, cache);
        // A block is 64 tokens of 576 numbers: 147456 bytes.
        assert_eq!(blocks(1 << 30, 147_456 * 50), 100);
        assert_eq!(blocks(1 << 30, 0), 10);
        assert!((10..100).contains(&blocks(147_456 * 30, 147_456 * 50)));
    }
}
