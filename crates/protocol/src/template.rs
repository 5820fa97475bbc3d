//! Chat templates as Hugging Face checkpoints carry them: Jinja with a few Python habits.
//!
//! The environment matches `transformers`' `apply_chat_template`: block trimming, `raise_exception`, `strftime_now`, a
//! `tojson` that does not escape HTML, Python string methods. A template comes from a checkpoint, hence from outside:
//! its work is bounded by fuel.

use jiff::{Timestamp, tz::TimeZone};
use minijinja::{Environment, ErrorKind as JinjaError, Value, context, value::Kwargs};

use crate::{ApiError, ErrorKind, Message};

const NAME: &str = "chat_template";

/// Instructions one rendering may take; [`crate::MAX_MESSAGES`] messages through the largest known templates take a tenth.
const FUEL: u64 = 10_000_000;

/// A template that can't be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the checkpoint's chat template is not valid Jinja ({0}); fix `chat_template` in tokenizer_config.json"
)]
pub struct TemplateError(#[source] minijinja::Error);

/// A compiled chat template with its special tokens.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles a template. The special tokens are text, e.g. `<s>`; a checkpoint without one passes "".
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.to_owned()).map_err(TemplateError)?;
        Ok(Self { environment, bos_token: bos_token.to_owned(), eos_token: eos_token.to_owned() })
    }

    /// The prompt of a conversation, ending where the assistant is to speak. `now` (Unix seconds, UTC) is what
    /// `strftime_now` shows. Fails with a 400 when the template refuses the conversation, e.g. an unusual order of roles.
    pub fn render(&self, messages: &[Message], now: i64) -> Result<String, ApiError> {
        let refused = |error: minijinja::Error| {
            let reason = error.detail().map_or_else(|| error.to_string(), str::to_owned);
            ApiError {
                kind: ErrorKind::InvalidRequest,
                message: format!("messages: the model's chat template refuses this conversation: {reason}"),
                param: Some("messages".to_owned()),
            }
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let context = context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
            tools => Value::from(()),
            documents => Value::from(()),
            strftime_now => Value::from_function(move |format: &str| strftime(format, now)),
        };
        template.render(context).map_err(refused)
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(JinjaError::InvalidOperation, message))
}

fn strftime(format: &str, now: i64) -> Result<String, minijinja::Error> {
    let invalid = |error: jiff::Error| minijinja::Error::new(JinjaError::InvalidOperation, error.to_string());
    let time = Timestamp::from_second(now).map_err(invalid)?.to_zoned(TimeZone::UTC);
    jiff::fmt::strtime::format(format, &time).map_err(invalid)
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`. Jinja's own filter escapes `<` for HTML, which models never saw.
fn tojson(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed =
        |error: serde_json::Error| minijinja::Error::new(JinjaError::BadSerialization, error.to_string());
    match indent {
        None => spaced(&serde_json::to_value(&value).map_err(failed)?).map_err(failed),
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let mut out = Vec::new();
            let format = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, format);
            serde::Serialize::serialize(&value, &mut serializer).map_err(failed)?;
            Ok(String::from_utf8_lossy(&out).into_owned())
        }
    }
}

/// Python's one-line form: a space after every comma and colon.
fn spaced(value: &serde_json::Value) -> Result<String, serde_json::Error> {
    use serde_json::Value as Json;
    match value {
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(spaced).collect::<Result<_, _>>()?;
            Ok(format!("[{}]", items.join(", ")))
        }
        Json::Object(map) => {
            let member = |(name, value): (&String, &Json)| {
                Ok(format!("{}: {}", serde_json::to_string(name)?, spaced(value)?))
            };
            let members: Vec<String> = map.iter().map(member).collect::<Result<_, serde_json::Error>>()?;
            Ok(format!("{{{}}}", members.join(", ")))
        }
        scalar => serde_json::to_string(scalar),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Role;

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.to_owned(), name: None }
    }

    fn render(source: &str, messages: &[Message]) -> Result<String, ApiError> {
        // 2024-07-26 12:00:00 UTC
        ChatTemplate::new(source, "<s>", "</s>").unwrap().render(messages, 1_721_995_200)
    }

    #[test]
    fn smollm2_conversations_match_the_reference_rendering() {
        let template = include_str!("../tests/fixtures/smollm2_chat_template.jinja");
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/fixtures/smollm2/golden.json")).unwrap();
        let chats = golden["chat"].as_array().unwrap();
        assert_eq!(chats.len(), 2);
        for chat in chats {
            let body = json!({"model": "m", "messages": chat["messages"]}).to_string();
            let request = crate::ChatRequest::parse(body.as_bytes()).unwrap();
            assert_eq!(render(template, &request.messages).unwrap(), chat["rendered"].as_str().unwrap());
        }
    }

    #[test]
    fn python_habits_work() {
        let user = [message(Role::User, " <b>Héllo</b> ")];
        for (source, expected) in [
            ("{{ bos_token }}{{ messages[0].content.strip() }}{{ eos_token }}", "<s><b>Héllo</b></s>"),
            ("{{ messages[0]['content'].startswith(' <') }}", "True"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " <b>Héllo</b> "}"#),
            ("{{ {'a': [1, 2]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    2\n  ]\n}"),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{%- if tools %}tools{% elif tools is none %}none{% endif %}", "none"),
            ("{% for m in messages %}\n{% continue %}\n{% endfor %}\nend", "end"),
            ("{{ messages[0].role.upper() }}{{ messages[0].missing }}", "USER"),
        ] {
            assert_eq!(render(source, &user).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn a_refusal_by_the_template_is_the_callers_400() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert_eq!(error.kind.status(), 400);
        assert!(error.message.ends_with("refuses this conversation: roles must alternate"), "{error}");
    }

    #[test]
    fn an_endless_template_runs_out_of_fuel() {
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        let error = render(nested, &[]).unwrap_err();
        assert!(error.message.contains("fuel"), "{error}");
    }

    #[test]
    fn a_malformed_template_says_where_to_fix_it() {
        let error = ChatTemplate::new("{% if %}", "", "").unwrap_err();
        assert!(error.to_string().contains("tokenizer_config.json"), "{error}");
    }
}
