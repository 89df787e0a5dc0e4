//! Every estimator against the exact gradient, a sum over all prompts of a vocabulary of 6, and the derivatives that they are made of
//! against central differences. In f64.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Tensor, TensorData};

use super::control::{Draw, Side, embeddings};
use super::exact::exact_gradient;
use super::reinforce::Baseline;
use super::surrogate::Network;
use super::*;
use crate::model::{Llama, LlamaConfig, WeightSource};
use crate::noise::{Clock, Purpose, Stream};
use crate::objective::Objective;
use crate::problem::{Problem, PromptOptions, Target};
use crate::subject::Subject;
use crate::subject::feeding::{Feedback, Feeding};
use crate::testing::{matrix, one_at_a_time, tiny, values};

type B = Autodiff<Flex>;

const V: usize = 6;
pub(super) const N: usize = 3;
/// Prompts of an estimate.
const S: usize = 64;

/// Random weights, times a factor but for norms.
struct Random(f32);

impl WeightSource for Random {
    fn read(&mut self, name: &str, shape: &[usize]) -> crate::Result<Vec<f32>> {
        let factor = if name.contains("norm") { 1.0 } else { self.0 };
        Ok(values(name, shape.iter().product()).into_iter().map(|x| x * factor).collect())
    }
}

/// A model of 6 tokens. `epsilon` is that of its norms: where it is large they do not normalise, and with small weights the model is about
/// linear in its input.
pub(crate) fn subject(factor: f32, epsilon: f64) -> Subject<B> {
    let checkpoint = tiny();
    let config = LlamaConfig {
        vocab_size: V,
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        rms_norm_eps: epsilon,
        rope_layers: vec![true],
        tie_word_embeddings: false,
        ..checkpoint.config.clone()
    };
    let model = Llama::load(&config, &mut Random(factor), &Default::default(), DType::F64).unwrap();
    Subject::new(model, checkpoint.tokenizer)
}

pub(crate) fn problem() -> Problem {
    let options = PromptOptions { tokens: N, allow_everything: true, ..PromptOptions::default() };
    Problem::new(options, Target::new("", vec![2, 5]), &tiny().tokenizer, V).unwrap()
}

pub(crate) fn at<'a>(subject: &'a Subject<B>, problem: &'a Problem, feeding: Feeding, temperature: Temperature) -> Relaxation<'a, B> {
    let z = matrix::<Flex>(&Stream::new(9, 0, 0, Purpose::InitialLogits, 0).normal(N, V), V, DType::F64);
    Relaxation { subject, problem, objective: Objective::CrossEntropy, feeding, temperature, z, phi: None, mask: None, samples: S }
}

pub(super) fn clock(step: u32) -> Noise<Flex> {
    Noise::Drawn(Clock { seed: 5, restart: 0, step })
}

fn doubles(x: Tensor<Flex, 2>) -> Vec<f64> {
    x.into_data().into_vec().unwrap()
}

/// [`exact_gradient`] over all 216 prompts.
fn exact(at: &Relaxation<B>) -> Vec<f64> {
    exact_gradient(at).expect("few prompts")
}

/// What some estimates had, entry by entry.
struct Found {
    /// Their mean less the exact gradient.
    bias: Vec<f64>,
    /// Standard errors of that mean.
    errors: Vec<f64>,
    /// Variance of one estimate, its mean over the entries.
    variance: f64,
}

impl Found {
    /// Of so many estimates, after some others.
    fn of(mut estimator: Box<dyn Estimator<B>>, at: &Relaxation<B>, before: u32, count: u32) -> Self {
        let (mut sum, mut squares) = (vec![0.0; N * V], vec![0.0; N * V]);
        for step in 0..before + count {
            let found = doubles(estimator.estimate(at, &clock(step)).dz);
            for (i, x) in found.into_iter().enumerate().filter(|_| step >= before) {
                sum[i] += x;
                squares[i] += x * x;
            }
        }
        let count = f64::from(count);
        let variances: Vec<f64> = sum.iter().zip(&squares).map(|(sum, squares)| squares / count - (sum / count).powi(2)).collect();
        Self {
            bias: sum.iter().zip(exact(at)).map(|(sum, exact)| sum / count - exact).collect(),
            errors: variances.iter().map(|variance| (variance / count).sqrt()).collect(),
            variance: variances.iter().sum::<f64>() / (N * V) as f64,
        }
    }

