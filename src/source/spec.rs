//! What `--model` may say: a bundled name, a folder, a file, or `org/name[@revision]` on the hub.

use std::path::Path;

use crate::source::checkpoint::Checkpoint;
use crate::source::hub::{self, HubConfig};
use crate::{Error, Result};

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

/// Whether `spec` is meant as a path, though nothing is there.
fn names_a_file(spec: &str) -> bool {
    let file = Path::new(spec).extension().is_some_and(|extension| extension == "gguf" || extension == "safetensors");
    file || spec.starts_with(['.', '/', '~'])
}

/// Opens the model that `spec` names. `show_progress` draws bars while the hub is read.
pub fn open(spec: &str, offline: bool, show_progress: bool) -> Result<Checkpoint> {
    if let Some(model) = bundled(spec) {
        return Checkpoint::from_bytes(model.config, model.tokenizer, model.weights);
    }
    let path = Path::new(spec);
    if path.exists() {
        return Checkpoint::open(path);
    }
    if !names_a_file(spec) && spec.parse::<hub::Spec>().is_ok() {
        return Checkpoint::open(&hub::resolve(&HubConfig::from_env(offline)?, spec, show_progress)?);
    }
    let names: Vec<&str> = BUNDLED.iter().map(|model| model.name).collect();
    Err(Error::input(format!(
        "there is no model `{spec}`: give a bundled name ({}), a folder in Hugging Face layout, a .gguf or .safetensors file, or org/name on the hub",
        names.join(", ")
    )))
}
