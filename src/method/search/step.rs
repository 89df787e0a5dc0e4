//! One step of a search, and its start.

use std::collections::{BTreeSet, HashSet};

use super::memory::Known;
use super::proposal::{Proposal, Tokens};
use super::sets::Aim;
use super::start::random_prompt;
use super::{Clock, Progress, RunState, Scored, SearchMethod};
use crate::Result;
use crate::noise::{Draws, Purpose, Stream};
use crate::ops::{Products, TrackedBackend};
use crate::problem::Problem;
use crate::subject::Subject;

/// Draws for each candidate of a batch at most: many of them miss.
pub(super) const TRIES: usize = 6;

impl SearchMethod {
    pub(super) fn search_step<B: TrackedBackend>(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        if self.at.pace.stalled && self.search.schedule.restarts() {
            // Where none is found, what was found goes on.
            let number = self.at.restarts + 1;
            if self.start_from(subject, problem, clock, number).is_err() {
                (self.at.restarts, self.at.pace) = (number, self.search.schedule.fresh());
                self.go_to(self.at.best.clone(), problem);
            }
        }
        if std::mem::take(&mut self.at.opening) {
            return Ok(self.open(subject, problem, clock));
        }
        let mut draws = Draws::new(Stream::new(clock.seed, clock.restart, clock.step, Purpose::SearchDraws, 0));
        let bound = self.search.acceptance.bound(self.at.current.value, draws.uniform());
        let (batch, gradient_norm) = self.batch(subject, problem, clock, &mut draws);
        // Where nothing can be dropped on the way, it is one way.
        let parts = if bound == f32::INFINITY { vec![problem.target_tokens()] } else { self.parts(problem) };
        let swap = self.best_below(bound, &batch, &parts, subject, problem);
        let bound = swap.as_ref().map_or(bound, |swap| swap.value.min(bound));
        // What leads to the targets is not given up for what is worth more.
        let solves = !self.at.current.leads(problem) && swap.as_ref().is_some_and(|swap| swap.leads(problem));
        let sets = if solves { Vec::new() } else { self.sets(bound, batch.len(), problem) };
        if let Some(best) = self.best_below(bound, &sets, &parts, subject, problem).or(swap) {
            self.take(best, problem);
        }
        if self.search.schedule.wait(&mut self.at.pace) {
            self.go_to(self.at.best.clone(), problem);
        }
        Ok(self.progress(gradient_norm, problem))
    }

