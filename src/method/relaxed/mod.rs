//! The one loop of the relaxed methods. What tells them apart is a value: a row of the paper's Table 1.

pub mod dlmi;
pub mod gbda;
pub mod reinforce;
pub mod soda;
mod words;

use burn::tensor::{Tensor, TensorData, backend::AutodiffBackend, backend::Backend};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Clock, Held, Method, Progress, State};
use crate::Result;
use crate::estimator::Estimator;
use crate::metrics::Spread;
use crate::noise::{Purpose, Stream};
use crate::objective::Objective;
use crate::ops::{Gumbel, Kernels, SoftPrompt, TrackedBackend, wide};
use crate::optimiser::{Adam, Moments};
use crate::problem::Problem;
use crate::subject::Subject;
use crate::subject::feeding::Feeding;
use crate::tensor::{argmax_rows, host};

/// A row of Table 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Soft Emb. and Grad. Est.: what is made of Z, and how the gradient comes back.
    pub estimator: Estimator,
    /// DL-τ: how τ is chosen.
    pub temperature: Temperature,
    /// TF: what the model is fed behind the prompt.
    pub feeding: Feeding,
    /// What is minimised.
    pub objective: Objective,
    /// Moves Z and Φ.
    pub optimiser: Adam,
    /// Z₀.
    pub initial: Initial,
    /// S, prompts of a step.
    pub samples: usize,
}

/// How τ is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Temperature {
    /// There is none.
    None,
    /// The same τ everywhere and always.
    Fixed(f64),
    /// τ_i = ε + τ0·(1 + tanh Φ_i), Φ learned: one for each position, or one for all.
    Learned {
        /// τ0.
        tau0: f64,
        /// One Φ for each position.
        per_position: bool,
        /// Φ₀.
        initial: InitialPhi,
    },
}

/// Where Φ starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum InitialPhi {
    /// N(0, 1): the paper's
    #[default]
    Normal,
    /// Uniform in (0, 1): what the paper's authors ran
    Uniform,
}

/// Where Z starts: normal draws.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Initial {
    /// Their standard deviation.
    pub deviation: f64,
    /// (steps, deviation): after every so many steps Z is drawn anew, and its moments are forgotten.
    pub again: Option<(u64, f64)>,
}

impl Initial {
    /// N(0, 1), once.
    pub const GAUSSIAN: Self = Self { deviation: 1.0, again: None };
}

/// Noise of one step.
#[derive(Debug, Clone)]
pub struct Noise<B: Backend> {
    /// That of the prompt, `[S·N, V]` where it is given.
    pub prompt: Gumbel<B>,
    /// That of the tokens fed back, `[S·(M − 1), V]` where it is given.
    pub feedback: Gumbel<B>,
}

/// What a step computed: the loss, and the gradients that moved Z and Φ.
#[derive(Debug, Clone)]
pub struct Step<B: Backend> {
    /// Mean over the samples.
    pub loss: f64,
    /// `[N, V]`.
    pub z: Tensor<B, 2>,
    /// `[N, 1]` or `[1, 1]`, where Φ is learned.
    pub phi: Option<Tensor<B, 2>>,
}

/// ε in τ: keeps a saturated Φ from dividing by zero.
const EPSILON: f64 = 1e-6;

type Plain<B> = <B as AutodiffBackend>::InnerBackend;
type Matrix<B> = Tensor<Plain<B>, 2>;

/// A relaxed method at work.
pub struct RelaxedMethod<B: TrackedBackend> {
    row: Row,
    variables: Option<Variables<B>>,
    /// 0 where a token is allowed and −1e30 where not, `[1, V]`; nothing when all are.
    mask: Option<Matrix<B>>,
    /// REINFORCE's moving average.
    baseline: Option<f64>,
    steps: u64,
}

/// Z `[N, V]`, and Φ `[N, 1]` or `[1, 1]` where it is learned.
struct Variables<B: TrackedBackend> {
    z: Variable<Plain<B>>,
    phi: Option<Variable<Plain<B>>>,
}

struct Variable<B: Backend> {
    value: Tensor<B, 2>,
    moments: Moments<B>,
}

impl<B: Kernels> Variable<B> {
    fn new(value: Tensor<B, 2>) -> Self {
        Self { moments: Moments::zeros(&value), value }
    }

    fn step(&mut self, rule: Adam, t: u64, gradient: Tensor<B, 2>) {
        self.value = rule.step(t, self.value.clone(), gradient, &mut self.moments);
    }

    fn put(&self, name: &str, state: &mut State) {
        state.put(name, self.value.clone());
        state.put(&format!("{name}.first"), self.moments.first.clone());
        state.put(&format!("{name}.second"), self.moments.second.clone());
    }

    fn take(name: &str, shape: [usize; 2], state: &mut State, device: &B::Device) -> Result<Self> {
        let value = state.take(name, shape, device)?;
        let first = state.take(&format!("{name}.first"), shape, device)?;
        Ok(Self { value, moments: Moments { first, second: state.take(&format!("{name}.second"), shape, device)? } })
    }
}

