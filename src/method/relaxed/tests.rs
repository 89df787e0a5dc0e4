//! The rows of Table 1 against PyTorch (`tests/golden/table1_steps.py`), central differences and enumeration.

use burn::backend::{Autodiff, Flex};
use burn::tensor::DType;
use burn::tensor::backend::Backend;

use super::dlmi::{DLMI, DLMI_TF};
use super::gbda::GBDA;
use super::reinforce::REINFORCE;
use super::soda::SODA;
use super::*;
use crate::estimator::{Reinforce, reinforce::Baseline};
use crate::model::Llama;
use crate::subject::feeding::{Fed, Feedback, Output};
use crate::testing::{
    Golden, TABLE_1 as GOLDEN, each_tracked_cpu_backend, largest_difference, one_at_a_time, table_1_problem as problem, tiny,
};

fn subject<B: TrackedBackend>(dtype: DType) -> Subject<B> {
    let mut checkpoint = tiny();
    let config = checkpoint.config.clone();
    Subject::new(Llama::load(&config, &mut checkpoint, &B::Device::default(), dtype).unwrap(), checkpoint.tokenizer)
}

fn matrix<B: Backend>(values: &[f32], columns: usize, dtype: DType) -> Tensor<B, 2> {
    let data = TensorData::new(values.to_vec(), [values.len() / columns, columns]);
    Tensor::from_data(data, (&B::Device::default(), dtype))
}

/// The rows of the fixture.
fn rows() -> Vec<(&'static str, Row)> {
    let tau0 =
        |row: Row, tau0, per_position| Row { temperature: Temperature::Learned { tau0, per_position, initial: InitialPhi::Normal }, ..row };
    let fed = |row: Row, feedback| Row { feeding: Feeding::Free(feedback), ..row };
    let dlmi_tf = tau0(DLMI_TF, 1.0, true);
    vec![
        ("dlmi", DLMI),
        ("dlmi-shared", tau0(DLMI, 1.0, false)),
        ("dlmi-tf-soft", dlmi_tf),
        ("dlmi-tf-gumbel", fed(dlmi_tf, Feedback::Gumbel)),
        ("dlmi-tf-hard", fed(dlmi_tf, Feedback::Hard)),
        ("gbda", GBDA),
        ("gbda-100", Row { temperature: Temperature::Fixed(100.0), ..GBDA }),
        ("reinforce", REINFORCE),
        ("reinforce-leave-one-out", fed(row_with(Baseline::LeaveOneOut), Feedback::Soft)),
        ("reinforce-shared", row_with(Baseline::Shared)),
        ("soda", SODA),
        ("soda-reset", Row { optimiser: Adam { reset_every: Some(2), ..SODA.optimiser }, ..SODA }),
    ]
}

/// Largest difference over the largest expected value.
fn relative(expected: &[f32], found: &[f32]) -> f32 {
    largest_difference(expected, found) / expected.iter().fold(1e-30, |most, x| x.abs().max(most))
}

