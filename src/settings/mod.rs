//! Every setting of a run: what it is called, what it may be, its default, and which layer set it.
//!
//! A setting is one field of [`Settings`], its value in `Settings::default`, and one row of [`KEYS`]. Files,
//! the environment, `--set`, flags, `config show` and the flags' help texts all go through that row.

mod layers;
mod presets;
mod rows;
mod value;

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use crate::backend::{BackendName, Dtype};
pub use layers::{Layers, Origin, Resolved, Sources, environment};
pub use presets::{ModelIdentity, preset_names};
pub use value::{name, names};

use value::{Checked, Raw};

use crate::estimator::reinforce::{BETA, Baseline};
use crate::method::relaxed::{InitialPhi, TableRow};
use crate::method::relaxed::{dlmi, gbda, reinforce, soda};
use crate::subject::feeding::Feedback;

/// The ways to search for a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The paper's: a relaxed prompt, Gumbel-softmax with learned temperatures, teacher forcing
    Dlmi,
    /// The same, the model fed its own output
    DlmiTf,
    /// Gumbel-softmax with a fixed temperature, the model fed its own output
    Gbda,
    /// Whole tokens drawn from the relaxed prompt, no gradient through the model
    Reinforce,
    /// A sharp softmax without noise, decaying logits
    Soda,
    /// Search on whole tokens led by the gradient: always holds a prompt that can be typed
    Snap,
    /// Control: random swaps of single tokens
    Random,
    /// Control: the target itself as the prompt
    Echo,
}

impl Method {
    /// Its row of the paper's Table 1, where it has one.
    pub fn row(self) -> Option<TableRow> {
        match self {
            Self::Dlmi => Some(dlmi::DLMI),
            Self::DlmiTf => Some(dlmi::DLMI_TF),
            Self::Gbda => Some(gbda::GBDA),
            Self::Reinforce => Some(reinforce::REINFORCE),
            Self::Soda => Some(soda::SODA),
            Self::Snap | Self::Random | Self::Echo => None,
        }
    }

    /// The defaults that are this method's own: key and value, weaker than every layer a user can write.
    fn defaults(self) -> Vec<(&'static str, String)> {
        let budget = match self {
            Self::Snap => ("max_seconds", "600"),
            Self::Echo => ("steps", "1"),
            _ => ("steps", "256"),
        };
        let row = self.row().map(|row| rows::values(&row)).unwrap_or_default();
        std::iter::once((budget.0, budget.1.to_owned())).chain(row).collect()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&name(self))
    }
}

/// The resolved settings of a run; what each field means stands in its row of [`KEYS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub method: Method,
    pub prompt_tokens: usize,
    pub steps: Option<u64>,
    pub max_seconds: Option<f64>,
    pub early_stop: bool,
    pub samples: usize,
    pub restarts: u32,
    pub learning_rate: f64,
    pub tau: f64,
    pub tau0: f64,
    pub per_position: bool,
    pub initial_phi: InitialPhi,
    pub largest_uniform: Option<f64>,
    pub feedback: Feedback,
    pub baseline: Baseline,
    pub baseline_beta: f64,
    pub eval_every: u64,
    pub prefix: String,
    pub suffix: String,
    pub allow_target_tokens: bool,
    pub allow_special: bool,
    pub all_tokens: bool,
    pub bos: bool,
    pub seed: u32,
    pub backend: BackendName,
    pub device: Option<usize>,
    pub dtype: Dtype,
    pub model: String,
    pub max_memory: Option<u64>,
    pub batch: usize,
    pub batch_max: usize,
    pub top: usize,
    pub momentum: f64,
    pub margin: f64,
    pub temperature: f64,
    pub patience: u64,
    pub begin_anew: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            method: Method::Snap,
            prompt_tokens: 20,
            steps: None,
            max_seconds: None,
            early_stop: true,
            samples: dlmi::DLMI.samples,
            restarts: 0,
            learning_rate: dlmi::DLMI.optimiser.learning_rate,
            tau: gbda::TAU,
            tau0: dlmi::TAU0,
            per_position: true,
            initial_phi: InitialPhi::default(),
            largest_uniform: None,
            feedback: Feedback::default(),
            baseline: Baseline::default(),
            baseline_beta: BETA,
            eval_every: 32,
            prefix: String::new(),
            suffix: String::new(),
            allow_target_tokens: false,
            allow_special: false,
            all_tokens: false,
            bos: false,
            seed: 0,
            backend: BackendName::Auto,
            device: None,
            dtype: Dtype::F32,
            model: "bard".into(),
            max_memory: None,
            batch: 24,
            batch_max: 96,
            top: 128,
            momentum: 0.6,
            margin: 0.3,
            temperature: 0.2,
            patience: 60,
            begin_anew: false,
        }
    }
}

