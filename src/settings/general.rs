//! The settings that a run has whatever its method, and the sections of the methods.

use crate::backend::{BackendName, Dtype};
use crate::budget::Budget;
use crate::method::registry::{MethodName, MethodSettings};
use crate::problem::{Chat, PromptOptions};
use crate::setting::{
    Key, choice, key, named, names, optional_positive, optional_real, optional_text, optional_whole, switch, text, whole,
};
use crate::{Error, Result};

/// The resolved settings of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How to search.
    pub method: MethodName,
    /// N.
    pub prompt_tokens: usize,
    /// Steps of each start at most.
    pub steps: Option<u64>,
    /// Positions pushed through the model, forward and backward, after which a run ends with its step: a budget that costs all methods the
    /// same.
    pub max_positions: Option<u64>,
    /// Seconds of search at most.
    pub max_seconds: Option<f64>,
    /// End as soon as the inversion is exact.
    pub early_stop: bool,
    /// Fresh starts after the first.
    pub restarts: u32,
    /// Steps from one set of scores to the next.
    pub eval_every: u64,
    /// Fixed text before the free tokens.
    pub prefix: String,
    /// Fixed text after the free tokens.
    pub suffix: String,
    /// The prompt is the user's turn of a chat, by the model's own template, and the target the reply.
    pub chat: bool,
    /// The system's turn of the chat.
    pub system: Option<String>,
    /// Let the prompt hold tokens and words of the target.
    pub allow_target_tokens: bool,
    /// Let the prompt hold special tokens.
    pub allow_special: bool,
    /// Search the whole vocabulary and ban nothing.
    pub all_tokens: bool,
    /// Words and phrases that the found text may not hold, one a line.
    pub forbid: String,
    /// Only printable ASCII in the found text.
    pub ascii: bool,
    /// Only English words in the found text.
    pub words: bool,
    /// What every target token must lead by, in logits, for the target to count as solved.
    pub min_margin: Option<f64>,
    /// The model must stop behind the target.
    pub end: bool,
    /// Go on from what was found with one free token less, until the budget ends.
    pub shortest: bool,
    /// Put the beginning-of-sequence token before the prompt.
    pub bos: bool,
    /// Seed of all randomness.
    pub seed: u32,
    /// What computes.
    pub backend: BackendName,
    /// Row of the backend's device in `dlmi doctor`.
    pub device: Option<usize>,
    /// Element type of weights and activations.
    pub dtype: Dtype,
    /// Which model, as [`crate::Model::open`] takes it.
    pub model: String,
    /// MiB that weights and a step should stay within.
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
            max_positions: None,
            max_seconds: budget.seconds,
            early_stop: true,
            restarts: 0,
            eval_every: 32,
            prefix: String::new(),
            suffix: String::new(),
            chat: false,
            system: None,
            allow_target_tokens: false,
            allow_special: false,
            all_tokens: false,
            forbid: String::new(),
            ascii: false,
            words: false,
            min_margin: None,
            end: false,
            shortest: false,
            bos: false,
            seed: 0,
            backend: BackendName::Auto,
            device: None,
            dtype: Dtype::F32,
            model: "bard".into(),
            max_memory: None,
            sections: MethodName::all().map(|method| method.registered().defaults).collect(),
        }
    }
}

const MANY: u64 = 1_000_000_000;

/// The general settings, in the order of the fields of [`Options`].
pub const KEYS: &[Key<Options>] = &[
    key("method", "How to search", |s| Some(choice(&mut s.method))),
    key("prompt_tokens", "Free tokens of the prompt (N)", |s| Some(whole(&mut s.prompt_tokens, 1..=4096))),
    key("steps", "Steps of a start at most, or `none` (snap: none; its rivals: as in their papers; else 256)", |s| {
        Some(optional_whole(&mut s.steps, 1..=MANY))
    }),
    key(
        "max_positions",
        "Positions pushed through the model, forward and backward, after which a run ends with its step, or `none`: the same cost for all methods",
        |s| Some(optional_whole(&mut s.max_positions, 1..=u64::MAX >> 11)),
    ),
    key("max_seconds", "Seconds of search at most, or `none` (snap without --steps: 600, otherwise none)", |s| {
        Some(optional_positive(&mut s.max_seconds))
    }),
    key("early_stop", "End as soon as the inversion is exact", |s| Some(switch(&mut s.early_stop))),
    key(
        "restarts",
        "Fresh starts after the first, each when the steps are used up or a search stalls (not where `restart_when_stalled` begins again by itself)",
        |s| Some(whole(&mut s.restarts, 0..=1_000_000)),
    ),
    key("eval_every", "Steps from one set of scores to the next", |s| Some(whole(&mut s.eval_every, 1..=MANY))),
    key("prefix", "Fixed text before the free tokens", |s| Some(text(&mut s.prefix))),
    key("suffix", "Fixed text after the free tokens", |s| Some(text(&mut s.suffix))),
    key("chat", "The prompt is the user's turn of a chat, by the model's own template, and the target the reply", |s| {
        Some(switch(&mut s.chat))
    }),
    key("system", "What the system says first in the chat, or `none`: \"\" is an empty turn", |s| Some(optional_text(&mut s.system))),
    key("allow_target_tokens", "Let the prompt hold tokens and words of the target", |s| Some(switch(&mut s.allow_target_tokens))),
    key("allow_special", "Let the prompt hold special tokens", |s| Some(switch(&mut s.allow_special))),
    key("all_tokens", "Search the whole vocabulary and ban nothing: special, unused and broken tokens too", |s| {
        Some(switch(&mut s.all_tokens))
    }),
    key("forbid", "Words and phrases that the found text may not hold, one a line (--forbid reads them from a file)", |s| {
        Some(text(&mut s.forbid))
    }),
    key("ascii", "Only printable ASCII in the found text", |s| Some(switch(&mut s.ascii))),
    key("words", "Only English words of the dictionary in the found text, with spaces between them", |s| Some(switch(&mut s.words))),
    key(
        "min_margin",
        "Logits that every target token must lead by, or `none`: solved is what does so, and a hinge aims so much higher",
        |s| Some(optional_real(&mut s.min_margin, 0.0..=100.0)),
    ),
    key("end", "The model must stop behind the target: with the token that ends a chat's turn, else with its first stop token", |s| {
        Some(switch(&mut s.end))
    }),
    key(
        "shortest",
        "Find the shortest prompt: go on from what was found with one free token less, until the budget ends (searches only)",
        |s| Some(switch(&mut s.shortest)),
    ),
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
    /// ```
    /// let options = dlmi::Options::for_method("gcg")?;
    /// assert_eq!((options.steps, options.max_seconds), (Some(250), None));
    /// # Ok::<(), dlmi::Error>(())
    /// ```
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
            positions: self.max_positions,
            seconds: self.max_seconds,
            restarts: self.restarts,
            eval_every: self.eval_every,
            early_stop: self.early_stop,
            shortest: self.shortest,
        }
    }

    /// What a prompt may look like. `bos` is the model's token for [`Self::bos`], and `chat` its template for [`Self::chat`], where they are
    /// wanted.
    pub fn prompt_options(&self, bos: Option<u32>, chat: Option<Chat>) -> PromptOptions {
        PromptOptions {
            tokens: self.prompt_tokens,
            prefix: self.prefix.clone(),
            suffix: self.suffix.clone(),
            chat,
            bos,
            allow_target_tokens: self.allow_target_tokens,
            allow_special: self.allow_special,
            allow_everything: self.all_tokens,
            forbid: self.forbid.clone(),
            ascii: self.ascii,
            words: self.words,
        }
    }
}
