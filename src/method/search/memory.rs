//! What is known of the candidates at an unchanged prompt, so that none is scored twice there.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Scored;
use crate::ops::Products;

/// Prompts remembered before a step at most, and numbers in all of them.
const MAX_ENTRIES: usize = 4096;
const MAX_NUMBERS: usize = 1 << 20;

/// Prompts of so many numbers each that are remembered at most: a checkpoint holds no 100 MB of text.
pub(in crate::method) fn most_remembered(numbers: usize) -> usize {
    MAX_ENTRIES.min(MAX_NUMBERS / numbers)
}

/// What is known of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Known {
    /// Everything.
    Whole(Scored),
    /// The same by rough products.
    Rough(Scored),
    /// It was dropped on the way: its objective is at least this.
    AtLeast(f32),
}

impl Known {
    /// Of a candidate scored to the end.
    pub fn whole(candidate: Scored, products: Products) -> Self {
        match products {
            _ if candidate.value >= f32::MAX => Self::AtLeast(f32::MAX),
            Products::Full => Self::Whole(candidate),
            Products::Rough => Self::Rough(candidate),
        }
    }

    /// Whether a candidate may be below `bound` and is not known well enough to tell. It was dropped under a lower bound then.
    fn is_open(&self, bound: f32) -> bool {
        matches!(self, Self::AtLeast(least) if *least < bound)
    }
}

/// Candidates by their free tokens.
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<Vec<u32>, Known>);

/// The same as a list.
pub(super) type Entries = Vec<(Vec<u32>, Known)>;

impl Memory {
    /// From a list.
    pub fn of(entries: Entries) -> Self {
        Self(entries.into_iter().collect())
    }

    /// As a list, in order.
    pub fn entries(&self) -> Entries {
        let mut entries: Entries = self.0.iter().map(|(free, known)| (free.clone(), known.clone())).collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        entries
    }

    /// Forgets all before another batch where there is much, of so many numbers each: a run state must stay small.
    pub fn make_room(&mut self, numbers: usize) {
        if self.0.len() > most_remembered(numbers) {
            self.clear();
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn insert(&mut self, free: Vec<u32>, known: Known) {
        self.0.insert(free, known);
    }

    /// Whether a candidate has been seen at this prompt.
    pub fn holds(&self, free: &[u32]) -> bool {
        self.0.contains_key(free)
    }

    /// Whether a candidate must be scored to tell if it is below `bound`.
    pub fn is_open(&self, free: &[u32], bound: f32) -> bool {
        self.0.get(free).is_none_or(|known| known.is_open(bound))
    }

    /// A candidate of which everything is known, and by which products.
    pub fn whole(&self, free: &[u32]) -> Option<(&Scored, Products)> {
        match self.0.get(free)? {
            Known::Whole(scored) => Some((scored, Products::Full)),
            Known::Rough(scored) => Some((scored, Products::Rough)),
            Known::AtLeast(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_targets_leave_room_for_fewer_candidates() {
        for (numbers, held) in [(60, 4096), (1400, 748)] {
            let mut memory = Memory::default();
            for token in 0..=held {
                memory.make_room(numbers);
                memory.insert(vec![token], Known::AtLeast(1.0));
            }
            assert_eq!(memory.0.len(), held as usize + 1);
            memory.make_room(numbers);
            assert!(memory.0.is_empty());
        }
    }
}
