//! Progress of a conversion on stderr: a bar on a terminal, one line per layer elsewhere.

use std::io::IsTerminal;

use gqla_convert::{LayerReport, Observer};
use indicatif::{ProgressBar, ProgressStyle};

/// Draws progress.
pub struct Progress {
    bar: Option<ProgressBar>,
    layers: usize,
}

impl Progress {
    /// Announces `work` layer-tokens over `layers` layers.
    pub fn start(work: u64, layers: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(work).with_style(style()));
        if let Some(bar) = &bar {
            bar.set_message(format!("layer 0/{layers}"));
        }
        Self { bar, layers }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn advanced(&self, tokens: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(tokens);
        }
    }

    fn layer_finished(&self, layer: &LayerReport) {
        let done = layer.layer + 1;
        match &self.bar {
            Some(bar) => bar.set_message(format!("layer {done}/{}", self.layers)),
            None => eprintln!(
                "layer {done}/{}: |K|/|V| {:.3}, rope energy {:.2} %, latent energy {:.2} %",
                self.layers,
                layer.ratio,
                100.0 * layer.rope_energy,
                100.0 * layer.latent_energy
            ),
        }
    }
}

fn style() -> ProgressStyle {
    let template = "converting {msg} [{bar:40}] {percent}% {elapsed} elapsed, {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
