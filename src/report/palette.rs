//! Colours and marks: a method looks the same in all figures of a report.

use std::fmt::Write;

/// A colour in a light and in a dark page, a mark, and how lines are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Style {
    place: usize,
}

/// Colours that stay apart with any kind of colour blindness, on white and on nearly black (a test has the distances). The marks differ as
/// well.
const COLOURS: [(&str, &str); 9] = [
    ("#2d30af", "#4d50dd"),
    ("#944500", "#bf760d"),
    ("#2a7a57", "#259774"),
    ("#620d66", "#c5109e"),
    ("#bb9c16", "#ffd119"),
    ("#2b2b2b", "#ececec"),
    ("#00a8ff", "#11d5ff"),
    ("#ee77b3", "#c8023d"),
    ("#8daa63", "#95d56f"),
];
/// The methods that have a colour of their own, in the order of [`COLOURS`]; others take what is free.
const OWN: [&str; COLOURS.len()] = ["dlmi", "dlmi-tf", "gbda", "reinforce", "soda", "snap", "stgs", "rebar", "relax"];
/// In which order others take what is free: colours of the rarer methods first.
const FREE: [usize; COLOURS.len()] = [6, 7, 8, 5, 4, 3, 2, 1, 0];

/// Lines of what has a colour once, twice and three times.
const LINES: [&str; 3] = ["", " broken", " dotted"];

/// Text, quiet text, grid and ground of a light and of a dark page.
const GROUND: [(&str, &str, &str); 4] =
    [("ink", "#1c1c1c", "#e8e8e8"), ("muted", "#5f5f5f", "#a5a5a5"), ("grid", "#e3e3e3", "#363636"), ("ground", "#ffffff", "#161616")];

impl Style {
    /// That of the floor: grey.
    pub const FLOOR: Self = Self { place: usize::MAX };

    /// Those of labels whose methods are these: the first of a method has the method's colour, the others a free one, or, where there are
    /// more labels than colours, the same and other lines.
    pub fn of_methods(methods: &[&str]) -> Vec<Self> {
        let mut distinct: Vec<&str> = Vec::new();
        for method in methods {
            if !distinct.contains(method) {
                distinct.push(method);
            }
        }
        let most = distinct.iter().map(|one| methods.iter().filter(|method| *method == one).count()).max();
        if methods.len() <= COLOURS.len() || most > Some(LINES.len()) {
            return Self::apart(methods);
        }
        let first = Self::apart(&distinct);
        let mut taken: Vec<usize> = Vec::new();
        for method in methods {
            let first = first[distinct.iter().position(|one| one == method).expect("it is one of them")].place;
            let free = (first..).step_by(COLOURS.len()).find(|place| !taken.contains(place)).expect("there is no end of them");
            taken.push(free);
        }
        taken.into_iter().map(|place| Self { place }).collect()
    }

    /// One of its own for each of them, the first of a method the method's colour.
    fn apart(methods: &[&str]) -> Vec<Self> {
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
            Self { place } => format!("s{}{}", place % COLOURS.len(), LINES[place / COLOURS.len() % LINES.len()]),
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
         .band{{stroke:none;opacity:.16}}\nsvg .violin{{opacity:.5;stroke:none}}\nsvg .broken.line{{stroke-dasharray:5 3}}\nsvg .dotted.line{{stroke-dasharray:1.5 2.5}}\nsvg \
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

    type Three = [f64; 3];

    /// What who sees all colours, no green, no red or no blue makes of linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1).
    const EYES: [[Three; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ];

    fn times(matrix: &[Three; 3], v: Three) -> Three {
        matrix.map(|row| row.iter().zip(v).map(|(a, b)| a * b).sum())
    }

    fn linear(colour: &str) -> Three {
        std::array::from_fn(|i| {
            let value = f64::from(u8::from_str_radix(&colour[1 + 2 * i..3 + 2 * i], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        })
    }

    /// CIELAB of what an eye sees.
    fn seen(colour: &str, eye: &[Three; 3]) -> Three {
        let xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]];
        let [x, y, z] = times(&xyz, times(eye, linear(colour)).map(|value| value.clamp(0.0, 1.0)));
        let f = |t: f64| if t > 0.008856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
        let (x, y, z) = (f(x / 0.9505), f(y), f(z / 1.089));
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    #[test]
    fn colours_stay_apart_for_every_eye_and_from_their_ground() {
        let contrast = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|colour| seen(colour, &EYES[0])[0]).map(|l| ((l + 16.0) / 116.0).powi(3) + 0.05);
            a.max(b) / a.min(b)
        };
        let (_, white, black) = GROUND[3];
        for colours in [COLOURS.map(|colours| (colours.0, white)), COLOURS.map(|colours| (colours.1, black))] {
            for (i, (a, ground)) in colours.iter().enumerate() {
                assert!(contrast(a, ground) > 2.5, "{a} on {ground}");
                for (b, eye) in colours[..i].iter().flat_map(|(b, _)| EYES.iter().map(move |eye| (b, eye))) {
                    let (a_seen, b_seen) = (seen(a, eye), seen(b, eye));
                    let distance = a_seen.iter().zip(b_seen).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                    assert!(distance > 25.0, "{a} and {b}: {distance}");
                }
            }
        }
    }

    #[test]
    fn a_method_keeps_its_colour_and_its_variants_take_free_ones() {
        let places = |methods: &[&str]| Style::of_methods(methods).iter().map(|style| style.place).collect::<Vec<_>>();
        assert_eq!(places(&["dlmi", "soda"]), [0, 4]);
        assert_eq!(places(&["dlmi", "dlmi-tf", "dlmi-tf", "gbda", "gbda", "reinforce", "soda"]), [0, 1, 6, 2, 7, 3, 4]);
        let many = Style::of_methods(&["dlmi"; 12]);
        assert_eq!((many[0].class(), many[10].class()), ("s0".to_owned(), "s1 broken".to_owned()));
        assert_eq!((Style::FLOOR.class(), many[9].class()), ("floor".to_owned(), "s0 broken".to_owned()));
    }

    #[test]
    fn many_labels_of_few_each_share_their_methods_colours() {
        let methods = ["snap", "soda", "gcg", "gcg", "arca", "arca", "pez", "pez", "adc", "adc", "random", "random"];
        let classes: Vec<String> = Style::of_methods(&methods).iter().map(|style| style.class()).collect();
        assert_eq!(classes[..4], ["s5", "s4", "s6", "s6 broken"]);
        assert!(classes.chunks_exact(2).skip(1).all(|pair| pair[1] == format!("{} broken", pair[0])), "{classes:?}");
        assert_eq!(classes.iter().collect::<std::collections::BTreeSet<_>>().len(), methods.len());
    }
}
