//! The roofline as a picture for a slide: per tensor-parallel degree a plot of where both paths stand on the roof, both axes
//! logarithmic, and under it what a query token takes.

mod bars;
mod ink;

use self::ink::{line, text, text_of};
use super::points::{Point, View};

const WIDTH: f64 = 1280.0;
const MARGIN: f64 = 70.0;
const GAP: f64 = 90.0;
const TOP: f64 = 140.0;
const PLOT_HEIGHT: f64 = 300.0;
/// From the plot's foot to the bars: tick labels and the axis' name are between.
const BARS_BELOW: f64 = 86.0;
/// Space left of the first and right of the last mark, as a factor.
const AROUND: f64 = 1.8;

/// A logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        Self { low: (least / AROUND).log10(), high: (most * AROUND).log10() }
    }

    /// 0 at the low end, 1 at the high one.
    fn share(&self, value: f64) -> f64 {
        (value.log10() - self.low) / (self.high - self.low)
    }

    /// 1, 2 and 5 of every decade; whole decades where those would crowd.
    fn ticks(&self) -> impl Iterator<Item = f64> + use<'_> {
        let steps: &[f64] = if self.high - self.low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = self.low.floor() as i32..=self.high.ceil() as i32;
        let ticks = decades.flat_map(move |power| steps.iter().map(move |step| step * 10f64.powi(power)));
        ticks.filter(move |value| (0.0..=1.0).contains(&self.share(*value)))
    }
}

/// One degree's plot.
struct Plot<'a> {
    view: &'a View<'a>,
    x: &'a Axis,
    y: &'a Axis,
    left: f64,
    width: f64,
    degree: u32,
}

/// The whole file.
pub fn draw(view: &View<'_>) -> String {
    let x = Axis::around(view.points.iter().map(|point| point.intensity).chain([view.ridge]));
    let y = Axis::around(view.points.iter().map(|point| point.attainable_tflops).chain([view.peak_tflops]));
    let degrees = view.degrees();
    let panels = degrees.len().max(1) as f64;
    let width = (WIDTH - 2.0 * MARGIN - GAP * (panels - 1.0)) / panels;
    let bars_top = TOP + PLOT_HEIGHT + BARS_BELOW;
    let height = bars_top + bars::height(view) + 24.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"14\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    svg += &head(view);
    for (index, degree) in degrees.into_iter().enumerate() {
        let left = MARGIN + index as f64 * (width + GAP);
        svg += &Plot { view, x: &x, y: &y, left, width, degree }.draw();
        svg += &bars::draw(view, degree, left, bars_top, width);
    }
    svg + "</svg>\n"
}

fn head(view: &View<'_>) -> String {
    let rates = format!(
        "{} TFLOP/s, {} TB/s, ridge {:.0} FLOP/B; {}",
        ink::number(view.peak_tflops),
        ink::number(view.bandwidth_tb_per_second),
        view.ridge,
        view.scope
    );
    let mut svg = text(MARGIN, 38.0, "start", 26, &format!("{} on {}", view.model, view.gpu));
    svg += &text(MARGIN, 62.0, "start", 14, &rates);
    for (index, note) in view.notes.iter().enumerate() {
        svg += &text(MARGIN, 81.0 + 17.0 * index as f64, "start", 13, note);
    }
    svg += &ink::mark(true, WIDTH - MARGIN - 232.0, 33.0);
    svg += &text(WIDTH - MARGIN - 220.0, 38.0, "start", 15, "mqa-absorb");
    svg += &ink::mark(false, WIDTH - MARGIN - 112.0, 33.0);
    svg + &text(WIDTH - MARGIN - 98.0, 38.0, "start", 15, "gqa, numbers: s_q")
}