/// One setting: its name in every layer, what it means, and how a written value reaches its field.
#[derive(Debug)]
pub struct Key {
    /// The field of [`Settings`], the key in TOML and `--set`; `DLMI_` and upper case in the environment.
    pub name: &'static str,
    /// One line for `--help`.
    pub doc: &'static str,
    set: fn(&mut Settings, &Raw) -> Checked<()>,
}

const fn key(name: &'static str, doc: &'static str, set: fn(&mut Settings, &Raw) -> Checked<()>) -> Key {
    Key { name, doc, set }
}

fn put<T>(field: &mut T, value: Checked<T>) -> Checked<()> {
    value.map(|value| *field = value)
}

const MANY: u64 = 1_000_000_000;

/// All settings, in the order of the fields of [`Settings`].
pub const KEYS: &[Key] = &[
    key("method", "How to search", |s, v| put(&mut s.method, v.choice())),
    key("prompt_tokens", "Free tokens of the prompt (N)", |s, v| put(&mut s.prompt_tokens, v.whole(1..=4096))),
    key("steps", "Steps at most, or `none` (snap: none, other methods: 256)", |s, v| put(&mut s.steps, v.optional(|v| v.whole(1..=MANY)))),
    key("max_seconds", "Seconds of search at most, or `none` (snap without --steps: 600, otherwise none)", |s, v| {
        put(&mut s.max_seconds, v.optional(Raw::positive))
    }),
    key("early_stop", "End as soon as the inversion is exact", |s, v| put(&mut s.early_stop, v.switch())),
    key("samples", "Prompts that a step of a relaxed method draws (S; soda draws nothing and has one)", |s, v| {
        put(&mut s.samples, v.whole(1..=1024))
    }),
    key("restarts", "Fresh starts after the first, each when the steps are used up or snap stalls", |s, v| {
        put(&mut s.restarts, v.whole(0..=1_000_000))
    }),
    key("learning_rate", "Adam's learning rate (soda: 0.03)", |s, v| put(&mut s.learning_rate, v.positive())),
    key("tau", "gbda, soda: the fixed temperature (gbda: 1, soda: 0.05)", |s, v| put(&mut s.tau, v.real(1e-6..=1e9))),
    key("tau0", "dlmi, dlmi-tf: scale of the learned temperature, tau = tau0 (1 + tanh phi)", |s, v| put(&mut s.tau0, v.positive())),
    key("per_position", "dlmi, dlmi-tf: learn one temperature per position, not one for all", |s, v| put(&mut s.per_position, v.switch())),
    key("initial_phi", "dlmi, dlmi-tf: where phi starts", |s, v| put(&mut s.initial_phi, v.choice())),
    key("largest_uniform", "dlmi, dlmi-tf, gbda: where uniform draws, rescaled, end before they become Gumbel noise, or `none`", |s, v| {
        put(&mut s.largest_uniform, v.optional(|v| v.real(0.5..=1.0)))
    }),
    key("feedback", "dlmi-tf, gbda, reinforce: how the model is fed what it writes (reinforce: hard)", |s, v| {
        put(&mut s.feedback, v.choice())
    }),
    key("baseline", "reinforce: what is subtracted from a sample's loss", |s, v| put(&mut s.baseline, v.choice())),
    key("baseline_beta", "reinforce: beta of the moving average", |s, v| put(&mut s.baseline_beta, v.real(0.0..=1.0))),
    key("eval_every", "Steps from one set of scores to the next", |s, v| put(&mut s.eval_every, v.whole(1..=MANY))),
    key("prefix", "Fixed text before the free tokens", |s, v| put(&mut s.prefix, v.string())),
    key("suffix", "Fixed text after the free tokens", |s, v| put(&mut s.suffix, v.string())),
    key("allow_target_tokens", "Let the prompt hold tokens and words of the target", |s, v| put(&mut s.allow_target_tokens, v.switch())),
    key("allow_special", "Let the prompt hold special tokens", |s, v| put(&mut s.allow_special, v.switch())),
    key("all_tokens", "Search the whole vocabulary: special, unused and broken tokens too", |s, v| put(&mut s.all_tokens, v.switch())),
    key("bos", "Put the beginning-of-sequence token before the prompt", |s, v| put(&mut s.bos, v.switch())),
    key("seed", "Seed of all randomness", |s, v| put(&mut s.seed, v.whole(0..=u32::MAX.into()))),
    key("backend", "What computes", |s, v| put(&mut s.backend, v.choice())),
    key("device", "Row of `dlmi doctor`, or `none`", |s, v| put(&mut s.device, v.optional(|v| v.whole(0..=1023)))),
    key("dtype", "Element type of weights and activations: f32, or f16 or bf16 on a GPU", |s, v| put(&mut s.dtype, v.choice())),
    key("model", "Bundled name, folder, .gguf or .safetensors file, or org/name[@revision]", |s, v| put(&mut s.model, v.string())),
    key("max_memory", "MiB that weights and a step should stay within, or `none`: less at once, the same result", |s, v| {
        put(&mut s.max_memory, v.optional(|v| v.whole(1..=1 << 30)))
    }),
    key("batch", "snap: candidates scored in a step while progress is easy", |s, v| put(&mut s.batch, v.whole(1..=65_536))),
    key("batch_max", "snap: candidates scored in a step when it stalls", |s, v| put(&mut s.batch_max, v.whole(1..=65_536))),
    key("top", "snap: ranks of a position that swaps are drawn from", |s, v| put(&mut s.top, v.whole(1..=MANY))),
    key("momentum", "snap: share of the earlier gradients in the ranking", |s, v| put(&mut s.momentum, v.real(0.0..=0.999))),
    key("margin", "snap: logit gap at which a target position counts as solved", |s, v| put(&mut s.margin, v.real(0.0..=1e3))),
    key("temperature", "snap: how readily a worse candidate is taken (0: never)", |s, v| put(&mut s.temperature, v.real(0.0..=1e6))),
    key("patience", "snap: steps without a new best before the batch doubles, and at last before it stalls", |s, v| {
        put(&mut s.patience, v.whole(1..=MANY))
    }),
    key("begin_anew", "snap: when it stalls, begin with a new random prompt, not with the best", |s, v| put(&mut s.begin_anew, v.switch())),
];

