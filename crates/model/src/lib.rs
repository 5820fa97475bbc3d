//! The vocabulary of Group-Query Latent Attention.
//!
//! One set of weights decodes along two algebraically equal paths ([`DecodePath`]). Everything here is arithmetic
//! on an [`AttentionShape`]: how many elements a token leaves in the cache, how many floating-point operations a
//! query spends on a cached token, and how both divide over tensor-parallel ranks ([`TensorParallelSplit`]).
//! Nothing here reads files, clocks or the network.

mod cache;
pub mod launch;
mod parameters;
mod path;
mod rope;
mod shape;
mod split;
mod weights;

pub use cache::{CacheFormat, CachedToken, UnknownCacheFormat};
pub use parameters::{AttentionParameters, Parameters};
pub use path::{DecodePath, UnknownPath};
pub use rope::{RopeScaling, Yarn, rotary_frequencies};
pub use shape::{AttentionShape, ModelShape, ShapeError};
pub use split::{SplitError, TensorParallelSplit};
pub use weights::{ExpertShape, Routing, WeightFormat, WeightShape};
