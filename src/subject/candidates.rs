//! Prompts that differ from the current one from some position on: the inner loop of every hard search.

use std::ops::Range;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::fluency::Reading;
use super::{Plain, Subject, repeat};
use crate::model::{Cache, Llama, cache::retain};
use crate::objective::{Objective, RowLoss, hinge_at};
use crate::ops::{Kernels, Parallel, Products, TrackedBackend};
use crate::problem::{Example, Problem};
use crate::tensor::{host, ids_tensor};

/// Rows of a group of candidates, about: each group computes its trunk by itself.
const GROUP_ROWS: usize = 256;

/// What the model makes of target tokens behind one prompt, the target's own tokens fed; those of one example after another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetScores {
    /// How far each is ahead of the best other token, in logits.
    pub margins: Vec<f32>,
    /// What each adds to the objective, unweighted.
    pub losses: Vec<f32>,
    /// Where it is asked for: the mean −ln p of the free tokens, given what stands before, in nats; of several examples what they have added
    /// so far.
    #[serde(default)]
    pub nll: f32,
}

impl TargetScores {
    /// Adds those of the next target tokens.
    pub fn extend(&mut self, next: Self) {
        self.margins.extend(next.margins);
        self.losses.extend(next.losses);
        self.nll += next.nll;
    }
}

/// Prompts that share a beginning with the current one, scored along the target positions a part at a time. What they share is computed
/// once in each group of them; the groups are computed side by side.
pub struct Candidates<'a, B: TrackedBackend> {
    subject: &'a Subject<B>,
    problem: &'a Problem,
    objective: Objective,
    /// How exact the products of their scores are.
    products: Products,
    /// Whether the likelihood of the free tokens is scored.
    reads: bool,
    /// N free tokens.
    current: &'a [u32],
    /// (first free position at which it differs from the current prompt, its N free tokens) of every candidate still kept.
    kept: Vec<(usize, &'a [u32])>,
    /// The example whose target positions come next.
    example: usize,
    /// Its target positions scored so far.
    scored: usize,
    /// What the likelihood of the free tokens in it goes by, until that is scored with its first positions.
    reading: Option<Reading>,
    /// Those that score it.
    groups: Vec<Group<Plain<B>>>,
}

/// Some candidates in one example, and their keys and values.
struct Group<B: Kernels> {
    model: Llama<B>,
    /// (number among all candidates still kept, what it does not share with the current prompt).
    members: Vec<(usize, Vec<u32>)>,
    /// Rows of the current prompt that are computed first, once for all members.
    trunk: Vec<u32>,
    cache: Cache<B>,
}

/// What the likelihood of free tokens goes by, and those of every candidate.
type Readings<'a> = (&'a Reading, &'a [(usize, &'a [u32])]);

