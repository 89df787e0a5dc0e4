//! Searches on hard tokens: propose candidates near the current prompt, score them exactly, move.
//!
//! A search is a value, [`Search`]: start × proposal × objective × acceptance × schedule × sets. The prompt it keeps can always be typed: a
//! candidate that does not survive decode → encode in every example is dropped before it costs anything.

mod acceptance;
pub mod arca;
pub mod autoprompt;
mod emphasis;
pub mod gcg;
#[cfg(test)]
mod golden_tests;
mod linear;
mod memory;
mod proposal;
pub mod random;
mod schedule;
mod sets;
mod slope;
pub mod snap;
mod start;
mod step;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{Clock, HardPrompt, Method, Progress, State};
use crate::Result;
use crate::objective::{Goal, Objective, margin_key, objective_key};
use crate::ops::{Kernels, Products, TrackedBackend};
use crate::problem::Problem;
use crate::setting::{Key, choice, key, optional_real, real, switch, whole};
use crate::subject::{Footprint, Subject, TargetScores};

pub use acceptance::Acceptance;
pub use linear::Visit;
pub(super) use memory::most_remembered;
pub use proposal::Proposal;
pub use schedule::{Growth, Schedule};
pub use sets::Sets;
pub use start::Start;
pub(crate) use start::{cycled, random_prompt};

use emphasis::Missed;
use memory::Memory;
use proposal::Ranking;
use schedule::Pace;
use sets::Effects;

/// What tells one search from another, and its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search {
    /// Where it begins.
    pub start: Start,
    /// Which tokens a candidate is given.
    pub proposal: Proposal,
    /// What is minimised.
    pub goal: Goal,
    /// What the mean −ln p of the free tokens, given what stands before, weighs beside the objective, per nat; none: nothing.
    pub fluency: Option<f64>,
    /// How much more a target position counts that the last prompts all missed than one that none did, where a search knows that.
    pub emphasis: Option<f64>,
    /// What is taken.
    pub acceptance: Acceptance,
    /// Candidates of a step, and what follows long without a new best.
    pub schedule: Schedule,
    /// Sets of swaps that are tried besides, where any are.
    pub sets: Option<Sets>,
    /// Candidates are scored and ranked by [`Products::Rough`] where these are faster, and by full ones when they nearly lead to the
    /// target.
    pub rough: bool,
}

/// What rough products may change of a margin, in logits: on SmolLM2-135M they change it by 0.02 on average. Whatever may lead within it is
/// scored once more, so more costs: with 0.2 bard takes a seventh more positions.
const ROUGHNESS: f32 = 0.06;

const MANY: u64 = 1_000_000_000;

/// The settings of a search. Some belong to one kind of proposal, objective, acceptance or schedule.
pub const KEYS: &[Key<Search>] = &[
    objective_key(|search| search.goal.kind_slot()),
    margin_key(|search| search.goal.margin_slot()),
    key("fluency", "What a nat of the free tokens' mean -ln p, given what stands before, adds to what is minimised, or `none`", |search| {
        Some(optional_real(&mut search.fluency, 0.0..=1e3))
    }),
    key("emphasis", "How much more a target position counts that was missed all along than one that never was (0: nothing)", |search| {
        search.emphasis.as_mut().map(|emphasis| real(emphasis, 0.0..=1e3))
    }),
    key("start", "Where the search begins", |search| matches!(search.proposal, Proposal::Top { .. }).then(|| choice(&mut search.start))),
    key("starts", "Prompts that it begins at the best of; three of four paraphrase the target word by word", |search| {
        match &mut search.start {
            Start::Paraphrase(count) => Some(whole(count, 1..=65_536)),
            _ => None,
        }
    }),
    key("top", "Ranks of a position that swaps are drawn from", |search| match &mut search.proposal {
        Proposal::Gradient { top, .. } | Proposal::Top { top, .. } => Some(whole(top, 1..=MANY)),
        Proposal::Uniform | Proposal::Best { .. } => None,
    }),
    key("n_replace", "Tokens that a candidate replaces", |search| match &mut search.proposal {
        Proposal::Top { n_replace, .. } => Some(whole(n_replace, 1..=MANY)),
        _ => None,
    }),
    key("momentum", "Share of the earlier gradients in the ranking", |search| match &mut search.proposal {
        Proposal::Gradient { momentum, .. } => Some(real(momentum, 0.0..=0.999)),
        _ => None,
    }),
    key("acceptance_temperature", "How readily a worse candidate is taken (0: never)", |search| match &mut search.acceptance {
        Acceptance::Annealed { acceptance_temperature } => Some(real(acceptance_temperature, 0.0..=1e6)),
        _ => None,
    }),
    key("buffer_size", "Prompts of which the best is kept (0: the best candidate is taken, however bad)", |search| {
        match &mut search.acceptance {
            Acceptance::Buffer { buffer_size } => Some(whole(buffer_size, 0..=65_536)),
            _ => None,
        }
    }),
    key("sets", "Sets of swaps that a step tries, for each candidate of its batch; at most 48 times set_size - 1", |search| {
        search.sets.as_mut().map(|sets| real(&mut sets.share, 0.0..=100.0))
    }),
    key("set_size", "Swaps of a set at most", |search| search.sets.as_mut().map(|sets| whole(&mut sets.largest, 2..=16))),
    key("effects_kept", "Moves that the measured change of a swap outlives", |search| {
        search.sets.as_mut().map(|sets| whole(&mut sets.kept, 0..=MANY))
    }),
    key(
        "rough",
        "Rank and score candidates in bf16 where that is faster (not averaged gradients, that of fluency, and the last product of cross-entropies), and those that nearly lead to the target once more in full",
        |search| Some(switch(&mut search.rough)),
    ),
    key("batch", "Candidates of a step while progress is easy", |search| Some(whole(&mut search.schedule.batch, 1..=65_536))),
    key("batch_max", "Candidates of a step when it stalls", |search| {
        search.schedule.growth.as_mut().map(|growth| whole(&mut growth.batch_max, 1..=65_536))
    }),
    key("patience", "Steps without a new best before the batch doubles, and at last before it stalls", |search| {
        search.schedule.growth.as_mut().map(|growth| whole(&mut growth.patience, 1..=MANY))
    }),
    key("restart_when_stalled", "When it stalls, start again from other prompts, not from the best", |search| {
        search.schedule.growth.as_mut().map(|growth| switch(&mut growth.restart_when_stalled))
    }),
];

