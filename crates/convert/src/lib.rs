//! TransGQLA: turns a GQA checkpoint into a GQLA one, layer by layer.
//!
//! Follows TransMLA (RoRoPE, FreqFold, balanced joint PCA of keys and values), with one change: up-projections depend
//! on a query head only through its key/value group, so each group's block is written once and the result decodes
//! along both paths. [`Conversion`] is the whole; the algebra is in pure modules:
//!
//! - [`geometry`]: the checked dimensions and the order of channels,
//! - [`gram`]: second moments and their principal axes,
//! - [`rorope`], [`balance`], [`kv_pca`]: what to keep,
//! - [`assemble`]: the resulting weights,
//! - [`forward`]: the f32 layer that calibration streams tokens through.

pub mod assemble;
pub mod balance;
mod calibrate;
mod calibration;
mod conversion;
mod destination;
pub mod forward;
pub mod geometry;
pub mod gram;
pub mod kv_pca;
mod progress;
mod report;
pub mod rorope;
mod source;

pub use calibration::{Calibration, CalibrationError, ids_from_u16};
pub use conversion::{Conversion, ConversionError, LayerError, Request};
pub use geometry::Target;
pub use progress::{Observer, Silent};
pub use report::{CacheElements, LayerReport, Report};
pub use source::SourceError;