/// The row of `name`.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Settings {
    /// The value of a key; `Null` for `none` and for a name that is no key.
    pub fn get(&self, name: &str) -> serde_json::Value {
        serde_json::to_value(self).map_or(serde_json::Value::Null, |mut all| all[name].take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_row_in_the_same_order() {
        let fields = serde_json::to_value(Settings::default()).unwrap();
        let fields: Vec<_> = fields.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_writes_its_own_field_only() {
        let samples = ["echo", "7", "0.5", "true", "false", "text", "flex", "none", "f16", "uniform", "hard", "shared"];
        for key in KEYS {
            let changed: Vec<_> = samples
                .iter()
                .filter_map(|text| {
                    let mut settings = Settings::default();
                    (key.set)(&mut settings, &Raw::text(*text)).ok()?;
                    Some(settings)
                })
                .filter(|settings| *settings != Settings::default())
                .collect();
            assert!(!changed.is_empty(), "no sample changes {}", key.name);
            for settings in changed {
                for other in KEYS.iter().filter(|other| other.name != key.name) {
                    assert_eq!(settings.get(other.name), Settings::default().get(other.name), "{} writes {}", key.name, other.name);
                }
            }
        }
    }

    #[test]
    fn settings_survive_json() {
        let settings = Settings { max_seconds: Some(0.1 + 0.2), prefix: "a\n\u{1b}\"".into(), ..Settings::default() };
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
    }

    #[test]
    fn methods_are_called_what_they_are_typed_as() {
        assert_eq!(names::<Method>(), ["dlmi", "dlmi-tf", "gbda", "reinforce", "soda", "snap", "random", "echo"]);
        for method in Method::value_variants() {
            assert_eq!(serde_json::to_value(method).unwrap(), method.to_string());
        }
    }
}
