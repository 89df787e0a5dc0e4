//! Tokens in the order of g·E_v, what the gradient g of the objective promises of them: those that GCG draws from, and those that ARCA and
//! AutoPrompt try one after another at one position.

use super::proposal::{Tokens, head_of};
use super::slope::Slope;
use super::step::TRIES;
use super::{Clock, SearchMethod};
use crate::noise::Draws;
use crate::ops::{Matrix, TrackedBackend};
use crate::problem::Problem;
use crate::subject::Subject;
use crate::subject::feeding::Fed;
use crate::tensor::host;

/// Which position a step looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// The first at the first step, the next at the next, and round again.
    InTurn,
    /// Any.
    AtRandom,
}

impl SearchMethod {
    /// The `top` tokens of every position by the gradient at the prompt, and its length.
    pub(super) fn top<B: TrackedBackend>(&self, top: usize, subject: &Subject<B>, problem: &Problem) -> (Tokens<'static>, Option<f32>) {
        let (free, allowed) = (&self.at.current.free, problem.prompt.allowed());
        let slope = self.search.slope(free, None, subject, problem);
        let length = slope.norm();
        // g·E_x, which is taken off in every row, changes no order.
        let scores = host(slope.predicted_change(free, subject));
        let heads = scores.chunks_exact(allowed.len()).map(|row| head_of(row, allowed, None, top)).collect();
        (Tokens::Even(heads), Some(length))
    }

    /// The first candidates at one position that can be typed and keep the ban, as many as a batch holds, and the length of its gradient.
    pub(super) fn best_of<B: TrackedBackend>(
        &self,
        visit: Visit,
        averaged: bool,
        subject: &Subject<B>,
        problem: &Problem,
        clock: Clock,
        draws: &mut Draws,
    ) -> (Vec<Vec<u32>>, Option<f32>) {
        let (free, size) = (&self.at.current.free, self.at.pace.batch);
        let position = match visit {
            Visit::InTurn => clock.step as usize % free.len(),
            Visit::AtRandom => draws.below(free.len()),
        };
        let slope = if averaged {
            let swaps = (0..size).map(|_| with(free, position, draws.below(subject.vocab_size()) as u32)).collect::<Vec<_>>();
            let fluency = self.search.fluency_slope(&swaps, subject, problem).map(|slope| slope.at(position));
            Slope::of(self.mean_gradient(position, &swaps, subject, problem)).and(fluency)
        } else {
            self.search.slope(free, None, subject, problem).at(position)
        };
        let length = slope.norm();
        let scores = host(slope.predicted_change(&free[position..=position], subject));
        let ranked = head_of(&scores, problem.prompt.allowed(), None, size * TRIES);
        let candidates = ranked.into_iter().map(|token| with(free, position, token));
        (candidates.filter(|candidate| problem.admits(candidate)).take(size).collect(), Some(length))
    }

    /// The mean over some prompts of the gradient with respect to the embedding at one position, `[1, D]`.
    fn mean_gradient<B: TrackedBackend>(
        &self,
        position: usize,
        prompts: &[Vec<u32>],
        subject: &Subject<B>,
        problem: &Problem,
    ) -> Matrix<B> {
        let embedded = subject.embed(prompts);
        let [samples, n, d] = embedded.dims();
        let (_, gradient) =
            subject.value_and_gradient(embedded.reshape([samples * n, d]), problem, self.search.goal.objective(), &Fed::Target);
        gradient.reshape([samples, n, d]).narrow(1, position, 1).reshape([samples, d]).sum_dim(0)
    }
}

/// A prompt with another token at one position.
fn with(free: &[u32], position: usize, token: u32) -> Vec<u32> {
    let mut candidate = free.to_vec();
    candidate[position] = token;
    candidate
}
