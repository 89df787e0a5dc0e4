//! Estimates without an optimiser: against central differences and enumeration, and that they move nothing.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Tensor, TensorData};

use super::reinforce::Baseline;
use super::*;
use crate::noise::{Clock, Purpose, Stream};
use crate::objective::Objective;
use crate::ops::Gumbel;
use crate::problem::Problem;
use crate::subject::Subject;
use crate::subject::feeding::{Feedback, Feeding};
use crate::testing::{Golden, TABLE_1 as GOLDEN, matrix, one_at_a_time, table_1_problem, tiny_subject};

type B = Autodiff<Flex>;

/// Z is zero, no token is out of reach, the model is fed the target's tokens.
fn relaxation<'a>(subject: &'a Subject<B>, problem: &'a Problem, temperature: Temperature, samples: usize) -> Relaxation<'a, B> {
    let z = Tensor::zeros([problem.prompt.tokens(), subject.vocab_size()], (&Default::default(), DType::F64));
    let (objective, feeding) = (Objective::CrossEntropy, Feeding::Forced);
    Relaxation { subject, problem, objective, feeding, temperature, z, phi: None, mask: None, samples }
}

fn reinforce(baseline: Baseline) -> Box<dyn Estimator<B>> {
    EstimatorKind::Reinforce(Reinforce { baseline, beta: reinforce::BETA, reward_scale: 1.0 }).build()
}

fn rebar() -> EstimatorKind {
    EstimatorKind::Rebar(Rebar { lambda: None, beta: rebar::BETA })
}

fn relax() -> EstimatorKind {
    EstimatorKind::Relax(Relax { rebar: Rebar { lambda: None, beta: rebar::BETA }, hidden: 16, rate: 0.01 })
}

fn clock(step: u32) -> Noise<Flex> {
    Noise::Drawn(Clock { seed: 8, restart: 0, step })
}

fn doubles(x: Tensor<Flex, 2>) -> Vec<f64> {
    x.into_data().into_vec().unwrap()
}

/// All of Z, Φ → soft prompt → model, fed its own distribution → loss, in f64.
#[test]
fn gradients_agree_with_central_differences() {
    let _guard = one_at_a_time();
    let golden = Golden::open(GOLDEN);
    let [_, s, n, v] = golden.shape("noise")[..] else { panic!("noise is [steps, S, N, V]") };
    let (subject, mut problem) = (tiny_subject::<B>(DType::F64), table_1_problem(n, ""));
    // Two tokens are fed back.
    problem.examples[0].target.ids.truncate(3);
    let given = |name: &str, rows: usize| matrix::<Flex>(&golden.floats(name)[..rows * v], v, DType::F64);
    let noise = Noise::Given { prompt: given("noise", s * n), feedback: given("feedback", s * 2) };
    let temperature = Temperature::Learned { tau0: 1.0, per_position: true };
    let mut estimator = GumbelSoftmax { largest_uniform: None };
    for feedback in [None, Some(Feedback::Soft), Some(Feedback::Gumbel)] {
        let feeding = feedback.map_or(Feeding::Forced, Feeding::Free);
        let mut estimate = |z: Tensor<Flex, 2>, phi: Tensor<Flex, 2>| {
            let at = Relaxation { z, phi: Some(phi), feeding, ..relaxation(&subject, &problem, temperature, s) };
            estimator.estimate(&at, &noise)
        };
        let z = matrix::<Flex>(&golden.floats("z0"), v, DType::F64);
        let phi = matrix::<Flex>(&golden.floats("phi0"), 1, DType::F64);
        let found = estimate(z.clone(), phi.clone());
        let one = |shape: [usize; 2], i: usize| {
            let mut values = vec![0.0; shape[0] * shape[1]];
            values[i] = 1e-5f64;
            Tensor::<Flex, 2>::from_data(TensorData::new(values, shape), (&Default::default(), DType::F64))
        };
        let check = |what: &str, found: f64, up: f64, down: f64| {
            let expected = (up - down) / 2e-5;
            assert!((found - expected).abs() < 1e-6 + 1e-5 * expected.abs(), "{what}: {found}, by differences {expected}");
        };
        let dz = doubles(found.dz);
        for i in (0..n * v).step_by(29) {
            let (up, down) = (estimate(z.clone() + one([n, v], i), phi.clone()), estimate(z.clone() - one([n, v], i), phi.clone()));
            check(&format!("{feedback:?} Z {i}"), dz[i], up.loss, down.loss);
        }
        for (i, found) in doubles(found.dphi.unwrap()).into_iter().enumerate() {
            let (up, down) = (estimate(z.clone(), phi.clone() + one([n, 1], i)), estimate(z.clone(), phi.clone() - one([n, 1], i)));
            check(&format!("{feedback:?} Φ {i}"), found, up.loss, down.loss);
        }
    }
}

