//! How heads, groups and caches divide over tensor-parallel ranks.

use crate::{AttentionShape, DecodePath};

/// A tensor-parallel degree that is valid for a shape and a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorParallelSplit {
    /// Ranks.
    pub degree: u32,
    /// Query heads each rank computes.
    pub heads_per_rank: u32,
    /// Groups whose keys and values each rank stores (GQA); all of them on absorb, whose latent is not divided.
    pub groups_per_rank: u32,
    /// Ranks that hold the same cache bytes; 1 means no group is stored twice.
    pub replication: u32,
}

impl TensorParallelSplit {
    /// Splits `shape` over `degree` ranks: `degree` must divide H on both paths, and on GQA one of `degree` and G
    /// must divide the other, so that a rank owns whole groups or a group belongs to a whole number of ranks.
    pub fn new(shape: &AttentionShape, path: DecodePath, degree: u32) -> Result<Self, SplitError> {
        let (heads, groups) = (shape.num_attention_heads, shape.num_key_value_heads);
        if degree == 0 {
            return Err(SplitError::Zero);
        }
        if heads % degree != 0 {
            return Err(SplitError::HeadsNotDivisible { heads, degree });
        }
        let heads_per_rank = heads / degree;
        match path {
            DecodePath::MqaAbsorb => {
                Ok(Self { degree, heads_per_rank, groups_per_rank: groups, replication: degree })
            }
            DecodePath::Gqa if groups % degree == 0 => {
                Ok(Self { degree, heads_per_rank, groups_per_rank: groups / degree, replication: 1 })
            }
            DecodePath::Gqa if degree.is_multiple_of(groups) => {
                Ok(Self { degree, heads_per_rank, groups_per_rank: 1, replication: degree / groups })
            }
            DecodePath::Gqa => Err(SplitError::GroupsNotDivisible { groups, degree }),
        }
    }

    /// Cache elements per token and layer that one rank stores.
    pub fn kv_elements_per_rank(&self, shape: &AttentionShape, path: DecodePath) -> u64 {
        shape.kv_elements_of_groups(path, self.groups_per_rank)
    }
}

/// Why a tensor-parallel degree cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// There is no rank.
    #[error("tensorParallel is 0, expected at least 1")]
    Zero,
    /// Heads cannot be shared out evenly.
    #[error(
        "tensorParallel={degree} does not divide numAttentionHeads={heads} ({heads} mod {degree} = {})",
        heads % degree
    )]
    HeadsNotDivisible {
        /// Query heads.
        heads: u32,
        /// The degree asked for.
        degree: u32,
    },
    /// A rank would hold a part of a group.
    #[error(
        "tensorParallel={degree} and numKeyValueHeads={groups} do not divide each other \
         ({groups} mod {degree} = {}, {degree} mod {groups} = {}): a rank would hold part of a group",
        groups % degree,
        degree % groups
    )]
    GroupsNotDivisible {
        /// Groups.
        groups: u32,
        /// The degree asked for.
        degree: u32,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(heads: u32, groups: u32) -> AttentionShape {
        AttentionShape {
            num_attention_heads: heads,
            num_key_value_heads: groups,
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
        }
    }

    #[test]
    fn glm_has_no_split_over_eight() {
        let error = TensorParallelSplit::new(&shape(20, 4), DecodePath::Gqa, 8).unwrap_err();
        assert_eq!(error.to_string(), "tensorParallel=8 does not divide numAttentionHeads=20 (20 mod 8 = 4)");
    }

    #[test]
    fn three_ranks_cannot_share_eight_groups() {
        let error = TensorParallelSplit::new(&shape(120, 8), DecodePath::Gqa, 3).unwrap_err();
        assert_eq!(error, SplitError::GroupsNotDivisible { groups: 8, degree: 3 });
        assert!(TensorParallelSplit::new(&shape(120, 8), DecodePath::MqaAbsorb, 3).is_ok());
        assert!(TensorParallelSplit::new(&shape(9, 3), DecodePath::Gqa, 3).is_ok());
    }

    proptest! {
        #[test]
        fn ranks_hold_every_group_replication_times(gs in 1u32..32, groups in 1u32..32, degree in 1u32..64) {
            let shape = shape(gs * groups, groups);
            if let Ok(split) = TensorParallelSplit::new(&shape, DecodePath::Gqa, degree) {
                prop_assert_eq!(split.groups_per_rank * degree, groups * split.replication);
                prop_assert_eq!(split.heads_per_rank * degree, shape.num_attention_heads);
                let over_all_ranks = u64::from(degree) * split.kv_elements_per_rank(&shape, DecodePath::Gqa);
                let rope = u64::from(degree * shape.qk_rope_head_dim);
                let stored = u64::from(split.replication * groups * (shape.qk_nope_head_dim + shape.v_head_dim));
                prop_assert_eq!(over_all_ranks, stored + rope);
            }
        }
    }
}
