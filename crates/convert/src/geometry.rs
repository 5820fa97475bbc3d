//! The dimensions of one conversion, checked once so that nothing after has to doubt them.
//!
//! Symbols as in TransMLA: `d` head dimension of the source, `P = d/2` rotary frequencies, `F` = freqfold
//! (neighbouring frequencies that share one rotation), `C` = collapse (each kept frequency stands for `C`),
//! `A = F/C`, `J = P/F`, `G` key/value groups. A frequency is `p = jF + aC + b` with `j < J`, `a < A`, `b < C`.

use gqla_model::AttentionShape;

/// Attention dimensions of the model being converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceAttention {
    /// Query heads, H.
    pub heads: usize,
    /// Key/value heads, G.
    pub groups: usize,
    /// Dimension of each head, d; all of it rotates.
    pub head_dim: usize,
}

/// Dimensions the caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Dimension of the shared rotary key.
    pub qk_rope_head_dim: usize,
    /// Width of the cached latent, r.
    pub kv_lora_rank: usize,
    /// Neighbouring frequencies that share one rotation, F.
    pub freqfold: usize,
    /// Frequencies each kept one stands for, C; `None` derives it as `head_dim / qk_rope_head_dim`.
    pub collapse: Option<usize>,
}

/// Dimensions of a conversion that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    source: SourceAttention,
    rope_dim: usize,
    rank: usize,
    freqfold: usize,
    collapse: usize,
}

impl Geometry {
    /// Checks `target` against `source`.
    pub fn new(source: SourceAttention, target: Target) -> Result<Self, GeometryError> {
        let SourceAttention { heads, groups, head_dim } = source;
        let Target { qk_rope_head_dim: rope, kv_lora_rank: rank, freqfold, .. } = target;
        if groups == 0 || heads == 0 || heads % groups != 0 {
            return Err(GeometryError::Groups { heads, groups });
        }
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(GeometryError::OddHead { head_dim });
        }
        let collapse = match target.collapse {
            None if rope == 0 || head_dim % rope != 0 => {
                return Err(GeometryError::RopeDivides { head_dim, rope });
            }
            None => head_dim / rope,
            Some(collapse) if collapse.checked_mul(rope) != Some(head_dim) => {
                return Err(GeometryError::Collapse { head_dim, rope, collapse });
            }
            Some(collapse) => collapse,
        };
        let pairs = head_dim / 2;
        if freqfold == 0 || pairs % freqfold != 0 {
            return Err(GeometryError::FoldDividesPairs { pairs, freqfold });
        }
        if freqfold % collapse != 0 {
            return Err(GeometryError::CollapseDividesFold { freqfold, collapse });
        }
        let width = groups * head_dim;
        if width <= rope {
            return Err(GeometryError::NothingToCompress { width, rope });
        }
        let limit = 2 * width - rope;
        if rank == 0 || rank > limit {
            return Err(GeometryError::Rank { rank, limit, groups, head_dim, rope });
        }
        Ok(Self { source, rope_dim: rope, rank, freqfold, collapse })
    }

    /// Query heads, H.
    pub fn heads(&self) -> usize {
        self.source.heads
    }

    /// Key/value groups, G.
    pub fn groups(&self) -> usize {
        self.source.groups
    }

    /// Head dimension of the source, d; also `qk_nope_head_dim` and `v_head_dim` of the result.
    pub fn head_dim(&self) -> usize {
        self.source.head_dim
    }

    /// Dimension of the shared rotary key, `d_rope = d/C`.
    pub fn rope_dim(&self) -> usize {
        self.rope_dim
    }

    /// Width of the latent that is kept, r.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// F.
    pub fn freqfold(&self) -> usize {
        self.freqfold
    }

    /// C.
    pub fn collapse(&self) -> usize {
        self.collapse
    }

    /// Rows of the source's key (or value) projection, `G d`.
    pub fn kv_width(&self) -> usize {
        self.source.groups * self.source.head_dim
    }

    /// Key channels that lose their position, `G d - d_rope`.
    pub fn nope_width(&self) -> usize {
        self.kv_width() - self.rope_dim
    }

    /// Width of the uncompressed latent `[K_nope ; V]`, `2 G d - d_rope`.
    pub fn full_rank(&self) -> usize {
        2 * self.kv_width() - self.rope_dim
    }

    /// Number of folds, `J = P/F`.
    pub fn folds(&self) -> usize {
        self.head_dim() / 2 / self.freqfold
    }

    /// Kept frequencies per fold, `A = F/C`.
    pub fn kept_per_fold(&self) -> usize {
        self.freqfold / self.collapse
    }

    /// Features that one fold's rotation mixes, `G F`.
    pub fn fold_width(&self) -> usize {
        self.groups() * self.freqfold
    }

    /// Row of the source's key projection that holds `feature = (bG + g)A + a` of `fold`; `half` is 0 for the
    /// real and 1 for the imaginary part (Hugging Face order: channels `p` and `p + P`).
    pub fn source_row(&self, fold: usize, feature: usize, half: usize) -> usize {
        let kept = self.kept_per_fold();
        let (bg, a) = (feature / kept, feature % kept);
        let (b, group) = (bg / self.groups(), bg % self.groups());
        let frequency = fold * self.freqfold + a * self.collapse + b;
        group * self.head_dim() + half * (self.head_dim() / 2) + frequency
    }

    /// Channel of the rotated key that holds principal component `component` of `fold`. The first `d_rope`
    /// channels are the leading components of every fold, already in interleaved (real, imaginary) pairs.
    pub fn rotated_channel(&self, fold: usize, component: usize, half: usize) -> usize {
        let kept = self.kept_per_fold();
        let (block, a) = (component / kept, component % kept);
        ((block * self.folds() + fold) * kept + a) * 2 + half
    }

    /// The attention shape of the result: `d_nope = d_v = d`.
    pub fn latent_shape(&self) -> AttentionShape {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        AttentionShape {
            num_attention_heads: narrow(self.heads()),
            num_key_value_heads: narrow(self.groups()),
            kv_lora_rank: narrow(self.rank),
            qk_nope_head_dim: narrow(self.head_dim()),
            qk_rope_head_dim: narrow(self.rope_dim),
            v_head_dim: narrow(self.head_dim()),
        }
    }
}

