//! Which kernel decodes a shape, and what its blocks take: pure data, before any device is there.
//!
//! The choice follows from the shape and the architecture alone, so that a sequence is computed by the same kernel, and
//! to the same bits, in every step: a chunk of a prompt takes more tiles of rows, not another kernel.

use crate::{AttentionShape, DecodePath};

/// The oldest compute capability that kernels run on, 8.0 is (8, 0): their products of bf16 matrices are instructions that came
/// with it.
pub const OLDEST: (u32, u32) = (8, 0);

/// Tokens of a page.
const PAGE: u32 = 64;
/// Columns that one matrix multiplication takes of a key.
const STEP: u32 = 16;
/// A value's columns are shared by four warps of whole steps, or by eight where they divide it.
const RANK_STEP: u32 = 4 * STEP;
const WIDE_RANK_STEP: u32 = 8 * STEP;

/// What a block may use on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Compute capability, 9.0 is (9, 0).
    pub capability: (u32, u32),
    /// Shared memory of a block that opted in, bytes.
    pub shared_per_block: u32,
}

impl Limits {
    /// What is known of a card before its driver is asked: what the CUDA C++ Programming Guide's table of technical
    /// specifications gives its compute capability. Where that has no row here, or is not known itself, no block is too large, for
    /// nothing that would run may be refused.
    pub const fn of(capability: Option<(u32, u32)>) -> Self {
        let kib = match capability {
            Some((8, 0 | 7)) => 163,
            Some((8, 6 | 9) | (12, 0 | 1)) => 99,
            Some((9, 0) | (10, 0 | 3)) => 227,
            _ => u32::MAX >> 10,
        };
        let capability = match capability {
            Some(capability) => capability,
            None => OLDEST,
        };
        Self { capability, shared_per_block: kib << 10 }
    }

    /// Whether kernels run on the card at all.
    ///
    /// # Errors
    /// When it lacks their instructions.
    pub fn run_kernels(self) -> Result<(), NoKernel> {
        let capability = self.capability;
        if capability < OLDEST { Err(NoKernel::Instructions { capability }) } else { Ok(()) }
    }
}

/// Attention as kernels see it. The latent is padded with zeros to what matrix multiplications take, which only test models
/// need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeShape {
    /// Query heads.
    pub heads: u32,
    /// Key and value groups.
    pub groups: u32,
    /// Per-head key width without position.
    pub nope: u32,
    /// Width of the rotary key.
    pub rope: u32,
    /// Per-head value width.
    pub value: u32,
    /// Width of the latent, padded.
    pub rank: u32,
    /// Softmax scale.
    pub scale: f64,
}

impl DecodeShape {
    /// The shape with a padded latent.
    pub fn of(shape: &AttentionShape) -> Self {
        let (nope, rope) = (shape.qk_nope_head_dim, shape.qk_rope_head_dim);
        Self {
            heads: shape.num_attention_heads,
            groups: shape.num_key_value_heads,
            nope,
            rope,
            value: shape.v_head_dim,
            rank: shape.kv_lora_rank.next_multiple_of(RANK_STEP),
            scale: 1.0 / f64::from(nope + rope).sqrt(),
        }
    }

    /// Numbers that a token takes in a layer's cache.
    pub fn kv_elements(&self, path: DecodePath) -> u32 {
        match path {
            DecodePath::Gqa => self.groups * (self.nope + self.value) + self.rope,
            DecodePath::MqaAbsorb => self.rank + self.rope,
        }
    }

    /// Width of a query head.
    pub fn query(&self, path: DecodePath) -> u32 {
        match path {
            DecodePath::Gqa => self.nope + self.rope,
            DecodePath::MqaAbsorb => self.rank + self.rope,
        }
    }

    /// Width of an output head.
    pub fn output(&self, path: DecodePath) -> u32 {
        match path {
            DecodePath::Gqa => self.value,
            DecodePath::MqaAbsorb => self.rank,
        }
    }

    /// Groups whose heads share keys: along absorb, all heads do.
    pub fn key_groups(&self, path: DecodePath) -> u32 {
        match path {
            DecodePath::Gqa => self.groups,
            DecodePath::MqaAbsorb => 1,
        }
    }
}

/// The kernels of a path and what a block of the first takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodePlan {
    /// The path.
    pub path: DecodePath,
    /// The kernel that attends.
    pub decode: &'static str,
    /// The kernel that puts splits together.
    pub merge: &'static str,
    /// How much a block has under way: stages along GQA, tokens of a stage along absorb.
    pub depth: u32,
    /// Query rows of a block.
    pub rows: u32,
    /// Threads of a block. Kernels are bound to 255 registers a thread at most.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
}

