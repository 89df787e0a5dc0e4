//! Whether an exact prompt is still exact in other arithmetic, with rounded weights, and with a slip behind it.

use std::fmt;

use burn::backend::Flex;
use serde::{Deserialize, Serialize};

use super::judge::confirm;
use super::model::Model;
use super::record::Inversion;
use super::run::Stopped;
use crate::Result;
use crate::backend::{self, BackendName, Dtype, Job};
use crate::interrupt::{self, Interrupt, Signal};
use crate::model::Llama;
use crate::ops::{Kernels, TrackedBackend};
use crate::problem::Problem;
use crate::subject::check_context;

/// Whether an exact prompt is exact in other circumstances too; nothing where it could not be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Robust {
    /// Weights and activations in f16, on the CPU.
    pub f16: Option<bool>,
    /// Weights and activations in bf16, on the CPU.
    pub bf16: Option<bool>,
    /// Weights as in a GGUF of type Q8_0.
    pub q8: Option<bool>,
    /// On the CPU backend that does not confirm results.
    pub ndarray: Option<bool>,
    /// A newline typed behind the prompt.
    pub trailing_newline: Option<bool>,
    /// A space typed behind the prompt.
    pub trailing_space: Option<bool>,
}

impl Robust {
    /// How many circumstances there are.
    pub const COUNT: usize = 6;

    /// What was told of each circumstance, by its name in words.
    pub fn told(&self) -> [(&'static str, Option<bool>); Self::COUNT] {
        let Self { f16, bf16, q8, ndarray, trailing_newline, trailing_space } = *self;
        [
            ("f16", f16),
            ("bf16", bf16),
            ("8-bit weights", q8),
            ("ndarray", ndarray),
            ("trailing newline", trailing_newline),
            ("trailing space", trailing_space),
        ]
    }
}

/// `f16 yes, bf16 no, …`.
impl fmt::Display for Robust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |told: Option<bool>| told.map_or("not told", |exact| if exact { "yes" } else { "no" });
        f.write_str(&self.told().map(|(name, told)| format!("{name} {}", word(told))).join(", "))
    }
}

/// The ids of a prompt in each example, and what the model must write there.
pub struct Typed {
    /// `(prompt, target)`.
    pub examples: Vec<(Vec<u32>, Vec<u32>)>,
}

impl Typed {
    fn is_exact<B: Kernels>(&self, model: &Llama<B>) -> bool {
        self.examples.iter().all(|(prompt, target)| confirm(model, prompt, target).exact)
    }
}

/// An exact prompt, and the same with a slip.
pub struct Answer {
    /// As it is.
    pub prompt: Typed,
    /// With a newline behind it.
    pub newline: Typed,
    /// With a space behind it.
    pub space: Typed,
}

impl Answer {
    /// A free part in all examples of a problem.
    pub fn of(problem: &Problem, free_text: &str) -> Self {
        let typed = |behind: &str| {
            let example = problem.examples.iter().map(|example| (example.ids_with(free_text, behind), example.target.ids.clone()));
            Typed { examples: example.collect() }
        };
        Self { prompt: typed(""), newline: typed("\n"), space: typed(" ") }
    }
}

impl Model {
    /// Whether an exact prompt is exact in other circumstances too, with a sentence for each that could not be told. One copy of the
    /// model after another is loaded, each if it keeps within `max_memory` MiB.
    ///
    /// Inline, as is all that leads to [`backend::dispatch`].
    #[inline]
    pub fn robust(&mut self, answer: &Answer, max_memory: Option<u64>) -> (Robust, Vec<String>) {
        let mut notes = Vec::new();
        let slips = told("with a newline or a space behind it", self.with_slips(answer, max_memory), &mut notes);
        let robust = Robust {
            trailing_newline: slips.map(|[newline, _]| newline),
            trailing_space: slips.map(|[_, space]| space),
            f16: told("in f16", self.in_type(Dtype::F16, answer, max_memory), &mut notes),
            bf16: told("in bf16", self.in_type(Dtype::Bf16, answer, max_memory), &mut notes),
            q8: told("with 8-bit weights", self.rounded(answer, max_memory), &mut notes),
            ndarray: told("on ndarray", self.on_ndarray(answer, max_memory), &mut notes),
        };
        (robust, notes)
    }

    /// The same of a found prompt, by its free text; a sentence alone if it is not exact. Nothing where `signal` comes before the end.
    #[inline]
    pub fn robust_if_exact(
        &mut self,
        exact: bool,
        problem: &Problem,
        free_text: &str,
        max_memory: Option<u64>,
        signal: Signal,
    ) -> Option<(Robust, Vec<String>)> {
        if !exact {
            return Some((Robust::default(), vec![NOT_EXACT.to_owned()]));
        }
        let interrupt = Interrupt::on(signal);
        interrupt::within(interrupt, || self.robust(&Answer::of(problem, free_text), max_memory))
    }

