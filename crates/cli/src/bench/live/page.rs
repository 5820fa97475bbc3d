//! Reads a saved page of metrics, in Prometheus' text format, as far as a measurement needs it. The text is somebody else's.

use anyhow::{Context as _, bail};
use gqla_model::DecodePath;
use gqla_planner::{DraftCounters, LiveCounters, Observed};

/// Intervals between outputs: the name of today, which gqla-server exports, and that of vLLM up to 0.11.
const INTERVALS: [&str; 2] = ["vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"];
/// Ours alone, with the path as a label.
const PATH_TOKENS: &str = "gqla_generated_tokens_total";
/// What gqla-server calls the path of a model that has none to choose from.
const PLAIN: &str = "plain";

/// One page.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    pub(super) counters: LiveCounters,
    /// The path it says it decodes along; only gqla-server does.
    pub(super) path: Option<DecodePath>,
}

impl Page {
    /// The counters in `text`, which have to be there, once.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let samples: Vec<_> = text.lines().filter_map(Sample::parse).collect();
        let page = Samples(&samples);
        let intervals = INTERVALS.into_iter().find(|name| page.has(&format!("{name}_count")));
        let drafts = |name: &str| page.value(&format!("vllm:spec_decode_num_{name}_total"));
        let counters = LiveCounters {
            generated_tokens: page.value("vllm:generation_tokens_total")?,
            prompt_tokens: page.value("vllm:prompt_tokens_total")?,
            first_tokens: page.value("vllm:time_to_first_token_seconds_count")?,
            intervals: page.observed(intervals.unwrap_or(INTERVALS[0]))?,
            prompts: page.observed("vllm:request_prompt_tokens")?,
            answers: page.observed("vllm:request_generation_tokens")?,
            drafts: match page.has("vllm:spec_decode_num_drafts_total") {
                true => Some(DraftCounters {
                    passes: drafts("drafts")?,
                    drafted: drafts("draft_tokens")?,
                    accepted: drafts("accepted_tokens")?,
                }),
                false => None,
            },
        };
        Ok(Self { counters, path: page.path()? })
    }
}

/// One line with a value.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    /// `name value`, `name{labels} value`, either with a timestamp behind. Other lines are none of ours.
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let (name, rest) = line.split_at(line.find(|c: char| c == '{' || c.is_whitespace())?);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => {
                let end = closing_brace(rest)?;
                (&rest[..end], &rest[end + 1..])
            }
            None => ("", rest),
        };
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (key, after) = rest.split_once("=\"")?;
            let end = closing_quote(after)?;
            if key.trim_start_matches(',').trim() == name {
                return Some(&after[..end]);
            }
            rest = &after[end + 1..];
        }
    }
}

/// Where the labels end: values may hold braces.
fn closing_brace(labels: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = &labels[at..];
        let brace = rest.find('}')?;
        match rest.find('"').filter(|quote| *quote < brace) {
            None => return Some(at + brace),
            Some(quote) => {
                at += quote + 1;
                at += closing_quote(&labels[at..])? + 1;
            }
        }
    }
}

