//! Where a search begins.

use super::proposal::head_of;
use crate::noise::{Clock, Draws, Purpose, Stream};
use crate::ops::{TrackedBackend, wide};
use crate::problem::{Example, Problem};
use crate::setting::Choice;
use crate::subject::Subject;
use crate::tensor::host;
use crate::{Error, Result, interrupt};

/// Where a search begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At random readable words.
    Readable,
    /// At the best of so many prompts: of each four one of random readable words, and three that paraphrase a target word by word, with
    /// tokens whose embeddings are near those of its own. A model that looks back completes what it has read something like.
    Paraphrase(usize),
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

/// Of so many prompts of [`Start::Paraphrase`] one is of random words.
const ONE_RANDOM_OF: usize = 4;

impl Start {
    /// N free tokens to begin with: of random prompts, the one with this number.
    pub(super) fn prompt(self, problem: &Problem, clock: Clock, number: u32) -> Result<Vec<u32>> {
        let repeated = (self == Self::Repeated).then(|| REPEATED.iter().find_map(|word| repeated(problem, word))).flatten();
        repeated.map_or_else(|| random_prompt(problem, clock, number), Ok)
    }

    /// Prompts that are looked at besides.
    pub fn others_count(self) -> usize {
        if let Self::Paraphrase(count) = self { count.saturating_sub(1) } else { 0 }
    }

    /// Those of the start with this number, which is one of random words itself. Fewer where the rules of the prompt leave no more.
    pub(super) fn others<B: TrackedBackend>(self, subject: &Subject<B>, problem: &Problem, clock: Clock, number: u32) -> Vec<Vec<u32>> {
        let (count, examples) = (self.others_count(), &problem.examples);
        let targets: Vec<Vec<Vec<u32>>> = examples.iter().take(count).map(|example| near(example, subject, problem)).collect();
        let prompt = |place: usize| {
            let stream = Stream::new(clock.seed, clock.restart, number, Purpose::OtherPrompts, place as u32);
            if place.is_multiple_of(ONE_RANDOM_OF) {
                return words(problem, stream).ok();
            }
            // Each target in either layout in turn.
            let paraphrase = place - place.div_ceil(ONE_RANDOM_OF);
            let (near, layout) = (&targets[paraphrase % targets.len()], LAYOUTS[paraphrase / targets.len() % LAYOUTS.len()]);
            let sizes = [problem.prompt.tokens(), near.len()];
            let token = |position, missed, draws: &mut Draws| {
                let rank = draws.below(NEAREST * (1 + missed));
                near[layout.target_token(position, sizes)].get(rank).copied().unwrap_or_else(|| word(problem, missed, draws))
            };
            typeable(problem, stream, token).ok()
        };
        (1..=count).map_while(prompt).collect()
    }
}

/// The first N tokens of a word repeated, if they may be proposed.
fn repeated(problem: &Problem, word: &str) -> Option<Vec<u32>> {
    problem.proposable(&problem.first().typed_ids(&vec![word; problem.prompt.tokens()].join(" ")))
}

/// A random readable prompt that survives decode → encode and keeps the rules.
///
/// # Errors
/// None is found.
pub(crate) fn random_prompt(problem: &Problem, clock: Clock, number: u32) -> Result<Vec<u32>> {
    words(problem, Stream::new(clock.seed, clock.restart, 0, Purpose::InitialPrompt, number))
}

fn words(problem: &Problem, stream: Stream) -> Result<Vec<u32>> {
    typeable(problem, stream, |_, missed, draws| word(problem, missed, draws))
}

/// A random readable token for a position that was missed so many times. Where none can stand, as at the start of a turn that is trimmed,
/// any other.
fn word(problem: &Problem, missed: usize, draws: &mut Draws) -> u32 {
    let readable = problem.prompt.readable();
    if missed % 16 < 8 { readable[draws.below(readable.len())] } else { any(problem.prompt.allowed(), draws) }
}

/// Tokens that may paraphrase a target token; of them the nearest are drawn first, and more of them the more often it was missed.
const NEAR: usize = 64;
const NEAREST: usize = 4;

/// Which of M target tokens each of N positions paraphrases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// The target once over all positions: each of its tokens several times where N is larger, some of them where it is smaller.
    Stretched,
    /// The target over and over, whole at the end: what comes after it is its beginning.
    Cycled,
}

const LAYOUTS: [Layout; 2] = [Layout::Stretched, Layout::Cycled];

impl Layout {
    fn target_token(self, position: usize, [n, m]: [usize; 2]) -> usize {
        match self {
            Self::Stretched => position * m / n,
            Self::Cycled => cycled(position, [n, m]),
        }
    }
}

/// Which of M tokens stands at one of N positions, where they follow each other over and over and the last of them is at the end.
pub(crate) fn cycled(position: usize, [n, m]: [usize; 2]) -> usize {
    (position + m - n % m) % m
}

/// Of each token of an example's target the allowed ones nearest to it, by the cosine of their embeddings, nearest first, `[M][NEAR]`.
fn near<B: TrackedBackend>(example: &Example, subject: &Subject<B>, problem: &Problem) -> Vec<Vec<u32>> {
    let allowed = problem.prompt.allowed();
    // A few at a time: each is compared with the whole vocabulary.
    let some = |ids: &[u32]| -> Vec<Vec<u32>> {
        let farness = host(subject.along_embeddings(subject.embedded(ids, wide(subject.model().dtype()))).neg());
        farness.chunks_exact(allowed.len()).map(|row| head_of(row, allowed, None, NEAR)).collect()
    };
    let target = &example.target;
    // A token that only stops the model stands for nothing.
    let ids = if target.text_ids().is_empty() { &target.ids } else { target.text_ids() };
    ids.chunks(NEAR).flat_map(some).collect()
}

/// Whole prompts that are drawn before one is mended.
const WHOLE_DRAWS: usize = 16;
/// Tokens that are drawn again to mend one.
const MENDS: usize = 4000;

/// A random prompt that survives decode → encode and keeps the rules. `draw` gives a token for a position that was missed so many times. Few
/// long prompts survive, so the last that was drawn is mended where it does not.
fn typeable(problem: &Problem, stream: Stream, draw: impl Fn(usize, usize, &mut Draws) -> u32) -> Result<Vec<u32>> {
    let mut draws = Draws::new(stream);
    let mut free = Vec::new();
    for _ in 0..WHOLE_DRAWS {
        interrupt::check();
        free = (0..problem.prompt.tokens()).map(|position| draw(position, 0, &mut draws)).collect();
        if problem.admits(&free) {
            return Ok(free);
        }
    }
    let (last, mut missed) = (free.len() - 1, vec![0; free.len()]);
    for _ in 0..MENDS {
        interrupt::check();
        let position = match problem.first_misread(&free) {
            // It, or the next one that it merges with.
            Some(position) => (position + draws.below(2)).min(last),
            None if problem.prompt.keeps_rules(&problem.free_text(&free)) => return Ok(free),
            // The text breaks a rule.
            None => draws.below(free.len()),
        };
        missed[position] += 1;
        free[position] = draw(position, missed[position], &mut draws);
    }
    Err(Error::input(
        "no random prompt survives decoding and encoding between the fixed texts around it and keeps the rules for its text; change where they \
         are cut, or ask for less",
    ))
}

/// Any allowed token.
fn any(allowed: &[bool], draws: &mut Draws) -> u32 {
    loop {
        let token = draws.below(allowed.len());
        if allowed[token] {
            return token as u32;
        }
    }
}
