//! adc: *Efficient LLM Jailbreak via Adaptive Dense-to-sparse Constrained Optimization* (Hu et al. 2024), as its authors' code has it
//! (github.com/hukkai/adc_llm_attack).
//!
//! S starts side by side, each N rows of the simplex over the vocabulary, at first softmax of normal draws. Each step:
//!
//! 1. the gradient of the cross-entropy, the target's own tokens fed, and a step of SGD with momentum on the rows;
//! 2. the argmax of every row as a hard prompt, scored exactly; where it is known already, the first that differs from it in one position,
//!    which holds the second largest;
//! 3. each row keeps its largest s entries, without what is negative, and is divided by their sum. s = 2ʷ, w being a moving average of the
//!    target tokens that the start's own soft prompt gets wrong: rows become one-hot just when it gets them right. Of a fractional s, that
//!    share of the positions keeps one entry more, and five of them always do.
//!
//! ADC+ goes on with GCG from the best of all hard prompts where ADC has not ended after 5000 steps: `gcg_after`.
//!
//! Where it differs: the hard prompts of each step are scored at once, not when there are 64; what is known is forgotten after 4096; the
//! search vocabulary is the problem's.

use std::collections::BTreeSet;

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::search::gcg::GCG;
use super::search::{Scored, Search, SearchMethod, most_remembered, objective_value};
use super::{Clock, HardPrompt, Method, Progress, State, wrong};
use crate::noise::{Draws, Purpose};
use crate::objective::{Goal, margin_key, objective_key};
use crate::ops::{Matrix, TrackedBackend, wide};
use crate::problem::Problem;
use crate::setting::{Key, key, optional_whole, positive, real, whole};
use crate::subject::{Footprint, Subject};
use crate::tensor::{host, norm};
use crate::{Error, Result, interrupt};

/// Its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adc {
    /// S, starts side by side.
    pub samples: usize,
    /// What is minimised.
    pub goal: Goal,
    /// Of SGD, for the objective of one start.
    pub learning_rate: f64,
    /// Share of the earlier gradients.
    pub momentum: f64,
    /// Steps after which GCG goes on from the best hard prompt (ADC+); none: never.
    pub gcg_after: Option<u64>,
}

/// ADC with its authors' defaults, and the starts of their ADC+.
pub const ADC: Adc = Adc { samples: 8, goal: Goal::CROSS_ENTROPY, learning_rate: 10.0, momentum: 0.99, gcg_after: None };

impl Adc {
    /// The search that goes on.
    fn gcg(&self) -> Search {
        Search { goal: self.goal, ..GCG }
    }

    /// What the memory of a step goes by.
    pub fn footprint(&self) -> Footprint {
        let samples = self.samples;
        let candidates = self.gcg_after.map_or(samples, |_| samples.max(self.gcg().candidates()));
        Footprint { samples, candidates, dense: samples, ..Footprint::default() }
    }
}

/// The settings of ADC.
pub const KEYS: &[Key<Adc>] = &[
    key("samples", "Starts side by side (S)", |adc| Some(whole(&mut adc.samples, 1..=1024))),
    objective_key(|adc| adc.goal.kind_slot()),
    margin_key(|adc| adc.goal.margin_slot()),
    key("learning_rate", "Learning rate of the gradient descent", |adc| Some(positive(&mut adc.learning_rate))),
    key("momentum", "Share of the earlier gradients in a step", |adc| Some(real(&mut adc.momentum, 0.0..=0.999))),
    key("gcg_after", "Steps after which `gcg` goes on from the best hard prompt, in ADC+ 5000, or `none`", |adc| {
        Some(optional_whole(&mut adc.gcg_after, 1..=1_000_000_000))
    }),
];

/// Weight of a step's wrong tokens in their moving average.
const NEW: f32 = 0.01;
/// Positions that keep an entry more than ⌊s⌋ at least.
const MORE: usize = 5;
/// What a kept entry has at least before a row is divided by its sum.
const LEAST: f32 = 1e-6;

