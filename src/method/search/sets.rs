//! Sets of swaps. What single swaps were measured to change adds up well enough to choose among sets of them: swaps that would do little
//! or some harm alone are worth it together where one mends what the other spoils, and early on several good ones are taken at once.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Scored, Search};
use crate::objective::{Objective, hinge_at};

/// How many sets a step tries, and of what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sets {
    /// Sets of a step, for each swap of its batch.
    pub share: f64,
    /// Swaps of a set at most.
    pub largest: usize,
    /// Moves of the search that a measured change outlives, although it was measured at another prompt then.
    pub kept: u32,
}

impl Sets {
    /// Whether any are tried.
    pub fn are_tried(&self) -> bool {
        self.share > 0.0
    }

    /// Sets that follow a batch of so many swaps at most.
    pub fn count(&self, batch: usize) -> usize {
        ((batch as f64 * self.share) as usize).min(BEAM * (self.largest - 1))
    }
}

/// Measured changes at most, the newest.
const MAX_EFFECTS: usize = 512;
/// Sets of each size that larger ones are made from.
const BEAM: usize = 48;

/// What one swap was measured to change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Effect {
    position: usize,
    token: u32,
    /// Of the [`levels`], `[Σ M + 1]`.
    change: Vec<f32>,
    /// Moves since it was measured.
    age: u32,
}

/// The measured changes of swaps from the current prompt, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Effects(Vec<Effect>);

/// What sets are made for.
pub(super) struct Aim<'a> {
    objective: Objective,
    current: &'a Scored,
    /// Of each target position, `[Σ M]`.
    weights: Vec<f32>,
    /// Of fluency.
    fluency: f32,
}

impl<'a> Aim<'a> {
    /// Something better than the current prompt.
    pub fn new(search: &Search, current: &'a Scored, weights: Vec<f32>) -> Self {
        Self { objective: search.goal.objective(), current, weights, fluency: search.fluency().unwrap_or(0.0) as f32 }
    }

    /// What a prompt with these levels is worth.
    fn value(&self, levels: &[f32]) -> f32 {
        let loss = |level: f32| self.objective.margin().map_or(level.max(0.0), |margin| hinge_at(margin, level));
        let (targets, nll) = levels.split_at(self.weights.len());
        let objective: f32 = targets.iter().zip(&self.weights).map(|(&level, weight)| loss(level) * weight).sum();
        objective + self.fluency * nll[0].max(0.0)
    }
}

/// What changes add up on: of each target position the margin, where its loss is a hinge of it, else the loss; and the free tokens'
/// mean −ln p.
fn levels(objective: Objective, scored: &Scored) -> Vec<f32> {
    let targets = if objective.margin().is_some() { &scored.scores.margins } else { &scored.scores.losses };
    targets.iter().copied().chain([scored.scores.nll]).collect()
}

/// Some swaps, by their numbers in order, and the levels that they add up to.
#[derive(Clone)]
struct Set {
    members: Vec<usize>,
    levels: Vec<f32>,
    value: f32,
}

impl Set {
    /// The levels with one more change.
    fn with<'a>(&'a self, change: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        self.levels.iter().zip(change).map(|(level, change)| level + change)
    }
}

impl Effects {
    /// Notes what a candidate that was scored to the end changes, if it is a single swap.
    pub fn measure(&mut self, objective: Objective, current: &Scored, candidate: &Scored) {
        let mut differences = (0..current.free.len()).filter(|&i| current.free[i] != candidate.free[i]);
        let (Some(position), None) = (differences.next(), differences.next()) else { return };
        let token = candidate.free[position];
        let (new, old) = (levels(objective, candidate), levels(objective, current));
        let change: Vec<f32> = new.iter().zip(&old).map(|(new, old)| new - old).collect();
        // Saved states have no other numbers.
        if change.iter().all(|change| change.is_finite()) {
            self.0.retain(|effect| (effect.position, effect.token) != (position, token));
            self.0.push(Effect { position, token, change, age: 0 });
            let surplus = self.0.len().saturating_sub(MAX_EFFECTS);
            self.0.drain(..surplus);
        }
    }

    /// The search has moved from one prompt to another: changes at positions that changed are no longer known, the others age.
    pub fn moved(&mut self, from: &[u32], to: &[u32], kept: u32) {
        self.0.retain_mut(|effect| {
            effect.age += 1;
            from[effect.position] == to[effect.position] && effect.age <= kept
        });
    }

    /// The current prompt with the best sets of two to `largest` swaps, and the objective that they add up to, lowest first.
    pub fn sets(&self, largest: usize, aim: &Aim) -> Vec<(f32, Vec<u32>)> {
        let levels = levels(aim.objective, aim.current);
        let mut beam = vec![Set { members: Vec::new(), value: aim.current.value, levels }];
        let mut found = Vec::new();
        for size in 1..=largest {
            beam = self.grown(&beam, aim);
            found.extend(beam.iter().filter(|_| size > 1).cloned());
        }
        found.sort_by(|a, b| a.value.total_cmp(&b.value).then_with(|| a.members.cmp(&b.members)));
        found.iter().map(|set| (set.value, self.applied(set, &aim.current.free))).collect()
    }

    fn applied(&self, set: &Set, free: &[u32]) -> Vec<u32> {
        let mut free = free.to_vec();
        set.members.iter().map(|&member| &self.0[member]).for_each(|effect| free[effect.position] = effect.token);
        free
    }

