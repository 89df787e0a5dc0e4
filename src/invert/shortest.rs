//! Shorter and shorter prompts: what was found is gone on from with one free token less.

use serde::{Deserialize, Serialize};

use super::judge::Judged;
use crate::method::Clock;
use crate::method::search::random_prompt;
use crate::problem::Problem;

/// A prompt that solved the problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Solved {
    /// As it was judged.
    pub prompt: Judged,
    /// Seconds of the run when it was found.
    pub seconds: f64,
}

/// `problem` with one free token less, and what to begin at there: the solved prompt `free` without any one of its tokens, as far as that
/// can be typed and keeps the rules, else random words. Nothing where no shorter prompt can be begun at.
pub(super) fn shorter(free: &[u32], problem: &Problem, clock: Clock) -> Option<(Problem, Vec<Vec<u32>>)> {
    let tokens = free.len().checked_sub(1).filter(|tokens| *tokens > 0)?;
    let problem = problem.of_length(tokens);
    let without = |out: usize| [&free[..out], &free[out + 1..]].concat();
    // The last one first: it shares the most with the others, and what is shared is computed once.
    let mut starts: Vec<Vec<u32>> = (0..free.len()).rev().map(without).filter(|start| problem.admits(start)).collect();
    starts.dedup();
    if starts.is_empty() {
        starts.extend(random_prompt(&problem, clock, 0));
    }
    (!starts.is_empty()).then_some((problem, starts))
}