/// ADC at work.
pub struct AdcMethod {
    settings: Adc,
    /// S·N rows of the simplex, `[S·N, V]`.
    rows: Vec<f32>,
    /// Momentum, `[S·N, V]`.
    velocity: Vec<f32>,
    at: Fields,
    /// What goes on in its place, once it does.
    gcg: Option<SearchMethod>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Fields {
    /// Moving average of the wrong target tokens of each start; none before the first step.
    wrong: Vec<f32>,
    /// The best hard prompt of the last step that had one.
    best: HardPrompt,
    /// The best of all.
    best_of_all: Option<Scored>,
    /// Hard prompts that were scored.
    known: BTreeSet<Vec<u32>>,
}

impl AdcMethod {
    /// A method that is to be started.
    pub fn new(settings: Adc) -> Self {
        Self { settings, rows: Vec::new(), velocity: Vec::new(), at: Fields::default(), gcg: None }
    }

    /// A step of the optimiser by the gradient of the mean over the starts. Whether each token is allowed is `[V]`.
    fn descend(&mut self, gradient: &[f32], allowed: &[bool]) {
        let Adc { samples, learning_rate, momentum, .. } = self.settings;
        let (rate, momentum, v) = (learning_rate as f32 * samples as f32, momentum as f32, allowed.len());
        let lines = self.rows.par_chunks_mut(v).zip(self.velocity.par_chunks_mut(v)).zip(gradient.par_chunks(v));
        lines.for_each(|((row, velocity), gradient)| {
            for (id, &allowed) in allowed.iter().enumerate() {
                velocity[id] = momentum * velocity[id] + gradient[id];
                row[id] = if allowed { row[id] - rate * velocity[id] } else { f32::NEG_INFINITY };
            }
        });
    }

    /// Makes every row as sparse as the wrong tokens of its start say.
    fn sparsify(&mut self, n: usize, v: usize, draws: &mut Draws) {
        let order = shuffled(n, draws);
        let sparsity = self.at.wrong.iter().map(|wrong| wrong.exp2().min(v as f32 / 2.0)).collect::<Vec<_>>();
        self.rows.par_chunks_mut(v).enumerate().for_each(|(number, row)| {
            let (s, place) = (sparsity[number / n], order[number % n]);
            let more = place < ((s.fract() * n as f32) as usize).max(MORE);
            keep_largest(row, s as usize + usize::from(more));
        });
    }

    /// The hard prompt of each start that is to be scored, where one is new.
    fn hard_prompts(&mut self, n: usize, v: usize, problem: &Problem) -> Vec<Vec<u32>> {
        let tops: Vec<[u32; 2]> = self.rows.par_chunks(v).map(two_largest).collect();
        let mut prompts = Vec::new();
        for tops in tops.chunks_exact(n) {
            interrupt::check();
            let first: Vec<u32> = tops.iter().map(|[first, _]| *first).collect();
            let others = tops.iter().enumerate().map(|(position, [_, second])| {
                let mut other = first.clone();
                other[position] = *second;
                other
            });
            let all = std::iter::once(first.clone()).chain(others);
            let new = all.filter_map(|free| as_typed(&free, problem)).find(|free| !self.at.known.contains(free));
            if let Some(free) = new {
                self.at.known.insert(free.clone());
                prompts.push(free);
            }
        }
        prompts
    }

    /// Scores the hard prompts; the best, before all others one that leads to the targets, is the one at hand.
    fn score<B: TrackedBackend>(&mut self, prompts: Vec<Vec<u32>>, subject: &Subject<B>, problem: &Problem) {
        let objective = self.settings.goal.objective();
        let scores = subject.candidates(&prompts[0], &prompts, problem, objective).score(problem.target_tokens());
        let scored = prompts.into_iter().zip(scores);
        let scored = scored.map(|(free, scores)| Scored { value: objective_value(objective, &scores.losses, problem), free, scores });
        let Some(best) = scored.min_by(|a, b| a.order(b, problem)) else { return };
        if self.at.best_of_all.as_ref().is_none_or(|before| best.order(before, problem).is_lt()) {
            self.at.best_of_all = Some(best.clone());
        }
        self.at.best = HardPrompt::new(best.free, Some(best.scores.margins));
    }