    /// The largest bias in standard errors.
    fn worst(&self) -> f64 {
        self.bias.iter().zip(&self.errors).map(|(bias, error)| bias.abs() / error).fold(0.0, f64::max)
    }

    /// ‖bias‖.
    fn distance(&self) -> f64 {
        self.bias.iter().map(|x| x * x).sum::<f64>().sqrt()
    }
}

fn reinforce(baseline: Baseline) -> EstimatorKind {
    EstimatorKind::Reinforce(Reinforce { baseline, beta: reinforce::BETA, reward_scale: 1.0 })
}

fn rebar(lambda: Option<f64>) -> EstimatorKind {
    EstimatorKind::Rebar(Rebar { lambda, beta: rebar::BETA })
}

fn relax(lambda: Option<f64>) -> EstimatorKind {
    EstimatorKind::Relax(Relax { rebar: Rebar { lambda, beta: rebar::BETA }, hidden: 16, rate: 0.01 })
}

const GUMBEL_SOFTMAX: EstimatorKind = EstimatorKind::GumbelSoftmax(GumbelSoftmax { largest_uniform: None });

fn straight_through(draw_again: bool) -> EstimatorKind {
    EstimatorKind::StraightThrough(StraightThrough { largest_uniform: None, draw_again })
}

/// Within four standard errors in each of the 18 entries, after 20,480 prompts; and the control variates take variance away.
#[test]
fn unbiased_estimators_agree_with_enumeration_and_control_variates_help() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    let at = at(&subject, &problem, Feeding::Forced, Temperature::None);
    let of = |kind: EstimatorKind| {
        let found = Found::of(kind.build(), &at, 60, 320);
        assert!(found.worst() < 4.0, "{kind:?}: off by {} standard errors", found.worst());
        let largest = exact(&at).iter().zip(&found.errors).map(|(exact, error)| exact.abs() / error).fold(0.0, f64::max);
        assert!(largest > 10.0, "{kind:?}: error bars so wide that nothing would be seen, {largest}");
        eprintln!("{kind:?}: variance {:.3e}, bias up to {:.2} standard errors", found.variance, found.worst());
        found.variance
    };
    let [none, ema, others] = [Baseline::None, Baseline::Ema, Baseline::LeaveOneOut].map(|baseline| of(reinforce(baseline)));
    let [rebar, relax] = [rebar(None), relax(None)].map(of);
    for variance in [rebar, relax] {
        assert!(variance < 0.2 * none && variance < ema && variance < others, "{variance} {none} {ema} {others}");
    }
}

/// Whatever λ, and whatever is fed back that a gradient passes through.
#[test]
fn control_variates_are_unbiased_with_feedback_and_any_lambda() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    for (feeding, lambda) in [(Feeding::Free(Feedback::Soft), None), (Feeding::Forced, Some(0.2)), (Feeding::Forced, Some(5.0))] {
        let at = at(&subject, &problem, feeding, Temperature::None);
        let count = if feeding == Feeding::Forced { 100 } else { 60 };
        for kind in [rebar(lambda), relax(lambda)] {
            let worst = Found::of(kind.build(), &at, 10, count).worst();
            assert!(worst < 4.0, "{feeding:?} {kind:?}: off by {worst} standard errors");
        }
    }
}

/// The bias shrinks as τ → 0 while the variance grows.
#[test]
fn gumbel_softmax_trades_bias_for_variance() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    let found = [10.0, 1.0, 0.1].map(|tau| {
        let at = at(&subject, &problem, Feeding::Forced, Temperature::Fixed(tau));
        Found::of(GUMBEL_SOFTMAX.build(), &at, 0, 320)
    });
    let shown = found.each_ref().map(|found| (found.distance(), found.worst(), found.variance));
    eprintln!("bias, in standard errors, variance at 10, 1, 0.1: {shown:?}");
    let [(far, _, least), (near, clear, more), (nearest, _, most)] = shown;
    assert!(far > 1.2 * near && near > 2.0 * nearest && clear > 10.0, "{shown:?}");
    assert!(10.0 * least < more && more < most, "{shown:?}");
}

