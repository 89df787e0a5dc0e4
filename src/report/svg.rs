//! Panels with axes, lines, bands and violins, as SVG. Colours are classes: the page and the file bring their own style sheet.

use std::fmt::Write;

use super::markup::{LONGEST_LABEL, escaped, label, without_markup};
use super::palette::{Style, alone};
use super::scale::{Scale, number};
use super::statistics::{density, mean};
use crate::distribution::sorted;
use crate::ui::{abbreviated, visible};

/// Width and height of a panel, in units of about a pixel.
const PANEL: (f64, f64) = (420.0, 280.0);
/// Height of a category's lane.
const LANE: f64 = 36.0;
/// Room above the plot for its title.
const TOP: f64 = 30.0;
/// Room below it for the axis.
const BOTTOM: f64 = 42.0;
/// Room on its right.
const RIGHT: f64 = 14.0;
/// Longest title of a figure.
const LONGEST_TITLE: usize = 160;
/// Size of labels, and of titles, as the style sheets have them.
const TEXT: f64 = 12.0;
const TITLE: f64 = 13.5;
/// Height of a line of a title.
const TITLE_LINE: f64 = 18.0;
/// Fewest values of a density.
const FEWEST: usize = 6;
/// Height of a line of the legend.
const LEGEND_LINE: f64 = 20.0;

/// Panels that belong together, with what explains them.
pub struct Figure {
    /// Its part of file names.
    pub name: String,
    /// One line above it.
    pub title: String,
    /// What it shows and how, in sentences.
    pub caption: String,
    /// The panels, two in a row.
    pub panels: Vec<Panel>,
    /// Styles and their labels.
    pub legend: Vec<(Style, String)>,
    /// The numbers that are drawn.
    pub csv: super::csv::Csv,
}

/// A plot with axes.
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Across.
    pub x: Axis,
    /// Upwards; of categories downwards.
    pub y: Axis,
    /// From back to front.
    pub marks: Vec<Mark>,
}

/// An axis.
pub struct Axis {
    /// What is measured, in which unit.
    pub title: String,
    /// From numbers to places.
    pub scale: Scale,
    /// Where it has a tick and what stands there.
    pub ticks: Vec<(f64, String)>,
}

/// Something drawn.
pub enum Mark {
    /// An interval for every x.
    Band(Style, Vec<(f64, (f64, f64))>),
    /// A line without marks.
    Line(Style, Vec<(f64, f64)>),
    /// Points with intervals, joined by a line.
    Points(Style, Vec<Point>),
    /// The density of positive numbers on the lane of a category, with mean and extremes.
    Violin(Style, usize, Vec<f64>),
    /// A short line across the lane of a category.
    Reference(usize, f64),
}

/// A measured point.
pub struct Point {
    /// Across.
    pub x: f64,
    /// Upwards.
    pub y: f64,
    /// Its interval.
    pub interval: Option<(f64, f64)>,
    /// What a pointer over it says.
    pub tip: String,
}

/// About the width of a text in Arial of this size, rather too much than too little.
fn width(text: &str, size: f64) -> f64 {
    let of = |c: char| match c {
        'i' | 'j' | 'l' | 't' | 'f' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' | '(' | ')' | '/' => 0.32,
        'm' | 'w' | 'M' | 'W' | '@' => 0.92,
        c if c.is_ascii_uppercase() => 0.72,
        c if u32::from(c) > 0x2e80 => 1.0,
        _ => 0.58,
    };
    size * text.chars().map(of).sum::<f64>()
}

/// A title in lines of this width at most, broken at spaces; a longer word is cut off.
fn title_lines(title: &str, room: f64) -> Vec<String> {
    let fits = |text: &str| width(text, TITLE) <= room;
    let mut lines: Vec<String> = Vec::new();
    for word in abbreviated(&visible(title), LONGEST_TITLE).split(' ') {
        match lines.last_mut() {
            Some(line) if fits(&format!("{line} {word}")) => *line += &format!(" {word}"),
            _ => lines.extend((1..=LONGEST_TITLE).rev().map(|length| abbreviated(word, length)).find(|word| fits(word))),
        }
    }
    lines
}

