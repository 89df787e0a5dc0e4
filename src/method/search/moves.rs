//! What a candidate changes in the current prompt.

use super::proposal::Tokens;
use crate::noise::Draws;

/// What a candidate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// So many tokens are replaced, each at another random position.
    Swap(usize),
    /// Two tokens change places; nothing is proposed.
    Exchange,
    /// A token is taken out at one position and a proposed one put in at another: those between them move by one.
    Shift,
}

impl Moves {
    /// A neighbour of the prompt `free`, unless the draws miss.
    pub(super) fn candidate(self, free: &[u32], tokens: &Tokens, draws: &mut Draws) -> Option<Vec<u32>> {
        let mut candidate = free.to_vec();
        match self {
            Self::Swap(count) => {
                let mut positions: Vec<usize> = (0..free.len()).collect();
                for _ in 0..count.min(free.len()) {
                    let position = positions.swap_remove(draws.below(positions.len()));
                    candidate[position] = tokens.draw(position, free[position], draws)?;
                }
            }
            Self::Exchange => candidate.swap(draws.below(free.len()), draws.below(free.len())),
            Self::Shift => {
                let (out, position) = (draws.below(free.len()), draws.below(free.len()));
                let token = tokens.draw(position, free[position], draws)?;
                candidate.remove(out);
                candidate.insert(position, token);
            }
        }
        (candidate != free || tokens.may_stay()).then_some(candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Purpose, Stream};

    /// Many neighbours of a prompt by one kind of move.
    fn neighbours(moves: Moves, free: &[u32]) -> Vec<Vec<u32>> {
        let mut draws = Draws::new(Stream::new(1, 0, 0, Purpose::SearchDraws, 0));
        let allowed: Vec<bool> = (0..40).map(|id| id % 2 == 0).collect();
        let tokens = Tokens::allowed(&allowed);
        let found: Vec<Vec<u32>> = (0..400).filter_map(|_| moves.candidate(free, &tokens, &mut draws)).collect();
        assert!(found.len() > 50 && found.iter().all(|found| found != free && found.len() == free.len()));
        assert!(found.iter().flatten().all(|token| token % 2 == 0), "only allowed tokens");
        found
    }

    #[test]
    fn each_move_changes_what_it_says() {
        let free = [2, 4, 6, 8, 10];
        let changed = |other: &Vec<u32>| other.iter().zip(&free).filter(|(a, b)| a != b).count();
        assert!(neighbours(Moves::Swap(1), &free).iter().all(|other| changed(other) == 1));
        let two = neighbours(Moves::Swap(2), &free);
        assert!(two.iter().all(|other| changed(other) <= 2) && two.iter().any(|other| changed(other) == 2));
        for exchanged in neighbours(Moves::Exchange, &free) {
            let mut sorted = exchanged.clone();
            sorted.sort_unstable();
            assert_eq!((changed(&exchanged), &sorted[..]), (2, &free[..]));
        }
        let shifted = neighbours(Moves::Shift, &free);
        let keeps_order = |other: &Vec<u32>| (0..5).any(|out| (0..5).any(|at| without(other, at) == without(&free, out)));
        assert!(shifted.iter().all(keeps_order) && shifted.iter().any(|other| changed(other) == 5));
    }

    fn without(free: &[u32], at: usize) -> Vec<u32> {
        [&free[..at], &free[at + 1..]].concat()
    }
}