impl Search {
    /// How exact the products are by which candidates are scored first.
    pub(in crate::method) fn products<B: Kernels>(&self) -> Products {
        if self.rough && B::has_rough_products() { Products::Rough } else { Products::Full }
    }

    /// The weight of fluency, where it has one.
    fn fluency(&self) -> Option<f64> {
        self.fluency.filter(|weight| *weight > 0.0)
    }

    /// What a prompt with these losses at its target positions and this −ln p is worth: the objective and, where it counts, its fluency; from
    /// the first target positions a lower bound.
    fn value(&self, losses: &[f32], nll: f32, problem: &Problem) -> f32 {
        let objective = objective_value(self.goal.objective(), losses, problem);
        self.fluency().map_or(objective, |weight| (objective + weight as f32 * nll).min(f32::MAX))
    }

    /// A prompt of N free tokens with its scores, at a start: nothing has been missed yet.
    fn scored(&self, free: Vec<u32>, scores: TargetScores, problem: &Problem) -> Scored {
        Scored { value: self.value(&scores.losses, scores.nll, problem), free, scores }
    }

    /// Prompts that are scored at once at most.
    pub fn candidates(&self) -> usize {
        let Schedule { batch, growth } = self.schedule;
        let batch = growth.map_or(batch, |growth| growth.batch_max);
        let sets = self.sets.map_or(0, |sets| sets.count(batch));
        [batch, sets, self.start.others_count(), self.acceptance.starts() as usize].into_iter().max().unwrap_or(0)
    }

    /// What the memory of a step goes by.
    pub fn footprint(&self) -> Footprint {
        let averages = matches!(self.proposal, Proposal::Best { averaged: true, .. });
        Footprint { samples: if averages { self.schedule.batch } else { 1 }, candidates: self.candidates(), ..Footprint::default() }
    }

    /// Refuses settings that contradict each other, in a sentence's words.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn check(&self) -> Result<(), String> {
        let by_position = self.emphasis.unwrap_or(0.0) > 0.0 || self.sets.is_some_and(|sets| sets.are_tried());
        if by_position && !self.goal.objective().adds_up() {
            return Err("`emphasis` and `sets` add up target positions, which `mellowmax` does not: set both to 0".into());
        }
        match self.schedule {
            Schedule { batch, growth: Some(Growth { batch_max, .. }) } if batch > batch_max => {
                Err(format!("`batch` is {batch} but `batch_max` is {batch_max}: it must be at least `batch`"))
            }
            _ => Ok(()),
        }
    }
}

/// A search at work.
pub struct SearchMethod {
    search: Search,
    at: RunState,
    /// The ranking of swaps that proposals are drawn from.
    ranking: Ranking,
    /// What is known of candidates since the prompt last changed.
    memory: Memory,
    /// What single swaps were measured to change.
    effects: Effects,
}