impl<B: TrackedBackend> Candidates<'_, B> {
    /// Scores by such products.
    #[must_use]
    pub fn by(self, products: Products) -> Self {
        Self { products, ..self }
    }

    /// Scores the likelihood of the free tokens too, if that is wanted.
    #[must_use]
    pub fn reading(self, wanted: bool) -> Self {
        Self { reads: wanted, ..self }
    }

    /// Scores the next `count` target positions of every candidate still kept, `[candidates][count]`.
    ///
    /// # Panics
    /// Where fewer are left.
    pub fn score(&mut self, count: usize) -> Vec<TargetScores> {
        let mut scores = vec![TargetScores::default(); self.kept.len()];
        let mut left = count;
        while left > 0 && !scores.is_empty() {
            let example = &self.problem.examples[self.example];
            if self.scored == 0 {
                self.groups = self.subject.candidate_groups(self.products, self.current, &self.kept, example);
                self.reading = self.reads.then(|| self.subject.reading(example, self.problem));
            }
            let part = left.min(example.target.ids.len() - self.scored);
            scores.iter_mut().zip(self.score_in(example, part)).for_each(|(scores, next)| scores.extend(next));
            left -= part;
            self.scored += part;
            if self.scored == example.target.ids.len() {
                (self.example, self.scored, self.groups) = (self.example + 1, 0, Vec::new());
            }
        }
        scores
    }

    /// The next `count` target positions of one example.
    fn score_in(&mut self, example: &Example, count: usize) -> Vec<TargetScores> {
        let (objective, scored, reading) = (self.objective, self.scored, self.reading.take());
        let at_once = self.subject.max_rows / self.groups.iter().map(Group::rows).max().unwrap_or(1).max(1);
        let readings = reading.as_ref().map(|reading| (reading, &*self.kept));
        let jobs = self.groups.iter_mut().map(|group| move || group.score(example, scored, count, objective, readings));
        let (mut all, mut pushed) = (Vec::new(), 0);
        for (rows, scores) in Plain::<B>::side_by_side(jobs.collect(), at_once) {
            pushed += rows;
            all.extend(scores);
        }
        self.subject.charge(pushed, 0, all.len() * (count + reading.map_or(0, |reading| reading.behind_others())));
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, scores)| scores).collect()
    }

    /// Drops the candidates for which `keep` is false.
    pub fn retain(&mut self, keep: &[bool]) {
        let kept_before: Vec<usize> = keep.iter().scan(0, |kept, &keep| Some(std::mem::replace(kept, *kept + usize::from(keep)))).collect();
        retain(&mut self.kept, keep);
        for group in &mut self.groups {
            let mask: Vec<bool> = group.members.iter().map(|(number, _)| keep[*number]).collect();
            group.cache.retain(&mask);
            retain(&mut group.members, &mask);
            group.members.iter_mut().for_each(|(number, _)| *number = kept_before[*number]);
        }
        self.groups.retain(|group| !group.members.is_empty());
    }
}

impl<B: Kernels> Group<B> {
    /// Rows that are to be pushed before the next target position.
    fn rows(&self) -> usize {
        self.trunk.len() + self.members.iter().map(|(_, own)| own.len()).sum::<usize>()
    }

    /// Rows pushed through the layers, and the scores of `count` target positions of each member, by number, `scored` of them behind it;
    /// before the first, the likelihood of its free tokens where it is asked for.
    fn score(
        &mut self,
        example: &Example,
        scored: usize,
        count: usize,
        objective: Objective,
        readings: Option<Readings>,
    ) -> (usize, Vec<(usize, TargetScores)>) {
        let (target, next) = (&example.target.ids, scored..scored + count);
        let fed = &target[next.start.saturating_sub(1)..next.end - 1];
        let mut ids = std::mem::take(&mut self.trunk);
        for (_, own) in &mut self.members {
            ids.append(own);
            ids.extend(fed);
        }
        self.cache.grow(example.positions() + next.end - 1);
        let device = self.model.device();
        let rows = self.model.embed(ids_tensor(&[&ids], &device)).reshape([ids.len(), self.model.config().hidden_size]);
        // All positions behind the head, whose hidden states predict the free tokens but the first.
        let ahead = readings.map_or(0, |_| example.positions() - example.head().len() - 1);
        let hidden = self.model.hidden_cached(rows, &mut self.cache, ahead + count);
        let numbers: Vec<usize> = self.members.iter().map(|(number, _)| *number).collect();
        let of_targets = positions(hidden.clone(), numbers.len(), ahead..ahead + count);
        let mut scores = target_scores(&self.model, of_targets, &target[next], numbers.len(), objective);
        if let Some((reading, candidates)) = readings {
            let free: Vec<&[u32]> = numbers.iter().map(|&number| candidates[number].1).collect();
            let behind = reading.behind_others();
            let of_free = (behind > 0).then(|| positions(hidden, free.len(), 0..behind));
            scores.iter_mut().zip(reading.nlls(&self.model, of_free, &free)).for_each(|(scores, nll)| scores.nll = worst_if_none(nll));
        }
        (ids.len(), numbers.into_iter().zip(scores).collect())
    }
}

/// Some of the positions of S samples, `[S·T, D]` → `[S·R, D]`.
fn positions<B: Kernels>(hidden: Tensor<B, 2>, samples: usize, range: Range<usize>) -> Tensor<B, 2> {
    let [rows, d] = hidden.dims();
    if range.len() * samples == rows {
        return hidden;
    }
    hidden.reshape([samples, rows / samples, d]).narrow(1, range.start, range.len()).reshape([samples * range.len(), d])
}

