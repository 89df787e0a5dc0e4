//! pez: *Hard Prompts Made Easy: Gradient-Based Discrete Optimization for Prompt Tuning and Discovery* (Wen et al. 2023), as its authors' code
//! has it (github.com/YuxinWenRick/hard-prompts-made-easy), with the cross-entropy of the target for a loss.
//!
//! P `[N, D]` starts at the embeddings of random tokens. Each step: every row's nearest token by cosine, the gradient at those tokens'
//! embeddings, a step of AdamW with it on P itself. The tokens of each step are its hard prompt; the best of them is kept by the run.
//!
//! Where it differs: the nearest token is the nearest of the search vocabulary, and so are the first ones. Nothing keeps a prompt from
//! being read otherwise when it is typed.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::relaxed::Variable;
use super::{Clock, HardPrompt, Method, Progress, State};
use crate::Result;
use crate::estimator::relaxation::{Matrix, Plain, vocabulary_mask};
use crate::noise::{Draws, Purpose};
use crate::objective::{Objective, ObjectiveKind};
use crate::ops::{TrackedBackend, wide};
use crate::optimiser::Adam;
use crate::problem::Problem;
use crate::setting::{Key, choice, key, positive, real};
use crate::subject::Subject;
use crate::tensor::{argmax_rows, host};

/// Its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pez {
    /// What is minimised.
    pub objective: ObjectiveKind,
    /// κ of a hinge, in logits.
    pub margin: f64,
    /// α of AdamW, whose other numbers are PyTorch's.
    pub learning_rate: f64,
    /// λ of AdamW: before a step, P is multiplied by 1 − αλ.
    pub weight_decay: f64,
}

/// PEZ with its authors' defaults.
pub const PEZ: Pez = Pez { objective: ObjectiveKind::CrossEntropy, margin: 0.3, learning_rate: 0.1, weight_decay: 0.1 };

/// The settings of PEZ.
pub const KEYS: &[Key<Pez>] = &[
    key("objective", "What is minimised", |pez| Some(choice(&mut pez.objective))),
    key("margin", "Logit gap at which a target position counts as solved", |pez| {
        (pez.objective == ObjectiveKind::Hinge).then(|| real(&mut pez.margin, 0.0..=1e3))
    }),
    key("learning_rate", "AdamW's learning rate", |pez| Some(positive(&mut pez.learning_rate))),
    key("weight_decay", "AdamW's weight decay", |pez| Some(real(&mut pez.weight_decay, 0.0..=1.0))),
];

impl Pez {
    fn objective(&self) -> Objective {
        self.objective.with(self.margin)
    }
}

/// PEZ at work.
pub struct PezMethod<B: TrackedBackend> {
    settings: Pez,
    /// P, `[N, D]`.
    prompt: Option<Variable<Plain<B>>>,
    /// See [`vocabulary_mask`].
    mask: Option<Matrix<B>>,
    at: Fields,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Fields {
    /// The tokens nearest to P when the last step began.
    free: Vec<u32>,
    steps: u64,
}

impl<B: TrackedBackend> PezMethod<B> {
    /// A method that is to be started.
    pub fn new(settings: Pez) -> Self {
        Self { settings, prompt: None, mask: None, at: Fields::default() }
    }

    /// Starts at the embeddings of these N tokens.
    fn begin(&mut self, free: Vec<u32>, subject: &Subject<B>, problem: &Problem) {
        let model = subject.model();
        let embedded = subject.embed(&[&free]).reshape([free.len(), model.config().hidden_size]).cast(wide(model.dtype()));
        self.prompt = Some(Variable::new(embedded));
        self.mask = vocabulary_mask(subject, problem);
        self.at = Fields { free, steps: 0 };
    }

    fn prompt(&mut self) -> &mut Variable<Plain<B>> {
        self.prompt.as_mut().expect("the method was started")
    }

    /// The allowed token nearest to each row of P by cosine.
    fn nearest(&self, rows: Matrix<B>, subject: &Subject<B>) -> Vec<u32> {
        let along = subject.along_embeddings(rows);
        argmax_rows(match &self.mask {
            Some(mask) => along + mask.clone(),
            None => along,
        })
    }
}

impl<B: TrackedBackend> Method<B> for PezMethod<B> {
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        let ids: Vec<u32> = (0..).zip(problem.prompt.allowed()).filter_map(|(id, allowed)| allowed.then_some(id)).collect();
        let mut draws = Draws::new(Clock { step: 0, ..clock }.stream(Purpose::InitialPrompt));
        let free = (0..problem.prompt.tokens()).map(|_| ids[draws.below(ids.len())]).collect();
        self.begin(free, subject, problem);
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, _: Clock) -> Result<Progress> {
        let rows = self.prompt().value.clone();
        self.at.free = self.nearest(rows, subject);
        let (objective, gradient) = subject.gradient(&self.at.free, problem, self.settings.objective());
        let norm = host(gradient.clone()).iter().map(|x| x * x).sum::<f32>().sqrt();
        self.at.steps += 1;
        let (Pez { learning_rate, weight_decay, .. }, steps) = (self.settings, self.at.steps);
        let prompt = self.prompt();
        prompt.value = prompt.value.clone() * (1.0 - learning_rate * weight_decay);
        prompt.step(Adam::new(learning_rate), steps, gradient);
        Ok(Progress { objective: objective as f32, gradient_norm: Some(norm), ..Progress::default() })
    }

    fn hard_prompt(&self, _: &Subject<B>, _: &Problem) -> HardPrompt {
        HardPrompt { free: self.at.free.clone(), margins: None }
    }

    fn state(&self) -> State {
        let mut state = State::new(&self.at);
        self.prompt.as_ref().expect("the method was started").save("p", &mut state);
        state
    }

    fn restore(&mut self, mut state: State, subject: &Subject<B>, problem: &Problem) -> Result<()> {
        self.at = state.fields()?;
        let shape = [problem.prompt.tokens(), subject.model().config().hidden_size];
        self.prompt = Some(Variable::restore("p", shape, &mut state, &subject.device())?);
        self.mask = vocabulary_mask(subject, problem);
        Ok(())
    }
}