    /// The first step of a search that knows paraphrases: they are its candidates.
    fn open<B: TrackedBackend>(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Progress {
        let others = self.search.start.others(subject, problem, clock, self.at.restarts);
        let (bound, parts) = (self.at.current.value, self.parts(problem));
        if let Some(best) = self.best_below(bound, &others, &parts, subject, problem) {
            self.take(best, problem);
        }
        self.progress(None, problem)
    }

    fn progress(&self, gradient_norm: Option<f32>, problem: &Problem) -> Progress {
        let value = self.plain_value(&self.at.current, problem);
        Progress {
            objective: if value < f32::MAX { value } else { f32::NAN },
            gradient_norm,
            temperature: None,
            entropy: None,
            stalled: self.at.pace.stalled && !self.search.schedule.restarts(),
        }
    }

    /// Goes on from the start with this number, and from nothing else.
    pub(super) fn start_from<B: TrackedBackend>(
        &mut self,
        subject: &Subject<B>,
        problem: &Problem,
        clock: Clock,
        number: u32,
    ) -> Result<()> {
        let first = self.search.start.prompt(problem, clock, number)?;
        let others = (1..self.search.acceptance.starts()).map_while(|other| random_prompt(problem, clock, number + other).ok());
        let prompts: Vec<Vec<u32>> = std::iter::once(first).chain(others).collect();
        self.begin_at(&prompts, number, subject, problem);
        self.at.opening = self.search.start.others_count() > 0;
        Ok(())
    }

    /// Goes on from the best of some prompts, the start with this number, and from nothing else; one that leads to the targets comes before
    /// all others.
    pub(super) fn begin_at<B: TrackedBackend>(&mut self, prompts: &[Vec<u32>], number: u32, subject: &Subject<B>, problem: &Problem) {
        let score = |prompts: &[Vec<u32>]| {
            let candidates = subject.candidates(&prompts[0], prompts, problem, self.search.goal.objective());
            candidates.reading(self.search.fluency().is_some()).score(problem.target_tokens())
        };
        // No more at once than a step scores: there may be as many as the prompt has tokens.
        let scores = prompts.chunks(self.search.candidates().max(1)).flat_map(score);
        let scored = prompts.iter().zip(scores).map(|(free, scores)| self.search.scored(free.clone(), scores, problem));
        let start = scored.min_by(|a, b| a.order(b, problem)).expect("a search has a start");
        let pace = self.search.schedule.fresh();
        let state = RunState { best: start.clone(), current: start, pace, restarts: number, ..RunState::default() };
        *self = Self { at: state, ..Self::new(self.search) };
    }

    /// The candidates of a step, and the length of the gradient that proposed them, where one did.
    pub(super) fn batch<B: TrackedBackend>(
        &mut self,
        subject: &Subject<B>,
        problem: &Problem,
        clock: Clock,
        draws: &mut Draws,
    ) -> (Vec<Vec<u32>>, Option<f32>) {
        let (free, allowed, emphasis) = (&self.at.current.free, problem.prompt.allowed(), self.emphasis(problem));
        let (tokens, gradient_norm) = match self.search.proposal {
            Proposal::Uniform => (Tokens::Any(problem.prompt.ids()), None),
            Proposal::Gradient { top, momentum } => {
                self.ranking.mix(momentum as f32, || self.search.scores(free, &emphasis, subject, problem));
                // Where all of these are known and none is taken, the search would stay for good.
                let top = top + self.at.asked / free.len();
                self.at.asked += self.at.pace.batch;
                (self.ranking.heads(top, free, allowed), self.ranking.gradient_norm())
            }
            Proposal::Top { top, .. } => self.top(top, subject, problem),
            Proposal::Best { visit, averaged } => return self.best_of(visit, averaged, subject, problem, clock, draws),
        };
        (self.propose(&tokens, problem, draws), gradient_norm)
    }

    /// Distinct candidates that can be typed and keep the ban, up to the size of a batch.
    pub(super) fn propose(&self, tokens: &Tokens, problem: &Problem, draws: &mut Draws) -> Vec<Vec<u32>> {
        let size = self.at.pace.batch;
        let tries = if tokens.may_stay() { 1 } else { TRIES };
        let mut seen = HashSet::new();
        let mut batch = Vec::with_capacity(size);
        for _ in 0..size * tries {
            if batch.len() == size {
                break;
            }
            let candidate = self.search.proposal.neighbour(&self.at.current.free, tokens, draws);
            let Some(candidate) = candidate.filter(|candidate| seen.insert(candidate.clone())) else { continue };
            if self.memory.holds(&candidate) || problem.admits(&candidate) {
                batch.push(candidate);
            }
        }
        batch
    }

    /// Sets of swaps whose measured changes add up to less than `bound`, in proportion to the `batch` swaps that were tried before.
    pub(super) fn sets(&self, bound: f32, batch: usize, problem: &Problem) -> Vec<Vec<u32>> {
        let Some(sets) = self.search.sets.filter(|sets| sets.count(batch) > 0) else { return Vec::new() };
        let aim = Aim::new(&self.search, &self.at.current, self.weights(problem));
        let below = self.effects.sets(sets.largest, &aim).into_iter().take_while(|(value, _)| *value < bound).map(|(_, free)| free);
        let new = below.filter(|free| !self.memory.holds(free) && problem.admits(free));
        new.take(sets.count(batch)).collect()
    }

    /// The best of a batch if its objective is below `bound`; one that leads to the targets before all others, however narrowly it does,
    /// unless the current prompt does so too. Only what is not known from an earlier step at this prompt is scored.
    pub(super) fn best_below<B: TrackedBackend>(
        &mut self,
        bound: f32,
        batch: &[Vec<u32>],
        parts: &[usize],
        subject: &Subject<B>,
        problem: &Problem,
    ) -> Option<Scored> {
        self.memory.make_room(problem.prompt.tokens() + 2 * problem.target_tokens());
        let mut seen = HashSet::new();
        let open: Vec<Vec<u32>> = batch.iter().filter(|free| self.memory.is_open(free, bound) && seen.insert(*free)).cloned().collect();
        self.score(bound, &open, parts, self.search.products::<B::InnerBackend>(), subject, problem);
        let near = |(candidate, products): (&Scored, Products)| products == Products::Rough && candidate.nearly_leads(problem);
        let near: Vec<Vec<u32>> = open.into_iter().filter(|free| self.memory.whole(free).is_some_and(near)).collect();
        self.score(f32::INFINITY, &near, &[problem.target_tokens()], Products::Full, subject, problem);
        let solved = self.at.current.leads(problem);
        let known = batch.iter().filter_map(|free| self.memory.whole(free)).map(|(candidate, _)| candidate);
        let taken = known.filter(|candidate| candidate.value < bound || (!solved && candidate.leads(problem)));
        let worth = |a: &&Scored, b: &&Scored| if solved { a.value.total_cmp(&b.value) } else { a.order(b, problem) };
        taken.min_by(worth).cloned()
    }

    /// Scores candidates along the target positions, in parts, and remembers what is known of them. One that reaches `bound` before the
    /// last part, and does not lead to the targets, as far as such products can tell, is dropped there: no position's loss is negative, and
    /// no likelihood is more than 1.
    fn score<B: TrackedBackend>(
        &mut self,
        bound: f32,
        candidates: &[Vec<u32>],
        parts: &[usize],
        products: Products,
        subject: &Subject<B>,
        problem: &Problem,
    ) {
        let (objective, solved, emphasis) = (self.search.goal.objective(), self.at.current.leads(problem), self.emphasis(problem));
        let scoring = subject.candidates(&self.at.current.free, candidates, problem, objective);
        let mut scoring = scoring.by(products).reading(self.search.fluency().is_some());
        let mut kept: Vec<Scored> = candidates.iter().map(|free| Scored { free: free.clone(), ..Scored::default() }).collect();
        for (number, &part) in parts.iter().enumerate() {
            for (candidate, next) in kept.iter_mut().zip(scoring.score(part)) {
                candidate.scores.extend(next);
                candidate.value = self.emphasised(&candidate.scores, &emphasis, problem);
            }
            if number + 1 == parts.len() {
                break;
            }
            let may_lead = |candidate: &Scored| match products {
                Products::Full => candidate.leads(problem),
                Products::Rough => candidate.nearly_leads(problem),
            };
            let keep: Vec<bool> = kept.iter().map(|candidate| candidate.value < bound || (!solved && may_lead(candidate))).collect();
            scoring.retain(&keep);
            let (still, dropped) = kept.into_iter().zip(keep).partition::<Vec<_>, _>(|(_, keep)| *keep);
            dropped.into_iter().for_each(|(candidate, _)| self.memory.insert(candidate.free, Known::AtLeast(candidate.value)));
            kept = still.into_iter().map(|(candidate, _)| candidate).collect();
        }
        for candidate in kept {
            if self.search.sets.is_some_and(|sets| sets.are_tried()) {
                self.effects.measure(objective, &self.at.current, &candidate);
            }
            self.memory.insert(candidate.free.clone(), Known::whole(candidate, products));
        }
    }

    /// The target positions in parts, at the end of each of which candidates are dropped: at the end of every example, and where the
    /// current prompt has nearly all of its loss behind it, because what does worse there does not catch up; a late cut saves less than
    /// another pass costs. One part where the first positions say nothing of the whole.
    pub(super) fn parts(&self, problem: &Problem) -> Vec<usize> {
        if !self.search.goal.objective().adds_up() {
            return vec![problem.target_tokens()];
        }
        let current = &self.at.current;
        // Fluency is known from the beginning.
        let fluency = self.search.fluency().map_or(0.0, |weight| weight as f32 * current.scores.nll);
        let sums = current.scores.losses.iter().zip(self.weights(problem)).scan(fluency, |sum, (loss, weight)| {
            *sum += loss * weight;
            Some(*sum)
        });
        let late = problem.target_tokens() * 7 / 10;
        let cut = sums.take(late).position(|sum| sum >= 0.9 * current.value).map(|last| last + 1);
        let ends = problem.target_lengths().scan(0, |end, positions| {
            *end += positions;
            Some(*end)
        });
        let ends: BTreeSet<usize> = ends.chain(cut).collect();
        ends.iter().scan(0, |start, &end| Some(end - std::mem::replace(start, end))).collect()
    }

    /// Makes a candidate the current prompt.
    fn take(&mut self, candidate: Scored, problem: &Problem) {
        let plain = Scored { value: self.plain_value(&candidate, problem), ..candidate.clone() };
        if plain.order(&self.at.best, problem).is_lt() {
            self.at.best = plain;
            self.at.pace = self.search.schedule.fresh();
        }
        self.go_to(candidate, problem);
    }

    /// What a prompt is worth without emphasis.
    pub(super) fn plain_value(&self, prompt: &Scored, problem: &Problem) -> f32 {
        self.search.value(&prompt.scores.losses, prompt.scores.nll, problem)
    }

    /// Goes on from a prompt; what is known at the current one is forgotten if it is another.
    fn go_to(&mut self, prompt: Scored, problem: &Problem) {
        if prompt.free != self.at.current.free {
            self.memory.clear();
            self.at.asked = 0;
            self.ranking.prompt_changed();
            self.effects.moved(&self.at.current.free, &prompt.free, self.search.sets.map_or(0, |sets| sets.kept));
            let asked = self.search.goal.objective().margin().unwrap_or(f32::NEG_INFINITY);
            self.at.missed.note(prompt.scores.margins.iter().map(|&margin| margin < asked || !problem.is_led(margin)));
        }
        let value = self.emphasised(&prompt.scores, &self.emphasis(problem), problem);
        self.at.current = Scored { value, ..prompt };
    }
}
