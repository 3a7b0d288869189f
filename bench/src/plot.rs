//! Pictures of results, as SVG: bars beside one another, bars made of stages, and figures over time.
//!
//! Written by hand: a picture is rectangles, lines and words, whatever draws it, and what differs from picture to picture is
//! where they go. No font is needed to make one: the viewer's own sans-serif is asked for, and no place depends on its widths.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

/// Colours that can be told apart, by name in a printout too: of series, in their order.
const COLOURS: [&str; 14] = [
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7", "#bab0ac",
    "#86bcb6", "#d37295", "#8cd17d", "#2f4b7c",
];
const WIDTH: f64 = 960.0;
/// Left, right, top and bottom of what is drawn into.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 50.0;
const LINE: f64 = 18.0;

/// Writes a picture to a file.
pub fn write(path: &Path, svg: &str) -> anyhow::Result<()> {
    std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
}

/// A column of a picture, and a value for each series.
#[derive(Clone, Debug)]
pub struct Column {
    /// What stands under it.
    pub label: String,
    /// One for each series. A value of zero is not drawn.
    pub values: Vec<f64>,
}

/// Seconds since the start, and the value then. Where one is missing the line is broken.
pub type Point = (f64, Option<f64>);

/// Figures over time, one below the other.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What is shown, with its unit.
    pub label: String,
    /// Each with its name.
    pub lines: Vec<(String, Vec<Point>)>,
}

/// A time that is marked in all panels: from, to, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// What happened then: those of one label have one colour.
    pub label: String,
    /// When it began.
    pub from_s: f64,
    /// When it ended.
    pub to_s: f64,
}

/// For each column the series' bars beside one another, on a logarithmic axis, each with its value above it.
pub fn bars(title: &str, unit: &str, series: &[&str], columns: &[Column]) -> String {
    let values = || columns.iter().flat_map(|column| &column.values).copied().filter(|value| *value > 0.0);
    let low = 10f64.powf(values().fold(f64::INFINITY, f64::min).min(1e12).log10().floor());
    let high = 10f64.powf(values().fold(low * 10.0, f64::max).log10().ceil());
    let mut picture = Picture::new(title, 460.0);
    picture.legend(series.iter().copied());
    let (top, bottom) = (TOP + LINE, picture.height - BOTTOM);
    let y = |value: f64| bottom - (bottom - top) * (value / low).log10() / (high / low).log10();
    let mut decade = low;
    while decade <= high * 1.001 {
        picture.grid(LEFT, WIDTH - RIGHT, y(decade), &short(decade));
        decade *= 10.0;
    }
    picture.unit(top, bottom, unit);
    let step = (WIDTH - LEFT - RIGHT) / columns.len() as f64;
    let width = step * 0.84 / series.len() as f64;
    for (at, column) in columns.iter().enumerate() {
        let left = LEFT + step * (at as f64 + 0.08);
        for (which, value) in column.values.iter().enumerate().filter(|(_, value)| **value > 0.0) {
            let x = left + width * which as f64;
            picture.rect(x, y(*value), width * 0.94, bottom - y(*value), colour(which), 1.0);
            picture.text(x + width * 0.47, y(*value) - 4.0, "middle", 11, &short(*value));
        }
        picture.text(left + step * 0.42, bottom + LINE, "middle", 12, &column.label);
    }
    picture.end()
}

/// For each column the series' parts on top of one another, from zero, with the whole above. Groups of columns stand beside
/// one another, each with an axis of its own: what is small in one would not be seen beside the other.
pub fn stacks(title: &str, unit: &str, series: &[&str], groups: &[&[Column]]) -> String {
    const LEGEND: f64 = 180.0;
    const GAP: f64 = 60.0;
    let mut picture = Picture::new(title, 560.0);
    let (top, bottom) = (TOP + LINE, picture.height - BOTTOM);
    picture.unit(top, bottom, unit);
    let columns_in_all = groups.iter().map(|group| group.len()).sum::<usize>();
    let width = WIDTH - LEFT - RIGHT - LEGEND - GAP * (groups.len() - 1) as f64;
    let step = width / columns_in_all as f64;
    let mut left = LEFT;
    for group in groups {
        let ticks = Ticks::new(group.iter().map(|column| column.values.iter().sum::<f64>()).fold(0.0, f64::max));
        let y = |value: f64| bottom - (bottom - top) * value / ticks.high;
        let right = left + step * group.len() as f64;
        for tick in ticks.all() {
            picture.grid(left, right, y(tick), &short(tick));
        }
        for column in *group {
            let middle = left + step / 2.0;
            let mut below = 0.0;
            for (which, value) in column.values.iter().enumerate().filter(|(_, value)| **value > 0.0) {
                let (from, to) = (y(below), y(below + value));
                picture.rect(left + step * 0.15, to, step * 0.7, from - to, colour(which), 1.0);
                if from - to > 13.0 {
                    picture.text(middle, f64::midpoint(from, to) + 4.0, "middle", 11, &short(*value));
                }
                below += value;
            }
            picture.text(middle, y(below) - 5.0, "middle", 12, &short(below));
            picture.text(middle, bottom + LINE, "middle", 12, &column.label);
            left += step;
        }
        left += GAP;
    }
    // The topmost part is named first.
    for (which, name) in series.iter().enumerate() {
        let y = top + LINE * (series.len() - which) as f64;
        picture.rect(WIDTH - LEGEND, y - 11.0, 12.0, 12.0, colour(which), 1.0);
        picture.text(WIDTH - LEGEND + 18.0, y, "start", 12, name);
    }
    picture.end()
}

