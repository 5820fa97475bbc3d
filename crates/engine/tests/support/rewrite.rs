//! Checkpoints with some tensors and fields changed.

use std::collections::BTreeMap;

pub use gqla_weights::Dtype;
use gqla_weights::{Checkpoint, CheckpointWriter, ModelConfig, Sidecars, TensorSpec};
use tempfile::TempDir;

/// Shape and numbers, by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A copy of a checkpoint, changed.
pub fn rewritten(
    source: &Checkpoint,
    dtype: Dtype,
    change: impl FnOnce(&mut Tensors, &mut ModelConfig),
) -> (TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let read =
        |name: &str| source.tensor(name).map(|tensor| (tensor.shape.clone(), tensor.to_f32())).unwrap();
    let mut tensors: Tensors = source.names().map(|name| (name.to_owned(), read(name))).collect();
    let mut config = source.config().clone();
    change(&mut tensors, &mut config);
    let spec = |(name, (shape, _)): (&String, &(Vec<usize>, _))| TensorSpec {
        name: name.clone(),
        dtype,
        shape: shape.clone(),
    };
    let mut writer = CheckpointWriter::create(dir.path(), tensors.iter().map(spec).collect()).unwrap();
    tensors.iter().for_each(|(name, (_, values))| writer.write(name, values).unwrap());
    let config = config.to_json(dtype);
    writer.finish(&Sidecars { config: &config, tokenizer: None, chat_template: None }).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// A model whose layers add so little to an embedding that mostly the last token decides what follows, and whose
/// prediction layer has mostly the same opinion: drafts are accepted often, and often not. Of a model without such a layer
/// the last one becomes it.
pub fn leaning(source: &Checkpoint) -> (TempDir, Checkpoint) {
    rewritten(source, Dtype::F32, |tensors, config| {
        if config.num_nextn_predict_layers == 0 {
            predict_with_last_layer(tensors, config);
        }
        let layer = config.num_hidden_layers;
        let (eh_proj, norm) = (
            format!("model.layers.{layer}.eh_proj.weight"),
            format!("model.layers.{layer}.shared_head.norm.weight"),
        );
        let last_norm = tensors["model.norm.weight"].clone();
        for (name, (shape, values)) in tensors.iter_mut() {
            if *name == eh_proj {
                values.iter_mut().for_each(|value| *value *= 0.1);
                (0..shape[0]).for_each(|i| values[i * shape[1] + i] += 1.0);
            } else if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
                values.iter_mut().for_each(|value| *value *= 0.15);
            }
        }
        tensors.insert(norm, last_norm);
    })
}

/// Makes the last layer of a dense model a prediction layer, with a projection of its own.
pub fn predict_with_last_layer(tensors: &mut Tensors, config: &mut ModelConfig) {
    config.num_hidden_layers -= 1;
    config.num_nextn_predict_layers = 1;
    let (layer, hidden) = (config.num_hidden_layers, config.hidden_size);
    let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.weight");
    for norm in ["enorm", "hnorm"] {
        tensors.insert(name(norm), (vec![hidden], vec![1.0; hidden]));
    }
    tensors.insert(name("shared_head.norm"), tensors["model.norm.weight"].clone());
    let scattered = (0..2 * hidden * hidden).map(|i| (i as f32 * 1.7).sin() / 8.0).collect();
    tensors.insert(name("eh_proj"), (vec![hidden, 2 * hidden], scattered));
}
