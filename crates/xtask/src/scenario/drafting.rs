//! The fixture's model with a prediction layer, which it has none of: drafts change no answer, so its answers are the fixture's.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result};
use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};
use serde_json::Value;

/// Tokens after which the layer guesses the same token again.
pub const REPEATED: [usize; 2] = [9, 18];

/// Shape and numbers, by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes the model of `fixture` with such a layer into the folder `to`, which everybody may then read.
pub fn write(fixture: &Path, to: &Path) -> Result<()> {
    let config = fs::read(fixture.join("config.json")).context("cannot read the fixture's config")?;
    let mut config: Value = serde_json::from_slice(&config)?;
    let file = fs::read(fixture.join("model.safetensors")).context("cannot read the fixture's weights")?;
    let mut tensors = Tensors::new();
    for (name, view) in SafeTensors::deserialize(&file)?.tensors() {
        let numbers = view.data().chunks_exact(4).map(|word| Ok(f32::from_le_bytes(word.try_into()?)));
        tensors.insert(name, (view.shape().to_vec(), numbers.collect::<Result<_>>()?));
    }
    let layers = config["num_hidden_layers"].as_u64().context("the fixture's config has no layers")?;
    add_layer(&mut tensors, layers)?;
    config["num_nextn_predict_layers"] = 1.into();

    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let stored: Vec<_> =
        tensors.iter().map(|(name, (shape, numbers))| (name, shape, bytes(numbers))).collect();
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    // `serialize_to_file` would keep the file to ourselves, and pods run as somebody else.
    fs::write(to.join("model.safetensors"), serialize(views, None)?)?;
    fs::write(to.join("config.json"), config.to_string())?;
    fs::set_permissions(to, Permissions::from_mode(0o755))?;
    Ok(())
}

/// A copy of the last layer that adds nothing to what its projection makes of the embeddings of [`REPEATED`]: their rows of the
/// head.
fn add_layer(tensors: &mut Tensors, layers: u64) -> Result<()> {
    let last = format!("model.layers.{}.", layers - 1);
    let mut layer = Tensors::new();
    for (name, (shape, numbers)) in tensors.iter() {
        let Some(part) = name.strip_prefix(&last) else { continue };
        let adds = ["self_attn.o_proj.weight", "mlp.down_proj.weight"].contains(&part);
        let numbers = if adds { vec![0.0; numbers.len()] } else { numbers.clone() };
        layer.insert(part.to_owned(), (shape.clone(), numbers));
    }
    let row = |matrix: &str, index: usize| -> Result<&[f32]> {
        let (shape, numbers) = tensors.get(matrix).with_context(|| format!("the fixture has no {matrix}"))?;
        Ok(&numbers[index * shape[1]..][..shape[1]])
    };
    let hidden = row("lm_head.weight", 0)?.len();
    let mut projection = vec![0.0; hidden * 2 * hidden];
    for token in REPEATED {
        let (guess, embedding) = (row("lm_head.weight", token)?, row("model.embed_tokens.weight", token)?);
        let size = (embedding.iter().map(|x| x * x).sum::<f32>() / hidden as f32).sqrt();
        for (output, guess) in guess.iter().enumerate() {
            for (input, embedding) in embedding.iter().enumerate() {
                projection[output * 2 * hidden + input] += guess * embedding / size;
            }
        }
    }
    layer.insert("eh_proj.weight".to_owned(), (vec![hidden, 2 * hidden], projection));
    for norm in ["enorm", "hnorm", "shared_head.norm"] {
        layer.insert(format!("{norm}.weight"), (vec![hidden], vec![1.0; hidden]));
    }
    tensors.extend(layer.into_iter().map(|(part, tensor)| (format!("model.layers.{layers}.{part}"), tensor)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{scenario::hardware::MODEL, shell::repo_root};

    #[test]
    fn a_guess_is_the_token_before_it() {
        let folder = tempfile::tempdir().unwrap();
        write(&repo_root().unwrap().join(MODEL), folder.path()).unwrap();
        let file = fs::read(folder.path().join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let matrix = |name: &str| -> Vec<Vec<f32>> {
            let tensor = file.tensor(name).unwrap();
            let numbers: Vec<f32> = tensor
                .data()
                .chunks_exact(4)
                .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
                .collect();
            numbers.chunks(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (head, projection) = (matrix("lm_head.weight"), matrix("model.layers.3.eh_proj.weight"));
        for token in REPEATED {
            // Norms change a row's size, and no guess.
            let embedding = &matrix("model.embed_tokens.weight")[token];
            let row: Vec<f32> =
                projection.iter().map(|of_output| dot(&of_output[..embedding.len()], embedding)).collect();
            let logits: Vec<f32> = head.iter().map(|of_token| dot(of_token, &row)).collect();
            let guess = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            assert_eq!(guess, Some(token));
        }
        assert!(matrix("model.layers.3.self_attn.o_proj.weight").iter().flatten().all(|x| *x == 0.0));
    }
}