/// Three steps of `row` with PyTorch's noise: the largest relative differences of the loss and the gradients, and which part of Z and Φ
/// is off by more than a hundredth, a tenth of a step, after them.
fn three_steps<B: TrackedBackend>(name: &str, row: Row, dtype: DType) -> [f32; 3] {
    let (subject, golden, dtype) = (subject::<B>(dtype), Golden::open(GOLDEN), wide(dtype));
    let [_, s, n, v] = golden.shape("noise")[..] else { panic!("noise is [steps, S, N, V]") };
    let (problem, row) = (problem(n, ""), Row { samples: if row.samples == 1 { 1 } else { s }, ..row });
    let (noise, feedback) = (golden.floats("noise"), golden.floats("feedback"));
    let mut method = RelaxedMethod::<B>::new(row);
    let z0 = if row.initial == Initial::GAUSSIAN { golden.floats("z0") } else { vec![0.0; n * v] };
    let phi0 = match row.temperature {
        Temperature::Learned { per_position, .. } => Some(golden.floats("phi0")[..if per_position { n } else { 1 }].to_vec()),
        _ => None,
    };
    method.set(matrix(&z0, v, dtype), phi0.map(|phi| matrix(&phi, 1, dtype)));
    let mut worst = [0.0f32; 3];
    for (step, (prompt, feedback)) in noise.chunks_exact(s * n * v).zip(feedback.chunks_exact(feedback.len() / 3)).enumerate() {
        let given = |values| Gumbel::Given(matrix(values, v, dtype));
        let prompt = if row.estimator == Estimator::Softmax { Gumbel::Silent } else { given(prompt) };
        let found = method.step_with(&subject, &problem, Noise { prompt, feedback: given(feedback) });
        let (z, phi) = method.variables();
        let mut compare = |kind: usize, what: &str, found: Vec<f32>| {
            let expected = &golden.floats(&format!("{name}.{what}"))[step * found.len()..][..found.len()];
            let off = expected.iter().zip(&found).filter(|(a, b)| (*a - *b).abs() > 1e-2).count() as f32 / found.len() as f32;
            worst[kind] = worst[kind].max(if kind == 2 { off } else { relative(expected, &found) });
        };
        compare(0, "loss", vec![found.loss as f32]);
        compare(1, "z_grad", host(found.z));
        compare(2, "z", host(z));
        if let (Some(dphi), Some(phi)) = (found.phi, phi) {
            compare(1, "phi_grad", host(dphi));
            compare(2, "phi", host(phi));
        }
    }
    worst
}

/// In f64, so that nothing but the computation itself is compared: the fixture is stored as f32.
#[test]
fn three_steps_of_every_row_agree_with_pytorch() {
    let _guard = one_at_a_time();
    for (name, row) in rows() {
        let worst = three_steps::<Autodiff<Flex>>(name, row, DType::F64);
        assert!(worst.iter().all(|x| *x < 1e-6), "{name}: {worst:?}");
    }
}

/// In f32. PyTorch's own f32 is off by as much: free-running models of random weights blow rounding up, and Adam divides by it. Of the
/// first step of REINFORCE only rounding is left where its advantages cancel, and that decides where Z goes.
fn three_steps_of_every_row_agree_in_f32<B: TrackedBackend>() {
    for (name, row) in rows() {
        let [loss, gradient, off] = three_steps::<B>(name, row, DType::F32);
        assert!(loss < 1e-4 && gradient < 5e-2, "{name}: {loss} {gradient}");
        assert!(off < 0.01 || name == "reinforce", "{name}: {off}");
    }
}

/// With a model half as wide, Z and Φ in f32: the losses of three steps are about the same, whatever is fed.
#[test]
fn three_steps_of_every_row_are_near_in_f16() {
    let _guard = one_at_a_time();
    for (name, row) in rows() {
        let [loss, ..] = three_steps::<Autodiff<Flex>>(name, row, DType::F16);
        assert!(loss < 0.1, "{name}: {loss}");
    }
}

/// Long after tanh Φ has reached −1 in f32, everything is still a number.
fn saturated_temperatures_stay_finite<B: TrackedBackend>() {
    let (subject, problem) = (subject::<B>(DType::F32), problem(3, ""));
    let mut method = RelaxedMethod::<B>::new(Row { samples: 2, ..DLMI });
    let clock = |step| Clock { seed: 5, restart: 0, step };
    method.start(&subject, &problem, clock(0)).unwrap();
    let (z, _) = method.variables();
    method.set(z, Some(matrix(&[-40.0, -9.2, 40.0], 1, DType::F32)));
    for step in 0..2048 {
        let progress = method.step(&subject, &problem, clock(step)).unwrap();
        assert!(progress.objective.is_finite() && progress.gradient_norm.unwrap().is_finite(), "step {step}: {progress:?}");
    }
    let (z, phi) = method.variables();
    assert!(host(z).iter().chain(&host(phi.unwrap())).all(|x| x.is_finite()));
}

