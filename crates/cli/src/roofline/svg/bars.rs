//! What a query token takes on either path, as bars side by side for each number of query tokens.

use super::ink::{colour, is_absorb, number, text, text_of};
use crate::roofline::points::{Point, QUERY_TOKENS, View};

const HEADING: f64 = 30.0;
const BAR: f64 = 20.0;
/// Between one number of query tokens and the next.
const GROUP_GAP: f64 = 10.0;
/// Left of the bars, for their names.
const NAMES: f64 = 150.0;
/// Right of the longest bar, for its value.
const VALUES: f64 = 190.0;

/// Height of all bars of a degree.
pub fn height(view: &View<'_>) -> f64 {
    let mut series: Vec<_> = view.points.iter().map(|point| point.groups).collect();
    series.sort_unstable();
    series.dedup();
    HEADING + QUERY_TOKENS.len() as f64 * (series.len() as f64 * BAR + GROUP_GAP)
}

/// The bars of one degree; those of all degrees have one scale.
pub fn draw(view: &View<'_>, degree: u32, left: f64, top: f64, width: f64) -> String {
    let longest = view.points.iter().map(|point| point.ns_per_query_token).fold(0.0, f64::max);
    let scale = (width - NAMES - VALUES) / longest;
    let words = "ns per query token, cached token and layer: shorter is faster";
    let mut svg = text(left, top + 12.0, "start", 14, words);
    let mut y = top + HEADING;
    for query_tokens in QUERY_TOKENS {
        let of_these = |point: &&Point| point.tp == degree && point.s_q == query_tokens;
        let points: Vec<&Point> = view.points.iter().filter(of_these).collect();
        for point in &points {
            svg += &bar(point, &points, left, y, scale);
            y += BAR;
        }
        y += GROUP_GAP;
    }
    svg
}

fn bar(point: &Point, rivals: &[&Point], left: f64, y: f64, scale: f64) -> String {
    let (x, length) = (left + NAMES, point.ns_per_query_token * scale);
    let name = format!("s_q {} {}", point.s_q, point.name());
    let told = format!("{} {}-bound", number(point.ns_per_query_token), point.bound);
    let (weight, words) = match lead(point, rivals) {
        Some(lead) => ("bold", format!("{told}, {lead:.2}x faster")),
        None => ("normal", told),
    };
    text_of(weight, x - 8.0, y + 14.0, "end", 13, &name)
        + &format!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>\n",
            y + 2.0,
            BAR - 4.0,
            colour(is_absorb(point))
        )
        + &text_of(weight, x + length + 8.0, y + 14.0, "start", 13, &words)
}

/// How many times faster than the other path `point` is, where it is. With layers of different groups there is a lead only
/// over absorb of every one of them, or of absorb over all.
fn lead(point: &Point, rivals: &[&Point]) -> Option<f64> {
    let others = rivals.iter().filter(|rival| is_absorb(rival) != is_absorb(point));
    let nearest = others.map(|rival| rival.ns_per_query_token).fold(f64::INFINITY, f64::min);
    let lead = nearest / point.ns_per_query_token;
    (lead.is_finite() && lead > 1.005).then_some(lead)
}
