//! The prompt that makes the bundled model write a line: `cargo run --release --no-default-features --example invert -- "the king is dead"`

use dlmi::{Inversion, Model, Result};

fn invert(target: &str, max_seconds: f64) -> Result<Inversion> {
    let mut model = Model::open("bard")?;
    // The defaults, and what goes with this model.
    let mut options = model.options()?;
    options.max_seconds = Some(max_seconds);
    model.invert(target, &options)
}

fn main() -> Result<()> {
    let target = std::env::args().nth(1).unwrap_or("I'll not be a king, and I am too.".into());
    let found = invert(&target, 60.0)?;
    println!("prompt {:?}\nwrites {:?}\nexact  {}", found.prompt_text, found.completion_text, found.exact);
    Ok(())
}

#[test]
fn the_bundled_line_is_exact() {
    let found = invert("I'll not be a king, and I am too.", 120.0).unwrap();
    assert!(found.exact && found.completion_text == found.target_text, "{found:?}");
}
