//! Scores between token sequences and between texts, and summaries of numbers.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

/// Mean of some numbers, with the extremes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of one number or more.
    pub fn of<T: Copy + Into<f64>>(values: &[T]) -> Self {
        let values = || values.iter().map(|&value| value.into());
        Self {
            mean: values().sum::<f64>() / values().len() as f64,
            min: values().fold(f64::INFINITY, f64::min),
            max: values().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// Itself, unless one of the numbers was none.
    pub fn finite(self) -> Option<Self> {
        [self.mean, self.min, self.max].iter().all(|x| x.is_finite()).then_some(self)
    }
}

/// Length of the longest common subsequence: tokens of both in the same order, gaps allowed.
pub fn lcs(a: &[u32], b: &[u32]) -> usize {
    // row[j]: the length for the part of `a` seen so far and b[..j].
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

/// LCS(ŷ, y) / |y|, the score of the paper; 0 for an empty target.
pub fn lcs_ratio(completion: &[u32], target: &[u32]) -> f64 {
    share(lcs(completion, target), target.len())
}

/// Tokens from the start that are equal in both.
pub fn matched_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// Share of the target's positions at which the completion has the target's token; 0 for an empty target.
pub fn token_accuracy(completion: &[u32], target: &[u32]) -> f64 {
    share(completion.iter().zip(target).filter(|(x, y)| x == y).count(), target.len())
}

/// Share of the prompt's positions that hold a token of the target; 0 for an empty prompt.
pub fn overlap(prompt: &[u32], target: &[u32]) -> f64 {
    let target: HashSet<_> = target.iter().collect();
    share(prompt.iter().filter(|token| target.contains(token)).count(), prompt.len())
}

/// Share of the target's distinct tokens that occur in the prompt; 0 for an empty target.
pub fn target_hit_ratio(prompt: &[u32], target: &[u32]) -> f64 {
    let prompt: HashSet<_> = prompt.iter().collect();
    let target: HashSet<_> = target.iter().collect();
    share(target.intersection(&prompt).count(), target.len())
}

/// Longest run of letters and digits that prompt and target share, over those of the target; compatibility forms and case do not matter.
/// 0 for a target without any.
pub fn overlap_text(prompt: &str, target: &str) -> f64 {
    share(shared_letters(prompt, target), letters(target).len())
}

/// Length of the longest run of letters and digits that prompt and target share.
pub fn shared_letters(prompt: &str, target: &str) -> usize {
    longest_common_run(&letters(prompt), &letters(target))
}

fn letters(text: &str) -> Vec<char> {
    text.nfkc().flat_map(char::to_lowercase).filter(|c| c.is_alphanumeric()).collect()
}

/// Length of the longest run of neighbours that both have.
pub fn longest_common_run(a: &[char], b: &[char]) -> usize {
    // row[j]: length of the common run that ends with this character of `a` and b[j - 1].
    let mut row = vec![0; b.len() + 1];
    let mut longest = 0;
    for x in a {
        for j in (1..=b.len()).rev() {
            row[j] = if b[j - 1] == *x { row[j - 1] + 1 } else { 0 };
            longest = longest.max(row[j]);
        }
    }
    longest
}

/// exp of the mean negative log-likelihood (nats per token); `None` without a token and where it is not finite.
pub fn perplexity(nll: &[f64]) -> Option<f64> {
    Some((nll.iter().sum::<f64>() / nll.len() as f64).exp()).filter(|perplexity| perplexity.is_finite())
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The longest of all subsequences of `a` that `b` contains.
    fn lcs_by_enumeration(a: &[u32], b: &[u32]) -> usize {
        let chosen = |mask: u32| a.iter().enumerate().filter(move |(i, _)| mask >> i & 1 == 1).map(|(_, x)| x);
        let contained = |mask: &u32| {
            let mut rest = b.iter();
            chosen(*mask).all(|x| rest.any(|y| x == y))
        };
        (0..1 << a.len()).filter(contained).map(u32::count_ones).max().unwrap_or(0) as usize
    }

    fn longest_substring_by_enumeration(a: &str, b: &str) -> usize {
        let a: Vec<char> = a.chars().collect();
        let pieces = (0..a.len()).flat_map(|i| (i..a.len()).map(move |j| i..=j));
        pieces.map(|piece| &a[piece]).filter(|piece| b.contains(&piece.iter().collect::<String>())).map(<[char]>::len).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn lcs_is_what_enumeration_finds(a in vec(0..4u32, 0..9), b in vec(0..4u32, 0..9)) {
            prop_assert_eq!(lcs(&a, &b), lcs_by_enumeration(&a, &b));
        }

        #[test]
        fn lcs_is_symmetric_and_bounded(a in vec(0..9u32, 0..40), b in vec(0..9u32, 0..40)) {
            prop_assert_eq!(lcs(&a, &b), lcs(&b, &a));
            prop_assert!(lcs(&a, &b) <= a.len().min(b.len()));
            prop_assert!(lcs(&a, &b) >= matched_prefix(&a, &b));
            prop_assert_eq!(lcs(&a, &a), a.len());
        }

        #[test]
        fn the_full_ratio_means_that_the_target_is_there(a in vec(0..3u32, 0..20), b in vec(0..3u32, 1..6)) {
            let mut rest = a.iter();
            let there = b.iter().all(|y| rest.any(|x| x == y));
            prop_assert_eq!(lcs_ratio(&a, &b) == 1.0, there);
        }

        #[test]
        fn matched_prefix_is_the_longest(a in vec(0..2u32, 0..8), b in vec(0..2u32, 0..8)) {
            let n = matched_prefix(&a, &b);
            prop_assert_eq!(&a[..n], &b[..n]);
            prop_assert!(a.get(n).is_none() || b.get(n).is_none() || a[n] != b[n]);
        }

        #[test]
        fn token_accuracy_lies_between_prefix_and_subsequence(a in vec(0..3u32, 9..10), b in vec(0..3u32, 9..10)) {
            let accuracy = token_accuracy(&a, &b);
            prop_assert!(accuracy >= matched_prefix(&a, &b) as f64 / 9.0 && accuracy <= lcs_ratio(&a, &b));
            prop_assert_eq!(accuracy == 1.0, a == b);
        }

        #[test]
        fn overlaps_are_shares(a in vec(0..9u32, 0..20), b in vec(0..9u32, 0..20)) {
            let inside = a.iter().filter(|x| b.contains(x)).count();
            prop_assert_eq!(overlap(&a, &b), if a.is_empty() { 0.0 } else { inside as f64 / a.len() as f64 });
            prop_assert!((0.0..=1.0).contains(&target_hit_ratio(&a, &b)));
            prop_assert_eq!(target_hit_ratio(&a, &b) > 0.0, overlap(&a, &b) > 0.0);
        }

        #[test]
        fn overlap_text_is_what_enumeration_finds(a in "[abü]{0,12}", b in "[abü]{1,12}") {
            let wanted = longest_substring_by_enumeration(&a, &b) as f64 / b.chars().count() as f64;
            prop_assert_eq!(overlap_text(&a, &b), wanted);
        }
    }

    #[test]
    fn a_token_counts_only_in_its_place() {
        assert_eq!(token_accuracy(&[9, 1, 2, 3], &[1, 1, 2, 9]), 0.5);
        assert_eq!(token_accuracy(&[1, 2], &[2, 1]), 0.0);
        assert_eq!(token_accuracy(&[1], &[1, 1, 1, 1]), 0.25);
        assert_eq!(token_accuracy(&[1], &[]), 0.0);
    }

    #[test]
    fn a_spread_is_finite_where_all_its_numbers_are() {
        assert_eq!(Spread::of(&[1f32, 4.0, 1.0]).finite(), Some(Spread { mean: 2.0, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(&[1.0, f64::NAN]).finite(), None);
        assert_eq!(Spread::of(&[1.0, f64::INFINITY]).finite(), None);
    }

    #[test]
    fn a_repeated_token_counts_per_position_but_once_per_target() {
        assert_eq!(overlap(&[1, 1, 2, 3], &[1, 9, 9]), 0.5);
        assert_eq!(target_hit_ratio(&[1, 1, 2, 3], &[1, 9, 9, 9]), 0.5);
    }

    #[test]
    fn text_is_compared_by_letters() {
        assert_eq!(overlap_text("xüber", "über"), 1.0);
        assert_eq!(overlap_text("the dead king", "king is dead"), 4.0 / 10.0);
        assert_eq!(overlap_text("K-I-N-G!", "ｋｉｎｇ is"), 4.0 / 6.0);
        assert_eq!(overlap_text("", "a"), 0.0);
        assert_eq!(overlap_text("a", ""), 0.0);
    }

    #[test]
    fn perplexity_of_a_uniform_guess_is_the_number_of_choices() {
        assert!((perplexity(&[8f64.ln(); 5]).unwrap() - 8.0).abs() < 1e-12);
        assert_eq!(perplexity(&[0.0]), Some(1.0));
        assert_eq!(perplexity(&[]), None);
        assert_eq!(perplexity(&[1e9]), None);
    }
}