/// Why a shape has no kernel on an architecture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKernel {
    /// The card is too old.
    #[error(
        "the card has compute capability {}.{}, and kernels need {}.{} or higher: use the CPU or another GPU",
        capability.0, capability.1, OLDEST.0, OLDEST.1
    )]
    Instructions {
        /// The card's.
        capability: (u32, u32),
    },
    /// Matrix multiplications do not divide a head.
    #[error("no kernel decodes heads of {nope} + {rope} and {value}, expected multiples of 16: use the CPU")]
    Widths {
        /// Key width without position.
        nope: u32,
        /// Width of the rotary key.
        rope: u32,
        /// Value width.
        value: u32,
    },
    /// Not even the smallest block fits.
    #[error(
        "no kernel decodes along {path} on sm_{}{}: heads of {nope} + {rope} and {value}, latents of {rank} take at \
         least {least} bytes of a block's shared memory, the architecture has {shared_per_block}: take the other path \
         or another GPU",
        capability.0, capability.1
    )]
    SharedMemory {
        /// The path.
        path: DecodePath,
        /// The architecture.
        capability: (u32, u32),
        /// What it has, bytes.
        shared_per_block: u32,
        /// What the smallest kernel takes, bytes.
        least: u32,
        /// Key width without position.
        nope: u32,
        /// Width of the rotary key.
        rope: u32,
        /// Value width.
        value: u32,
        /// Width of the latent.
        rank: u32,
    },
}

/// Chooses the kernels for steps of `s_q` tokens per sequence: the smallest block that holds all rows which share keys, so
/// that each key is read once, or the largest that fits.
///
/// # Errors
/// When the card is too old, heads are no multiples of what a multiplication takes, or the architecture has room for no kernel.
pub fn plan_decode(
    shape: &DecodeShape,
    path: DecodePath,
    s_q: u32,
    limits: Limits,
) -> Result<DecodePlan, NoKernel> {
    limits.run_kernels()?;
    let DecodeShape { nope, rope, value, rank, .. } = *shape;
    if [nope, rope, value].iter().any(|width| *width == 0 || !width.is_multiple_of(STEP)) {
        return Err(NoKernel::Widths { nope, rope, value });
    }
    let rows = s_q * shape.heads / shape.key_groups(path);
    let plans = match path {
        DecodePath::Gqa => gqa_plans(shape),
        DecodePath::MqaAbsorb => absorb_plans(shape),
    };
    let fitting = || plans.iter().filter(|plan| plan.shared_bytes <= limits.shared_per_block);
    let enough = fitting().find(|plan| plan.rows >= rows);
    // Of those that take most rows, the first has most under way.
    let most = || fitting().rev().max_by_key(|plan| plan.rows);
    enough.or_else(most).copied().ok_or_else(|| NoKernel::SharedMemory {
        path,
        capability: limits.capability,
        shared_per_block: limits.shared_per_block,
        least: plans.iter().map(|plan| plan.shared_bytes).min().unwrap_or(0),
        nope,
        rope,
        value,
        rank,
    })
}

/// Those that are taken before others first; `gqa_decode.cu` has the layout of shared memory. Two blocks of 16 rows share a
/// multiprocessor, and so need no third stage.
fn gqa_plans(shape: &DecodeShape) -> Vec<DecodePlan> {
    let (key, value) = (shape.nope + shape.rope, shape.value);
    let queries_in_shared = key / 4 + value / 2 > 160;
    let plan = |decode, stages: u32, rows: u32, warps: u32| {
        let queries = if queries_in_shared { rows * key * 2 } else { 0 };
        let sums = warps * 16 * (value + 4 + 2) * 4;
        DecodePlan {
            path: DecodePath::Gqa,
            decode,
            merge: "gqa_merge",
            depth: stages,
            rows,
            threads: 32 * warps,
            shared_bytes: (stages * PAGE * (key + value) * 2 + queries).max(sums),
        }
    };
    vec![
        plan("gqa_decode_stages2_rows16", 2, 16, 4),
        plan("gqa_decode_stages3_rows32", 3, 32, 8),
        plan("gqa_decode_stages3_rows64", 3, 64, 8),
        plan("gqa_decode_stages2_rows32", 2, 32, 8),
        plan("gqa_decode_stages2_rows64", 2, 64, 8),
        plan("gqa_decode_stages1_rows16", 1, 16, 4),
        plan("gqa_decode_stages1_rows32", 1, 32, 4),
    ]
}