impl Plot<'_> {
    fn x(&self, value: f64) -> f64 {
        self.left + self.x.share(value) * self.width
    }

    fn y(&self, value: f64) -> f64 {
        TOP + (1.0 - self.y.share(value)) * PLOT_HEIGHT
    }

    fn draw(&self) -> String {
        let points = || self.view.points.iter().filter(|point| point.tp == self.degree);
        let title = format!("TP {}{}", self.degree, if self.degree == 1 { "" } else { ", each rank" });
        let mut svg = text_of("bold", self.left, TOP - 14.0, "start", 16, &title);
        svg += &self.grid();
        svg += &self.roof();
        // Squares first: a circle on top of one leaves its corners to be seen.
        for absorb in [false, true] {
            svg += &points()
                .filter(|point| ink::is_absorb(point) == absorb)
                .map(|p| self.mark(p))
                .collect::<String>();
        }
        svg
    }

    fn grid(&self) -> String {
        let (right, bottom) = (self.left + self.width, TOP + PLOT_HEIGHT);
        let mut svg = String::new();
        for value in self.x.ticks() {
            let x = self.x(value);
            svg += &line((x, TOP), (x, bottom), "#ddd", "");
            svg += &text(x, bottom + 20.0, "middle", 13, &ink::number(value));
        }
        for value in self.y.ticks() {
            let y = self.y(value);
            svg += &line((self.left, y), (right, y), "#ddd", "");
            svg += &text(self.left - 8.0, y + 5.0, "end", 13, &ink::number(value));
        }
        let middle = self.left + self.width / 2.0;
        svg += &text(middle, bottom + 42.0, "middle", 14, "arithmetic intensity, FLOP per cache byte");
        svg + &text(self.left + 6.0, TOP + 18.0, "start", 13, "attainable TFLOP/s per GPU")
    }

    /// The slope of the bandwidth, the flat peak, and the ridge where they meet.
    fn roof(&self) -> String {
        let view = self.view;
        let least = 10f64.powf(self.x.low).max(10f64.powf(self.y.low) / view.bandwidth_tb_per_second);
        let (foot, end) = (self.x(least), self.left + self.width);
        let (x, y) = (self.x(view.ridge), self.y(view.peak_tflops));
        format!(
            "<polyline points=\"{foot:.1},{:.1} {x:.1},{y:.1} {end:.1},{y:.1}\" fill=\"none\" stroke=\"#222\" \
             stroke-width=\"3\"/>\n{}{}",
            self.y(least * view.bandwidth_tb_per_second),
            line((x, y), (x, TOP + PLOT_HEIGHT), "#222", " stroke-dasharray=\"5 5\""),
            text(x + 8.0, TOP + PLOT_HEIGHT - 10.0, "start", 13, &format!("ridge {:.0}", view.ridge)),
        )
    }

    /// The mark on the roof with its query tokens: absorb's above, GQA's below, since the two often stand side by side.
    fn mark(&self, point: &Point) -> String {
        let (x, y) = (self.x(point.intensity), self.y(point.attainable_tflops));
        let absorb = ink::is_absorb(point);
        let below = 25.0 + 15.0 * self.rank_of_groups(point);
        let label = if absorb { y - 13.0 } else { y + below };
        ink::mark(absorb, x, y) + &ink::coloured(absorb, x, label, &self.label(point))
    }

    fn label(&self, point: &Point) -> String {
        match point.groups {
            Some(groups) if self.has_several_groups() => format!("{} (G={groups})", point.s_q),
            _ => point.s_q.to_string(),
        }
    }

    fn has_several_groups(&self) -> bool {
        self.view.points.iter().any(|point| point.groups.is_some() && point.groups != self.most_groups())
    }

    fn most_groups(&self) -> Option<u32> {
        self.view.points.iter().filter_map(|point| point.groups).max()
    }

    /// 0 for the most groups, 1 for the next; labels of layers that differ in groups stand under each other.
    fn rank_of_groups(&self, point: &Point) -> f64 {
        let mut larger: Vec<_> = self
            .view
            .points
            .iter()
            .map(|other| other.groups)
            .filter(|groups| *groups > point.groups)
            .collect();
        larger.sort_unstable();
        larger.dedup();
        larger.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use gqla_planner::{Catalogue, ModelName, shape};

    use super::*;

    #[test]
    fn every_point_is_a_mark_inside_the_frame_and_a_bar() {
        let catalogue = Catalogue::builtin();
        for class in catalogue.iter() {
            let shape = shape(ModelName::DeepseekV3Gqla);
            let view = View::compute("a <b> & c", &shape, class);
            let svg = draw(&view);
            // One circle and one square more are the legend's; a rectangle more is the background, twelve are bars.
            assert_eq!(svg.matches("<circle").count(), 6 + 1, "{}", class.name());
            assert_eq!(svg.matches("<rect").count(), 6 + 1 + 1 + 12, "{}", class.name());
            assert!(svg.contains("a &lt;b&gt; &amp; c on "));
            for (attribute, limit) in
                [(" x=\"", WIDTH), (" cx=\"", WIDTH), (" y=\"", 1000.0), (" cy=\"", 1000.0)]
            {
                let values = svg.split(attribute).skip(1).filter_map(|rest| rest.split('"').next());
                for value in values {
                    let value: f64 = value.parse().unwrap();
                    assert!((0.0..limit).contains(&value), "{}: {attribute}{value}", class.name());
                }
            }
        }
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        let ticks = |least, most| {
            Axis::around([least, most].into_iter()).ticks().map(ink::number).collect::<Vec<_>>()
        };
        assert_eq!(ticks(9.0, 60.0), ["5", "10", "20", "50", "100"]);
        assert_eq!(ticks(0.03, 0.17), ["0.02", "0.05", "0.1", "0.2"]);
        assert_eq!(ticks(1.0, 4000.0), ["1", "10", "100", "1000"]);
    }
}
