//! The one loop of the relaxed methods. What tells them apart is a value: a row of the paper's Table 1.

use burn::tensor::{Tensor, TensorData, backend::AutodiffBackend};
use serde::{Deserialize, Serialize};

use super::{Clock, Held, Method, Progress, State};
use crate::model::generate::{argmax, host};
use crate::noise::{Purpose, Stream};
use crate::objective::Objective;
use crate::ops::{Gumbel, SoftPrompt, TrackedBackend, wide};
use crate::optimiser::{Adam, Moments};
use crate::subject::{Problem, Subject};
use crate::{Error, Result};

/// How τ is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Temperature {
    /// τ_i = ε + τ0·(1 + tanh Φ_i), Φ learned: one for each position, or one for all.
    Learned {
        /// τ0.
        tau0: f64,
        /// One Φ for each position.
        per_position: bool,
    },
}

/// A row of Table 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relaxed {
    /// How τ is chosen.
    pub temperature: Temperature,
    /// What is minimised, with the target's own tokens fed.
    pub objective: Objective,
    /// Moves Z and Φ.
    pub optimiser: Adam,
    /// S, noise samples of a step.
    pub samples: usize,
}

/// ε in τ: keeps a saturated Φ from dividing by zero.
const EPSILON: f64 = 1e-6;

type Plain<B> = <B as AutodiffBackend>::InnerBackend;
type Matrix<B> = Tensor<Plain<B>, 2>;

/// A relaxed method at work.
pub struct RelaxedMethod<B: TrackedBackend> {
    row: Relaxed,
    variables: Option<Variables<B>>,
    mask: Option<Matrix<B>>,
    steps: u64,
}

struct Variables<B: TrackedBackend> {
    /// Z, `[N, V]`.
    z: Matrix<B>,
    /// Φ, `[N, 1]` or `[1, 1]`.
    phi: Matrix<B>,
    z_moments: Moments<Plain<B>>,
    phi_moments: Moments<Plain<B>>,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    steps: u64,
    phis: usize,
}

impl<B: TrackedBackend> RelaxedMethod<B> {
    /// A method that is to be started.
    pub fn new(row: Relaxed) -> Self {
        Self { row, variables: None, mask: None, steps: 0 }
    }

    /// Goes on from given Z `[N, V]` and Φ `[N, 1]` with fresh moments.
    pub fn set(&mut self, z: Matrix<B>, phi: Matrix<B>) {
        self.variables = Some(Variables { z_moments: Moments::zeros(&z), phi_moments: Moments::zeros(&phi), z, phi });
        self.steps = 0;
    }

    /// Z `[N, V]` and Φ `[N, 1]` as they stand.
    pub fn variables(&self) -> (Matrix<B>, Matrix<B>) {
        let at = self.at();
        (at.z.clone(), at.phi.clone())
    }

    /// One step with this noise: the loss, and the gradients of Z and Φ that moved them.
    pub fn step_with(&mut self, subject: &Subject<B>, problem: &Problem, noise: Gumbel<Plain<B>>) -> (f64, Matrix<B>, Matrix<B>) {
        let at = self.variables.take().expect("the method was started");
        let z = Tensor::<B, 2>::from_inner(at.z.clone()).require_grad();
        let phi = Tensor::<B, 2>::from_inner(at.phi.clone()).require_grad();
        let tau = temperature(self.row.temperature, phi.clone(), problem.prompt.tokens());
        let prompt = self.soft_prompt(subject, at.z.clone(), tau.clone().inner(), noise);
        let free = B::track_soft_embedding(z.clone(), tau, prompt);
        let (loss, value) = subject.loss(free, problem, self.row.objective);
        let mut gradients = loss.backward();
        let dz = z.grad_remove(&mut gradients).expect("Z is tracked");
        let dphi = phi.grad_remove(&mut gradients).expect("Φ is tracked");
        self.steps += 1;
        let Variables { z, phi, mut z_moments, mut phi_moments } = at;
        let z = self.row.optimiser.step(self.steps, z, dz.clone(), &mut z_moments);
        let phi = self.row.optimiser.step(self.steps, phi, dphi.clone(), &mut phi_moments);
        self.variables = Some(Variables { z, phi, z_moments, phi_moments });
        (value, dz, dphi)
    }

    fn at(&self) -> &Variables<B> {
        self.variables.as_ref().expect("the method was started")
    }

