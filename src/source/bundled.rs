//! The models inside the program.

use super::checkpoint::ModelFiles;
use crate::Result;

/// A model inside the program.
#[derive(Debug)]
pub struct Bundled {
    /// Its name as a spec.
    pub name: &'static str,
    /// What `invert` inverts when no target is given.
    pub default_target: &'static str,
    config: &'static str,
    tokenizer: &'static str,
    weights: &'static [u8],
}

/// The models inside the program.
pub const BUNDLED: &[Bundled] = &[Bundled {
    name: "bard",
    default_target: "I'll not be a king, and I am too.",
    config: include_str!("../../models/bard/config.json"),
    tokenizer: include_str!("../../models/bard/tokenizer.json"),
    weights: include_bytes!("../../models/bard/model.safetensors"),
}];

/// The bundled model called `spec`.
pub fn bundled(spec: &str) -> Option<&'static Bundled> {
    BUNDLED.iter().find(|model| model.name == spec)
}

impl Bundled {
    /// Its files.
    ///
    /// # Errors
    /// Those of [`ModelFiles::embedded`], for files that were embedded broken.
    pub fn files(&self) -> Result<ModelFiles> {
        ModelFiles::embedded(self.config, self.tokenizer, self.weights)
    }
}