#[derive(Serialize, Deserialize)]
struct Fields {
    steps: u64,
    baseline: Option<f64>,
}

impl<B: TrackedBackend> RelaxedMethod<B> {
    /// A method that is to be started.
    pub fn new(row: Row) -> Self {
        Self { row, variables: None, mask: None, baseline: None, steps: 0 }
    }

    /// Goes on from given Z `[N, V]` and Φ `[N, 1]` as if from the start.
    pub fn set(&mut self, z: Matrix<B>, phi: Option<Matrix<B>>) {
        self.variables = Some(Variables { z: Variable::new(z), phi: phi.map(Variable::new) });
        (self.baseline, self.steps) = (None, 0);
    }

    /// Z `[N, V]`, and Φ where it is learned, as they stand.
    pub fn variables(&self) -> (Matrix<B>, Option<Matrix<B>>) {
        let at = self.at();
        (at.z.value.clone(), at.phi.as_ref().map(|phi| phi.value.clone()))
    }

    /// One step with this noise.
    pub fn step_with(&mut self, subject: &Subject<B>, problem: &Problem, noise: Noise<Plain<B>>) -> Step<Plain<B>> {
        let at = self.at();
        let leaf = |x: &Variable<Plain<B>>| Tensor::<B, 2>::from_inner(x.value.clone()).require_grad();
        let (z, phi) = (leaf(&at.z), at.phi.as_ref().map(leaf));
        let (graph, loss) = self.surrogate(subject, problem, z.clone(), phi.clone(), noise);
        let mut gradients = graph.backward();
        let dz = z.grad_remove(&mut gradients).expect("Z is tracked");
        let dphi = phi.map(|phi| phi.grad_remove(&mut gradients).expect("Φ is tracked"));
        self.steps += 1;
        let (t, rule) = (self.steps, self.row.optimiser);
        // Since Z was drawn.
        let age = self.row.initial.again.map_or(t, |(every, _)| (t - 1) % every + 1);
        let at = self.variables.as_mut().expect("the method was started");
        at.z.step(rule, age, dz.clone());
        if let (Some(phi), Some(dphi)) = (&mut at.phi, &dphi) {
            phi.step(rule, t, dphi.clone());
        }
        Step { loss, z: dz, phi: dphi }
    }

    /// The loss of Z and Φ under this noise, and a number whose gradient is the estimate of the loss's.
    fn surrogate(
        &mut self,
        subject: &Subject<B>,
        problem: &Problem,
        z: Tensor<B, 2>,
        phi: Option<Tensor<B, 2>>,
        noise: Noise<Plain<B>>,
    ) -> (Tensor<B, 1>, f64) {
        let (objective, fed) = (self.row.objective, self.row.feeding.fed(noise.feedback));
        let tau = temperature(self.row.temperature, phi, &z);
        let prompt = self.soft_prompt(subject, z.clone().inner(), tau.clone().inner(), noise.prompt);
        let Estimator::Reinforce(estimator) = self.row.estimator else {
            let free = B::soft_embedding(&prompt.tracked(z, tau)).embeddings;
            return subject.loss(free, problem, objective, &fed);
        };
        let prompts = Plain::<B>::draw(&prompt);
        let losses = subject.losses(&prompts, problem, objective, &fed);
        let advantages = estimator.advantages(&losses, &mut self.baseline);
        let gradient = estimator.gradient(prompt.masked(), &prompts, &advantages);
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        (B::track_loss(z, mean, gradient), mean)
    }

    /// The noise that the samples of a step are made with.
    fn noise(&self, clock: Clock) -> Noise<Plain<B>> {
        let stream = |purpose| Stream::new(clock.seed, clock.restart, clock.step, purpose, 0);
        let clip = match self.row.estimator {
            Estimator::GumbelSoftmax { noise_clip } => noise_clip,
            Estimator::Softmax | Estimator::Reinforce(_) => None,
        };
        let largest = clip.map_or(f32::INFINITY, |u| -(-u.ln()).ln() as f32);
        let prompt = match self.row.estimator {
            Estimator::Softmax => Gumbel::Silent,
            _ => Gumbel::Drawn { stream: stream(Purpose::PromptNoise), largest },
        };
        Noise { prompt, feedback: Gumbel::Drawn { stream: stream(Purpose::FeedbackNoise), largest } }
    }

    fn at(&self) -> &Variables<B> {
        self.variables.as_ref().expect("the method was started")
    }

    /// What the samples are made of.
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

    /// As it stands now.
    fn current(&self, subject: &Subject<B>, noise: Gumbel<Plain<B>>) -> SoftPrompt<Plain<B>> {
        let (z, phi) = self.variables();
        let tau = temperature(self.row.temperature, phi, &z);
        self.soft_prompt(subject, z, tau, noise)
    }