/// For a loss that is linear in the prompt, straight-through is Gumbel-softmax, whose bias vanishes with τ; for another it keeps one.
#[test]
fn straight_through_is_biased_unless_the_loss_is_linear() {
    let _guard = one_at_a_time();
    let (bent, linear, problem) = (subject(1.0, 1e-5), subject(0.1, 1e4), problem());
    let of =
        |subject, kind: EstimatorKind| Found::of(kind.build(), &at(subject, &problem, Feeding::Forced, Temperature::Fixed(0.1)), 0, 320);
    let soft = of(&bent, GUMBEL_SOFTMAX).distance();
    for draw_again in [false, true] {
        let [bent, linear] = [&bent, &linear].map(|subject| of(subject, straight_through(draw_again)));
        eprintln!("draw_again {draw_again}: off by {:.2} standard errors, linear {:.2}", bent.worst(), linear.worst());
        assert!(bent.worst() > 10.0 && linear.worst() < 4.0, "{draw_again}: {} {}", bent.worst(), linear.worst());
        assert!(bent.distance() > 3.0 * soft, "{draw_again}: {} {soft}", bent.distance());
    }
    let estimate = |kind: EstimatorKind| {
        let at = at(&linear, &problem, Feeding::Forced, Temperature::Fixed(0.7));
        doubles(kind.build::<B>().estimate(&at, &clock(0)).dz)
    };
    let (ours, theirs) = (estimate(straight_through(false)), estimate(GUMBEL_SOFTMAX));
    let size = theirs.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-3 * size), "{ours:?} {theirs:?}");
}

/// z̃ has the tokens it was drawn for as its argmax; the mean of f(softmax(z̃/λ)) moves with Z as its gradient says, and its soft prompts
/// as their forward derivative says.
#[test]
fn derivatives_of_relaxed_samples_agree_with_central_differences() {
    const STEP: f64 = 1e-5;
    let _guard = one_at_a_time();
    let (subject, problem, noise) = (subject(1.0, 1e-5), problem(), clock(1));
    let at = Relaxation { samples: 4, ..at(&subject, &problem, Feeding::Forced, Temperature::None) };
    let tokens = Draw::new(&at, &noise, 0.5).tokens;
    // The tokens stay what they are while Z moves: z̃ is a function of Z given them.
    let moved = |z: Tensor<Flex, 2>, side: Side| {
        let at = Relaxation { z, ..at.clone() };
        let mut draw = Draw::new(&at, &noise, 0.5);
        draw.tokens = tokens.clone();
        let soft = draw.soft(side);
        let (values, slope) = draw.objective(&soft);
        let back = draw.backward(side, &soft, slope);
        (values.iter().sum::<f64>() / 4.0, doubles(back), doubles(embeddings::<B>(&soft)))
    };
    let draw = Draw::new(&at, &noise, 0.5);
    let (z, _) = draw.conditioned(0..4);
    let argmax: Vec<i64> = z.argmax(1).into_data().iter().collect();
    assert_eq!(argmax, tokens.concat().into_iter().map(i64::from).collect::<Vec<_>>());
    let direction = matrix::<Flex>(&values("direction", N * V), V, DType::F64);
    for side in [Side::Free, Side::Conditioned] {
        let (_, gradient, _) = moved(at.z.clone(), side);
        let step = direction.clone() * STEP;
        let (up, down) = (moved(at.z.clone() + step.clone(), side), moved(at.z.clone() - step, side));
        let forward = doubles(draw.forward(side, direction.clone()));
        for ((found, up), down) in forward.iter().zip(&up.2).zip(&down.2) {
            let expected = (up - down) / (2.0 * STEP);
            assert!((found - expected).abs() < 1e-7, "{side:?}: {found} {expected}");
        }
        for i in 0..N * V {
            let mut one = vec![0.0; N * V];
            one[i] = STEP;
            let one = Tensor::<Flex, 2>::from_data(TensorData::new(one, [N, V]), (&Default::default(), DType::F64));
            let expected = (moved(at.z.clone() + one.clone(), side).0 - moved(at.z.clone() - one, side).0) / (2.0 * STEP);
            assert!((gradient[i] - expected).abs() < 1e-7, "{side:?} {i}: {} {expected}", gradient[i]);
        }
    }
}

