//! The roofline as a picture: both axes logarithmic, points numbered as in the legend.

use std::fmt::Write;

use super::points::{Point, View};

const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 720.0;
const TOP: f64 = 80.0;
const BOTTOM: f64 = 520.0;
/// Absorb, then GQA; told apart without colour by circle and square.
const COLOURS: [&str; 2] = ["#0072b2", "#d55e00"];

/// A range of a logarithmic axis, whole decades.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        Self { low: least.log10().floor(), high: most.log10().ceil().max(least.log10().floor() + 1.0) }
    }

    /// 0 at the low end, 1 at the high one.
    fn share(&self, value: f64) -> f64 {
        (value.log10() - self.low) / (self.high - self.low)
    }

    fn decades(&self) -> impl Iterator<Item = f64> + use<> {
        (self.low as i32..=self.high as i32).map(|power| 10f64.powi(power))
    }
}

struct Frame {
    x: Axis,
    y: Axis,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.share(value) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - self.y.share(value) * (BOTTOM - TOP)
    }
}

/// The whole file.
pub fn draw(view: &View<'_>) -> String {
    let intensities = view.points.iter().map(|point| point.intensity).chain([view.ridge]);
    let rates = view.points.iter().map(|point| point.attainable_tflops).chain([view.peak_tflops]);
    let frame = Frame { x: Axis::around(intensities), y: Axis::around(rates) };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"14\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    svg += &text(LEFT, 36.0, "start", 22, &format!("{} on {}", view.model, view.gpu));
    svg += &text(
        LEFT,
        60.0,
        "start",
        14,
        &format!(
            "{:.0} TFLOP/s, {:.2} TB/s, ridge {:.0} FLOP/B; {}",
            view.peak_tflops, view.bandwidth_tb_per_second, view.ridge, view.scope
        ),
    );
    svg += &grid(&frame);
    svg += &roof(&frame, view);
    for (index, point) in view.points.iter().enumerate() {
        svg += &mark(&frame, index, point);
    }
    svg += &legend(view);
    svg + "</svg>\n"
}

fn grid(frame: &Frame) -> String {
    let mut svg = String::new();
    for value in frame.x.decades() {
        let x = frame.x(value);
        svg += &line((x, TOP), (x, BOTTOM), "#ddd", "");
        svg += &text(x, BOTTOM + 22.0, "middle", 14, &value.to_string());
    }
    for value in frame.y.decades() {
        let y = frame.y(value);
        svg += &line((LEFT, y), (RIGHT, y), "#ddd", "");
        svg += &text(LEFT - 8.0, y + 5.0, "end", 14, &value.to_string());
    }
    svg +=
        &text((LEFT + RIGHT) / 2.0, BOTTOM + 48.0, "middle", 16, "arithmetic intensity, FLOP per cache byte");
    let middle = (TOP + BOTTOM) / 2.0;
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<text x=\"24\" y=\"{middle}\" text-anchor=\"middle\" font-size=\"16\" \
         transform=\"rotate(-90 24 {middle})\">attainable TFLOP/s per GPU</text>"
    );
    svg
}

/// The slope of the bandwidth, the flat peak, and the ridge where they meet.
fn roof(frame: &Frame, view: &View<'_>) -> String {
    let least = (10f64.powf(frame.x.low)).max(10f64.powf(frame.y.low) / view.bandwidth_tb_per_second);
    let most = 10f64.powf(frame.x.high);
    let corner = (frame.x(view.ridge), frame.y(view.peak_tflops));
    let start = (frame.x(least), frame.y(least * view.bandwidth_tb_per_second));
    let (x, y) = corner;
    format!(
        "<polyline points=\"{:.1},{:.1} {x:.1},{y:.1} {:.1},{y:.1}\" fill=\"none\" stroke=\"#222\" \
         stroke-width=\"3\"/>\n{}{}",
        start.0,
        start.1,
        frame.x(most),
        line((x, y), (x, BOTTOM), "#222", " stroke-dasharray=\"5 5\""),
        text(x, y - 12.0, "middle", 14, &format!("ridge {:.0}", view.ridge)),
    )
}

fn style(point: &Point) -> (&'static str, bool) {
    let absorb = point.path == "mqa-absorb";
    (COLOURS[usize::from(!absorb)], absorb)
}

fn shape(point: &Point, x: f64, y: f64) -> String {
    let (colour, round) = style(point);
    // One rank is filled, several are hollow.
    let fill = if point.tp == 1 { colour } else { "white" };
    let paint = format!("fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"2.5\"");
    if round {
        format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\" {paint}/>\n")
    } else {
        format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"13\" height=\"13\" {paint}/>\n", x - 6.5, y - 6.5)
    }
}

/// The mark on the roof, its number a little off it: odd ones above, even ones below, because marks crowd at the peak.
fn mark(frame: &Frame, index: usize, point: &Point) -> String {
    let (x, y) = (frame.x(point.intensity), frame.y(point.attainable_tflops));
    let label = if index.is_multiple_of(2) { y - 14.0 } else { y + 24.0 };
    let number = text(x, label, "middle", 13, &(index + 1).to_string());
    shape(point, x, y) + &number
}

fn legend(view: &View<'_>) -> String {
    let x = RIGHT + 32.0;
    let mut svg = text(x, TOP + 4.0, "start", 14, "path, query tokens, ranks: ns per query token");
    let fastest = view.points.iter().map(|point| point.ns_per_query_token).fold(f64::INFINITY, f64::min);
    for (index, point) in view.points.iter().enumerate() {
        let y = TOP + 34.0 + 30.0 * index as f64;
        svg += &shape(point, x + 32.0, y - 5.0);
        svg += &text(x + 20.0, y, "end", 13, &(index + 1).to_string());
        let best = if point.ns_per_query_token <= fastest { " (least)" } else { "" };
        let words = format!(
            "{} s_q {} TP {}: {:.3} ns, {}-bound{best}",
            point.path, point.s_q, point.tp, point.ns_per_query_token, point.bound
        );
        svg += &text(x + 50.0, y, "start", 13, &words);
    }
    svg
}

fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, extra: &str) -> String {
    format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"{extra}/>\n"
    )
}

fn text(x: f64, y: f64, anchor: &str, size: u32, words: &str) -> String {
    let escaped = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{escaped}</text>\n"
    )
}

#[cfg(test)]
mod tests {
    use gqla_planner::{Catalogue, ModelName, shape};

    use super::*;

    #[test]
    fn every_point_is_drawn_once_on_the_plot_and_once_in_the_legend_inside_the_frame() {
        let catalogue = Catalogue::builtin();
        for class in catalogue.iter() {
            let shape = shape(ModelName::DeepseekV3Gqla);
            let view = View::compute("a <b> & c", &shape, class);
            let svg = draw(&view);
            assert_eq!(svg.matches("<circle").count(), 2 * 6, "{}", class.name());
            // One rectangle more is the background.
            assert_eq!(svg.matches("<rect").count(), 2 * 6 + 1, "{}", class.name());
            assert!(svg.contains("a &lt;b&gt; &amp; c on "));
            let values = svg.split("cx=\"").skip(1).filter_map(|rest| rest.split('"').next());
            for value in values {
                let x: f64 = value.parse().unwrap();
                assert!((LEFT..WIDTH).contains(&x), "{}: {x}", class.name());
            }
        }
    }
}
