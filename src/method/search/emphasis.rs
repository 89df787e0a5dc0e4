//! Emphasis on what stays missed. Late in a search most swaps that win one target position lose another, and one that has long been missed
//! counts no more than the rest. So a position weighs the more the more of the search's last prompts missed it, as clauses do in local search for
//! satisfiability (breakout, Morris 1993; SAPS, Hutter, Tompkins and Hoos 2002), until it is worth what it costs.

use serde::{Deserialize, Serialize};

/// Prompts that the search looks back on, about.
const PROMPTS: f32 = 20.0;

/// The share of the prompts that the search has come to since its start which missed each target position, `[Σ M]`: the later ones count
/// more, and before the first of them, as it were, none was missed for long. Empty before the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Missed(Vec<f32>);

impl Missed {
    /// The search has come to a prompt that missed these positions, `[Σ M]`.
    pub fn note(&mut self, missed: impl ExactSizeIterator<Item = bool>) {
        self.0.resize(missed.len(), 0.0);
        for (share, missed) in self.0.iter_mut().zip(missed) {
            *share += (f32::from(u8::from(missed)) - *share) / PROMPTS;
        }
    }

    /// What each of `positions` target positions counts for: 1, and as much as `most` more if it was missed all along.
    pub fn emphasis(&self, most: f32, positions: usize) -> Vec<f32> {
        let share = |position| self.0.get(position).copied().unwrap_or(0.0);
        (0..positions).map(|position| 1.0 + most * share(position)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missed_all_along_counts_most() {
        let mut missed = Missed::default();
        assert_eq!(missed.emphasis(2.0, 3), [1.0; 3]);
        missed.note([false, true, true].into_iter());
        assert_eq!(missed.emphasis(2.0, 3), [1.0, 1.1, 1.1]);
        (0..400).for_each(|prompt| missed.note([false, true, prompt % 2 == 0].into_iter()));
        let emphasis = missed.emphasis(2.0, 3);
        assert_eq!(emphasis[0], 1.0);
        assert!((emphasis[1] - 3.0).abs() < 1e-4 && (emphasis[2] - 2.0).abs() < 0.1, "{emphasis:?}");
        // Forgotten as it was learned.
        (0..400).for_each(|_| missed.note([true, false, false].into_iter()));
        let emphasis = missed.emphasis(2.0, 3);
        assert!((emphasis[0] - 3.0).abs() < 1e-4 && emphasis[1] < 1.0 + 1e-4, "{emphasis:?}");
    }
}
