//! What a conversion tells whoever is waiting for it.

use crate::report::LayerReport;

/// Receives progress; called from several threads.
pub trait Observer: Sync {
    /// `tokens` more layer-tokens of the announced [`crate::Conversion::work`] are done.
    fn advanced(&self, tokens: u64);

    /// A layer is converted and written.
    fn layer_finished(&self, layer: &LayerReport);
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn advanced(&self, _tokens: u64) {}

    fn layer_finished(&self, _layer: &LayerReport) {}
}
