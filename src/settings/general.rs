//! The settings that a run has whatever its method, and the sections of the methods.

use serde_json::{Map, Value};

use super::names::Setting;
use crate::backend::{BackendName, Dtype};
use crate::budget::Budget;
use crate::method::registry::{MethodName, MethodSettings};
use crate::problem::PromptOptions;
use crate::setting::{self, Checked, Key, Written, choice, key, named, names, optional_positive, optional_whole, switch, text, whole};
use crate::{Error, Result};

/// The resolved settings of a run; what each field means stands in its line of [`KEYS`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Options {
    pub method: MethodName,
    pub prompt_tokens: usize,
    pub steps: Option<u64>,
    pub max_seconds: Option<f64>,
    pub early_stop: bool,
    pub restarts: u32,
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
    /// The settings of every registered method, in the order of the registry.
    pub(crate) sections: Vec<MethodSettings>,
}

impl Default for Options {
    fn default() -> Self {
        let method = MethodName::default();
        let budget = method.registered().budget;
        Self {
            method,
            prompt_tokens: 20,
            steps: budget.steps,
            max_seconds: budget.seconds,
            early_stop: true,
            restarts: 0,
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
            sections: MethodName::all().map(|method| method.registered().defaults()).collect(),
        }
    }
}

const MANY: u64 = 1_000_000_000;

/// The general settings, in the order of the fields of [`Options`].
pub const KEYS: &[Key<Options>] = &[
    key("method", "How to search", |s| Some(choice(&mut s.method))),
    key("prompt_tokens", "Free tokens of the prompt (N)", |s| Some(whole(&mut s.prompt_tokens, 1..=4096))),
    key("steps", "Steps at most, or `none` (snap: none, other methods: 256)", |s| Some(optional_whole(&mut s.steps, 1..=MANY))),
    key("max_seconds", "Seconds of search at most, or `none` (snap without --steps: 600, otherwise none)", |s| {
        Some(optional_positive(&mut s.max_seconds))
    }),
    key("early_stop", "End as soon as the inversion is exact", |s| Some(switch(&mut s.early_stop))),
    key("restarts", "Fresh starts after the first, each when the steps are used up or snap stalls", |s| {
        Some(whole(&mut s.restarts, 0..=1_000_000))
    }),
    key("eval_every", "Steps from one set of scores to the next", |s| Some(whole(&mut s.eval_every, 1..=MANY))),
    key("prefix", "Fixed text before the free tokens", |s| Some(text(&mut s.prefix))),
    key("suffix", "Fixed text after the free tokens", |s| Some(text(&mut s.suffix))),
    key("allow_target_tokens", "Let the prompt hold tokens and words of the target", |s| Some(switch(&mut s.allow_target_tokens))),
    key("allow_special", "Let the prompt hold special tokens", |s| Some(switch(&mut s.allow_special))),
    key("all_tokens", "Search the whole vocabulary and ban nothing: special, unused and broken tokens too", |s| {
        Some(switch(&mut s.all_tokens))
    }),
    key("bos", "Put the beginning-of-sequence token before the prompt", |s| Some(switch(&mut s.bos))),
    key("seed", "Seed of all randomness", |s| Some(whole(&mut s.seed, 0..=u32::MAX as u64))),
    key("backend", "What computes", |s| Some(choice(&mut s.backend))),
    key("device", "Row of `dlmi doctor`, or `none`", |s| Some(optional_whole(&mut s.device, 0..=1023))),
    key("dtype", "Element type of weights and activations: f32, or f16 or bf16 on a GPU", |s| Some(choice(&mut s.dtype))),
    key("model", "Bundled name, folder, .gguf or .safetensors file, or org/name[@revision]", |s| Some(text(&mut s.model))),
    key("max_memory", "MiB that weights and a step should stay within, or `none`: less at once, the same result", |s| {
        Some(optional_whole(&mut s.max_memory, 1..=1 << 30))
    }),
];

impl Options {
    /// The defaults of a method, its budget among them.
    ///
    /// # Errors
    /// There is no method of this name.
    pub fn for_method(name: &str) -> Result<Self> {
        let method: MethodName = named(name).ok_or_else(|| {
            Error::option("method", format!("there is none called `{name}`; they are {}", names::<MethodName>().join(", ")))
        })?;
        let budget = method.registered().budget;
        Ok(Self { method, steps: budget.steps, max_seconds: budget.seconds, ..Self::default() })
    }

