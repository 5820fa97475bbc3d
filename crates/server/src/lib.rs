//! The inference pod: OpenAI API over an Engine, probes, metrics and drain.
