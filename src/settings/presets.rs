//! The presets that are built in: small TOML files of settings, some of them chosen by the model.

use serde::Deserialize;

use super::assignment::{Assignment, Origin, assignments};
use super::document::Document;
use super::names::nearest;
use crate::{Error, Result};

const PRESETS: &[(&str, &str)] = &[
    ("bard", include_str!("../../configs/bard.toml")),
    ("gpu", include_str!("../../configs/gpu.toml")),
    ("paper", include_str!("../../configs/paper.toml")),
    ("sdlm", include_str!("../../configs/sdlm.toml")),
    ("smollm2-135m", include_str!("../../configs/smollm2-135m.toml")),
    ("smollm2-360m", include_str!("../../configs/smollm2-360m.toml")),
    ("smollm2-1.7b", include_str!("../../configs/smollm2-1.7b.toml")),
];

/// What a model preset may go by: which weights they are, or of which shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// Digest of the weights.
    pub digest: String,
    /// As in `config.json`, `LlamaForCausalLM`.
    pub architecture: String,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// V.
    pub vocab_size: usize,
}

/// The first line of a model preset: `match = { digest = "…" }`, or the architecture and all sizes.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Match {
    Digest { digest: String },
    Shape { architecture: String, hidden_size: usize, layers: usize, vocab_size: usize },
}

/// What a preset says of the model that it goes with.
#[derive(Deserialize)]
struct Header {
    r#match: Option<Match>,
    /// The token that starts a text, where it is not the BoS of the model's config.
    bos_token: Option<String>,
}

/// The keys of [`Header`]; all others are settings.
const HEADER: [&str; 2] = ["match", "bos_token"];

/// The names that `--preset` accepts.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The values of a preset, each with `origin` of its line.
fn values(name: &str, text: &str, origin: fn(String, usize) -> Origin) -> Result<Vec<Assignment>> {
    assignments(&Document { text, name: &format!("preset {name}") }, &HEADER, &|line| origin(name.into(), line))
}

/// The preset called `name`.
pub(super) fn by_name(name: &str) -> Result<Vec<Assignment>> {
    match PRESETS.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => values(name, text, Origin::Preset),
        None => {
            let all: Vec<_> = preset_names().collect();
            let near = nearest(name, &all);
            Err(Error::input(format!("there is no preset `{name}`; did you mean `{near}`? The presets are {}", all.join(", "))))
        }
    }
}

/// A preset that goes with a model: its name, its text, and what it says of the model.
struct Found {
    name: &'static str,
    text: &'static str,
    header: Header,
}

/// The preset of a model, by digest if one has it, else by architecture and sizes.
fn find(model: &ModelShape) -> Result<Option<Found>> {
    let mut by_shape = None;
    for &(name, text) in PRESETS {
        let header: Header = toml::from_str(text).map_err(|error| Error::input(format!("preset {name}: {}", error.message())))?;
        match &header.r#match {
            Some(Match::Digest { digest }) if *digest == model.digest => return Ok(Some(Found { name, text, header })),
            Some(Match::Shape { architecture, hidden_size, layers, vocab_size })
                if *architecture == model.architecture
                    && (*hidden_size, *layers, *vocab_size) == (model.hidden_size, model.layers, model.vocab_size) =>
            {
                by_shape = Some(Found { name, text, header });
            }
            _ => (),
        }
    }
    Ok(by_shape)
}

/// Name and values of the preset of a model.
pub(super) fn of_model(model: &ModelShape) -> Result<Option<(&'static str, Vec<Assignment>)>> {
    find(model)?.map(|Found { name, text, .. }| Ok((name, values(name, text, Origin::Model)?))).transpose()
}

/// The token that starts a text for a model, by its name, where its preset names another than its config.
pub fn bos_token(model: &ModelShape) -> Option<String> {
    find(model).ok()??.header.bos_token
}

#[cfg(test)]
mod tests {
    use super::super::{Layers, Resolved, Sources};
    use super::*;
    use crate::method::registry::MethodName;

    fn smollm2(digest: &str, hidden_size: usize, layers: usize) -> ModelShape {
        ModelShape { digest: digest.into(), architecture: "LlamaForCausalLM".into(), hidden_size, layers, vocab_size: 49_152 }
    }

    #[test]
    fn every_preset_reads() {
        for name in preset_names() {
            assert!(!by_name(name).unwrap().is_empty(), "{name} sets nothing");
            let layers = Layers::read(Sources { presets: vec![name.into()], ..Sources::default() }).unwrap();
            layers.preview().and_then(Resolved::check).unwrap();
        }
    }

    #[test]
    fn a_model_preset_leaves_model_device_and_randomness_to_the_user() {
        for name in preset_names().filter(|name| *name != "paper") {
            for assignment in by_name(name).unwrap() {
                let key = assignment.setting.to_string();
                assert!(!["model", "backend", "device", "dtype", "seed", "method", "steps"].contains(&&*key), "{name} sets {key}");
            }
        }
    }

    /// The authors' preset changes every row of Table 1 that it is about, and those not at all that they run as the paper says or do not run.
    #[test]
    fn the_authors_preset_departs_from_the_paper() {
        let presets = vec!["paper".to_owned(), "sdlm".to_owned()];
        let settings = Layers::read(Sources { presets, ..Sources::default() }).unwrap().preview().unwrap().settings;
        let alike = ["gbda-forced", "soda", "rebar", "relax"];
        for method in MethodName::all() {
            let (row, own) = (settings.section(method).row(), method.registered().defaults.row());
            assert_eq!(row != own, own.is_some() && !alike.contains(&&*method.to_string()), "{method}: {row:?}");
        }
    }

    #[test]
    fn models_are_known_by_their_shape() {
        let name = |hidden_size, layers| of_model(&smollm2("", hidden_size, layers)).unwrap().map(|(name, _)| name);
        assert_eq!(name(576, 30), Some("smollm2-135m"));
        assert_eq!(name(960, 32), Some("smollm2-360m"));
        assert_eq!(name(2048, 24), Some("smollm2-1.7b"));
        assert_eq!(name(576, 31), None);
        let other = ModelShape { architecture: "SmolLM3ForCausalLM".into(), ..smollm2("", 576, 30) };
        assert!(of_model(&other).unwrap().is_none());
    }

    #[test]
    fn a_gpus_batches_go_on_top_of_those_of_every_model() {
        let layers = Layers::read(Sources { presets: vec!["gpu".into()], ..Sources::default() }).unwrap();
        for (hidden_size, layers_of_it) in [(576, 30), (960, 32), (2048, 24), (1, 1)] {
            let settings = layers.resolve(&smollm2("", hidden_size, layers_of_it)).unwrap().settings.to_json();
            assert_eq!((&settings["snap"]["batch"], &settings["snap"]["patience"]), (&192.into(), &60.into()));
        }
    }

    #[test]
    fn smollm2_starts_as_its_authors_had_it() {
        assert_eq!(bos_token(&smollm2("", 960, 32)).as_deref(), Some("<|endoftext|>"));
        assert_eq!(bos_token(&smollm2("", 960, 33)), None);
    }

    #[test]
    fn a_match_is_a_digest_or_a_whole_shape() {
        assert!(toml::from_str::<Header>("match = { digest = \"ab\" }").is_ok());
        assert!(toml::from_str::<Header>("match = { architecture = \"LlamaForCausalLM\" }").is_err());
        assert!(toml::from_str::<Header>("match = { digest = \"ab\", layers = 3 }").is_err());
    }
}
