//! What `--model` may say: a bundled name, a folder, a file, or `org/name[@revision]` on the hub.

use std::path::Path;

use crate::source::bundled::{BUNDLED, bundled};
use crate::source::checkpoint::ModelFiles;
use crate::source::hub::{self, HubConfig, Observer};
use crate::{Error, Result};

/// Whether `spec` is meant as a path, though nothing is there.
fn names_a_file(spec: &str) -> bool {
    let file = Path::new(spec).extension().is_some_and(|extension| extension == "gguf" || extension == "safetensors");
    file || spec.starts_with(['.', '/', '~'])
}

/// Refuses a path whose last part is mistyped: its folder is here, so that what it names is no model on the hub.
fn refuse_mistyped(spec: &str) -> Result<()> {
    let parts = spec.trim_end_matches('/').rsplit_once('/').filter(|_| !spec.contains('@'));
    let Some((folder, name)) = parts.filter(|(folder, _)| Path::new(folder).is_dir()) else { return Ok(()) };
    Err(Error::input(format!(
        "there is no model `{spec}`: the folder `{folder}` is here, but nothing called `{name}` is in it; give the path of a model, or \
         `{spec}@main` for the one on the hub"
    )))
}

/// Opens the model that `spec` names; `observer` is told how a download goes, `offline` forbids one.
///
/// # Errors
/// Those of [`ModelFiles::open`] and of [`hub::resolve`], and a name that names nothing.
pub fn open(spec: &str, offline: bool, observer: Observer) -> Result<ModelFiles> {
    if let Some(model) = bundled(spec) {
        return model.files();
    }
    let path = Path::new(spec);
    if path.exists() {
        return ModelFiles::open(path);
    }
    if !names_a_file(spec) && spec.parse::<hub::Spec>().is_ok() {
        refuse_mistyped(spec)?;
        return ModelFiles::open(&hub::resolve(&HubConfig::from_env(offline)?, spec, observer)?);
    }
    let names: Vec<&str> = BUNDLED.iter().map(|model| model.name).collect();
    Err(Error::input(format!(
        "there is no model `{spec}`: give a bundled name ({}), a folder in Hugging Face layout, a .gguf or .safetensors file, or org/name on the hub",
        names.join(", ")
    )))
}
