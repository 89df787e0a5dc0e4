//! Figures as pictures.

use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use crate::{Error, Result};

/// The letters of Latin, Greek and Cyrillic of Arimo, whose widths are Arial's. With a font of its own a picture has its text on every
/// machine, and is the same on all.
const FONT: &[u8] = include_bytes!("font/Arimo-subset.ttf");
/// Pixels of a unit.
const SCALE: f32 = 2.0;

/// A figure's SVG as PNG.
///
/// # Errors
/// It cannot be drawn.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let tree = drawing(svg)?;
    let size = tree.size().to_int_size();
    let side = |units: u32| (SCALE * units as f32) as u32;
    let mut picture =
        Pixmap::new(side(size.width()), side(size.height())).ok_or_else(|| Error::environment("a figure is too large to be drawn"))?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
    picture.encode_png().map_err(|error| Error::environment(format!("a figure cannot be written as PNG: {error}")))
}

/// What an SVG shows, its text in the font's outlines.
fn drawing(svg: &str) -> Result<Tree> {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    let options = Options { font_family: "Arimo".into(), fontdb: Arc::new(fonts), ..Options::default() };
    Tree::from_str(svg, &options).map_err(|error| Error::environment(format!("a figure cannot be drawn: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::csv::Csv;
    use super::super::scale::Scale;
    use super::super::svg::{Axis, Figure, Panel};
    use super::*;

    /// The SVG of a figure of one panel with this title.
    fn titled(title: String) -> String {
        let axis = || Axis { title: String::new(), scale: Scale::Linear(0.0, 1.0), ticks: Vec::new() };
        let panels = vec![Panel { title: String::new(), x: axis(), y: axis(), marks: Vec::new() }];
        Figure { name: String::new(), title, caption: String::new(), panels, legend: Vec::new(), csv: Csv::default() }.svg()
    }

    /// The right end of all that is drawn is that of the picture's ground.
    #[test]
    fn a_title_of_any_length_stays_within_the_picture() {
        for model in ["bard", "SmolLM2-135M-Instruct.Q4_1.gguf", &"W".repeat(100), &"W w ".repeat(100)] {
            let svg = titled(format!("Figure 4: effective temperature by step ({model}, N = 20, 256 steps)"));
            let tree = drawing(&svg).unwrap();
            assert!(tree.root().abs_bounding_box().right() <= tree.size().width(), "{svg}");
        }
        let svg = titled("Figure 4: effective temperature by step (SmolLM2-135M-Instruct.Q4_1.gguf, N = 20, 256 steps)".into());
        assert!(svg.contains(">Figure 4: effective temperature by step<") && svg.contains(", 256 steps)<"), "{svg}");
        assert!(
            drawing(&svg.replace("step<", &format!("{}<", "step ".repeat(20)))).unwrap().root().abs_bounding_box().right() > 452.0,
            "it is measured"
        );
    }
}