/// A loss; the worst there is where it is no number, which a saved state cannot hold.
fn worst_if_none(loss: f32) -> f32 {
    if loss.is_finite() { loss } else { f32::MAX }
}

/// What normalised hidden states `[S·M, D]` make of the M tokens of `target`, `[S][M]`.
fn target_scores<B: Kernels>(
    model: &Llama<B>,
    hidden: Tensor<B, 2>,
    target: &[u32],
    samples: usize,
    objective: Objective,
) -> Vec<TargetScores> {
    let targets = repeat::<B>(target, samples, &model.device());
    let (margins, losses): (Vec<f32>, Vec<f32>) = match objective.of_row() {
        RowLoss::Hinge(margin) => {
            let margins = host(model.margins(hidden, targets));
            let losses = margins.iter().map(|&m| hinge_at(margin, m)).collect();
            (margins, losses)
        }
        RowLoss::Logit => {
            let losses = B::target_loss(hidden.clone(), model.head(), targets.clone(), objective).losses;
            (host(model.margins(hidden, targets)), host(losses))
        }
        RowLoss::Nll => {
            let (margins, losses) = B::margins_and_cross_entropies(hidden, model.head(), targets);
            (host(margins), host(losses))
        }
    };
    let margins: Vec<f32> = margins.into_iter().map(|margin| if margin.is_finite() { margin } else { f32::MIN }).collect();
    let losses: Vec<f32> = losses.into_iter().map(worst_if_none).collect();
    let each = margins.chunks_exact(target.len()).zip(losses.chunks_exact(target.len()));
    each.map(|(margins, losses)| TargetScores { margins: margins.to_vec(), losses: losses.to_vec(), nll: 0.0 }).collect()
}

