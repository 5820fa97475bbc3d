//! How tensor-parallel ranks exchange what each has computed a part of.
//!
//! [`Comm`] is what a model's step asks for; [`SharedMemory`] serves ranks that are threads of one process. A rank that
//! dies or does not come to an exchange ends it for all of them with the same [`CommError`]: nobody waits for ever.

mod shared_memory;

use std::time::Duration;

pub(crate) use shared_memory::SharedMemory;

/// One rank's end of a group of ranks. All ranks must ask for the same exchanges in the same order.
pub(crate) trait Comm: Send {
    /// Which of the ranks this is.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn world(&self) -> usize;

    /// Replaces `numbers` by their sum over all ranks, added in the order of ranks: the same bits on every rank and in
    /// every run.
    fn all_reduce(&mut self, numbers: &mut [f32]) -> Result<(), CommError>;

    /// Shows `take` every rank's `part`, in the order of ranks. Parts may differ in length.
    fn all_gather(&mut self, part: &[f32], take: &mut dyn FnMut(usize, &[f32])) -> Result<(), CommError>;

    /// Tells all ranks that this one will never come to another exchange.
    fn fail(&mut self, why: &str);
}

/// A model that is not divided.
pub(crate) struct Alone;

impl Comm for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&mut self, _: &mut [f32]) -> Result<(), CommError> {
        Ok(())
    }

    fn all_gather(&mut self, part: &[f32], take: &mut dyn FnMut(usize, &[f32])) -> Result<(), CommError> {
        take(0, part);
        Ok(())
    }

    fn fail(&mut self, _: &str) {}
}

/// Why ranks cannot go on. All of them get the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// A rank is gone.
    #[error(
        "tensor-parallel rank {rank} of {world} has ended ({why}), and the others cannot go on without its part of the \
         model: restart the server"
    )]
    Ended {
        /// The rank.
        rank: usize,
        /// Ranks.
        world: usize,
        /// Its last words.
        why: String,
    },
    /// Ranks are late beyond all measure.
    #[error(
        "of {world} tensor-parallel ranks, {missing:?} did not come to an exchange within {waited:?}: a thread hangs or \
         the processors are hopelessly overcommitted; restart the server, with fewer ranks or a longer limit if it \
         happens again"
    )]
    Late {
        /// The ranks that others waited for.
        missing: Vec<usize>,
        /// Ranks.
        world: usize,
        /// How long.
        waited: Duration,
    },
    /// Ranks are not at the same place of a step.
    #[error(
        "tensor-parallel rank {rank} brought {brought} numbers to a sum that another brought {expected} to: their \
         shards are not of one model"
    )]
    Lengths {
        /// The rank.
        rank: usize,
        /// Its numbers.
        brought: usize,
        /// The other's numbers.
        expected: usize,
    },
}
