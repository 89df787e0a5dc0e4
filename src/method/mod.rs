//! The inverters. A method has a prompt and improves it step by step; the run around it judges, scores and stops.

pub mod adc;
pub mod control;
pub mod pez;
pub mod registry;
pub mod relaxed;
pub mod search;

pub use crate::noise::Clock;
pub use crate::state::State;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::metrics::Spread;
use crate::ops::{Matrix, TrackedBackend};
use crate::problem::Problem;
use crate::subject::{Footprint, Subject};

/// What a step brought.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// The objective of the prompt after the step (a relaxed method: of this step's samples).
    pub objective: f32,
    /// Length of the gradient used, where one was.
    pub gradient_norm: Option<f32>,
    /// Effective temperature τ over the N positions, where there is one.
    pub temperature: Option<Spread>,
    /// Entropy of each position's distribution over the vocabulary, in nats, over the N positions, where there is one.
    pub entropy: Option<Spread>,
    /// Nothing better was found for so long that a restart is worth trying.
    pub stalled: bool,
}

/// The hard prompt that a method has at hand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HardPrompt {
    /// Its N free tokens.
    pub free: Vec<u32>,
    /// How far each target token is ahead under teacher forcing, where the method knows; `[M]`.
    pub margins: Option<Vec<f32>>,
}

impl HardPrompt {
    /// With what is known of its margins, unless one is no number, which a saved state cannot hold.
    pub fn new(free: Vec<u32>, margins: Option<Vec<f32>>) -> Self {
        Self { free, margins: margins.filter(|margins| margins.iter().all(|margin| margin.is_finite())) }
    }
}

/// Target tokens that are not the only argmax, by their margins.
fn wrong(margins: &[f32]) -> usize {
    margins.len() - margins.iter().filter(|&&margin| margin > 0.0).count()
}

/// An inverter on backend `B`.
pub trait Method<B: TrackedBackend> {
    /// Forgets everything and starts with the numbers of `clock`.
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()>;

    /// Forgets everything and starts at the best of some prompts of N free tokens, all of which may be proposed. A method that begins at no
    /// given prompt starts as ever.
    fn start_at(&mut self, _prompts: &[Vec<u32>], subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        self.start(subject, problem, clock)
    }

    /// One step.
    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress>;

    /// The current hard prompt: argmax of a relaxed one.
    fn hard_prompt(&self, subject: &Subject<B>, problem: &Problem) -> HardPrompt;

    /// This step's noisy prompts `[S·N, D]`, for methods that have a relaxed one.
    fn relaxed(&self, _subject: &Subject<B>, _problem: &Problem, _clock: Clock) -> Option<Matrix<B>> {
        None
    }

    /// Everything that the next step depends on.
    fn state(&self) -> State;

    /// Goes on from `state`.
    fn restore(&mut self, state: State, subject: &Subject<B>, problem: &Problem) -> Result<()>;
}

/// Makes a method for whichever backend a task runs on.
pub trait Build {
    /// The method, to be started.
    fn build<B: TrackedBackend>(&self) -> Box<dyn Method<B>>;

    /// What the memory of a step goes by.
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
}
