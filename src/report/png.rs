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
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    let options = Options { font_family: "Arimo".into(), fontdb: Arc::new(fonts), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(|error| Error::environment(format!("a figure cannot be drawn: {error}")))?;
    let size = tree.size().to_int_size();
    let side = |units: u32| (SCALE * units as f32) as u32;
    let mut picture =
        Pixmap::new(side(size.width()), side(size.height())).ok_or_else(|| Error::environment("a figure is too large to be drawn"))?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
    picture.encode_png().map_err(|error| Error::environment(format!("a figure cannot be written as PNG: {error}")))
}