/// Where a value ends: its own quotes have a backslash before them.
fn closing_quote(value: &str) -> Option<usize> {
    let mut escaped = false;
    value.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

struct Samples<'a>(&'a [Sample<'a>]);

impl<'a> Samples<'a> {
    fn named(&self, name: &str) -> impl Iterator<Item = &'a Sample<'a>> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    fn has(&self, name: &str) -> bool {
        self.named(name).next().is_some()
    }

    /// The value of the one series of that name. Engines behind one page share no steps, so they are not added up.
    fn value(&self, name: &str) -> anyhow::Result<f64> {
        let mut named = self.named(name);
        let first = named.next().with_context(|| {
            format!("there is no series {name}: expected the metrics of gqla-server or vLLM, in Prometheus' text format")
        })?;
        match named.count() {
            0 => Ok(first.value),
            others => bail!(
                "{name} has {} series, expected 1: take the pages of a pod with one engine and one model",
                others + 1
            ),
        }
    }

    fn observed(&self, name: &str) -> anyhow::Result<Observed> {
        Ok(Observed {
            sum: self.value(&format!("{name}_sum"))?,
            count: self.value(&format!("{name}_count"))?,
        })
    }

    fn path(&self) -> anyhow::Result<Option<DecodePath>> {
        if !self.has(PATH_TOKENS) {
            return Ok(None);
        }
        self.value(PATH_TOKENS)?;
        let label = self.named(PATH_TOKENS).find_map(|sample| sample.label("path")).unwrap_or_default();
        if label == PLAIN {
            bail!(
                "the pod serves a plain model, which has no decode path: nothing about paths can be learnt from it"
            );
        }
        let path = DecodePath::ALL.into_iter().find(|path| path.metric_label() == label);
        Ok(Some(path.with_context(|| {
            let known = DecodePath::ALL.map(DecodePath::metric_label).join(" or ");
            format!("{PATH_TOKENS} has path=\"{label}\", expected {known}")
        })?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = r#"# HELP vllm:generation_tokens_total Tokens generated and billed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a}b \" c=\"d"} 41 1700000000
vllm:generation_tokens_created{engine="0"} 1.7e9
vllm:prompt_tokens_total{engine="0"} 3.5e1
vllm:time_to_first_token_seconds_bucket{le="+Inf"} 9
vllm:time_to_first_token_seconds_count 2
vllm:inter_token_latency_seconds_sum 0.5
vllm:inter_token_latency_seconds_count 39
vllm:request_prompt_tokens_sum 35
vllm:request_prompt_tokens_count 2
vllm:request_generation_tokens_sum 41
vllm:request_generation_tokens_count 1
"#;

    fn refusal(text: &str) -> String {
        Page::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn counters_are_found_among_others() {
        let expected = LiveCounters {
            generated_tokens: 41.0,
            prompt_tokens: 35.0,
            first_tokens: 2.0,
            intervals: Observed { sum: 0.5, count: 39.0 },
            prompts: Observed { sum: 35.0, count: 2.0 },
            answers: Observed { sum: 41.0, count: 1.0 },
            drafts: None,
        };
        assert_eq!(Page::parse(PAGE).unwrap(), Page { counters: expected, path: None });
        let old = PAGE.replace("inter_token_latency", "time_per_output_token");
        assert_eq!(Page::parse(&old).unwrap().counters, expected);
        let ours = PAGE.to_owned() + "gqla_generated_tokens_total{engine=\"0\",path=\"mqa_absorb\"} 41\n";
        assert_eq!(Page::parse(&ours).unwrap().path, Some(DecodePath::MqaAbsorb));
        let drafting = PAGE.to_owned()
            + "vllm:spec_decode_num_drafts_total 7\nvllm:spec_decode_num_draft_tokens_total 14\n\
               vllm:spec_decode_num_accepted_tokens_total 9\n\
               vllm:spec_decode_num_accepted_tokens_per_pos_total{position=\"0\"} 6\n";
        let drafts = DraftCounters { passes: 7.0, drafted: 14.0, accepted: 9.0 };
        assert_eq!(Page::parse(&drafting).unwrap().counters.drafts, Some(drafts));
    }

    #[test]
    fn pages_that_do_not_tell_are_refused_by_the_series_at_fault() {
        let added = |line: &str| refusal(&format!("{PAGE}{line}\n"));
        for (sentence, words) in [
            (refusal(""), "there is no series vllm:generation_tokens_total: expected the metrics of"),
            (
                refusal(&PAGE.replace("inter_token_latency", "x")),
                "no series vllm:inter_token_latency_seconds_sum",
            ),
            (refusal(&PAGE.replace(" 39", " many")), "no series vllm:inter_token_latency_seconds_count"),
            (
                added("vllm:prompt_tokens_total{engine=\"1\"} 1"),
                "vllm:prompt_tokens_total has 2 series, expected 1",
            ),
            (
                added("vllm:spec_decode_num_drafts_total 1"),
                "no series vllm:spec_decode_num_draft_tokens_total",
            ),
            (added("gqla_generated_tokens_total{path=\"plain\"} 1"), "a plain model"),
            (added("gqla_generated_tokens_total{path=\"x\"} 1"), "path=\"x\", expected mqa_absorb or gqa"),
            (added("gqla_generated_tokens_total 1"), "path=\"\", expected"),
        ] {
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(?s).{0,200}", lines in prop::collection::vec(
            r#"(gqla_generated_tokens_total|vllm:prompt_tokens_total)?[{]?([a-zé"\\=,} ]|path="){0,20}[}]?[ 0-9a-z]{0,8}"#,
            0..8,
        )) {
            let _ = Page::parse(&text);
            let _ = Page::parse(&(PAGE.to_owned() + &lines.join("\n")));
            for line in &lines {
                if let Some(sample) = Sample::parse(line) {
                    let _ = sample.label("path");
                }
            }
        }
    }
}