    /// Leaves the rest to GCG, from the best hard prompt.
    fn hand_over<B: TrackedBackend>(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        let mut gcg = SearchMethod::new(self.settings.gcg());
        match self.at.best_of_all.take() {
            Some(best) => gcg.start_at(&[best.free], subject, problem, clock)?,
            None => gcg.start(subject, problem, clock)?,
        }
        *self = Self { gcg: Some(gcg), ..Self::new(self.settings) };
        Ok(())
    }
}

/// The tokens that typing a free part gives, if they are as many and may be proposed.
fn as_typed(free: &[u32], problem: &Problem) -> Option<Vec<u32>> {
    let typed = problem.first().typed_ids(&problem.free_text(free));
    if typed.len() == problem.first().positions() { problem.proposable(&typed) } else { None }
}

/// 0..n in random order.
fn shuffled(n: usize, draws: &mut Draws) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, draws.below(last + 1));
    }
    order
}

/// The positions of the two largest values of a row of two or more.
fn two_largest(row: &[f32]) -> [u32; 2] {
    let larger = |a: usize, b: usize| row[a] > row[b];
    let start = if larger(1, 0) { [1, 0] } else { [0, 1] };
    let [first, second] = (2..row.len()).fold(start, |[first, second], id| {
        if larger(id, first) {
            [id, first]
        } else if larger(id, second) {
            [first, id]
        } else {
            [first, second]
        }
    });
    [first as u32, second as u32]
}

/// Keeps the `count` largest entries of a row, each at least [`LEAST`], and divides them by their sum; the others become 0.
fn keep_largest(row: &mut [f32], count: usize) {
    let mut ids: Vec<u32> = (0..row.len() as u32).filter(|&id| row[id as usize] > f32::NEG_INFINITY).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, |&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        ids.truncate(count);
    }
    ids.sort_unstable();
    let kept: Vec<(u32, f32)> = ids.into_iter().map(|id| (id, row[id as usize].max(0.0) + LEAST)).collect();
    let sum: f32 = kept.iter().map(|(_, weight)| weight).sum();
    row.fill(0.0);
    kept.into_iter().for_each(|(id, weight)| row[id as usize] = weight / sum);
}

impl<B: TrackedBackend> Method<B> for AdcMethod {
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        let (allowed, rows) = (problem.prompt.allowed(), self.settings.samples * problem.prompt.tokens());
        let v = subject.vocab_size();
        if problem.prompt.ids().len() < 2 {
            return Err(Error::input("ADC chooses among tokens, and fewer than two may stand in the prompt; allow more"));
        }
        let mut normal = Clock { step: 0, ..clock }.stream(Purpose::InitialLogits).normal(rows, v);
        normal.par_chunks_mut(v).for_each(|row| softmax(row, allowed));
        *self = Self { rows: normal, velocity: vec![0.0; rows * v], ..Self::new(self.settings) };
        self.at.best.free = self.rows.chunks_exact(v).take(problem.prompt.tokens()).map(|row| two_largest(row)[0]).collect();
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        if self.gcg.is_none() && self.settings.gcg_after.is_some_and(|after| u64::from(clock.step) >= after) {
            self.hand_over(subject, problem, clock)?;
        }
        if let Some(gcg) = &mut self.gcg {
            return gcg.step(subject, problem, clock);
        }
        let (n, v) = (problem.prompt.tokens(), subject.vocab_size());
        let weights = tensor::<B>(&self.rows, v, subject);
        let (margins, objective, gradient) =
            subject.margins_and_gradient(subject.mixed_embeddings(weights), problem, self.settings.goal.objective());
        let wrong = margins.iter().map(|margins| wrong(margins) as f32);
        if self.at.wrong.is_empty() {
            self.at.wrong = wrong.collect();
        } else {
            self.at.wrong.iter_mut().zip(wrong).for_each(|(average, wrong)| *average += (wrong - *average) * NEW);
        }
        let gradient = subject.times_embedding(gradient);
        let gradient_norm = norm(gradient.clone());
        self.descend(&host(gradient), problem.prompt.allowed());
        if self.at.known.len() > most_remembered(n) {
            self.at.known.clear();
        }
        let prompts = self.hard_prompts(n, v, problem);
        if !prompts.is_empty() {
            self.score(prompts, subject, problem);
        }
        self.sparsify(n, v, &mut Draws::new(clock.stream(Purpose::SearchDraws)));
        Ok(Progress { objective: objective as f32, gradient_norm: Some(gradient_norm), ..Progress::default() })
    }

    fn hard_prompt(&self, subject: &Subject<B>, problem: &Problem) -> HardPrompt {
        self.gcg.as_ref().map_or_else(|| self.at.best.clone(), |gcg| gcg.hard_prompt(subject, problem))
    }

    fn state(&self) -> State {
        if let Some(gcg) = &self.gcg {
            let State { tensors, fields } = Method::<B>::state(gcg);
            return State { tensors, fields: json!({ "gcg": fields }) };
        }
        let (mut state, rows) = (State::new(&self.at), self.settings.samples * self.at.best.free.len());
        for (name, values) in [("rows", &self.rows), ("velocity", &self.velocity)] {
            state.put_values(name, rows, values.clone());
        }
        state
    }

    fn restore(&mut self, mut state: State, subject: &Subject<B>, problem: &Problem) -> Result<()> {
        if let Some(fields) = state.field::<Option<Value>>("gcg")? {
            let gcg = self.gcg.insert(SearchMethod::new(self.settings.gcg()));
            return gcg.restore(State { fields, ..state }, subject, problem);
        }
        *self = Self { at: state.fields()?, ..Self::new(self.settings) };
        let shape = [self.settings.samples * problem.prompt.tokens(), subject.vocab_size()];
        let mut take = |name: &str| state.take_values(name, shape);
        (self.rows, self.velocity) = (take("rows")?, take("velocity")?);
        Ok(())
    }
}