/// Σ α·r + β·ṙ as the weights move, and r as its input does.
#[test]
fn derivatives_of_the_network_agree_with_central_differences() {
    const STEP: f64 = 1e-5;
    let (k, h, s) = (5, 4, 3);
    let random = |name: &str, shape: [usize; 2]| matrix::<Flex>(&values(name, shape[0] * shape[1]), shape[1], DType::F64);
    let network = Network { weights: [random("w1", [k, h]), random("b1", [1, h]), random("w2", [h, 1]), random("b2", [1, 1])] };
    let (x, dx, alpha, beta) = (random("x", [s, k]), random("dx", [s, k]), random("alpha", [s, 1]), 0.7);
    let of = |network: &Network<Flex>| {
        let (r, slope) = network.value_and_slope(x.clone());
        doubles((r * alpha.clone() + (slope * dx.clone()).sum_dim(1) * beta).sum_dim(0))[0]
    };
    let single = |shape: [usize; 2], i: usize| {
        let mut one = vec![0.0; shape[0] * shape[1]];
        one[i] = STEP;
        Tensor::<Flex, 2>::from_data(TensorData::new(one, shape), (&Default::default(), DType::F64))
    };
    let near = |found: f64, expected: f64, what: &str| assert!((found - expected).abs() < 1e-8, "{what}: {found} {expected}");
    for (part, gradient) in network.gradient(x.clone(), dx.clone(), alpha.clone(), beta).into_iter().enumerate() {
        for (i, found) in doubles(gradient).into_iter().enumerate() {
            let (mut up, mut down) = (network.clone(), network.clone());
            let one = single(network.weights[part].dims(), i);
            (up.weights[part], down.weights[part]) = (up.weights[part].clone() + one.clone(), down.weights[part].clone() - one);
            near(found, (of(&up) - of(&down)) / (2.0 * STEP), &format!("weight {part} {i}"));
        }
    }
    let slope = doubles(network.value_and_slope(x.clone()).1);
    for (i, found) in slope.into_iter().enumerate() {
        let value = |x| doubles(network.value_and_slope(x).0.sum_dim(0))[0];
        let one = single([s, k], i);
        near(found, (value(x.clone() + one.clone()) - value(x.clone() - one)) / (2.0 * STEP), &format!("input {i}"));
    }
}

/// One of tokens, two of soft prompts with their backward passes.
#[test]
fn a_sample_with_a_control_variate_costs_three_passes() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    let at = at(&subject, &problem, Feeding::Forced, Temperature::None);
    for kind in [rebar(None), relax(None)] {
        let before = subject.cost();
        kind.build::<B>().estimate(&at, &clock(0));
        let (after, positions) = (subject.cost(), (S * (N + 1)) as u64);
        assert_eq!(after.forward_tokens - before.forward_tokens, 3 * positions, "{kind:?}");
        assert_eq!(after.backward_tokens - before.backward_tokens, 2 * positions, "{kind:?}");
    }
}

/// An estimator that goes on from a run state estimates what the first would have, to the bit.
#[test]
fn what_was_learned_survives_save_and_restore() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    let at = at(&subject, &problem, Feeding::Forced, Temperature::None);
    for kind in [rebar(None), relax(None)] {
        let (mut first, mut second, mut fresh) = (kind.build::<B>(), kind.build::<B>(), kind.build::<B>());
        (0..8).for_each(|step| drop(first.estimate(&at, &clock(step))));
        let mut state = State::new(&serde_json::json!({ "steps": 8 }));
        first.save(&mut state);
        second.restore(&mut state).unwrap();
        for step in 8..12 {
            let [a, b, c] = [&mut first, &mut second, &mut fresh].map(|it| doubles(it.estimate(&at, &clock(step)).dz));
            assert_eq!(a, b, "{kind:?}");
            assert!(a != c, "{kind:?}");
        }
    }
}

/// What is measured at one place does not depend on what was measured there before.
#[test]
fn who_has_settled_learns_nothing() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    let at = at(&subject, &problem, Feeding::Forced, Temperature::None);
    for (kind, before) in [(rebar(None), 0), (rebar(None), 8), (relax(None), 0), (relax(None), 8)] {
        let mut estimator = kind.build::<B>();
        (0..before).for_each(|step| drop(estimator.estimate(&at, &clock(step))));
        estimator.settle();
        let [first, other, again] = [8, 9, 8].map(|step| doubles(estimator.estimate(&at, &clock(step)).dz));
        assert!(first == again && first != other, "{kind:?} after {before}");
    }
}
