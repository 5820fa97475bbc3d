//! From what a user types to a model's shape and a GPU class.

use std::path::Path;

use anyhow::{Context, bail};
use gqla_model::ModelShape;
use gqla_planner::{Catalogue, GpuClass, ModelName};
use gqla_weights::{Checkpoint, ModelConfig};

/// The shape of a built-in model, of a checkpoint, or of a `config.json` whose weights are not here.
pub fn resolve(model: &str) -> anyhow::Result<ModelShape> {
    let path = Path::new(model);
    match model.parse::<ModelName>() {
        Ok(name) => Ok(gqla_planner::shape(name)),
        Err(unknown) if !path.exists() => bail!("{unknown}, or a checkpoint or its config.json"),
        Err(_) if has_weights(path)? => Ok(Checkpoint::open(path)?.model_shape()?),
        Err(_) => from_config(path),
    }
}

fn from_config(path: &Path) -> anyhow::Result<ModelShape> {
    let shape = ModelConfig::read(path)?.model_shape(None).with_context(|| {
        format!(
            "`{}` describes plain grouped-query attention, which has no decode paths to choose from: convert the model \
             with `gqla convert` first",
            path.display()
        )
    })?;
    shape.validate().with_context(|| format!("the model in `{}` is impossible", path.display()))?;
    Ok(shape)
}

/// A file is weights unless it is JSON; a directory has them in files of its own.
fn has_weights(path: &Path) -> anyhow::Result<bool> {
    let is = |path: &Path, wanted: &[&str]| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| wanted.contains(&extension))
    };
    if path.is_file() {
        return Ok(!is(path, &["json"]));
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    Ok(!path.join("config.json").is_file() || files.any(|file| is(&file, &["safetensors", "gguf"])))
}

/// The class of that name.
pub fn gpu_class<'a>(catalogue: &'a Catalogue, name: &str) -> anyhow::Result<&'a GpuClass> {
    catalogue.get(name).with_context(|| {
        let known: Vec<&str> = catalogue.iter().map(GpuClass::name).collect();
        format!("unknown GPU class `{name}`: expected one of {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_alone_is_enough_to_plan_for() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a");
        let gqla = fixtures.join("llama_gqla_b/config.json");
        let shape = resolve(gqla.to_str().unwrap()).unwrap();
        assert_eq!((shape.attention.num_attention_heads, shape.attention.num_key_value_heads), (8, 2));
        let plain = fixtures.join("llama_tied/config.json");
        let sentence = resolve(plain.to_str().unwrap()).unwrap_err().to_string();
        assert!(sentence.contains("gqla convert"), "{sentence}");
    }

    #[test]
    fn unknown_names_are_told_the_known_ones() {
        let sentence = resolve("no-such-model").unwrap_err().to_string();
        assert!(sentence.contains("glm-4.7-flash-gqla") && sentence.contains("config.json"), "{sentence}");
        let sentence = gpu_class(&Catalogue::builtin(), "H21").unwrap_err().to_string();
        assert!(sentence.contains("H20-3e"), "{sentence}");
    }
}