    /// Writes a setting by its name, `seed` or `snap.batch`. It changes that one alone: a method's own budget comes with
    /// [`Self::for_method`].
    ///
    /// # Errors
    /// There is no such setting, or the value is not for it.
    pub fn assign(&mut self, name: &str, value: &str) -> Result<()> {
        let unknown = || Error::input(format!("`{name}` is not a setting; did you mean `{}`?", Setting::nearest(name)));
        let setting = Setting::find(name).ok_or_else(unknown)?;
        let written = self.set(setting, &Written::untyped(value)).ok_or_else(unknown)?;
        written.map_err(|wrong| Error::input(format!("`{name}` {wrong}")))
    }

    /// Refuses values that are out of range or contradict each other.
    ///
    /// # Errors
    /// The first such setting of the general ones and of the method in use.
    pub fn check(&self) -> Result<()> {
        let mut checked = self.clone();
        for setting in Setting::general().chain(Setting::of(self.method)) {
            let text = match self.get(setting) {
                None => continue,
                Some(Value::Null) => "none".to_owned(),
                Some(Value::String(text)) => text,
                Some(other) => other.to_string(),
            };
            let outcome = checked.set(setting, &Written::untyped(text)).unwrap_or(Ok(()));
            outcome.map_err(|wrong| Error::input(format!("`{setting}` {wrong}")))?;
        }
        self.method_settings().check().map_err(Error::input)
    }

    /// The section of the method in use.
    pub fn method_settings(&self) -> &MethodSettings {
        self.section(self.method)
    }

    /// The section of a method.
    pub fn section(&self, method: MethodName) -> &MethodSettings {
        &self.sections[method.index()]
    }

    /// When a run ends, and how often it is scored.
    pub fn budget(&self) -> Budget {
        Budget {
            steps: self.steps,
            seconds: self.max_seconds,
            restarts: self.restarts,
            eval_every: self.eval_every,
            early_stop: self.early_stop,
        }
    }

    /// What a prompt may look like. `bos` is the model's token for [`Self::bos`], where that is wanted.
    pub fn prompt_options(&self, bos: Option<u32>) -> PromptOptions {
        PromptOptions {
            tokens: self.prompt_tokens,
            prefix: self.prefix.clone(),
            suffix: self.suffix.clone(),
            bos,
            allow_target_tokens: self.allow_target_tokens,
            allow_special: self.allow_special,
            allow_everything: self.all_tokens,
        }
    }

    /// The value of a setting, `Null` for `none`; nothing where the method of its section has no such setting.
    pub fn get(&self, setting: Setting) -> Option<Value> {
        match setting.section {
            None => setting::get(KEYS, self, setting.key),
            Some(method) => self.section(method).get(setting.key),
        }
    }

    /// Writes a setting; nothing where the method of its section has no such setting.
    pub(super) fn set(&mut self, setting: Setting, written: &Written) -> Option<Checked<()>> {
        match setting.section {
            None => setting::set(KEYS, self, setting.key, written),
            Some(method) => self.sections[method.index()].set(setting.key, written),
        }
    }

    /// What a run is made of: the general settings, and an object named after the method in use with those of its section.
    pub fn to_json(&self) -> Value {
        let values = |settings: Vec<Setting>| -> Map<String, Value> {
            settings.into_iter().filter_map(|setting| Some((setting.key.to_owned(), self.get(setting)?))).collect()
        };
        let mut all = values(Setting::general().collect());
        all.insert(self.method.to_string(), values(Setting::of(self.method).collect()).into());
        all.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_writes_its_own_field_only() {
        let samples = ["echo", "7", "0.5", "true", "false", "text", "flex", "none", "f16"];
        for key in Setting::general() {
            let changed: Vec<_> = samples
                .iter()
                .filter_map(|text| {
                    let mut settings = Options::default();
                    settings.set(key, &Written::untyped(*text))?.ok()?;
                    Some(settings)
                })
                .filter(|settings| *settings != Options::default())
                .collect();
            assert!(!changed.is_empty(), "no sample changes {key}");
            for settings in changed {
                for other in Setting::all().filter(|other| *other != key) {
                    assert_eq!(settings.get(other), Options::default().get(other), "{key} writes {other}");
                }
            }
        }
    }

    #[test]
    fn settings_survive_json() {
        let settings = Options { max_seconds: Some(0.1 + 0.2), prefix: "a\n\u{1b}\"".into(), ..Options::default() };
        let json = settings.to_json();
        assert_eq!(serde_json::from_str::<Value>(&json.to_string()).unwrap(), json);
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, KEYS.iter().map(|key| key.name).chain(["snap"]).collect::<Vec<_>>());
        assert_eq!((&json["max_seconds"], &json["snap"]["margin"]), (&(0.1 + 0.2).into(), &0.3.into()));
    }
}
