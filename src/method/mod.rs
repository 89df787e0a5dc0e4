//! The inverters. A method holds a prompt and improves it step by step; the run decides when to look, confirm and stop.

pub mod echo;
mod keys_provisional;
pub mod registry;
pub mod relaxed;
pub mod search;
mod state;

pub use state::State;

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use crate::Result;
use crate::metrics::Spread;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;

/// Where the random numbers of a step come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// The run's seed.
    pub seed: u32,
    /// Fresh starts made before this one.
    pub restart: u32,
    /// Steps made since the last fresh start.
    pub step: u32,
}

/// What a step brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The objective at the prompt held after the step (a relaxed method: of this step's samples).
    pub objective: f32,
    /// Length of the gradient used, where one was.
    pub gradient_norm: Option<f32>,
    /// Effective temperature τ over the N positions, where there is one.
    pub temperature: Option<Spread>,
    /// Entropy of each position's distribution over the vocabulary, in nats, over the N positions, where there is one.
    pub entropy: Option<Spread>,
    /// Nothing better was found for so long that a fresh start is worth trying.
    pub stalled: bool,
}

/// A hard prompt that a method holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Its N free tokens.
    pub free: Vec<u32>,
    /// How far each target token is ahead under teacher forcing, where the method knows; `[M]`.
    pub margins: Option<Vec<f32>>,
}

/// An inverter on backend `B`.
pub trait Method<B: TrackedBackend> {
    /// Forgets everything and begins anew with the numbers of `clock`.
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()>;

    /// One step.
    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress>;

    /// The current hard prompt: argmax of a relaxed one.
    fn held(&self, subject: &Subject<B>, problem: &Problem) -> Held;

    /// Whether [`Self::held`] changes hands for nothing, so that it may be judged after every step.
    fn knows_margins(&self) -> bool {
        false
    }

    /// This step's noisy prompts `[S·N, D]`, for methods that have a relaxed one.
    fn relaxed(&self, _subject: &Subject<B>, _problem: &Problem, _clock: Clock) -> Option<Tensor<<B as AutodiffBackend>::InnerBackend, 2>> {
        None
    }

    /// Everything that the next step depends on.
    fn state(&self) -> State;

    /// Goes on from `state`.
    fn restore(&mut self, state: State, subject: &Subject<B>, problem: &Problem) -> Result<()>;
}
