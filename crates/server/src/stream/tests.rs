use gqla_engine::TokenLogprob;

use super::*;

fn stops(stops: &[&str]) -> Vec<String> {
    stops.iter().map(|&stop| stop.to_owned()).collect()
}

/// Text and billed tokens of a stream of ids without a tokenizer.
fn run(ids: &[u32], stops: Vec<String>) -> (String, u64, bool) {
    let mut stream = TextStream::new(None, stops);
    let (mut text, mut tokens) = (String::new(), 0);
    for &id in ids {
        if let Some(piece) = stream.push(id, None) {
            text += &piece.text;
            tokens += piece.tokens;
        }
        if stream.stopped() {
            return (text, tokens, true);
        }
    }
    let rest = stream.finish();
    (text + &rest.text, tokens + rest.tokens, false)
}

#[test]
fn without_a_tokenizer_ids_are_the_text() {
    assert_eq!(run(&[7, 12, 7], stops(&[])), ("7 12 7 ".to_owned(), 3, false));
}

#[test]
fn every_token_is_billed_once_held_back_or_not() {
    assert_eq!(run(&[1, 2, 3], stops(&["2 9"])), ("1 2 3 ".to_owned(), 3, false));
    assert_eq!(run(&[1, 2], stops(&["2 9"])), ("1 2 ".to_owned(), 2, false));
}

#[test]
fn the_token_that_completes_a_stop_string_is_billed_and_not_shown() {
    assert_eq!(run(&[1, 2, 9, 4], stops(&["2 9"])), ("1 ".to_owned(), 3, true));
    assert_eq!(run(&[5], stops(&["5"])), (String::new(), 1, true));
}

#[test]
fn scores_come_with_the_text_of_their_tokens() {
    let logprob = |logprob| Some(TokenLogprob { logprob, top: vec![(8, -0.5)] });
    let mut stream = TextStream::new(None, stops(&["2 9"]));
    assert_eq!(stream.push(2, logprob(-1.0)), None);
    let piece = stream.push(30, logprob(-2.0)).unwrap();
    assert_eq!((piece.text.as_str(), piece.tokens), ("2 30 ", 2));
    let scored: Vec<_> =
        piece.scored.iter().map(|s| (s.token.text.as_str(), s.logprob, s.text_offset)).collect();
    assert_eq!(scored, [("2", -1.0, 0), ("30", -2.0, 2)]);
    assert_eq!(piece.scored[0].top, [(TokenText { text: "8".to_owned(), bytes: Some(vec![b'8']) }, -0.5)]);
}