impl Mark {
    fn is_empty(&self) -> bool {
        match self {
            Self::Band(_, points) => points.is_empty(),
            Self::Line(_, points) => points.is_empty(),
            Self::Points(_, points) => points.is_empty(),
            Self::Violin(_, _, sample) => sample.is_empty(),
            Self::Reference(..) => false,
        }
    }
}

impl Panel {
    fn lanes(&self) -> Option<usize> {
        matches!(self.y.scale, Scale::Lanes(_)).then_some(self.y.ticks.len())
    }

    /// Width and height.
    pub fn size(&self) -> (f64, f64) {
        (PANEL.0, self.lanes().map_or(PANEL.1, |lanes| TOP + BOTTOM + LANE * lanes as f64))
    }

    /// Left, top, width and height of the plot.
    fn plot(&self) -> (f64, f64, f64, f64) {
        let ((whole, height), title) = (self.size(), if self.y.title.is_empty() { 0.0 } else { 18.0 });
        let labels = self.y.ticks.iter().map(|(_, label)| width(label, TEXT)).fold(0.0, f64::max);
        let left = (labels + 12.0 + title).min(0.5 * whole);
        (left, TOP, whole - left - RIGHT, height - TOP - BOTTOM)
    }

    fn place_x(&self, x: f64) -> f64 {
        let (left, _, width, _) = self.plot();
        left + width * self.x.scale.share(x)
    }

    fn place_y(&self, y: f64) -> f64 {
        let (_, top, _, height) = self.plot();
        let share = self.y.scale.share(y).clamp(-0.05, 1.05);
        top + height * if self.lanes().is_some() { share } else { 1.0 - share }
    }