impl<B: TrackedBackend> Subject<B> {
    /// `candidates` of N free tokens each, to be scored by `objective` in every example of `problem`, one after another. Only what is
    /// behind a candidate's first difference from `current` is computed for it alone.
    pub fn candidates<'a>(
        &'a self,
        current: &'a [u32],
        candidates: &'a [Vec<u32>],
        problem: &'a Problem,
        objective: Objective,
    ) -> Candidates<'a, B> {
        let first_difference = |free: &[u32]| current.iter().zip(free).take_while(|(a, b)| a == b).count();
        let kept = candidates.iter().map(|free| (first_difference(free), &**free)).collect();
        Candidates {
            subject: self,
            problem,
            objective,
            products: Products::Full,
            reads: false,
            current,
            kept,
            example: 0,
            scored: 0,
            reading: None,
            groups: Vec::new(),
        }
    }

    /// The scores of whole prompts of N free tokens each, in all examples: `[S][Σ M]`.
    pub fn target_scores(&self, free: &[impl AsRef<[u32]>], problem: &Problem, objective: Objective) -> Vec<TargetScores> {
        let mut all = vec![TargetScores::default(); free.len()];
        for example in &problem.examples {
            let prompts: Vec<Vec<u32>> = free.iter().map(|free| example.search_ids(free.as_ref())).collect();
            let hidden = self.target_states(self.embed(&prompts), &example.target.ids);
            let scores = target_scores(&self.plain, hidden, &example.target.ids, free.len(), objective);
            all.iter_mut().zip(scores).for_each(|(all, scores)| all.extend(scores));
        }
        all
    }

    /// Groups of about the same number of rows: candidates are dealt out by the position of their first difference.
    fn candidate_groups(
        &self,
        products: Products,
        current: &[u32],
        candidates: &[(usize, &[u32])],
        example: &Example,
    ) -> Vec<Group<Plain<B>>> {
        let (head, prompt) = (example.head().len(), example.search_ids(current));
        let (prefix, model) = (self.prefix(example.head()), self.plain.by(products));
        let mut order: Vec<(usize, (usize, &[u32]))> = candidates.iter().copied().enumerate().collect();
        order.sort_by_key(|(_, (start, _))| *start);
        let rows: usize = candidates.iter().map(|(start, _)| example.positions() - (head + start) + example.target.ids.len() / 2).sum();
        let count = Plain::<B>::groups(rows, GROUP_ROWS, self.max_rows).min(candidates.len());
        let group = |first: usize| {
            let members: Vec<(usize, (usize, &[u32]))> = order.iter().copied().skip(first).step_by(count).collect();
            let starts: Vec<usize> = members.iter().map(|(_, (start, _))| head + start).collect();
            let trunk = prompt[head..starts.iter().copied().max().unwrap_or(head)].to_vec();
            let own = |(number, (start, free)): (usize, (usize, &[u32]))| (number, [&free[start..], example.tail()].concat());
            Group { model: model.clone(), members: members.into_iter().map(own).collect(), trunk, cache: prefix.fork(&starts) }
        };
        (0..count).map(group).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::problem::{Context, PromptOptions, Target};
    use crate::subject::feeding::Fed;
    use crate::testing::{each_tracked_cpu_backend, largest_difference, tiny_subject};

    const OBJECTIVES: [Objective; 4] =
        [Objective::CrossEntropy, Objective::Hinge { margin: 0.3 }, Objective::LogProbDifference, Objective::Mellowmax];

    fn subject<B: TrackedBackend>() -> Subject<B> {
        tiny_subject(DType::F32)
    }

    /// Five free tokens in two contexts, the second of which has nothing around them; a target of one token among them.
    fn problem<B: TrackedBackend>(subject: &Subject<B>, texts: &[&str]) -> Problem {
        let contexts =
            [("a ", " it"), ("", ""), ("so", "")].map(|(before, between)| Context { before: before.into(), between: between.into() });
        let targets = texts.iter().map(|text| Target::from_text(text, subject.tokenizer()).unwrap());
        let options = PromptOptions { tokens: 5, allow_everything: true, ..PromptOptions::default() };
        Problem::with_examples(options, contexts.into_iter().zip(targets).collect(), subject.tokenizer(), subject.vocab_size()).unwrap()
    }

    const CURRENT: [u32; 5] = [10, 20, 30, 40, 50];

    /// The same prompt, a swap at each end, several tokens, a shift to either side, an exchange, everything.
    fn candidates() -> Vec<Vec<u32>> {
        let all: [[u32; 5]; 8] = [
            CURRENT,
            [11, 20, 30, 40, 50],
            [10, 20, 30, 40, 51],
            [10, 21, 30, 41, 50],
            [10, 30, 40, 50, 60],
            [60, 10, 20, 30, 40],
            [10, 40, 30, 20, 50],
            [1, 2, 3, 4, 5],
        ];
        all.map(Vec::from).to_vec()
    }

    fn near(found: &TargetScores, expected: &TargetScores) -> bool {
        largest_difference(&found.margins, &expected.margins) < 1e-4 && largest_difference(&found.losses, &expected.losses) < 1e-4
    }

    /// In one go, in parts that end anywhere, and with some dropped between them.
    fn behind_a_shared_trunk_they_are_worth_what_whole_prompts_are<B: TrackedBackend>() {
        let (subject, all) = (subject::<B>(), candidates());
        for texts in [&["he is"][..], &["he is", "x", " to be"]] {
            let problem = problem(&subject, texts);
            let m = problem.target_tokens();
            for objective in OBJECTIVES {
                let expected = subject.target_scores(&all, &problem, objective);
                let means = subject.losses(&all, &problem, objective, &Fed::Target);
                let lengths = || problem.examples.iter().map(|example| example.target.ids.len());
                for (scores, mean) in expected.iter().zip(means) {
                    let value = objective.of_prompt(&scores.losses, lengths());
                    assert!((f64::from(value) - mean).abs() < 1e-4, "{objective:?}: {value} {mean}");
                }
                let before = subject.cost().forward_tokens;
                let found = subject.candidates(&CURRENT, &all, &problem, objective).score(m);
                let pushed = subject.cost().forward_tokens - before;
                assert_eq!(found.len(), all.len());
                assert!(found.iter().zip(&expected).all(|(found, expected)| near(found, expected)), "{objective:?}");
                let whole: usize =
                    problem.examples.iter().map(|example| all.len() * (example.positions() + example.target.ids.len() - 1)).sum();
                assert!(pushed < whole as u64, "{pushed} of {whole}");

                for first in 1..m {
                    let mut scoring = subject.candidates(&CURRENT, &all, &problem, objective);
                    let mut found = scoring.score(first);
                    let keep: Vec<bool> = (0..all.len()).map(|i| i % 3 != 1).collect();
                    scoring.retain(&keep);
                    retain(&mut found, &keep);
                    found.iter_mut().zip(scoring.score(m - first)).for_each(|(found, next)| found.extend(next));
                    let kept = expected.iter().zip(&keep).filter(|(_, keep)| **keep);
                    assert_eq!(found.len(), kept.clone().count());
                    assert!(found.iter().zip(kept).all(|(found, (expected, _))| near(found, expected)), "{objective:?} after {first}");
                    scoring.retain(&vec![false; found.len()]);
                }
            }
        }
    }

    /// In one go, in parts that end anywhere, and with some dropped between them; behind a head and behind none.
    fn free_tokens_read_as_in_whole_prompts<B: TrackedBackend>() {
        let (subject, all) = (subject::<B>(), candidates());
        for texts in [&["he is"][..], &["he is", "x", " to be"]] {
            let problem = problem(&subject, texts);
            let (m, objective) = (problem.target_tokens(), Objective::Hinge { margin: 0.3 });
            let expected = subject.nll(&all, &problem);
            let plain = subject.candidates(&CURRENT, &all, &problem, objective).score(m);
            for first in 1..=m {
                let mut scoring = subject.candidates(&CURRENT, &all, &problem, objective).reading(true);
                let mut found = scoring.score(first);
                assert!(found.iter().zip(&expected).all(|(found, whole)| found.nll > 0.0 && found.nll < whole + 1e-4), "a lower bound");
                let keep: Vec<bool> = (0..all.len()).map(|i| i % 3 != 1).collect();
                scoring.retain(&keep);
                retain(&mut found, &keep);
                if first < m {
                    found.iter_mut().zip(scoring.score(m - first)).for_each(|(found, next)| found.extend(next));
                }
                let kept = expected.iter().zip(&plain).zip(&keep).filter(|(_, keep)| **keep).map(|(pair, _)| pair);
                for (found, (nll, plain)) in found.iter().zip(kept) {
                    assert!((found.nll - nll).abs() < 1e-4 && near(found, plain), "after {first}: {} {nll}", found.nll);
                }
            }
        }
    }

    /// Several examples are scored as each of them alone.
    fn examples_do_not_meet<B: TrackedBackend>() {
        let (subject, all) = (subject::<B>(), candidates());
        let problem = problem(&subject, &["he is", "x", " to be"]);
        for objective in OBJECTIVES {
            let both = subject.candidates(&CURRENT, &all, &problem, objective).score(problem.target_tokens());
            let mut apart = vec![TargetScores::default(); all.len()];
            for example in &problem.examples {
                let one = Problem { examples: vec![example.clone()], ..problem.clone() };
                let scores = subject.candidates(&CURRENT, &all, &one, objective).score(example.target.ids.len());
                apart.iter_mut().zip(scores).for_each(|(apart, next)| apart.extend(next));
            }
            assert_eq!(both, apart);
        }
    }

    /// Where they are others at all.
    fn rough_scores_are_nearly_the_full_ones<B: TrackedBackend>() {
        let (subject, all) = (subject::<B>(), candidates());
        let problem = problem(&subject, &["he is", " to be"]);
        for objective in OBJECTIVES {
            let [full, rough] = [Products::Full, Products::Rough]
                .map(|products| subject.candidates(&CURRENT, &all, &problem, objective).by(products).score(problem.target_tokens()));
            for (full, rough) in full.iter().zip(&rough) {
                let difference = largest_difference(&full.margins, &rough.margins);
                assert!(difference < 0.1, "{difference}");
                assert!(Plain::<B>::has_rough_products() || difference == 0.0);
            }
        }
    }

    each_tracked_cpu_backend!(
        rough_scores_are_nearly_the_full_ones,
        free_tokens_read_as_in_whole_prompts,
        behind_a_shared_trunk_they_are_worth_what_whole_prompts_are,
        examples_do_not_meet
    );
}
