//! Log lines for people or for machines, to standard error, filtered by `RUST_LOG`.

use std::{
    fmt,
    io::{self, IsTerminal},
    str::FromStr,
};

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt::SubscriberBuilder};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One human-readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// A log format that is neither `text` nor `json`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown log format `{0}`: expected `text` or `json`")]
pub struct UnknownLogFormat(String);

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(name: &str) -> Result<Self, UnknownLogFormat> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownLogFormat(name.to_owned())),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `RUST_LOG`, or the default filter in its absence, is not a filter.
    #[error(
        "log filter `{filter}` (from RUST_LOG when it is set) is malformed; expected e.g. `info,gqla_server=debug`"
    )]
    Filter {
        /// The text that was parsed.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Another subscriber was installed before.
    #[error("logging is already initialised in this process")]
    AlreadyInitialised,
}

/// Installs the process-wide log subscriber. `RUST_LOG` wins over `default_filter`, e.g. `info`.
pub fn init_logging(format: LogFormat, default_filter: &str) -> Result<(), LoggingError> {
    let filter = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| default_filter.to_owned());
    let builder = builder(parse_filter(filter)?);
    let installed = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|_| LoggingError::AlreadyInitialised)
}

fn parse_filter(filter: String) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder().parse(&filter).map_err(|source| LoggingError::Filter { filter, source })
}

type Builder = SubscriberBuilder<
    tracing_subscriber::fmt::format::DefaultFields,
    tracing_subscriber::fmt::format::Format,
    EnvFilter,
    fn() -> io::Stderr,
>;

fn builder(filter: EnvFilter) -> Builder {
    // Colours are for people at a terminal that wants them; logs of pods are files.
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let writer = io::stderr as fn() -> io::Stderr;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_round_trip_and_others_are_named() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let error = "xml".parse::<LogFormat>().unwrap_err();
        assert_eq!(error.to_string(), "unknown log format `xml`: expected `text` or `json`");
    }

    #[test]
    fn malformed_filter_is_quoted() {
        let error = parse_filter("info,=,gqla=loud".to_owned()).unwrap_err();
        assert!(error.to_string().contains("`info,=,gqla=loud`"), "{error}");
    }
}
