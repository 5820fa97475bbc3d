//! Chooses path, tensor parallelism and multi-token prediction for a model on a GPU class, and says why.