/// Panels below one another over the same seconds, with marks behind all of them.
pub fn over_time(title: &str, panels: &[Panel], marks: &[Mark]) -> String {
    const PANEL: f64 = 190.0;
    let mut picture = Picture::new(title, TOP + LINE + PANEL * panels.len() as f64 + BOTTOM);
    let points = || panels.iter().flat_map(|panel| &panel.lines).flat_map(|(_, points)| points);
    let seconds = points().map(|(at, _)| *at).chain(marks.iter().map(|mark| mark.to_s)).fold(1.0, f64::max);
    let x = |at: f64| LEFT + (WIDTH - LEFT - RIGHT) * at / seconds;
    let bottom = picture.height - BOTTOM;
    let mut kinds: Vec<&str> = Vec::new();
    for mark in marks {
        let kind = kinds.iter().position(|kind| *kind == mark.label).unwrap_or(kinds.len());
        if kind == kinds.len() {
            kinds.push(&mark.label);
        }
        let width = (x(mark.to_s) - x(mark.from_s)).max(2.0);
        picture.rect(x(mark.from_s), TOP + LINE, width, bottom - TOP - LINE, mark_colour(kind), 0.25);
    }
    for (kind, label) in kinds.iter().enumerate() {
        let left = LEFT + 180.0 * kind as f64;
        picture.rect(left, TOP - 19.0, 12.0, 12.0, mark_colour(kind), 0.25);
        picture.text(left + 18.0, TOP - 8.0, "start", 12, label);
    }
    let mut which = 0;
    for (at, panel) in panels.iter().enumerate() {
        let (top, bottom) = (TOP + LINE + PANEL * at as f64 + 26.0, TOP + LINE + PANEL * (at + 1) as f64);
        let values = panel.lines.iter().flat_map(|(_, points)| points).filter_map(|(_, value)| *value);
        let ticks = Ticks::new(values.fold(0.0, f64::max));
        let y = |value: f64| bottom - (bottom - top) * value / ticks.high;
        for tick in ticks.all() {
            picture.grid(LEFT, WIDTH - RIGHT, y(tick), &short(tick));
        }
        picture.text(LEFT, top - 9.0, "start", 12, &panel.label);
        for (index, (name, points)) in panel.lines.iter().enumerate() {
            for part in points.split(|(_, value)| value.is_none()) {
                let place = |(at, value): &Point| value.map(|value| (x(*at), y(value)));
                picture.line(part.iter().filter_map(place), colour(which));
            }
            let right = WIDTH - RIGHT - 90.0 * (panel.lines.len() - index) as f64;
            picture.rect(right, top - 20.0, 12.0, 12.0, colour(which), 1.0);
            picture.text(right + 18.0, top - 9.0, "start", 12, name);
            which += 1;
        }
    }
    for tick in Ticks::new(seconds).all().into_iter().filter(|tick| *tick <= seconds) {
        picture.text(x(tick), bottom + LINE, "middle", 11, &format!("{} s", short(tick)));
    }
    picture.end()
}

fn colour(which: usize) -> &'static str {
    COLOURS[which % COLOURS.len()]
}

fn mark_colour(kind: usize) -> &'static str {
    // From the other end, so that no line of the first few has it.
    COLOURS[COLOURS.len() - 1 - kind % COLOURS.len()]
}

/// Round numbers from zero to at least some value.
struct Ticks {
    step: f64,
    high: f64,
}

