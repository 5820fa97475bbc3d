//! `response_format`: what form an answer must have.

use serde_json::Value;

use crate::{
    ApiError,
    fields::{Fields, mismatch},
};

/// Bytes of a schema, written without spaces.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;

/// Where a schema stands in a request.
pub const SCHEMA_FIELD: &str = "response_format.json_schema.schema";

/// What form an answer must have.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseFormat {
    /// Any.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that fits this schema, which is an object.
    JsonSchema(Value),
}

impl ResponseFormat {
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let Some(value) = fields.take("response_format") else { return Ok(Self::Text) };
        let mut fields = Fields::nested(value, "response_format")?;
        let kind = fields.required("type")?;
        let format = match kind.as_str() {
            Some("text") => Self::Text,
            Some("json_object") => Self::JsonObject,
            Some("json_schema") => Self::JsonSchema(schema(fields.required("json_schema")?)?),
            _ => {
                let problem = "expected `text`, `json_object` or `json_schema`";
                return Err(ApiError::field("response_format.type", problem));
            }
        };
        fields.finish()?;
        Ok(format)
    }
}

/// The schema inside OpenAI's wrapping. `strict` changes nothing: every schema is enforced.
fn schema(value: Value) -> Result<Value, ApiError> {
    let mut fields = Fields::nested(value, "response_format.json_schema")?;
    fields.string("name")?;
    fields.string("description")?;
    fields.boolean("strict")?;
    let schema = fields.required("schema")?;
    fields.finish()?;
    if !schema.is_object() {
        return Err(mismatch(SCHEMA_FIELD, "an object", &schema));
    }
    match schema.to_string().len() {
        bytes if bytes > MAX_SCHEMA_BYTES => {
            let problem = format!("expected at most {MAX_SCHEMA_BYTES} bytes, got {bytes}");
            Err(ApiError::field(SCHEMA_FIELD, problem))
        }
        _ => Ok(schema),
    }
}
