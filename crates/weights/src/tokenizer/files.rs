//! The files beside `tokenizer.json`: chat template, special tokens, generation defaults.

use std::path::Path;

use serde_json::Value;

use super::TokenizerError;
use crate::{ConfigError, ModelConfig};

/// A Jinja chat template and the tokens it may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplateSource {
    /// Jinja source.
    pub template: String,
    /// Content of the beginning-of-sequence token, if the model has one.
    pub bos_token: Option<String>,
    /// Content of the end-of-sequence token, if the model has one.
    pub eos_token: Option<String>,
}

/// Reads `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`.
pub(crate) fn chat_template(dir: &Path) -> Result<Option<ChatTemplateSource>, TokenizerError> {
    let file = dir.join("tokenizer_config.json");
    let config =
        read_json(&file).map_err(|reason| TokenizerError::Malformed { file, reason })?.unwrap_or(Value::Null);
    let separate = read_if_present(&dir.join("chat_template.jinja"))
        .map_err(|reason| TokenizerError::Malformed { file: dir.join("chat_template.jinja"), reason })?;
    let template = separate.or_else(|| template_of(&config["chat_template"]));
    Ok(template.map(|template| ChatTemplateSource {
        template,
        bos_token: token_content(&config["bos_token"]),
        eos_token: token_content(&config["eos_token"]),
    }))
}

/// One template, or a list of named ones of which `default` counts.
fn template_of(value: &Value) -> Option<String> {
    let one = match value {
        Value::Array(named) => &named.iter().find(|entry| entry["name"] == "default")?["template"],
        one => one,
    };
    one.as_str().map(str::to_owned)
}

/// Tokens are written as plain strings or as `AddedToken` objects.
fn token_content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// Adds the end-of-sequence ids of `generation_config.json`: chat models often name the end of a turn only there.
pub(crate) fn add_generation_eos(dir: &Path, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let file = dir.join("generation_config.json");
    let wrong = |actual: String, field: &str, expected: &str| ConfigError::Wrong {
        file: file.clone(),
        field: field.to_owned(),
        actual,
        expected: expected.to_owned(),
    };
    let Some(value) = read_json(&file).map_err(|reason| wrong(reason, "the file", "a JSON object"))? else {
        return Ok(());
    };
    let ids = match &value["eos_token_id"] {
        Value::Null => Vec::new(),
        Value::Array(ids) => ids.clone(),
        one => vec![one.clone()],
    };
    for id in ids {
        let id = id
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| wrong(id.to_string(), "eos_token_id", "token ids"))?;
        if !config.eos_token_ids.contains(&id) {
            config.eos_token_ids.push(id);
        }
    }
    Ok(())
}

fn read_json(file: &Path) -> Result<Option<Value>, String> {
    let text = read_if_present(file)?;
    text.map(|text| serde_json::from_str(&text).map_err(|error| error.to_string())).transpose()
}

fn read_if_present(file: &Path) -> Result<Option<String>, String> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