    fn with_slips(&mut self, answer: &Answer, max_memory: Option<u64>) -> Result<[bool; 2]> {
        let slips = answer.newline.examples.iter().chain(&answer.space.examples);
        slips.into_iter().try_for_each(|(prompt, target)| check_context(self.config(), prompt.len(), target.len()))?;
        self.check_memory(Dtype::F32, max_memory)?;
        let model = self.load::<Flex>(&Default::default(), Dtype::F32)?;
        Ok([&answer.newline, &answer.space].map(|typed| typed.is_exact(&model)))
    }

    fn in_type(&mut self, dtype: Dtype, answer: &Answer, max_memory: Option<u64>) -> Result<bool> {
        self.check_memory(dtype, max_memory)?;
        Ok(answer.prompt.is_exact(&self.load::<Flex>(&Default::default(), dtype)?))
    }

    fn rounded(&mut self, answer: &Answer, max_memory: Option<u64>) -> Result<bool> {
        self.check_memory(Dtype::F32, max_memory)?;
        Ok(answer.prompt.is_exact(&self.load_rounded::<Flex>(&Default::default())?))
    }

    #[inline]
    fn on_ndarray(&mut self, answer: &Answer, max_memory: Option<u64>) -> Result<bool> {
        self.check_memory(Dtype::F32, max_memory)?;
        let device = backend::open(BackendName::Ndarray, None, Dtype::F32)?.device;
        backend::dispatch(&device, Elsewhere { model: self, answer })
    }
}

impl Inversion {
    /// Asks whether the prompt is exact in other circumstances too, if it is exact and nobody waits for the end: once `signal` has come,
    /// nothing is told.
    #[inline]
    pub fn ask_robust(&mut self, model: &mut Model, problem: &Problem, max_memory: Option<u64>, signal: Signal) {
        let told = match (self.exact, self.stopped) {
            (true, Stopped::Signal) => None,
            (exact, _) => model.robust_if_exact(exact, problem, &self.free_text, max_memory, signal),
        };
        let (robust, notes) = told.unwrap_or_else(|| (Robust::default(), vec![INTERRUPTED.to_owned()]));
        self.robust = Some(robust);
        self.notes.extend(notes);
    }
}

/// Why nothing is told of a prompt that is not exact.
pub(crate) const NOT_EXACT: &str = "the prompt is not exact, so it was not asked what else it withstands";
/// Why nothing is told of one that is.
const INTERRUPTED: &str = "the run was ended before it could be asked what else the prompt withstands";

/// What came out; where nothing did, a sentence goes to the notes.
fn told<T>(what: &str, outcome: Result<T>, notes: &mut Vec<String>) -> Option<T> {
    outcome.map_err(|error| notes.push(format!("whether it is exact {what} could not be told: {error}"))).ok()
}

/// The question on another backend.
struct Elsewhere<'a> {
    model: &'a mut Model,
    answer: &'a Answer,
}

impl Job for Elsewhere<'_> {
    type Output = Result<bool>;

    fn run<B: TrackedBackend>(self, device: B::Device) -> Result<bool> {
        Ok(self.answer.prompt.is_exact(&self.model.load::<B::InnerBackend>(&device, Dtype::F32)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::golden;

    /// Every weight of a model is rounded as the gguf package does it for a file of type Q8_0, and nothing else is.
    #[test]
    fn rounded_weights_are_those_of_a_file() {
        let open = |kind: &str| Model::open(golden(&format!("tiny_gguf/gqa4-untied-llama3.{kind}.gguf")).to_str().unwrap()).unwrap();
        let rounded = open("f32").load_rounded::<Flex>(&Default::default()).unwrap();
        let read = open("q8_0").load::<Flex>(&Default::default(), Dtype::F32).unwrap();
        let whole = open("f32").load::<Flex>(&Default::default(), Dtype::F32).unwrap();
        let input = |model: &Llama<Flex>| model.embed(crate::tensor::ids_tensor(&[[7, 42, 99, 3, 150]], &model.device()));
        let logits = |model: &Llama<Flex>| crate::tensor::host(model.logits(model.hidden(input(model), 5)));
        assert_eq!(logits(&rounded), logits(&read));
        assert_ne!(logits(&whole), logits(&read));
    }

    #[test]
    fn what_does_not_fit_is_not_told() {
        let mut model = Model::open("bard").unwrap();
        let typed = || Typed { examples: vec![(vec![5], vec![6])] };
        let answer = Answer { prompt: typed(), newline: typed(), space: typed() };
        // Weights in 16 bits fit, those in 32 do not.
        let parameters = model.config().parameters() as u64;
        let (robust, notes) = model.robust(&answer, Some((3 * parameters) >> 20));
        assert!(robust.f16.is_some() && robust.bf16.is_some());
        assert_eq!((robust.q8, robust.ndarray, robust.trailing_newline, robust.trailing_space), (None, None, None, None));
        assert_eq!(notes.iter().filter(|note| note.contains("MiB")).count(), 3, "{notes:?}");
    }
}