    fn soft_prompt(
        &self,
        subject: &Subject<B>,
        logits: Matrix<B>,
        temperature: Matrix<B>,
        noise: Gumbel<Plain<B>>,
    ) -> SoftPrompt<Plain<B>> {
        let embedding = subject.model().embed_tokens.val();
        SoftPrompt { logits, temperature, embedding, mask: self.mask.clone(), noise, samples: self.row.samples }
    }
}

/// τ `[N, 1]` from Φ.
fn temperature<K: burn::tensor::backend::Backend>(rule: Temperature, phi: Tensor<K, 2>, n: usize) -> Tensor<K, 2> {
    let Temperature::Learned { tau0, .. } = rule;
    ((phi.tanh() + 1.0) * tau0 + EPSILON).expand([n, 1])
}

fn noise(clock: Clock) -> Stream {
    Stream::new(clock.seed, clock.restart, clock.step, Purpose::PromptNoise, 0)
}

/// 0 where a token is allowed and −1e30 where not, `[1, V]`; nothing when all are.
fn vocabulary_mask<B: TrackedBackend>(subject: &Subject<B>, problem: &Problem) -> Option<Matrix<B>> {
    let allowed = problem.prompt.allowed();
    if allowed.iter().all(|&ok| ok) {
        return None;
    }
    let row: Vec<f32> = allowed.iter().map(|&ok| if ok { 0.0 } else { -1e30 }).collect();
    let options = (&subject.device(), wide(subject.model().dtype()));
    Some(Tensor::from_data(TensorData::new(row, [1, allowed.len()]), options))
}

