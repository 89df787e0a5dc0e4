//! Where a search begins.

use super::Clock;
use super::step::random_prompt;
use crate::Result;
use crate::problem::Problem;
use crate::setting::Choice;

/// Where a search begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At random readable words.
    Readable,
    /// At the same letter over and over.
    Repeated,
}

impl Choice for Start {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Readable, "readable", "Random readable words"),
        (Self::Repeated, "repeated", "`x x x`, as nanoGCG has it; `! ! !`, as GCG's authors have it, where that may not stand"),
    ];
}

/// What is repeated, the first that may stand in the prompt.
const REPEATED: [&str; 2] = ["x", "!"];

impl Start {
    /// N free tokens to begin with: of random prompts, the one with this number.
    pub(super) fn prompt(self, problem: &Problem, clock: Clock, number: u32) -> Result<Vec<u32>> {
        let repeated = (self == Self::Repeated).then(|| REPEATED.iter().find_map(|word| repeated(problem, word))).flatten();
        repeated.map_or_else(|| random_prompt(problem, clock, number), Ok)
    }
}

/// The first N tokens of a word repeated, if they may be proposed.
fn repeated(problem: &Problem, word: &str) -> Option<Vec<u32>> {
    problem.proposable(&problem.first().typed_ids(&vec![word; problem.prompt.tokens()].join(" ")))
}
