//! What the picture is drawn with.

use crate::roofline::points::Point;

/// Absorb, then GQA; told apart without colour by circle and square.
const COLOURS: [&str; 2] = ["#0072b2", "#d55e00"];

pub fn is_absorb(point: &Point) -> bool {
    point.groups.is_none()
}

pub fn colour(absorb: bool) -> &'static str {
    COLOURS[usize::from(!absorb)]
}

/// A circle for absorb, a larger square for GQA, with a white rim where they meet.
pub fn mark(absorb: bool, x: f64, y: f64) -> String {
    let paint = format!("fill=\"{}\" stroke=\"white\" stroke-width=\"1.5\"", colour(absorb));
    if absorb {
        return format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6\" {paint}/>\n");
    }
    format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"16\" height=\"16\" {paint}/>\n", x - 8.0, y - 8.0)
}

pub fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, extra: &str) -> String {
    format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"{extra}/>\n"
    )
}

pub fn text(x: f64, y: f64, anchor: &str, size: u32, words: &str) -> String {
    text_of("normal", x, y, anchor, size, words)
}

/// Text of a weight.
pub fn text_of(weight: &str, x: f64, y: f64, anchor: &str, size: u32, words: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" \
         font-weight=\"{weight}\">{}</text>\n",
        escaped(words)
    )
}

/// A label in a path's colour.
pub fn coloured(absorb: bool, x: f64, y: f64, words: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" font-size=\"13\" font-weight=\"bold\" \
         fill=\"{}\">{}</text>\n",
        colour(absorb),
        escaped(words)
    )
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Three significant digits without what floating point adds: 0.2, 989, 3.35.
pub fn number(value: f64) -> String {
    let digits = 2_i32.saturating_sub(value.abs().log10().floor() as i32);
    let text = format!("{value:.*}", digits.clamp(0, 12) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.2, "0.2"),
            (0.1 + 0.2, "0.3"),
            (989.0, "989"),
            (3.35, "3.35"),
            (362.05, "362"),
            (20.0, "20"),
            (0.0345, "0.0345"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