/// What goes on from a saved state is what would have gone on.
fn a_restored_state_goes_on_alike<B: TrackedBackend>() {
    let (subject, problem) = (subject::<B>(DType::F32), problem(3, ""));
    let clock = |step| Clock { seed: 1, restart: 0, step };
    for (name, row) in rows() {
        let row = Row { samples: row.samples.min(2), initial: Initial { again: Some((2, 0.1)), ..row.initial }, ..row };
        let new = || RelaxedMethod::<B>::new(row);
        let (mut whole, mut second) = (new(), new());
        whole.start(&subject, &problem, clock(0)).unwrap();
        for step in 0..3 {
            whole.step(&subject, &problem, clock(step)).unwrap();
        }
        second.restore(Method::<B>::state(&whole), &subject, &problem).unwrap();
        for method in [&mut whole, &mut second] {
            for step in 3..5 {
                method.step(&subject, &problem, clock(step)).unwrap();
            }
        }
        assert_eq!(Method::<B>::state(&whole), Method::<B>::state(&second), "{name}");
    }
}

/// The mean over more samples than are decoded together is that of the samples one by one. In f64, as a model of random weights blows
/// rounding up.
#[test]
fn samples_in_parts_change_nothing() {
    type B = Autodiff<Flex>;
    const S: usize = 9;
    let _guard = one_at_a_time();
    let (subject, problem) = (subject::<B>(DType::F64), problem(3, ""));
    let (n, d, m) = (3, subject.model().config().hidden_size, problem.first().target.ids.len());
    let values = |purpose, rows, columns| Stream::new(2, 0, 0, purpose, 0).normal(rows, columns);
    let free = matrix::<Flex>(&values(Purpose::InitialLogits, S * n, d), d, DType::F64);
    let noise = matrix::<Flex>(&values(Purpose::FeedbackNoise, S * (m - 1), subject.vocab_size()), subject.vocab_size(), DType::F64);
    let of = |samples: std::ops::Range<usize>| {
        let part = |x: &Tensor<Flex, 2>, each| x.clone().narrow(0, samples.start * each, samples.len() * each);
        let fed = Fed::Own(Output::Distribution(Gumbel::Given(part(&noise, m - 1))));
        subject.value_and_gradient(part(&free, n), &problem, Objective::CrossEntropy, &fed)
    };
    let (value, gradient) = of(0..S);
    let (values, gradients): (Vec<f64>, Vec<Tensor<Flex, 2>>) = (0..S).map(|sample| of(sample..sample + 1)).unzip();
    assert!((value - values.iter().sum::<f64>() / S as f64).abs() < 1e-9);
    assert!(relative(&host(gradient * S as f64), &host(Tensor::cat(gradients, 0))) < 1e-6);
}

/// Whatever is fed, a fixed prefix whose keys and values are known gives what its tokens give in the free part; and the objective of
/// whole tokens is that of their embeddings.
#[test]
fn a_fixed_prefix_is_as_good_as_its_tokens() {
    type B = Autodiff<Flex>;
    let _guard = one_at_a_time();
    let (subject, fixed) = (subject::<B>(DType::F64), problem(3, "he is"));
    let head = fixed.first().head();
    let whole = problem(head.len() + 3, "");
    let (free, d) = (vec![40, 9, 77], subject.model().config().hidden_size);
    let given = |ids: &[u32]| subject.embed(&[ids]).reshape([ids.len(), d]);
    let golden = Golden::open(GOLDEN);
    let v = subject.vocab_size();
    let noise = Gumbel::Given(matrix::<Flex>(&golden.floats("feedback")[..4 * v], v, DType::F64));
    for fed in
        [Fed::Target, Fed::Own(Output::Argmax), Fed::Own(Output::Distribution(Gumbel::Silent)), Fed::Own(Output::Distribution(noise))]
    {
        let objective = Objective::CrossEntropy;
        let (value, gradient) = subject.value_and_gradient(given(&free), &fixed, objective, &fed);
        let (expected, all) = subject.value_and_gradient(given(&[head, &free].concat()), &whole, objective, &fed);
        assert!((value - expected).abs() < 1e-9, "{fed:?}: {value} {expected}");
        assert!(relative(&host(all.narrow(0, head.len(), 3)), &host(gradient)) < 1e-6, "{fed:?}");
        let loss = subject.losses(std::slice::from_ref(&free), &fixed, objective, &fed)[0];
        assert!((loss - value).abs() < 1e-9, "{fed:?}: {loss} {value}");
    }
}

