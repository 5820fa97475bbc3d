//! Decides how much generated text may be shown already.
//!
//! A stop string may arrive in pieces, and what was sent can't be taken back: text that could be the beginning of a
//! stop string is held until the next piece decides.

/// Text on its way to the client, cut before the first stop string.
#[derive(Clone, Debug, Default)]
pub struct StopBuffer {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopBuffer {
    /// Stop strings must not be empty.
    pub fn new(stops: Vec<String>) -> Self {
        debug_assert!(
            stops.iter().all(|stop| !stop.is_empty()),
            "an empty stop string would match everywhere"
        );
        Self { stops, held: String::new(), stopped: false }
    }

    /// Adds a piece and returns what can be shown. After the stop string nothing more comes out.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(at) = first_stop(&self.held, &self.stops) {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let undecided = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - undecided);
        std::mem::replace(&mut self.held, kept)
    }

    /// Whether a stop string was seen.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// No more pieces come: what was held is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Where the stop string begins that is complete first; of several that end together, the longest.
/// By the end, not by the beginning: generation stops the moment one is complete, whatever might have followed.
fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    let matches = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at)));
    matches.min().map(|(_, at)| at)
}

/// Bytes of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .filter(|&length| length < stop.len() && text.ends_with(&stop[..length]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text as a reader without buffering would cut it: character by character, looking back at every end.
    fn cut(text: &str, stops: &[String]) -> String {
        let ends = text.char_indices().map(|(at, c)| &text[..at + c.len_utf8()]);
        for seen in ends {
            if let Some(longest) = stops.iter().filter(|stop| seen.ends_with(*stop)).map(String::len).max() {
                return seen[..seen.len() - longest].to_owned();
            }
        }
        text.to_owned()
    }

    #[test]
    fn a_stop_string_in_pieces_never_leaks() {
        let mut buffer = StopBuffer::new(vec!["END".to_owned(), "é!".to_owned()]);
        assert_eq!(buffer.push("aE"), "a");
        assert_eq!(buffer.push("N"), "");
        assert_eq!(buffer.push("x é"), "ENx ");
        assert_eq!(buffer.push("END"), "é");
        assert!(buffer.stopped());
        assert_eq!(buffer.push("more"), "");
        assert_eq!(buffer.finish(), "");
    }

    proptest! {
        #[test]
        fn pieces_concatenate_to_the_text_before_the_first_stop(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let mut buffer = StopBuffer::new(stops.clone());
            let mut shown = String::new();
            let expected = cut(&text, &stops);
            for piece in &pieces {
                shown += &buffer.push(piece);
                prop_assert!(expected.starts_with(&shown));
            }
            shown += &buffer.finish();
            prop_assert_eq!(&shown, &expected);
            prop_assert_eq!(buffer.stopped(), stops.iter().any(|stop| text.contains(stop)));
        }
    }
}