    /// Draws a matrix of N(0, deviation²).
    fn normal(&self, subject: &Subject<B>, stream: Stream, shape: [usize; 2], deviation: f64) -> Matrix<B> {
        let options = (&subject.device(), wide(subject.model().dtype()));
        if deviation == 0.0 {
            return Tensor::zeros(shape, options);
        }
        let values = Tensor::<Plain<B>, 2>::from_data(TensorData::new(stream.normal(shape[0], shape[1]), shape), options);
        if deviation == 1.0 { values } else { values * deviation }
    }
}

/// τ `[N, 1]` for Z `[N, V]`; where there is none, 1.
fn temperature<K: Backend>(rule: Temperature, phi: Option<Tensor<K, 2>>, z: &Tensor<K, 2>) -> Tensor<K, 2> {
    let shape = [z.dims()[0], 1];
    match (rule, phi) {
        (Temperature::Learned { tau0, .. }, Some(phi)) => ((phi.tanh() + 1.0) * tau0 + EPSILON).expand(shape),
        (Temperature::Fixed(tau), _) => Tensor::full(shape, tau, (&z.device(), z.dtype())),
        _ => Tensor::ones(shape, (&z.device(), z.dtype())),
    }
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
        let n = problem.prompt.tokens();
        let stream = |purpose| Stream::new(clock.seed, clock.restart, 0, purpose, 0);
        self.mask = vocabulary_mask(subject, problem);
        let z = self.normal(subject, stream(Purpose::InitialLogits), [n, subject.vocab_size()], self.row.initial.deviation);
        let phi = match self.row.temperature {
            Temperature::Learned { per_position, initial, .. } => {
                let (stream, rows) = (stream(Purpose::InitialTemperature), if per_position { n } else { 1 });
                Some(match initial {
                    InitialPhi::Normal => self.normal(subject, stream, [rows, 1], 1.0),
                    InitialPhi::Uniform => {
                        let values: Vec<f32> = (0..rows).map(|row| stream.uniform(row as u32, 0)).collect();
                        Tensor::from_data(TensorData::new(values, [rows, 1]), (&subject.device(), wide(subject.model().dtype())))
                    }
                })
            }
            Temperature::None | Temperature::Fixed(_) => None,
        };
        self.set(z, phi);
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        // Before the step: what the steps so far have led to was judged as it was.
        if let Some((_, deviation)) = self.row.initial.again.filter(|(every, _)| self.steps > 0 && self.steps.is_multiple_of(*every)) {
            let stream = Stream::new(clock.seed, clock.restart, clock.step, Purpose::InitialLogits, 0);
            let z = self.normal(subject, stream, self.at().z.value.dims(), deviation);
            self.variables.as_mut().expect("the method was started").z = Variable::new(z);
        }
        let step = self.step_with(subject, problem, self.noise(clock));
        let now = self.current(subject, Gumbel::Silent);
        let norm = host(step.z.powi_scalar(2).sum_dim(1)).iter().map(|x| f64::from(*x)).sum::<f64>().sqrt();
        Ok(Progress {
            objective: step.loss as f32,
            gradient_norm: Some(norm as f32),
            entropy: Some(Spread::of(&Plain::<B>::entropy(&now))),
            temperature: (self.row.temperature != Temperature::None).then(|| Spread::of(&host(now.temperature))),
            stalled: false,
        })
    }

    fn held(&self, subject: &Subject<B>, _: &Problem) -> Held {
        Held { free: argmax_rows(self.current(subject, Gumbel::Silent).masked()), margins: None }
    }

    fn relaxed(&self, subject: &Subject<B>, _: &Problem, clock: Clock) -> Option<Matrix<B>> {
        if let Estimator::Reinforce(_) = self.row.estimator {
            return None;
        }
        Some(Plain::<B>::soft_embedding(&self.current(subject, self.noise(clock).prompt)).embeddings)
    }

    fn state(&self) -> State {
        let at = self.at();
        let mut state = State::new(&Fields { steps: self.steps, baseline: self.baseline });
        at.z.put("z", &mut state);
        if let Some(phi) = &at.phi {
            phi.put("phi", &mut state);
        }
        state
    }

    fn restore(&mut self, mut state: State, subject: &Subject<B>, problem: &Problem) -> Result<()> {
        let Fields { steps, baseline } = state.fields()?;
        let (n, device) = (problem.prompt.tokens(), subject.device());
        self.mask = vocabulary_mask(subject, problem);
        let z = Variable::take("z", [n, subject.vocab_size()], &mut state, &device)?;
        let phi = match self.row.temperature {
            Temperature::Learned { per_position, .. } => {
                Some(Variable::take("phi", [if per_position { n } else { 1 }, 1], &mut state, &device)?)
            }
            Temperature::None | Temperature::Fixed(_) => None,
        };
        self.variables = Some(Variables { z, phi });
        (self.steps, self.baseline) = (steps, baseline);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