/// Those that are taken before others first; `absorb_decode.cu` has the layout of shared memory.
fn absorb_plans(shape: &DecodeShape) -> Vec<DecodePlan> {
    let row = (shape.rank + shape.rope) * 2;
    let wide = if shape.rank.is_multiple_of(WIDE_RANK_STEP) { 8 } else { 4 };
    let plan = |decode, tokens: u32, rows: u32, groups: u32, parts: u32| {
        let threads = groups * parts * 32;
        // With 16 tokens, queries are in registers, and parts give scores to each other.
        let queries_or_scores = if tokens == 16 { threads * 16 } else { rows * row };
        DecodePlan {
            path: DecodePath::MqaAbsorb,
            decode,
            merge: "absorb_merge",
            depth: tokens,
            rows,
            threads,
            shared_bytes: queries_or_scores + 2 * tokens * row + rows * tokens * 2 + 2 * parts * rows * 4,
        }
    };
    vec![
        plan("absorb_decode_tokens64_rows16", 64, 16, 1, wide),
        plan("absorb_decode_tokens64_rows32", 64, 32, 1, wide),
        plan("absorb_decode_tokens64_rows64", 64, 64, 2, 4),
        plan("absorb_decode_tokens32_rows32", 32, 32, 1, 4),
        plan("absorb_decode_tokens32_rows64", 32, 64, 2, 4),
        plan("absorb_decode_tokens16_rows64", 16, 64, 4, 2),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape([heads, groups]: [u32; 2], rank: u32, [nope, rope, value]: [u32; 3]) -> DecodeShape {
        DecodeShape::of(&AttentionShape {
            num_attention_heads: heads,
            num_key_value_heads: groups,
            kv_lora_rank: rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim: value,
        })
    }

    #[test]
    fn blocks_are_as_small_as_all_rows_that_share_keys_allow() {
        let [hopper, ampere, ada] = [(9, 0), (8, 0), (8, 9)].map(|capability| Limits::of(Some(capability)));
        let deepseek = shape([128, 8], 512, [128, 64, 128]);
        for (path, s_q, limits, expected) in [
            (DecodePath::Gqa, 1, hopper, ("gqa_decode_stages2_rows16", 81_920)),
            (DecodePath::Gqa, 2, hopper, ("gqa_decode_stages3_rows32", 122_880)),
            (DecodePath::Gqa, 4, hopper, ("gqa_decode_stages3_rows64", 122_880)),
            (DecodePath::Gqa, 2, ada, ("gqa_decode_stages2_rows32", 81_920)),
            (DecodePath::MqaAbsorb, 1, hopper, ("absorb_decode_tokens64_rows64", 231_424)),
            (DecodePath::MqaAbsorb, 1, ampere, ("absorb_decode_tokens32_rows64", 153_600)),
            (DecodePath::MqaAbsorb, 1, ada, ("absorb_decode_tokens16_rows64", 44_032)),
        ] {
            let plan = plan_decode(&deepseek, path, s_q, limits).unwrap();
            assert_eq!((plan.decode, plan.shared_bytes), expected, "{path} {s_q} {limits:?}");
        }
        // One page of GLM's wide heads fits where two do not.
        let glm = plan_decode(&shape([20, 4], 512, [192, 64, 256]), DecodePath::Gqa, 4, ada).unwrap();
        assert_eq!((glm.decode, glm.shared_bytes), ("gqa_decode_stages1_rows32", 81_920));
        let refused = |shape| plan_decode(&shape, DecodePath::Gqa, 1, ada).unwrap_err().to_string();
        let error = refused(shape([20, 4], 512, [192, 64, 512]));
        assert!(error.contains("sm_89: heads of 192 + 64 and 512"), "{error}");
        let error = refused(shape([20, 4], 512, [24, 64, 64]));
        assert!(error.contains("heads of 24 + 64 and 64, expected multiples of 16"), "{error}");
    }

    #[test]
    fn a_card_has_what_the_guide_says_and_what_nobody_knows_is_enough() {
        for (capability, kib) in [
            ((8, 0), 163),
            ((8, 6), 99),
            ((8, 7), 163),
            ((8, 9), 99),
            ((9, 0), 227),
            ((10, 3), 227),
            ((12, 1), 99),
        ] {
            let limits = Limits::of(Some(capability));
            assert_eq!(limits, Limits { capability, shared_per_block: kib << 10 });
        }
        // Heads of 256 + 4096 and 4096, which take more than any card has.
        let wide = shape([16, 4], 512, [256, 4096, 4096]);
        let on = |capability| {
            plan_decode(&wide, DecodePath::Gqa, 1, Limits::of(capability)).map(|plan| plan.depth)
        };
        for unknown in [None, Some((8, 8)), Some((10, 7)), Some((13, 0))] {
            assert_eq!(on(unknown), Ok(2), "{unknown:?}");
        }
        assert!(on(Some((9, 0))).is_err());
    }

    #[test]
    fn a_card_without_products_of_bf16_has_no_kernel() {
        let llama = shape([32, 8], 512, [128, 64, 128]);
        for (capability, runs) in
            [((0, 0), false), ((7, 0), false), ((7, 5), false), ((8, 0), true), ((13, 0), true)]
        {
            for path in DecodePath::ALL {
                let limits = Limits::of(Some(capability));
                let plan = plan_decode(&llama, path, 1, limits);
                assert_eq!(plan.is_ok(), runs, "{capability:?}: {plan:?}");
                assert_eq!(limits.run_kernels().is_ok(), runs);
            }
        }
        let turing = plan_decode(&llama, DecodePath::Gqa, 1, Limits::of(Some((7, 5)))).unwrap_err();
        assert_eq!(
            turing.to_string(),
            "the card has compute capability 7.5, and kernels need 8.0 or higher: use the CPU or another GPU"
        );
    }

    #[test]
    fn latents_are_padded() {
        let tiny = shape([8, 2], 36, [16, 16, 16]);
        assert_eq!(tiny.rank, 64);
        assert!((tiny.scale - 1.0 / 32f64.sqrt()).abs() < 1e-15);
        assert_eq!(tiny.kv_elements(DecodePath::Gqa), 2 * 32 + 16);
        assert_eq!(tiny.kv_elements(DecodePath::MqaAbsorb), 80);
    }
}