impl Ticks {
    fn new(highest: f64) -> Self {
        let rough = highest.max(1e-9) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= rough).unwrap_or(10.0);
        Self { step, high: step * (highest / step).ceil().max(1.0) }
    }

    fn all(&self) -> Vec<f64> {
        let count = (self.high / self.step).round() as u64;
        (0..=count).map(|at| at as f64 * self.step).collect()
    }
}

/// Three figures, or as many as it takes, with k and M.
fn short(value: f64) -> String {
    let (value, letter) = match value {
        value if value >= 999_500.0 => (value / 1e6, "M"),
        value if value >= 9_995.0 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let places = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.places$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{letter}")
}

struct Picture {
    svg: String,
    height: f64,
}

impl Picture {
    fn new(title: &str, height: f64) -> Self {
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
        );
        let mut picture = Self { svg, height };
        picture.text(LEFT, 26.0, "start", 16, title);
        picture
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.svg, "{element}").expect("a string grows");
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, opacity: f64) {
        self.put(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" fill-opacity=\"{opacity}\"/>"
        ));
    }

    fn line(&mut self, points: impl Iterator<Item = (f64, f64)>, stroke: &str) {
        let mut places = String::new();
        for (x, y) in points {
            write!(places, "{x:.1},{y:.1} ").expect("a string grows");
        }
        self.put(format_args!(
            "<polyline points=\"{places}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.8\"/>"
        ));
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.put(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{text}</text>"
        ));
    }

    fn grid(&mut self, left: f64, right: f64, y: f64, label: &str) {
        self.put(format_args!(
            "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>"
        ));
        self.text(left - 8.0, y + 4.0, "end", 11, label);
    }

    fn unit(&mut self, top: f64, bottom: f64, unit: &str) {
        let y = f64::midpoint(top, bottom);
        self.put(format_args!("<g transform=\"translate(20 {y:.1}) rotate(-90)\">"));
        self.text(0.0, 0.0, "middle", 12, unit);
        self.put(format_args!("</g>"));
    }

    fn legend<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        for (which, name) in names.enumerate() {
            let x = LEFT + 260.0 * which as f64;
            self.rect(x, TOP - 19.0, 12.0, 12.0, colour(which), 1.0);
            self.text(x + 18.0, TOP - 8.0, "start", 12, name);
        }
    }

    fn end(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let of = |value| short(value);
        assert_eq!([of(0.0), of(0.25), of(91.0), of(12.34)], ["0", "0.25", "91", "12.3"].map(str::to_owned));
        assert_eq!([of(3000.0), of(12_340.0), of(1.2e6)], ["3000", "12.3k", "1.2M"].map(str::to_owned));
    }

    #[test]
    fn a_bar_is_as_high_as_its_value() {
        let column = |value| Column { label: "a & b".to_owned(), values: vec![value] };
        let svg = bars("title", "ops/s", &["one"], &[column(100.0), column(1000.0), column(0.0)]);
        let heights: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<rect x=") && !line.contains("height=\"12.0\""))
            .map(|line| line.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        // The axis begins a decade below: nothing of the value 0, twice the decades for ten times the value.
        assert_eq!(heights.len(), 2, "{svg}");
        assert!(svg.contains("a &amp; b") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(heights[0] < heights[1], "{heights:?}");
    }

    #[test]
    fn parts_stand_on_one_another() {
        let column = Column { label: "p50".to_owned(), values: vec![30.0, 70.0] };
        let svg = stacks("title", "us", &["one", "two"], &[&[column]]);
        let parts: Vec<Vec<f64>> = svg
            .lines()
            .filter(|line| line.starts_with("<rect x=") && !line.contains("height=\"12.0\""))
            .map(|line| {
                let value = |name: &str| line.split(name).nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
                vec![value(" y=\""), value(" height=\"")]
            })
            .collect();
        let [one, two] = &parts[..] else { panic!("{svg}") };
        assert!((two[0] + two[1] - one[0]).abs() < 0.2, "{parts:?}");
        assert!((two[1] / one[1] - 70.0 / 30.0).abs() < 0.02, "{parts:?}");
    }

    #[test]
    fn a_gap_breaks_a_line_and_marks_are_behind() {
        let points = vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(2.0))];
        let panel = Panel { label: "ops/s".to_owned(), lines: vec![("writes".to_owned(), points)] };
        let mark = Mark { label: "snapshot".to_owned(), from_s: 0.5, to_s: 1.5 };
        let svg = over_time("title", &[panel], &[mark.clone(), mark]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches(">snapshot<").count(), 1);
        assert!(svg.find("fill-opacity=\"0.25\"").unwrap() < svg.find("<polyline").unwrap());
    }
}