/// Why a conversion is impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry the names their message uses")]
pub enum GeometryError {
    /// The source's heads do not form groups.
    #[error(
        "num_key_value_heads={groups} does not divide num_attention_heads={heads} in the source's config"
    )]
    Groups { heads: usize, groups: usize },
    /// A rotary head has an even dimension.
    #[error("head_dim={head_dim} of the source is not an even number of rotary channels")]
    OddHead { head_dim: usize },
    /// Collapse cannot be derived.
    #[error(
        "--qk-rope-head-dim {rope} does not divide the source's head_dim={head_dim}: \
         the rotary key keeps head_dim / collapse channels for a whole collapse"
    )]
    RopeDivides { head_dim: usize, rope: usize },
    /// The collapse given contradicts the rope dimension.
    #[error(
        "--collapse {collapse} and --qk-rope-head-dim {rope} contradict each other: \
         collapse must be head_dim / qk_rope_head_dim = {head_dim} / {rope}"
    )]
    Collapse { head_dim: usize, rope: usize, collapse: usize },
    /// Folds must cover the frequencies.
    #[error(
        "--freqfold {freqfold} does not divide the {pairs} rotary frequencies of a head (head_dim / 2): \
         choose a divisor of {pairs}"
    )]
    FoldDividesPairs { pairs: usize, freqfold: usize },
    /// A collapsed frequency must not leave its fold.
    #[error(
        "collapse {collapse} does not divide --freqfold {freqfold}: the frequencies one kept frequency stands for \
         must lie in one fold; choose --freqfold as a multiple of {collapse}"
    )]
    CollapseDividesFold { freqfold: usize, collapse: usize },
    /// Every key channel would keep its rope.
    #[error(
        "--qk-rope-head-dim {rope} leaves no key channel to compress: the source's keys have only \
         num_key_value_heads * head_dim = {width} channels; choose a smaller rope dimension"
    )]
    NothingToCompress { width: usize, rope: usize },
    /// The rank exceeds what the source holds.
    #[error(
        "--kv-lora-rank {rank} is outside 1..={limit}: keys and values without the rotary key have \
         2 * {groups} * {head_dim} - {rope} = {limit} channels"
    )]
    Rank { rank: usize, limit: usize, groups: usize, head_dim: usize, rope: usize },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMOLLM2: SourceAttention = SourceAttention { heads: 9, groups: 3, head_dim: 64 };
    const FULL: Target = Target { qk_rope_head_dim: 64, kv_lora_rank: 320, freqfold: 2, collapse: None };

    #[test]
    fn smollm2_at_rope_64_has_320_latent_channels() {
        let geometry = Geometry::new(SMOLLM2, FULL).unwrap();
        assert_eq!((geometry.collapse(), geometry.full_rank(), geometry.nope_width()), (1, 320, 128));
        assert_eq!((geometry.folds(), geometry.kept_per_fold(), geometry.fold_width()), (16, 2, 6));
    }

    #[test]
    fn each_impossible_request_says_the_arithmetic() {
        let cases = [
            (
                Target { kv_lora_rank: 321, ..FULL },
                "--kv-lora-rank 321 is outside 1..=320: keys and values without the rotary key have \
                 2 * 3 * 64 - 64 = 320 channels",
            ),
            (
                Target { freqfold: 3, ..FULL },
                "--freqfold 3 does not divide the 32 rotary frequencies of a head (head_dim / 2): \
                 choose a divisor of 32",
            ),
            (
                Target { qk_rope_head_dim: 16, ..FULL },
                "collapse 4 does not divide --freqfold 2: the frequencies one kept frequency stands for must lie in \
                 one fold; choose --freqfold as a multiple of 4",
            ),
            (
                Target { qk_rope_head_dim: 48, ..FULL },
                "--qk-rope-head-dim 48 does not divide the source's head_dim=64: the rotary key keeps \
                 head_dim / collapse channels for a whole collapse",
            ),
            (
                Target { collapse: Some(2), ..FULL },
                "--collapse 2 and --qk-rope-head-dim 64 contradict each other: collapse must be \
                 head_dim / qk_rope_head_dim = 64 / 64",
            ),
        ];
        for (target, sentence) in cases {
            assert_eq!(Geometry::new(SMOLLM2, target).unwrap_err().to_string(), sentence);
        }
        let one_head = SourceAttention { groups: 1, ..SMOLLM2 };
        assert_eq!(
            Geometry::new(one_head, FULL),
            Err(GeometryError::NothingToCompress { width: 64, rope: 64 })
        );
    }

    proptest! {
        #[test]
        fn rows_and_channels_are_permutations(groups in 1usize..5, folds in 1usize..5, kept in 1usize..4, collapse in 1usize..4) {
            let head_dim = 2 * folds * kept * collapse;
            let source = SourceAttention { heads: groups, groups, head_dim };
            let target = Target {
                qk_rope_head_dim: head_dim / collapse, kv_lora_rank: 1, freqfold: kept * collapse, collapse: None,
            };
            prop_assume!(groups * collapse > 1);
            let geometry = Geometry::new(source, target).unwrap();
            let all = |index: &dyn Fn(usize, usize, usize) -> usize| {
                let mut seen: Vec<usize> = (0..geometry.folds())
                    .flat_map(|j| (0..geometry.fold_width()).flat_map(move |h| [(j, h, 0), (j, h, 1)]))
                    .map(|(j, h, half)| index(j, h, half))
                    .collect();
                seen.sort_unstable();
                seen
            };
            let expected: Vec<usize> = (0..geometry.kv_width()).collect();
            prop_assert_eq!(all(&|j, h, half| geometry.source_row(j, h, half)), expected.clone());
            prop_assert_eq!(all(&|j, h, half| geometry.rotated_channel(j, h, half)), expected);
        }
    }
}