impl<B: TrackedBackend> Method<B> for RelaxedMethod<B> {
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        let (n, v) = (problem.prompt.tokens(), subject.vocab_size());
        let Temperature::Learned { per_position, .. } = self.row.temperature;
        let draw = |purpose, rows, columns| {
            let values = Stream::new(clock.seed, clock.restart, 0, purpose, 0).normal(rows, columns);
            Tensor::from_data(TensorData::new(values, [rows, columns]), (&subject.device(), wide(subject.model().dtype())))
        };
        self.mask = vocabulary_mask(subject, problem);
        self.set(draw(Purpose::InitialLogits, n, v), draw(Purpose::InitialTemperature, if per_position { n } else { 1 }, 1));
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        let (value, dz, _) = self.step_with(subject, problem, Gumbel::Drawn(noise(clock)));
        let tau = temperature(self.row.temperature, self.at().phi.clone(), problem.prompt.tokens());
        let norm = host(dz.powi_scalar(2).sum_dim(1)).iter().map(|x| f64::from(*x)).sum::<f64>().sqrt();
        Ok(Progress {
            objective: value as f32,
            gradient_norm: Some(norm as f32),
            temperature: Some(host(tau).iter().sum::<f32>() / problem.prompt.tokens() as f32),
            stalled: false,
        })
    }

    fn held(&self, _: &Subject<B>, _: &Problem) -> Held {
        let z = match &self.mask {
            Some(mask) => self.at().z.clone() + mask.clone(),
            None => self.at().z.clone(),
        };
        let v = z.dims()[1];
        Held { free: host(z).chunks_exact(v).map(|row| argmax(row).0).collect(), margins: None }
    }

    fn relaxed(&self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Option<Matrix<B>> {
        use crate::ops::Kernels;
        let tau = temperature(self.row.temperature, self.at().phi.clone(), problem.prompt.tokens());
        let prompt = self.soft_prompt(subject, self.at().z.clone(), tau, Gumbel::Drawn(noise(clock)));
        Some(Plain::<B>::soft_embedding(&prompt).embeddings)
    }

    fn state(&self) -> State {
        let at = self.at();
        let mut state = State::new(&Fields { steps: self.steps, phis: at.phi.dims()[0] });
        state.put("z", at.z.clone());
        state.put("phi", at.phi.clone());
        state.put("z.first", at.z_moments.first.clone());
        state.put("z.second", at.z_moments.second.clone());
        state.put("phi.first", at.phi_moments.first.clone());
        state.put("phi.second", at.phi_moments.second.clone());
        state
    }

    fn restore(&mut self, mut state: State, subject: &Subject<B>, problem: &Problem) -> Result<()> {
        self.mask = vocabulary_mask(subject, problem);
        let Fields { steps, phis } = state.fields()?;
        let n = state.tensors.get("z").map_or(0, |(shape, _)| shape[0]);
        if n == 0 {
            return Err(Error::input("the checkpoint lacks `z`; start the run anew without --resume"));
        }
        let (wide, narrow, device) = ([n, subject.vocab_size()], [phis, 1], subject.device());
        let mut take = |name: &str, shape| state.take(name, shape, &device);
        self.variables = Some(Variables {
            z: take("z", wide)?,
            phi: take("phi", narrow)?,
            z_moments: Moments { first: take("z.first", wide)?, second: take("z.second", wide)? },
            phi_moments: Moments { first: take("phi.first", narrow)?, second: take("phi.second", narrow)? },
        });
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! DLMI against PyTorch's autograd (`tests/golden/dlmi_step.py`) and central differences.

    use burn::backend::{Autodiff, Flex};
    use burn::tensor::DType;
    use burn::tensor::backend::Backend;

    use super::super::dlmi::dlmi;
    use super::*;
    use crate::model::Llama;
    use crate::prompt::{Prompt, PromptOptions};
    use crate::target::Target;
    use crate::testing::{Golden, each_tracked_cpu_backend, largest_difference, one_at_a_time, tiny};

    const GOLDEN: &str = "dlmi_step.safetensors";

    fn problem(n: usize) -> Problem {
        let checkpoint = tiny();
        let ids = Golden::open(GOLDEN).ids("target").remove(0);
        let target = Target { text: checkpoint.tokenizer.decode(&ids), ids };
        let options = PromptOptions { tokens: n, allow_everything: true, ..PromptOptions::default() };
        Problem { prompt: Prompt::new(options, &target, &checkpoint.tokenizer, checkpoint.config.vocab_size).unwrap(), target }
    }

    fn subject<B: TrackedBackend>(dtype: DType) -> Subject<B> {
        let mut checkpoint = tiny();
        let config = checkpoint.config.clone();
        Subject::new(Llama::load(&config, &mut checkpoint, &B::Device::default(), dtype).unwrap(), checkpoint.tokenizer)
    }

    fn matrix<B: Backend>(values: Vec<f32>, shape: [usize; 2], dtype: DType) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(values, shape), (&B::Device::default(), dtype))
    }

    /// The loss, and the gradients and new values of Z and Φ, of three steps with PyTorch's noise.
    fn three_steps_agree_with_pytorch<B: TrackedBackend>() {
        let (subject, golden) = (subject::<B>(DType::F32), Golden::open(GOLDEN));
        let [_, s, n, v] = golden.shape("noise")[..] else { panic!("noise is [steps, S, N, V]") };
        let noise = golden.floats("noise");
        for (name, tau0, tolerance) in [("tau100", 100.0, 1e-4), ("tau1", 1.0, 1e-3)] {
            let mut method = RelaxedMethod::<B>::new(dlmi(0.1, tau0, true, s));
            method.set(matrix(golden.floats("z0"), [n, v], DType::F32), matrix(golden.floats("phi0"), [n, 1], DType::F32));
            for (step, noise) in noise.chunks_exact(s * n * v).enumerate() {
                let given = Gumbel::Given(matrix(noise.to_vec(), [s * n, v], DType::F32));
                let (loss, dz, dphi) = method.step_with(&subject, &problem(n), given);
                let (z, phi) = method.variables();
                let found =
                    [("loss", vec![loss as f32]), ("z_grad", host(dz)), ("phi_grad", host(dphi)), ("z", host(z)), ("phi", host(phi))];
                for (what, found) in found {
                    let all = golden.floats(&format!("{name}.{what}"));
                    let expected = &all[step * found.len()..][..found.len()];
                    let difference = largest_difference(expected, &found);
                    // Adam divides by the gradient's own size, and so blows up the rounding of the smallest ones.
                    let tolerance = if what == "z" { 1e-3 } else { tolerance };
                    assert!(difference < tolerance, "{name}.{what} in step {step}: {difference}");
                }
            }
        }
    }

    /// Long after tanh Φ has reached −1 in f32, everything is still a number.
    fn saturated_temperatures_stay_finite<B: TrackedBackend>() {
        let (subject, problem) = (subject::<B>(DType::F32), problem(3));
        let mut method = RelaxedMethod::<B>::new(dlmi(0.1, 100.0, true, 2));
        let clock = |step| Clock { seed: 5, restart: 0, step };
        method.start(&subject, &problem, clock(0)).unwrap();
        let (z, _) = method.variables();
        method.set(z, matrix(vec![-40.0, -9.2, 40.0], [3, 1], DType::F32));
        for step in 0..2048 {
            let progress = method.step(&subject, &problem, clock(step)).unwrap();
            assert!(progress.objective.is_finite() && progress.gradient_norm.unwrap().is_finite(), "step {step}: {progress:?}");
        }
        let (z, phi) = method.variables();
        assert!(host(z).iter().chain(&host(phi)).all(|x| x.is_finite()));
    }

    /// What goes on from a saved state is what would have gone on.
    fn a_restored_state_goes_on_alike<B: TrackedBackend>() {
        let (subject, problem) = (subject::<B>(DType::F32), problem(3));
        let clock = |step| Clock { seed: 1, restart: 0, step };
        let new = || RelaxedMethod::<B>::new(dlmi(0.1, 100.0, true, 2));
        let (mut whole, mut second) = (new(), new());
        whole.start(&subject, &problem, clock(0)).unwrap();
        for step in 0..3 {
            whole.step(&subject, &problem, clock(step)).unwrap();
        }
        second.restore(Method::<B>::state(&whole), &subject, &problem).unwrap();
        for method in [&mut whole, &mut second] {
            for step in 3..6 {
                method.step(&subject, &problem, clock(step)).unwrap();
            }
        }
        assert_eq!(Method::<B>::state(&whole), Method::<B>::state(&second));
    }

    each_tracked_cpu_backend!(three_steps_agree_with_pytorch, saturated_temperatures_stay_finite, a_restored_state_goes_on_alike);

    /// The whole way Z, Φ → soft prompt → model → loss, in f64.
    #[test]
    fn gradients_agree_with_central_differences() {
        type B = Autodiff<Flex>;
        let _guard = one_at_a_time();
        let (subject, problem, golden) = (subject::<B>(DType::F64), problem(3), Golden::open(GOLDEN));
        let [_, s, n, v] = golden.shape("noise")[..] else { panic!("noise is [steps, S, N, V]") };
        let row = dlmi(0.1, 1.0, true, s);
        let noise = || Gumbel::Given(matrix::<Flex>(golden.floats("noise")[..s * n * v].to_vec(), [s * n, v], DType::F64));
        let loss = |z: Tensor<B, 2>, phi: Tensor<B, 2>| {
            let tau = temperature(row.temperature, phi, n);
            let prompt = RelaxedMethod::<B>::new(row).soft_prompt(&subject, z.clone().inner(), tau.clone().inner(), noise());
            subject.loss(B::track_soft_embedding(z, tau, prompt), &problem, row.objective).0
        };
        let z = matrix::<Flex>(golden.floats("z0"), [n, v], DType::F64);
        let phi = matrix::<Flex>(golden.floats("phi0"), [n, 1], DType::F64);
        let leaf = |x: &Tensor<Flex, 2>| Tensor::<B, 2>::from_inner(x.clone()).require_grad();
        let (z_leaf, phi_leaf) = (leaf(&z), leaf(&phi));
        let gradients = loss(z_leaf.clone(), phi_leaf.clone()).backward();
        let value = |z: Tensor<Flex, 2>, phi: Tensor<Flex, 2>| {
            let loss = loss(Tensor::from_inner(z), Tensor::from_inner(phi)).inner();
            loss.into_data().into_vec::<f64>().unwrap()[0]
        };
        let one = |shape: [usize; 2], i: usize| {
            let mut values = vec![0.0; shape[0] * shape[1]];
            values[i] = 1e-5f64;
            Tensor::<Flex, 2>::from_data(TensorData::new(values, shape), (&Default::default(), DType::F64))
        };
        let check = |what: &str, found: f64, up: f64, down: f64| {
            let expected = (up - down) / 2e-5;
            assert!((found - expected).abs() < 1e-7 + 1e-5 * expected.abs(), "{what}: {found}, by differences {expected}");
        };
        let dz: Vec<f64> = z_leaf.grad(&gradients).unwrap().into_data().into_vec().unwrap();
        for i in (0..n * v).step_by(29) {
            let (up, down) = (value(z.clone() + one([n, v], i), phi.clone()), value(z.clone() - one([n, v], i), phi.clone()));
            check(&format!("Z {i}"), dz[i], up, down);
        }
        let dphi: Vec<f64> = phi_leaf.grad(&gradients).unwrap().into_data().into_vec().unwrap();
        for (i, found) in dphi.into_iter().enumerate() {
            let (up, down) = (value(z.clone(), phi.clone() + one([n, 1], i)), value(z.clone(), phi.clone() - one([n, 1], i)));
            check(&format!("Φ {i}"), found, up, down);
        }
    }
}