    /// An SVG element of its own, for a page.
    pub fn svg(&self) -> String {
        let (width, height) = self.size();
        format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">{}</svg>", escaped(&self.title), self.content())
    }

    /// What is within.
    fn content(&self) -> String {
        let mut svg = format!("<text class=\"title\" x=\"{:.1}\" y=\"16\">{}</text>", self.plot().0, label(&self.title));
        self.axes(&mut svg);
        let lines = self.marks.iter().filter(|mark| matches!(mark, Mark::Points(..)) && !mark.is_empty()).count();
        let mut before = 0;
        for mark in self.marks.iter().filter(|mark| !mark.is_empty()) {
            match mark {
                Mark::Band(style, points) => self.band(&mut svg, *style, points),
                Mark::Line(style, points) => self.line(&mut svg, *style, points.iter().copied(), 0.0),
                Mark::Points(style, points) => {
                    self.points(&mut svg, *style, points, self.dodge(before, lines));
                    before += 1;
                }
                Mark::Violin(style, lane, sample) => self.violin(&mut svg, *style, *lane, sample),
                Mark::Reference(lane, x) => {
                    let (x, y) = (self.place_x(*x), self.place_y(*lane as f64));
                    _ = write!(svg, "<path class=\"reference\" d=\"M{x:.1} {:.1}V{:.1}\"/>", y - 0.4 * LANE, y + 0.4 * LANE);
                }
            }
        }
        svg
    }

    /// By how much a series is moved aside, so that intervals at the same x do not cover each other.
    fn dodge(&self, series: usize, of: usize) -> f64 {
        let places: Vec<f64> = self.x.ticks.iter().map(|(x, _)| self.place_x(*x)).collect();
        let gap = places.windows(2).map(|pair| pair[1] - pair[0]).fold(60.0, f64::min);
        let step = if self.x.scale.is_points() { (0.6 * gap / of.max(1) as f64).min(4.5) } else { 0.0 };
        step * (series as f64 - (of as f64 - 1.0) / 2.0)
    }

    fn axes(&self, svg: &mut String) {
        let (left, top, width, height) = self.plot();
        let (right, bottom) = (left + width, top + height);
        for (value, text) in &self.y.ticks {
            let y = self.place_y(*value);
            _ = write!(svg, "<path class=\"grid\" d=\"M{left:.1} {y:.1}H{right:.1}\"/>");
            _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", left - 6.0, y + 3.8, label(text));
        }
        for (value, text) in &self.x.ticks {
            let x = self.place_x(*value);
            if self.lanes().is_some() {
                _ = write!(svg, "<path class=\"grid\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/>");
            }
            _ = write!(svg, "<path class=\"axis\" d=\"M{x:.1} {bottom:.1}v4\"/>");
            _ = write!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>", bottom + 16.0, label(text));
        }
        _ = write!(svg, "<path class=\"axis\" d=\"M{left:.1} {bottom:.1}H{right:.1}\"/>");
        let middle = left + width / 2.0;
        _ = write!(svg, "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>", bottom + 34.0, label(&self.x.title));
        if !self.y.title.is_empty() {
            let y = top + height / 2.0;
            let title = label(&self.y.title);
            _ = write!(svg, "<text transform=\"translate(12 {y:.1}) rotate(-90)\" text-anchor=\"middle\">{title}</text>");
        }
    }

    fn band(&self, svg: &mut String, style: Style, points: &[(f64, (f64, f64))]) {
        let at = |x: f64, y: f64| format!("{:.1} {:.1}", self.place_x(x), self.place_y(y));
        let upper = points.iter().map(|(x, (_, high))| at(*x, *high));
        let lower = points.iter().rev().map(|(x, (low, _))| at(*x, *low));
        let corners: Vec<String> = upper.chain(lower).collect();
        _ = write!(svg, "<path class=\"{} band\" d=\"M{}Z\"/>", style.class(), corners.join("L"));
    }

    fn line(&self, svg: &mut String, style: Style, points: impl Iterator<Item = (f64, f64)>, dx: f64) {
        let corners: Vec<String> = points.map(|(x, y)| format!("{:.1} {:.1}", self.place_x(x) + dx, self.place_y(y))).collect();
        if corners.len() > 1 {
            _ = write!(svg, "<path class=\"{} line\" d=\"M{}\"/>", style.class(), corners.join("L"));
        }
    }

    fn points(&self, svg: &mut String, style: Style, points: &[Point], dx: f64) {
        let class = style.class();
        self.line(svg, style, points.iter().map(|point| (point.x, point.y)), dx);
        for point in points {
            let (x, y) = (self.place_x(point.x) + dx, self.place_y(point.y));
            if let Some((low, high)) = point.interval.filter(|(low, high)| high > low) {
                _ = write!(svg, "<path class=\"{class} whisker\" d=\"M{x:.1} {:.1}V{:.1}\"/>", self.place_y(low), self.place_y(high));
            }
            let tip = escaped(&point.tip);
            _ = write!(svg, "<path class=\"{class} mark\" d=\"{}\"><title>{tip}</title></path>", style.mark(x, y));
        }
    }

    /// Mean and extremes, and the density over logarithms, as the axis is; of a handful of values there is no density to speak of.
    fn violin(&self, svg: &mut String, style: Style, lane: usize, sample: &[f64]) {
        let logs = sorted(&sample.iter().map(|x| x.ln()).collect::<Vec<_>>());
        let (low, high) = (logs[0].exp(), logs[logs.len() - 1].exp());
        let (y, class) = (self.place_y(lane as f64), style.class());
        if logs.len() >= FEWEST {
            _ = write!(svg, "<path class=\"{class} violin\" d=\"M{}Z\"/>", self.outline(y, &logs));
        }
        let (left, middle, right) = (self.place_x(low), self.place_x(mean(sample)), self.place_x(high));
        let ends = format!("M{left:.1} {:.1}v8M{right:.1} {:.1}v8", y - 4.0, y - 4.0);
        _ = write!(svg, "<path class=\"{class} whisker\" d=\"M{left:.1} {y:.1}H{right:.1}{ends}\"/>");
        let tip = format!("{} values, mean {}, {} to {}", sample.len(), number(mean(sample)), number(low), number(high));
        _ = write!(svg, "<path class=\"{class} mark\" d=\"{}\"><title>{tip}</title></path>", style.mark(middle, y));
    }

    /// The outline of a violin around y, of sorted logarithms.
    fn outline(&self, y: f64, logs: &[f64]) -> String {
        const POINTS: usize = 80;
        let (low, high) = (logs[0], logs[logs.len() - 1]);
        let places: Vec<f64> = (0..POINTS).map(|i| low + (high - low) * i as f64 / (POINTS - 1) as f64).collect();
        let found = density(logs, &places);
        let largest = found.iter().copied().fold(0.0, f64::max);
        let corner = |i: usize, half: f64| format!("{:.1} {:.1}", self.place_x(places[i].exp()), y + half * found[i] / largest);
        let half = 0.42 * LANE;
        let corners: Vec<String> = (0..POINTS).map(|i| corner(i, -half)).chain((0..POINTS).rev().map(|i| corner(i, half))).collect();
        corners.join("L")
    }
}

