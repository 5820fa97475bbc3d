//! Text that fits where it goes.

/// Longest condition message, pool note or reason, in bytes. The API takes 32,768 for a condition; what a plan says is
/// far shorter, and what a node says of itself may be of any length.
pub const LONGEST_SENTENCE: usize = 4096;

/// `text`, cut at a character boundary to at most `longest` bytes, of which the last three say so.
pub fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_too_long_is_cut_and_never_within_a_character() {
        for (text, longest, expected) in
            [("short", 5, "short"), ("longer", 5, "lo…"), ("ääää", 7, "ää…"), ("ääää", 6, "ä…"), ("", 5, "")]
        {
            assert_eq!(cut(text.to_owned(), longest), expected, "{text} to {longest}");
        }
    }
}
