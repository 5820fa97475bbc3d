//! Where drafts come from: what the command line asks for, as far as the checkpoint has it.

use gqla_engine::{DraftDepth, Speculation};

/// Where drafts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SpeculativeMethod {
    /// mtp where the checkpoint has a multi-token-prediction layer that the device runs, or else ngram.
    Auto,
    /// What followed the same tokens earlier in the text.
    Ngram,
    /// The model's own multi-token-prediction layer.
    Mtp,
}

/// How many of the drafts asked for a step gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SpeculativeDepth {
    /// As many as pay, by what steps took and how drafts fared lately.
    Adaptive,
    /// As many as there are.
    Fixed,
}

impl From<SpeculativeDepth> for DraftDepth {
    fn from(depth: SpeculativeDepth) -> Self {
        match depth {
            SpeculativeDepth::Adaptive => Self::Adaptive,
            SpeculativeDepth::Fixed => Self::Fixed,
        }
    }
}

/// Drafts as asked for, before the checkpoint is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafts {
    /// The layer's if there is one, or else those found in the text.
    Auto {
        /// From the layer.
        mtp: Speculation,
        /// From the text.
        ngram: Speculation,
    },
    /// From the text.
    Ngram(Speculation),
    /// From the layer.
    Mtp(Speculation),
}

/// The layer that was asked for is not there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--speculative-method mtp: the checkpoint has no multi-token-prediction layer (num_nextn_predict_layers is 0 in its \
     config); use ngram or auto, or --mtp 0, or serve a checkpoint that kept the layer"
)]
pub struct NoPredictionLayer;

impl Drafts {
    /// Drafts on a device that does not run the layer: from the text unless they must come from the layer.
    pub fn where_no_layer_runs(self) -> Self {
        match self {
            Self::Auto { ngram, .. } | Self::Ngram(ngram) => Self::Ngram(ngram),
            Self::Mtp(mtp) => Self::Mtp(mtp),
        }
    }

    /// What a checkpoint with so many prediction layers can do, and how that method is called.
    ///
    /// # Errors
    /// [`NoPredictionLayer`] where drafts must come from a layer that is not there.
    pub fn of(self, layers: usize) -> Result<(Speculation, &'static str), NoPredictionLayer> {
        match self {
            Self::Ngram(ngram) => Ok((ngram, "ngram")),
            Self::Auto { ngram, .. } if layers == 0 => Ok((ngram, "ngram")),
            Self::Mtp(_) if layers == 0 => Err(NoPredictionLayer),
            Self::Auto { mtp, .. } | Self::Mtp(mtp) => Ok((mtp, "mtp")),
        }
    }
}

#[cfg(test)]
mod tests {
    use gqla_engine::{DraftSource, PromptLookup};

    use super::*;

    #[test]
    fn the_layer_comes_first_where_there_is_one() {
        let lookup = DraftSource::PromptLookup(PromptLookup::default());
        let [mtp, ngram] =
            [DraftSource::PredictionLayer, lookup].map(|source| Speculation::new(source, 2).unwrap());
        for (drafts, layers, expected) in [
            (Drafts::Auto { mtp, ngram }, 1, Ok((mtp, "mtp"))),
            (Drafts::Auto { mtp, ngram }, 0, Ok((ngram, "ngram"))),
            (Drafts::Ngram(ngram), 1, Ok((ngram, "ngram"))),
            (Drafts::Ngram(ngram), 0, Ok((ngram, "ngram"))),
            (Drafts::Mtp(mtp), 2, Ok((mtp, "mtp"))),
            (Drafts::Mtp(mtp), 0, Err(NoPredictionLayer)),
        ] {
            assert_eq!(drafts.of(layers), expected, "{drafts:?} of {layers}");
        }
        for (drafts, expected) in [
            (Drafts::Auto { mtp, ngram }, Drafts::Ngram(ngram)),
            (Drafts::Ngram(ngram), Drafts::Ngram(ngram)),
            (Drafts::Mtp(mtp), Drafts::Mtp(mtp)),
        ] {
            assert_eq!(drafts.where_no_layer_runs(), expected, "{drafts:?}");
        }
    }
}