impl Figure {
    /// The whole figure as a file: title, panels, legend, and a style sheet of its own.
    pub fn svg(&self) -> String {
        let legend = self.legend_lines();
        let columns = self.panels.len().clamp(1, 2);
        let rows: Vec<&[Panel]> = self.panels.chunks(columns).collect();
        let heights: Vec<f64> = rows.iter().map(|row| row.iter().map(|panel| panel.size().1).fold(0.0, f64::max) + 12.0).collect();
        let width = PANEL.0 * columns as f64 + 32.0;
        let title = title_lines(&self.title, width - 32.0);
        let under_title = 16.0 + TITLE_LINE * title.len() as f64;
        let top = under_title + LEGEND_LINE * legend.len() as f64 + 8.0;
        let height = top + heights.iter().sum::<f64>();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
             <style>{}</style>\n<rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n",
            alone()
        );
        for (line, text) in title.iter().enumerate() {
            let y = 22.0 + TITLE_LINE * line as f64;
            _ = writeln!(svg, "<text class=\"title\" x=\"16\" y=\"{y}\">{}</text>", without_markup(text));
        }
        for (line, entries) in legend.iter().enumerate() {
            let y = under_title + 6.0 + LEGEND_LINE * line as f64;
            entries.iter().for_each(|(x, style, text)| svg += &entry(*x, y, *style, text));
        }
        let mut y = top;
        for (row, height) in rows.iter().zip(heights) {
            for (column, panel) in row.iter().enumerate() {
                let x = 16.0 + PANEL.0 * column as f64;
                _ = writeln!(svg, "<g transform=\"translate({x} {y:.1})\">{}</g>", panel.content());
            }
            y += height;
        }
        svg + "</svg>\n"
    }

    /// The entries of the legend with their places, as many in a line as there is room for.
    fn legend_lines(&self) -> Vec<Vec<(f64, Style, String)>> {
        let whole = PANEL.0 * self.panels.len().clamp(1, 2) as f64;
        let (mut lines, mut x): (Vec<Vec<_>>, f64) = (Vec::new(), f64::INFINITY);
        for (style, text) in &self.legend {
            let wide = 34.0 + width(&abbreviated(&visible(text), LONGEST_LABEL), TEXT) + 12.0;
            if x + wide > whole {
                lines.push(Vec::new());
                x = 16.0;
            }
            lines.last_mut().expect("a line").push((x, *style, text.clone()));
            x += wide;
        }
        lines
    }
}

/// An entry of a legend.
fn entry(x: f64, y: f64, style: Style, text: &str) -> String {
    format!("<g transform=\"translate({x:.1} {y:.1})\">{}<text x=\"34\" y=\"4\">{}</text></g>\n", key(style), label(text))
}

/// A short line with the mark of a style, 28 wide, around y = 0.
pub fn key(style: Style) -> String {
    let class = style.class();
    let mark =
        if style == Style::FLOOR { String::new() } else { format!("<path class=\"{class} mark\" d=\"{}\"/>", style.mark(14.0, 0.0)) };
    let band = if style == Style::FLOOR { "<path class=\"floor band\" d=\"M0 -6H28V6H0Z\"/>" } else { "" };
    format!("{band}<path class=\"{class} line\" d=\"M0 0H28\"/>{mark}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violin_and_a_line_of_one_value_are_drawn_without_a_number_that_is_none() {
        let axis = |scale: Scale, ticks| Axis { title: String::new(), scale, ticks };
        let marks =
            vec![Mark::Violin(Style::of_method("dlmi"), 0, vec![2.0; 9]), Mark::Violin(Style::of_method("gbda"), 1, vec![1.0, 1.0, 10.0])];
        let lanes = vec![(0.0, "a".to_owned()), (1.0, "b".to_owned())];
        let log = Scale::log([1.0, 10.0]);
        let panel = Panel { title: "p".into(), x: axis(log.clone(), log.ticks()), y: axis(Scale::Lanes(2), lanes), marks };
        assert!(!panel.svg().contains("NaN") && !panel.svg().contains("inf"), "{}", panel.svg());
    }
}