/// softmax over what is allowed, 0 elsewhere.
fn softmax(row: &mut [f32], allowed: &[bool]) {
    row.iter_mut().zip(allowed).for_each(|(x, &allowed)| *x = if allowed { x.exp() } else { 0.0 });
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

fn tensor<B: TrackedBackend>(rows: &[f32], v: usize, subject: &Subject<B>) -> Matrix<B> {
    let dtype: DType = wide(subject.model().dtype());
    Tensor::from_data(TensorData::new(rows.to_vec(), [rows.len() / v, v]), (&subject.device(), dtype))
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;
    use crate::problem::PromptOptions;
    use crate::testing::{Golden, TABLE_1, each_tracked_cpu_backend, largest_difference, one_at_a_time, tiny_subject};

    /// A problem whose prompts are of tokens that stand for text, as the fixture's.
    fn problem<B: TrackedBackend>(subject: &Subject<B>, tokens: usize) -> Problem {
        let ids = Golden::open(TABLE_1).ids("target").remove(0);
        let target = crate::Target::new(subject.tokenizer().decode(&ids), ids);
        let options = PromptOptions { tokens, allow_target_tokens: true, ..PromptOptions::default() };
        Problem::new(options, target, subject.tokenizer(), subject.vocab_size()).unwrap()
    }

    /// Losses, wrong tokens, rows and hard prompts.
    #[test]
    fn it_goes_where_pytorch_goes() {
        type B = Autodiff<Flex>;
        let _guard = one_at_a_time();
        let golden = Golden::open("rival_steps.safetensors");
        let ([losses, wrong], best) = (["loss", "wrong"].map(|part| golden.doubles(&format!("adc.{part}"))), golden.ids("adc.best"));
        let (subject, rows) = (tiny_subject::<B>(DType::F64), golden.floats("adc.rows"));
        let problem = problem(&subject, best[0].len());
        let allowed: Vec<u32> = problem.prompt.allowed().iter().map(|&allowed| u32::from(allowed)).collect();
        assert_eq!(allowed, golden.ids("adc.allowed").remove(0));
        let mut method = AdcMethod::new(Adc { samples: 2, ..ADC });
        let clock = |step| Clock { seed: 3, restart: 0, step };
        Method::<B>::start(&mut method, &subject, &problem, clock(0)).unwrap();
        method.rows = golden.floats("adc.first");
        let each = wrong.chunks_exact(2).zip(rows.chunks_exact(rows.len() / best.len()));
        for (step, ((loss, best), (wrong, rows))) in losses.iter().zip(&best).zip(each).enumerate() {
            let progress = method.step(&subject, &problem, clock(step as u32)).unwrap();
            assert!((f64::from(progress.objective) - loss).abs() < 1e-4, "step {step}: {} {loss}", progress.objective);
            assert!(method.at.wrong.iter().zip(wrong).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "step {step}");
            assert_eq!(&method.at.best.free, best, "step {step}");
            let difference = largest_difference(rows, &method.rows);
            assert!(difference < 1e-4, "step {step}: {difference}");
        }
    }

    /// Every row is a distribution over allowed tokens, every hard prompt can be typed, none is scored twice, and what goes on from a saved
    /// state goes on alike.
    fn rows_are_distributions_and_prompts_can_be_typed<B: TrackedBackend>() {
        let subject = tiny_subject::<B>(DType::F32);
        let (problem, v) = (problem(&subject, 4), subject.vocab_size());
        let clock = |step| Clock { seed: 5, restart: 0, step };
        let mut method = AdcMethod::new(Adc { samples: 3, ..ADC });
        let mut resumed = AdcMethod::new(method.settings);
        Method::<B>::start(&mut method, &subject, &problem, clock(0)).unwrap();
        for step in 0..12 {
            if step == 6 {
                Method::<B>::restore(&mut resumed, Method::<B>::state(&method), &subject, &problem).unwrap();
            }
            method.step(&subject, &problem, clock(step)).unwrap();
            for row in method.rows.chunks_exact(v) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                assert!(row.iter().zip(problem.prompt.allowed()).all(|(&x, &allowed)| x >= 0.0 && (allowed || x == 0.0)));
            }
            assert!(problem.admits(&method.at.best.free));
        }
        assert!((12..=36).contains(&method.at.known.len()));
        for step in 6..12 {
            resumed.step(&subject, &problem, clock(step)).unwrap();
        }
        assert_eq!(Method::<B>::state(&resumed), Method::<B>::state(&method));
    }

    each_tracked_cpu_backend!(rows_are_distributions_and_prompts_can_be_typed);

    /// ADC+: a GCG that begins at the best hard prompt, and what goes on from a saved state goes on alike.
    #[test]
    fn gcg_goes_on_from_the_best_hard_prompt() {
        type B = Autodiff<Flex>;
        let _guard = one_at_a_time();
        let subject = tiny_subject::<B>(DType::F32);
        let (problem, clock) = (problem(&subject, 4), |step| Clock { seed: 5, restart: 0, step });
        let [mut adc, mut plus, mut resumed] =
            [None, Some(4), Some(4)].map(|gcg_after| AdcMethod::new(Adc { samples: 2, gcg_after, ..ADC }));
        for method in [&mut adc, &mut plus] {
            Method::<B>::start(method, &subject, &problem, clock(0)).unwrap();
            for step in 0..4 {
                Method::<B>::step(method, &subject, &problem, clock(step)).unwrap();
            }
        }
        assert_eq!(plus.at.best_of_all, adc.at.best_of_all);
        let mut gcg = SearchMethod::new(adc.settings.gcg());
        let best = adc.at.best_of_all.take().expect("a hard prompt was scored").free;
        Method::<B>::start_at(&mut gcg, &[best], &subject, &problem, clock(4)).unwrap();
        for step in 4..7 {
            plus.step(&subject, &problem, clock(step)).unwrap();
            Method::<B>::step(&mut gcg, &subject, &problem, clock(step)).unwrap();
            assert_eq!(Method::<B>::hard_prompt(&plus, &subject, &problem), Method::<B>::hard_prompt(&gcg, &subject, &problem));
        }
        Method::<B>::restore(&mut resumed, Method::<B>::state(&plus), &subject, &problem).unwrap();
        resumed.step(&subject, &problem, clock(7)).unwrap();
        plus.step(&subject, &problem, clock(7)).unwrap();
        assert_eq!(Method::<B>::state(&resumed), Method::<B>::state(&plus));
        // A step in which it handed over is left, as if it had not begun.
        let before = Method::<B>::state(&adc);
        Method::<B>::restore(&mut plus, Method::<B>::state(&adc), &subject, &problem).unwrap();
        assert_eq!(Method::<B>::state(&plus), before);
    }

    #[test]
    fn the_largest_are_kept() {
        let mut row = [0.2, -1.0, 0.5, f32::NEG_INFINITY, 0.3];
        assert_eq!(two_largest(&row), [2, 4]);
        keep_largest(&mut row, 2);
        let expected = [0.0, 0.0, 0.625, 0.0, 0.375];
        assert!(largest_difference(&expected, &row) < 1e-5, "{row:?}");
        let mut row = [-1.0, f32::NEG_INFINITY, -2.0];
        keep_largest(&mut row, 3);
        assert_eq!(row, [0.5, 0.0, 0.5]);
    }
}