each_tracked_cpu_backend!(three_steps_of_every_row_agree_in_f32, saturated_temperatures_stay_finite, a_restored_state_goes_on_alike);

/// What the authors' preset changes differs from the paper's where it should.
#[test]
fn the_authors_start_and_noise_differ_from_the_papers() {
    type B = Autodiff<Flex>;
    let _guard = one_at_a_time();
    let (subject, problem, clock) = (subject::<B>(DType::F32), problem(3, ""), Clock { seed: 3, restart: 0, step: 0 });
    let phi = |initial| {
        let temperature = Temperature::Learned { tau0: 100.0, per_position: true, initial };
        let mut method = RelaxedMethod::<B>::new(Row { temperature, ..DLMI });
        method.start(&subject, &problem, clock).unwrap();
        host(method.variables().1.unwrap())
    };
    let (normal, uniform) = (phi(InitialPhi::Normal), phi(InitialPhi::Uniform));
    assert!(normal.iter().any(|x| !(0.0..1.0).contains(x)), "{normal:?}");
    assert!(uniform.iter().all(|x| (0.0..1.0).contains(x)), "{uniform:?}");
    let clipped = Row { estimator: Estimator::GumbelSoftmax { noise_clip: Some(0.999) }, ..DLMI };
    let Gumbel::Drawn { largest, .. } = RelaxedMethod::<B>::new(clipped).noise(clock).prompt else { panic!("noise is drawn") };
    assert!((largest - 6.907).abs() < 1e-3, "{largest}");
}

/// The whole way Z, Φ → soft prompt → model, fed its own distribution → loss, in f64.
#[test]
fn gradients_agree_with_central_differences() {
    type B = Autodiff<Flex>;
    let _guard = one_at_a_time();
    let golden = Golden::open(GOLDEN);
    let [_, s, n, v] = golden.shape("noise")[..] else { panic!("noise is [steps, S, N, V]") };
    let (subject, mut problem) = (subject::<B>(DType::F64), problem(n, ""));
    // Two tokens are fed back.
    problem.examples[0].target.ids.truncate(3);
    let given = |name: &str, rows: usize| Gumbel::Given(matrix::<Flex>(&golden.floats(name)[..rows * v], v, DType::F64));
    for feedback in [None, Some(Feedback::Soft), Some(Feedback::Gumbel)] {
        let temperature = Temperature::Learned { tau0: 1.0, per_position: true, initial: InitialPhi::Normal };
        let row = Row { samples: s, temperature, feeding: feedback.map_or(Feeding::Forced, Feeding::Free), ..DLMI };
        let step = |z: Tensor<Flex, 2>, phi: Tensor<Flex, 2>| {
            let mut method = RelaxedMethod::<B>::new(row);
            method.set(z, Some(phi));
            method.step_with(&subject, &problem, Noise { prompt: given("noise", s * n), feedback: given("feedback", s * 2) })
        };
        let z = matrix::<Flex>(&golden.floats("z0"), v, DType::F64);
        let phi = matrix::<Flex>(&golden.floats("phi0"), 1, DType::F64);
        let found = step(z.clone(), phi.clone());
        let one = |shape: [usize; 2], i: usize| {
            let mut values = vec![0.0; shape[0] * shape[1]];
            values[i] = 1e-5f64;
            Tensor::<Flex, 2>::from_data(TensorData::new(values, shape), (&Default::default(), DType::F64))
        };
        let check = |what: &str, found: f64, up: f64, down: f64| {
            let expected = (up - down) / 2e-5;
            assert!((found - expected).abs() < 1e-6 + 1e-5 * expected.abs(), "{what}: {found}, by differences {expected}");
        };
        let dz: Vec<f64> = found.z.into_data().into_vec().unwrap();
        for i in (0..n * v).step_by(29) {
            let (up, down) = (step(z.clone() + one([n, v], i), phi.clone()), step(z.clone() - one([n, v], i), phi.clone()));
            check(&format!("{feedback:?} Z {i}"), dz[i], up.loss, down.loss);
        }
        let dphi: Vec<f64> = found.phi.unwrap().into_data().into_vec().unwrap();
        for (i, found) in dphi.into_iter().enumerate() {
            let (up, down) = (step(z.clone(), phi.clone() + one([n, 1], i)), step(z.clone(), phi.clone() - one([n, 1], i)));
            check(&format!("{feedback:?} Φ {i}"), found, up.loss, down.loss);
        }
    }
}