    /// The best sets of one swap more, [`BEAM`] of them.
    fn grown(&self, beam: &[Set], aim: &Aim) -> Vec<Set> {
        let mut next: Vec<(f32, usize, usize)> = Vec::new();
        for (number, set) in beam.iter().enumerate() {
            let free = |effect: &Effect| set.members.iter().all(|&member| self.0[member].position != effect.position);
            let mut levels = Vec::with_capacity(set.levels.len());
            for (member, effect) in self.0.iter().enumerate().filter(|(_, effect)| free(effect)) {
                levels.clear();
                levels.extend(set.with(&effect.change));
                next.push((aim.value(&levels), number, member));
            }
        }
        next.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let mut seen = HashSet::new();
        let grown = next.into_iter().filter_map(|(value, number, member)| {
            let set = &beam[number];
            let mut members = set.members.clone();
            members.insert(members.partition_point(|&other| other < member), member);
            seen.insert(members.clone()).then(|| Set { members, levels: set.with(&self.0[member].change).collect(), value })
        });
        grown.take(BEAM).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::method::search::snap::SNAP;
    use crate::subject::TargetScores;

    const OBJECTIVE: Objective = Objective::Hinge { margin: 0.3 };
    const FLUENCY: f32 = 0.7;
    /// Of three target positions.
    const WEIGHTS: [f32; 3] = [1.0, 2.5, 1.5];

    fn search() -> Search {
        Search { fluency: Some(FLUENCY.into()), ..SNAP }
    }

    const KEPT: u32 = 2;

    /// The last level is the free tokens' −ln p.
    fn scored(free: &[u32], levels: &[f32]) -> Scored {
        let (margins, nll) = (levels[..3].to_vec(), levels[3]);
        let losses: Vec<f32> = margins.iter().map(|&margin| hinge_at(0.3, margin)).collect();
        let value = losses.iter().zip(WEIGHTS).map(|(loss, weight)| loss * weight).sum::<f32>() + FLUENCY * nll.max(0.0);
        Scored { free: free.to_vec(), scores: TargetScores { margins, losses, nll }, value }
    }

    fn levels_of(scored: &Scored) -> Vec<f32> {
        levels(OBJECTIVE, scored)
    }

    const FREE: [u32; 4] = [1, 2, 3, 4];

    /// Changes of swaps at these positions, each to another token.
    fn measured(current: &Scored, changes: &[(usize, [f32; 4])]) -> Effects {
        let mut effects = Effects::default();
        for (number, (position, change)) in changes.iter().enumerate() {
            let mut free = current.free.clone();
            free[*position] = 10 + number as u32;
            let levels: Vec<f32> = levels_of(current).iter().zip(change).map(|(level, change)| level + change).collect();
            effects.measure(OBJECTIVE, current, &scored(&free, &levels));
        }
        effects
    }

    proptest! {
        /// With as few swaps as the beam is wide, the best sets are those of all there are.
        #[test]
        fn the_best_sets_are_found(
            margins in proptest::array::uniform3(-3f32..1.0),
            nll in 0f32..9.0,
            changes in proptest::collection::vec((0usize..4, proptest::array::uniform4(-2f32..2.0)), 1..6),
        ) {
            let current = scored(&FREE, &[&margins[..], &[nll]].concat());
            let effects = measured(&current, &changes);
            let found = effects.sets(3, &Aim::new(&search(), &current, WEIGHTS.to_vec()));
            let mut best: Option<(f32, Vec<u32>)> = None;
            for mask in 0u32..1 << changes.len() {
                let members: Vec<usize> = (0..changes.len()).filter(|i| mask >> i & 1 == 1).collect();
                let positions: HashSet<usize> = members.iter().map(|&i| changes[i].0).collect();
                if !(2..=3).contains(&members.len()) || positions.len() < members.len() {
                    continue;
                }
                let (mut free, mut sum) = (FREE.to_vec(), levels_of(&current));
                for &i in &members {
                    free[changes[i].0] = 10 + i as u32;
                    sum.iter_mut().zip(&changes[i].1).for_each(|(sum, change)| *sum += change);
                }
                let value = scored(&free, &sum).value;
                if best.as_ref().is_none_or(|(lowest, _)| value < lowest - 1e-5) {
                    best = Some((value, free));
                }
            }
            prop_assert_eq!(found.is_empty(), best.is_none());
            prop_assert!(found.is_sorted_by(|a, b| a.0 <= b.0));
            if let (Some((value, _)), Some((predicted, found))) = (best, found.first()) {
                prop_assert!((predicted - value).abs() < 1e-4);
                let sum = changes.iter().enumerate().filter(|(i, (position, _))| found[*position] == 10 + *i as u32);
                let sum = sum.fold(levels_of(&current), |sum: Vec<f32>, (_, (_, change))| sum.iter().zip(change).map(|(a, b)| a + b).collect());
                prop_assert!((scored(found, &sum).value - value).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn changes_are_of_single_swaps_and_do_not_outlive_their_position() {
        let current = scored(&FREE, &[0.0, -1.0, 2.0, 5.0]);
        let mut effects = measured(&current, &[(0, [1.0; 4]), (2, [0.5; 4])]);
        effects.measure(OBJECTIVE, &current, &scored(&[7, 7, 3, 4], &[0.0; 4]));
        effects.measure(OBJECTIVE, &current, &current);
        assert_eq!(effects.0.len(), 2);
        effects.moved(&FREE, &[9, 2, 3, 4], KEPT);
        assert_eq!(effects.0.iter().map(|effect| (effect.position, effect.age)).collect::<Vec<_>>(), [(2, 1)]);
        effects.moved(&[9, 2, 3, 4], &[9, 2, 3, 5], KEPT);
        assert_eq!(effects.0.len(), 1);
        effects.moved(&[9, 2, 3, 5], &[9, 8, 3, 5], KEPT);
        assert_eq!(effects, Effects::default());
    }
}
