//! What an estimator is given: the relaxed prompt with all that its objective depends on, and random numbers.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::noise::{Clock, Purpose, Stream};
use crate::objective::Objective;
use crate::ops::{Gumbel, Matrix, Plain, SoftPrompt, TrackedBackend, wide};
use crate::problem::Problem;
use crate::subject::Subject;
use crate::subject::feeding::Feeding;

/// A relaxed prompt and its objective: where an estimate is made.
#[derive(Clone)]
pub struct Relaxation<'a, B: TrackedBackend> {
    /// The frozen model.
    pub subject: &'a Subject<B>,
    /// What the prompt is sought for.
    pub problem: &'a Problem,
    /// What is minimised.
    pub objective: Objective,
    /// What the model is fed after the prompt.
    pub feeding: Feeding,
    /// The rule for τ.
    pub temperature: Temperature,
    /// Z, `[N, V]`.
    pub z: Matrix<B>,
    /// Φ, `[N, 1]` or `[1, 1]`, where it is learned.
    pub phi: Option<Matrix<B>>,
    /// 0 for tokens of the search vocabulary and −1e30 for the others, `[1, V]`; nothing where all are allowed. See [`vocabulary_mask`].
    pub mask: Option<Matrix<B>>,
    /// S, prompts of an estimate.
    pub samples: usize,
}

impl<B: TrackedBackend> Relaxation<'_, B> {
    /// What S soft prompts are made of under this noise.
    pub fn soft_prompt(&self, noise: Gumbel<Plain<B>>) -> SoftPrompt<Plain<B>> {
        SoftPrompt {
            logits: self.z.clone(),
            temperature: self.temperature.tau(self.phi.clone(), &self.z),
            embedding: self.subject.model().embed_tokens.val(),
            mask: self.mask.clone(),
            noise,
            samples: self.samples,
        }
    }
}

/// The rule for τ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Temperature {
    /// There is none.
    None,
    /// The same τ everywhere and always.
    Fixed(f64),
    /// τ_i = ε + τ0·(1 + tanh Φ_i), Φ learned.
    Learned {
        /// τ0.
        tau0: f64,
        /// One Φ for each position, not one for all.
        per_position: bool,
    },
}

/// ε in τ: keeps a saturated Φ from dividing by zero.
const EPSILON: f64 = 1e-6;

impl Temperature {
    /// τ `[N, 1]` for Z `[N, V]`; where there is none, 1.
    pub fn tau<K: Backend>(self, phi: Option<Tensor<K, 2>>, z: &Tensor<K, 2>) -> Tensor<K, 2> {
        let shape = [z.dims()[0], 1];
        match (self, phi) {
            (Self::Learned { tau0, .. }, Some(phi)) => ((phi.tanh() + 1.0) * tau0 + EPSILON).expand(shape),
            (Self::Fixed(tau), _) => Tensor::full(shape, tau, (&z.device(), z.dtype())),
            _ => Tensor::ones(shape, (&z.device(), z.dtype())),
        }
    }
}

/// The random numbers of an estimate.
#[derive(Debug, Clone)]
pub enum Noise<B: Backend> {
    /// Drawn from those of a step.
    Drawn(Clock),
    /// Given from outside, for tests.
    Given {
        /// Gumbel noise of the prompts, `[S·N, V]`.
        prompt: Tensor<B, 2>,
        /// That of the tokens fed back, `[S·(M − 1), V]`.
        feedback: Tensor<B, 2>,
    },
}

impl<B: Backend> Noise<B> {
    /// Gumbel noise of the prompts; what is drawn comes of uniform draws rescaled to end at `largest`.
    pub fn prompt(&self, largest: Option<f64>) -> Gumbel<B> {
        match self {
            Self::Drawn(clock) => Gumbel::Drawn { stream: clock.stream(Purpose::PromptNoise), largest },
            Self::Given { prompt, .. } => Gumbel::Given(prompt.clone()),
        }
    }

    /// The same of the tokens fed back.
    pub fn feedback(&self, largest: Option<f64>) -> Gumbel<B> {
        match self {
            Self::Drawn(clock) => Gumbel::Drawn { stream: clock.stream(Purpose::FeedbackNoise), largest },
            Self::Given { feedback, .. } => Gumbel::Given(feedback.clone()),
        }
    }

    /// A second noise of the prompts, independent of the first; none beside noise from outside.
    pub fn second(&self) -> Gumbel<B> {
        match self {
            Self::Drawn(clock) => Gumbel::drawn(clock.stream(Purpose::SecondNoise)),
            Self::Given { .. } => Gumbel::Silent,
        }
    }

    /// Where first weights come from: the same at every step of a start.
    pub fn weights(&self) -> Stream {
        match self {
            Self::Drawn(clock) => Clock { step: 0, ..*clock }.stream(Purpose::Surrogate),
            Self::Given { .. } => Stream::new(0, 0, 0, Purpose::Surrogate, 0),
        }
    }
}

/// 0 where a token may stand in the prompt and −1e30 where not, `[1, V]`; nothing when all may.
pub fn vocabulary_mask<B: TrackedBackend>(subject: &Subject<B>, problem: &Problem) -> Option<Matrix<B>> {
    let allowed = problem.prompt.allowed();
    if allowed.iter().all(|&ok| ok) {
        return None;
    }
    let row: Vec<f32> = allowed.iter().map(|&ok| if ok { 0.0 } else { -1e30 }).collect();
    let options = (&subject.device(), wide(subject.model().dtype()));
    Some(Tensor::from_data(TensorData::new(row, [1, allowed.len()]), options))
}