/// E over all prompts of two tokens out of four of L(x)·∇ log p(x), against the mean of many estimates: within four standard errors,
/// for the paper's moving average, which does not look at the step itself, for the mean of the other samples, and for no baseline, whose
/// error bars are so wide that it takes more samples.
#[test]
fn reinforce_agrees_with_enumeration() {
    const TOKENS: [u32; 4] = [3, 70, 141, 250];
    let _guard = one_at_a_time();
    let (subject, mut problem) = (tiny_subject::<B>(DType::F64), table_1_problem(2, ""));
    problem.examples[0].target.ids.truncate(3);
    let v = subject.vocab_size();
    // Everything but the four tokens is out of reach.
    let scores = [[0.3, -0.5, 0.9, 0.0], [-1.0, 0.4, 0.2, 0.6]];
    let mut z = vec![-1e4f32; 2 * v];
    (0..2).for_each(|i| TOKENS.iter().zip(scores[i]).for_each(|(&token, score)| z[i * v + token as usize] = score));
    let (z, feeding) = (matrix::<Flex>(&z, v, DType::F64), Feeding::Free(Feedback::Hard));
    let at = Relaxation { z, feeding, ..relaxation(&subject, &problem, Temperature::None, 4) };
    let p = |i: usize, j: usize| f64::from(scores[i][j]).exp() / scores[i].iter().map(|x| f64::from(*x).exp()).sum::<f64>();
    let fed = feeding.fed(Gumbel::Silent);
    let mut exact = [[0.0f64; 4]; 2];
    for (a, b) in (0..16).map(|x| (x / 4, x % 4)) {
        let loss = subject.losses(&[vec![TOKENS[a], TOKENS[b]]], &problem, Objective::CrossEntropy, &fed)[0];
        for (i, x) in [a, b].into_iter().enumerate() {
            (0..4).for_each(|j| exact[i][j] += p(0, a) * p(1, b) * loss * (f64::from(u8::from(j == x)) - p(i, j)));
        }
    }
    for (baseline, estimates, samples) in [(Baseline::Ema, 400, 4), (Baseline::LeaveOneOut, 400, 4), (Baseline::None, 1200, 32)] {
        let (mut estimator, at) = (reinforce(baseline), Relaxation { samples, ..at.clone() });
        let (mut sum, mut squares) = ([[0.0f64; 4]; 2], [[0.0f64; 4]; 2]);
        for step in 0..=estimates {
            let gradient = doubles(estimator.estimate(&at, &clock(step)).dz);
            // The first average is of the step itself.
            for (i, j) in (0..8).map(|x| (x / 4, x % 4)).filter(|_| step > 0) {
                let x = gradient[i * v + TOKENS[j] as usize];
                sum[i][j] += x;
                squares[i][j] += x * x;
            }
        }
        let (mut largest, estimates) = (0.0f64, f64::from(estimates));
        for (i, j) in (0..8).map(|x| (x / 4, x % 4)) {
            let mean = sum[i][j] / estimates;
            let error = ((squares[i][j] / estimates - mean * mean) / estimates).sqrt();
            assert!((mean - exact[i][j]).abs() < 4.0 * error, "{baseline:?} {i} {j}: {mean} ± {error}, exactly {}", exact[i][j]);
            largest = largest.max(exact[i][j].abs() / error);
        }
        assert!(largest > 10.0, "{baseline:?}: error bars so wide that nothing would be seen, {largest}");
    }
}

/// The same noise gives the same estimate to the bit, by an estimator that is reset too, and Z stays where it is.
#[test]
fn an_estimate_is_had_without_a_step() {
    let _guard = one_at_a_time();
    let (subject, problem) = (tiny_subject::<B>(DType::F64), table_1_problem(2, ""));
    let (v, learned) = (subject.vocab_size(), Temperature::Learned { tau0: 1.0, per_position: false });
    let z = matrix::<Flex>(&Stream::new(4, 0, 0, Purpose::InitialLogits, 0).normal(2, v), v, DType::F64);
    let phi = Some(matrix::<Flex>(&[0.2], 1, DType::F64));
    let at = Relaxation { z: z.clone(), phi, feeding: Feeding::Free(Feedback::Gumbel), ..relaxation(&subject, &problem, learned, 3) };
    let estimators: [Box<dyn Estimator<B>>; 6] = [
        EstimatorKind::GumbelSoftmax(GumbelSoftmax { largest_uniform: None }).build(),
        EstimatorKind::Softmax.build(),
        EstimatorKind::StraightThrough(StraightThrough { largest_uniform: None, draw_again: true }).build(),
        reinforce(Baseline::Ema),
        rebar().build(),
        relax().build(),
    ];
    for (i, mut estimator) in estimators.into_iter().enumerate() {
        let mut values = |step| {
            estimator.reset();
            let Estimate { loss, dz, dphi } = estimator.estimate(&at, &clock(step));
            (loss, doubles(dz), dphi.map(doubles))
        };
        let first = values(0);
        assert!(values(1) != first, "{i}");
        assert_eq!(values(0), first, "{i}");
        assert_eq!(first.2.map(|dphi| dphi.len()), (i < 3).then_some(1), "{i}");
        assert_eq!(estimator.soft_prompts(&at, &clock(0)).map(|prompts| prompts.dims()[0]).is_some(), i < 2, "{i}");
    }
    assert_eq!(doubles(at.z), doubles(z));
}

/// REINFORCE's moving average is kept in a run state: an estimator that goes on from one estimates what the first would have.
#[test]
fn a_moving_average_survives_save_and_restore() {
    let _guard = one_at_a_time();
    let (subject, problem) = (tiny_subject::<B>(DType::F64), table_1_problem(2, ""));
    let at = relaxation(&subject, &problem, Temperature::None, 2);
    for baseline in [Baseline::Ema, Baseline::Shared] {
        let (mut first, mut second, mut fresh) = (reinforce(baseline), reinforce(baseline), reinforce(baseline));
        (0..3).for_each(|step| drop(first.estimate(&at, &clock(step))));
        let mut state = State::new(&serde_json::json!({ "steps": 3 }));
        first.save(&mut state);
        second.restore(&mut state).unwrap();
        let [a, b, c] = [&mut first, &mut second, &mut fresh].map(|estimator| doubles(estimator.estimate(&at, &clock(3)).dz));
        assert_eq!(a, b, "{baseline:?}");
        assert!(a != c, "{baseline:?}");
    }
}
