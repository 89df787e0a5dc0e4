//! Colours and marks: a method looks the same in all figures of a report.

use std::fmt::Write;

/// A colour in a light and in a dark page, a mark, and whether lines are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Style {
    place: usize,
}

/// Colours that stay apart with any kind of colour blindness, on white and on nearly black. The marks differ as well.
const COLOURS: [(&str, &str); 9] = [
    ("#1f5fae", "#5b8df5"),
    ("#c2410c", "#f5843f"),
    ("#0a6b52", "#3fb07c"),
    ("#b0309c", "#d868c8"),
    ("#c99400", "#f2cf57"),
    ("#2b2b2b", "#ececec"),
    ("#5b9cf1", "#8fdcff"),
    ("#e0567a", "#f0557a"),
    ("#7f8c2a", "#b0b555"),
];
/// The methods that have a colour of their own, in the order of [`COLOURS`]; others take what is free.
const OWN: [&str; COLOURS.len()] = ["dlmi", "dlmi-tf", "gbda", "reinforce", "soda", "snap", "stgs", "rebar", "relax"];
/// In which order others take what is free: colours of the rarer methods first.
const FREE: [usize; COLOURS.len()] = [6, 7, 8, 5, 4, 3, 2, 1, 0];

/// Text, quiet text, grid and ground of a light and of a dark page.
const GROUND: [(&str, &str, &str); 4] =
    [("ink", "#1c1c1c", "#e8e8e8"), ("muted", "#5f5f5f", "#a5a5a5"), ("grid", "#e3e3e3", "#363636"), ("ground", "#ffffff", "#161616")];

impl Style {
    /// That of the floor: grey.
    pub const FLOOR: Self = Self { place: usize::MAX };

    /// Those of labels whose methods are these: the first of a method has the method's colour, the others a free one.
    pub fn of_methods(methods: &[&str]) -> Vec<Self> {
        let own = |method: &str| OWN.iter().position(|name| *name == method);
        let mut places: Vec<Option<usize>> = Vec::new();
        for method in methods {
            places.push(own(method).filter(|place| !places.contains(&Some(*place))));
        }
        for i in 0..places.len() {
            let free = FREE.into_iter().chain(COLOURS.len()..).find(|place| !places.contains(&Some(*place)));
            places[i] = places[i].or(free);
        }
        places.into_iter().flatten().map(|place| Self { place }).collect()
    }

    /// The colour that a method has by itself.
    pub fn of_method(method: &str) -> Self {
        Self::of_methods(&[method])[0]
    }

    /// The class of what is drawn in this style.
    pub fn class(self) -> String {
        match self {
            Self::FLOOR => "floor".to_owned(),
            Self { place } if place < COLOURS.len() => format!("s{place}"),
            Self { place } => format!("s{} broken", place % COLOURS.len()),
        }
    }

    /// A mark around a point, as a path.
    pub fn mark(self, x: f64, y: f64) -> String {
        let polygon = |points: &[(f64, f64)]| {
            let corners: Vec<String> = points.iter().map(|(dx, dy)| format!("{:.1} {:.1}", x + dx, y + dy)).collect();
            format!("M{}Z", corners.join("L"))
        };
        match self.place % 6 {
            0 => format!("M{:.1} {y:.1}a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0Z", x - 3.4),
            1 => polygon(&[(-3.1, -3.1), (3.1, -3.1), (3.1, 3.1), (-3.1, 3.1)]),
            2 => polygon(&[(0.0, -4.2), (3.9, 2.9), (-3.9, 2.9)]),
            3 => polygon(&[(0.0, -4.5), (4.5, 0.0), (0.0, 4.5), (-4.5, 0.0)]),
            4 => polygon(&[(0.0, 4.2), (3.9, -2.9), (-3.9, -2.9)]),
            _ => polygon(&[
                (-4.0, -1.3),
                (-1.3, -1.3),
                (-1.3, -4.0),
                (1.3, -4.0),
                (1.3, -1.3),
                (4.0, -1.3),
                (4.0, 1.3),
                (1.3, 1.3),
                (1.3, 4.0),
                (-1.3, 4.0),
                (-1.3, 1.3),
                (-4.0, 1.3),
            ]),
        }
    }
}

/// How the parts of a figure look, with colours by `colour` (a name, light, dark).
fn rules(colour: impl Fn(&str, &str, &str) -> String) -> String {
    let ground: Vec<String> = GROUND.iter().map(|(name, light, dark)| colour(name, light, dark)).collect();
    let [ink, muted, grid, ground] = &ground[..] else { unreachable!("four colours") };
    let mut css = format!(
        "svg text{{font-family:Arimo,Arial,Helvetica,sans-serif;font-size:12px;fill:{muted}}}\nsvg \
         .title{{font-size:13.5px;fill:{ink}}}\nsvg .ground{{fill:{ground}}}\nsvg .grid{{stroke:{grid};stroke-width:1;fill:none}}\nsvg \
         .axis{{stroke:{muted};stroke-width:1;fill:none}}\nsvg .line{{fill:none;stroke-width:1.7;stroke-linejoin:round}}\nsvg \
         .whisker{{fill:none;stroke-width:1.1;opacity:.75}}\nsvg .mark{{stroke:{ground};stroke-width:.8}}\nsvg \
         .band{{stroke:none;opacity:.16}}\nsvg .violin{{opacity:.5;stroke:none}}\nsvg .broken.line{{stroke-dasharray:5 3}}\nsvg \
         .floor.line{{stroke:{muted};stroke-dasharray:3 3;stroke-width:1.2}}\nsvg .floor.band,svg .floor.mark{{fill:{muted}}}\nsvg \
         .reference{{stroke:{ink};stroke-width:1.6;fill:none}}\n"
    );
    for (place, (light, dark)) in COLOURS.iter().enumerate() {
        let colour = colour(&format!("s{place}"), light, dark);
        _ = writeln!(css, "svg .s{place}.line,svg .s{place}.whisker{{stroke:{colour}}}");
        _ = writeln!(css, "svg .s{place}.mark,svg .s{place}.band,svg .s{place}.violin{{fill:{colour}}}");
    }
    css
}

/// The style sheet of a figure that stands alone, on white.
pub fn alone() -> String {
    rules(|_, light, _| light.to_owned())
}

/// The style sheet of a page's figures, in whatever light the reader has.
pub fn in_page() -> String {
    let all = || {
        let series = COLOURS.iter().enumerate().map(|(place, (light, dark))| (format!("s{place}"), *light, *dark));
        GROUND.iter().map(|(name, light, dark)| ((*name).to_owned(), *light, *dark)).chain(series)
    };
    let light: String = all().map(|(name, light, _)| format!("--{name}:{light};")).collect();
    let dark: String = all().map(|(name, _, dark)| format!("--{name}:{dark};")).collect();
    let rules = rules(|name, _, _| format!("var(--{name})"));
    format!(":root{{color-scheme:light dark;{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_keeps_its_colour_and_its_variants_take_free_ones() {
        let places = |methods: &[&str]| Style::of_methods(methods).iter().map(|style| style.place).collect::<Vec<_>>();
        assert_eq!(places(&["dlmi", "soda"]), [0, 4]);
        assert_eq!(places(&["dlmi", "dlmi-tf", "dlmi-tf", "gbda", "gbda", "reinforce", "soda"]), [0, 1, 6, 2, 7, 3, 4]);
        let many = Style::of_methods(&["dlmi"; 12]);
        assert_eq!((many[0].class(), many[10].class()), ("s0".to_owned(), "s1 broken".to_owned()));
        assert_eq!(Style::FLOOR.class(), "floor");
    }
}