/// What a search keeps between steps, without its ranking and its memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct RunState {
    /// Its value is with the emphasis of now, as those of candidates are.
    current: Scored,
    /// Its value is without emphasis.
    best: Scored,
    pace: Pace,
    /// The batches of the steps at the current prompt, added up.
    #[serde(default)]
    asked: usize,
    /// Starts after the first.
    restarts: u32,
    /// What the prompts since its start missed.
    #[serde(default)]
    missed: Missed,
    /// Whether the other prompts of its start are still to be looked at.
    #[serde(default)]
    opening: bool,
}

/// A prompt and what it is worth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Scored {
    /// N free tokens.
    pub free: Vec<u32>,
    /// What the model makes of the target behind it.
    pub scores: TargetScores,
    /// What is minimised.
    pub value: f32,
}

impl Scored {
    /// Whether every target token, as far as they were scored, is as far ahead of all others as is asked: after the last, the problem is
    /// solved.
    fn leads(&self, problem: &Problem) -> bool {
        self.scores.margins.iter().all(|&margin| problem.is_led(margin))
    }

    /// One that leads to the targets comes first, then the better one.
    pub fn order(&self, other: &Self, problem: &Problem) -> Ordering {
        other.leads(problem).cmp(&self.leads(problem)).then(self.value.total_cmp(&other.value))
    }

    /// Whether it may do so, if its margins are by rough products.
    fn nearly_leads(&self, problem: &Problem) -> bool {
        self.scores.margins.iter().all(|&margin| problem.is_led(margin + ROUGHNESS))
    }
}

/// The objective of a prompt by the losses at its target positions, or by the first of them a lower bound of it. What overflows is as bad as
/// can be: saved states have no other numbers.
pub(super) fn objective_value(objective: Objective, losses: &[f32], problem: &Problem) -> f32 {
    objective.of_prompt(losses, problem.target_lengths()).min(f32::MAX)
}

impl SearchMethod {
    /// A search that is to be started.
    pub fn new(search: Search) -> Self {
        Self { search, at: RunState::default(), ranking: Ranking::default(), memory: Memory::default(), effects: Effects::default() }
    }

    /// What each target position counts for now besides its weight in the objective, `[Σ M]`.
    fn emphasis(&self, problem: &Problem) -> Vec<f32> {
        self.at.missed.emphasis(self.search.emphasis.unwrap_or(0.0) as f32, problem.target_tokens())
    }

    /// What a prompt with these scores is worth with such an emphasis.
    fn emphasised(&self, scores: &TargetScores, emphasis: &[f32], problem: &Problem) -> f32 {
        let losses: Vec<f32> = scores.losses.iter().zip(emphasis).map(|(loss, emphasis)| loss * emphasis).collect();
        self.search.value(&losses, scores.nll, problem)
    }

    /// The weight of each target position in what a prompt is worth now, `[Σ M]`.
    fn weights(&self, problem: &Problem) -> Vec<f32> {
        let (objective, examples) = (self.search.goal.objective(), problem.examples.len() as f32);
        let weights = problem.target_lengths().flat_map(|m| std::iter::repeat_n(objective.weight(m) as f32 / examples, m));
        weights.zip(self.emphasis(problem)).map(|(weight, emphasis)| weight * emphasis).collect()
    }
}

impl<B: TrackedBackend> Method<B> for SearchMethod {
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        self.start_from(subject, problem, clock, 0)
    }

    fn start_at(&mut self, prompts: &[Vec<u32>], subject: &Subject<B>, problem: &Problem, _: Clock) -> Result<()> {
        self.begin_at(prompts, 0, subject, problem);
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        self.search_step(subject, problem, clock)
    }

    fn hard_prompt(&self, _: &Subject<B>, _: &Problem) -> HardPrompt {
        HardPrompt { free: self.at.current.free.clone(), margins: Some(self.at.current.scores.margins.clone()) }
    }

    fn state(&self) -> State {
        let mut state = State::new(&(&self.at, self.memory.entries(), &self.effects, self.ranking.gradient_norm()));
        self.ranking.save(self.at.current.free.len(), &mut state);
        state
    }

    fn restore(&mut self, mut state: State, subject: &Subject<B>, problem: &Problem) -> Result<()> {
        let (at, entries, effects, gradient_norm) = state.fields()?;
        self.at = at;
        self.memory = Memory::of(entries);
        self.effects = effects;
        self.ranking = Ranking::restored(&mut state, [problem.prompt.tokens(), subject.vocab_size()], gradient_norm)?;
        Ok(())
    }
}