/// E over all prompts of two tokens out of four of L(x)·∇ log p(x), against the mean of many estimates: within four standard errors,
/// for the paper's moving average, which does not look at the step itself, and for the mean of the other samples.
#[test]
fn reinforce_agrees_with_enumeration() {
    type B = Autodiff<Flex>;
    const TOKENS: [u32; 4] = [3, 70, 141, 250];
    const ESTIMATES: usize = 400;
    let _guard = one_at_a_time();
    let (subject, mut problem) = (subject::<B>(DType::F64), problem(2, ""));
    problem.examples[0].target.ids.truncate(3);
    let v = subject.vocab_size();
    // Everything but the four tokens is out of reach.
    let scores = [[0.3, -0.5, 0.9, 0.0], [-1.0, 0.4, 0.2, 0.6]];
    let mut z = vec![-1e4f32; 2 * v];
    (0..2).for_each(|i| TOKENS.iter().zip(scores[i]).for_each(|(&token, score)| z[i * v + token as usize] = score));
    let z = matrix::<Flex>(&z, v, DType::F64);
    let p = |i: usize, j: usize| f64::from(scores[i][j]).exp() / scores[i].iter().map(|x| f64::from(*x).exp()).sum::<f64>();
    let fed = Feeding::Free(Feedback::Hard).fed(Gumbel::Silent);
    let mut exact = [[0.0f64; 4]; 2];
    for (a, b) in (0..16).map(|x| (x / 4, x % 4)) {
        let loss = subject.losses(&[vec![TOKENS[a], TOKENS[b]]], &problem, Objective::CrossEntropy, &fed)[0];
        for (i, x) in [a, b].into_iter().enumerate() {
            (0..4).for_each(|j| exact[i][j] += p(0, a) * p(1, b) * loss * (f64::from(u8::from(j == x)) - p(i, j)));
        }
    }
    for baseline in [Baseline::Ema, Baseline::LeaveOneOut] {
        let mut method = RelaxedMethod::<B>::new(Row { samples: 4, ..row_with(baseline) });
        let (mut sum, mut squares) = ([[0.0f64; 4]; 2], [[0.0f64; 4]; 2]);
        for step in 0..=ESTIMATES {
            let average = method.baseline;
            method.set(z.clone(), None);
            method.baseline = average;
            let noise = method.noise(Clock { seed: 8, restart: 0, step: step as u32 });
            let gradient: Vec<f64> = method.step_with(&subject, &problem, noise).z.into_data().into_vec().unwrap();
            // The first average is of the step itself.
            for (i, j) in (0..8).map(|x| (x / 4, x % 4)).filter(|_| step > 0) {
                let x = gradient[i * v + TOKENS[j] as usize];
                sum[i][j] += x;
                squares[i][j] += x * x;
            }
        }
        let mut largest = 0.0f64;
        for (i, j) in (0..8).map(|x| (x / 4, x % 4)) {
            let mean = sum[i][j] / ESTIMATES as f64;
            let error = ((squares[i][j] / ESTIMATES as f64 - mean * mean) / ESTIMATES as f64).sqrt();
            assert!((mean - exact[i][j]).abs() < 4.0 * error, "{baseline:?} {i} {j}: {mean} ± {error}, exactly {}", exact[i][j]);
            largest = largest.max(exact[i][j].abs() / error);
        }
        assert!(largest > 10.0, "{baseline:?}: error bars so wide that nothing would be seen, {largest}");
    }
}

fn row_with(baseline: Baseline) -> Row {
    match REINFORCE.estimator {
        Estimator::Reinforce(estimator) => Row { estimator: Estimator::Reinforce(Reinforce { baseline, ..estimator }), ..REINFORCE },
        _ => unreachable!("REINFORCE is what it is called"),
    }
}
