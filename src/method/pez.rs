//! pez: *Hard Prompts Made Easy: Gradient-Based Discrete Optimization for Prompt Tuning and Discovery* (Wen et al. 2023), as its authors'
//! code has it (github.com/YuxinWenRick/hard-prompts-made-easy), with the cross-entropy of the target for a loss.
//!
//! P `[N, D]` starts at the embeddings of random tokens. Each step: every row's nearest token by cosine, the gradient at those tokens'
//! embeddings, a step of AdamW with it on P itself. The tokens of each step are its hard prompt; the best of them is kept by the run.
//!
//! Where it differs: the nearest token is the nearest of the search vocabulary, and so are the first ones. Nothing keeps a prompt from
//! being read otherwise when it is typed.

use serde::{Deserialize, Serialize};

use super::relaxed::Variable;
use super::{Clock, HardPrompt, Method, Progress, State};
use crate::Result;
use crate::estimator::relaxation::vocabulary_mask;
use crate::noise::{Draws, Purpose};
use crate::objective::{Goal, margin_key, objective_key};
use crate::ops::{Kernels, Matrix, Plain, TrackedBackend, wide};
use crate::optimiser::Adam;
use crate::problem::Problem;
use crate::setting::{Key, key, positive, real};
use crate::subject::Subject;
use crate::tensor::norm;

/// Its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pez {
    /// What is minimised.
    pub goal: Goal,
    /// α of AdamW, whose other numbers are PyTorch's.
    pub learning_rate: f64,
    /// λ of AdamW: before a step, P is multiplied by 1 − αλ.
    pub weight_decay: f64,
}

/// PEZ with its authors' defaults.
pub const PEZ: Pez = Pez { goal: Goal::CROSS_ENTROPY, learning_rate: 0.1, weight_decay: 0.1 };

/// The settings of PEZ.
pub const KEYS: &[Key<Pez>] = &[
    objective_key(|pez| pez.goal.kind_slot()),
    margin_key(|pez| pez.goal.margin_slot()),
    key("learning_rate", "AdamW's learning rate", |pez| Some(positive(&mut pez.learning_rate))),
    key("weight_decay", "AdamW's weight decay", |pez| Some(real(&mut pez.weight_decay, 0.0..=1.0))),
];

/// PEZ at work.
pub struct PezMethod<B: TrackedBackend> {
    settings: Pez,
    /// P, `[N, D]`.
    prompt: Option<Variable<Plain<B>>>,
    /// See [`vocabulary_mask`].
    mask: Option<Matrix<B>>,
    at: Fields,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Fields {
    /// The tokens nearest to P when the last step began.
    nearest: HardPrompt,
    steps: u64,
}

impl<B: TrackedBackend> PezMethod<B> {
    /// A method that is to be started.
    pub fn new(settings: Pez) -> Self {
        Self { settings, prompt: None, mask: None, at: Fields::default() }
    }

    /// Starts at the embeddings of these N tokens.
    fn begin(&mut self, free: Vec<u32>, subject: &Subject<B>, problem: &Problem) {
        self.prompt = Some(Variable::new(subject.embedded(&free, wide(subject.model().dtype()))));
        self.mask = vocabulary_mask(subject, problem);
        self.at = Fields { nearest: HardPrompt { free, margins: None }, steps: 0 };
    }

    fn prompt(&mut self) -> &mut Variable<Plain<B>> {
        self.prompt.as_mut().expect("the method was started")
    }

    /// The allowed token nearest to each row of P by cosine.
    fn nearest(&self, rows: Matrix<B>, subject: &Subject<B>) -> Vec<u32> {
        let along = subject.along_embeddings(rows);
        Plain::<B>::argmax_rows(match &self.mask {
            Some(mask) => along + mask.clone(),
            None => along,
        })
    }
}

impl<B: TrackedBackend> Method<B> for PezMethod<B> {
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        let ids = problem.prompt.ids();
        let mut draws = Draws::new(Clock { step: 0, ..clock }.stream(Purpose::InitialPrompt));
        let free = (0..problem.prompt.tokens()).map(|_| ids[draws.below(ids.len())]).collect();
        self.begin(free, subject, problem);
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, _: Clock) -> Result<Progress> {
        let rows = self.prompt().value.clone();
        let free = self.nearest(rows, subject);
        let embedded = subject.embedded(&free, subject.model().dtype());
        let (mut margins, objective, gradient) = subject.margins_and_gradient(embedded, problem, self.settings.goal.objective());
        self.at.nearest = HardPrompt::new(free, margins.pop());
        let gradient_norm = norm(gradient.clone());
        self.at.steps += 1;
        let (Pez { learning_rate, weight_decay, .. }, steps) = (self.settings, self.at.steps);
        let prompt = self.prompt();
        prompt.value = prompt.value.clone() * (1.0 - learning_rate * weight_decay);
        prompt.step(Adam::new(learning_rate), steps, gradient);
        Ok(Progress { objective: objective as f32, gradient_norm: Some(gradient_norm), ..Progress::default() })
    }

    fn hard_prompt(&self, _: &Subject<B>, _: &Problem) -> HardPrompt {
        self.at.nearest.clone()
    }

    fn state(&self) -> State {
        let mut state = State::new(&self.at);
        self.prompt.as_ref().expect("the method was started").save("p", &mut state);
        state
    }

    fn restore(&mut self, mut state: State, subject: &Subject<B>, problem: &Problem) -> Result<()> {
        self.at = state.fields()?;
        let shape = [problem.prompt.tokens(), subject.model().config().hidden_size];
        self.prompt = Some(Variable::restore("p", shape, &mut state, &subject.device())?);
        self.mask = vocabulary_mask(subject, problem);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::DType;

    use super::*;
    use crate::tensor::host;
    use crate::testing::{Golden, each_tracked_cpu_backend, one_at_a_time, table_1_problem, tiny, tiny_subject};

    /// Tokens, losses and P of many steps, in which the nearest tokens change again and again.
    #[test]
    fn it_goes_where_pytorch_goes() {
        type B = Autodiff<Flex>;
        let _guard = one_at_a_time();
        let golden = Golden::open("rival_steps.safetensors");
        let (start, free) = (golden.ids("start").remove(0), golden.ids("pez.free"));
        let (losses, p) = (golden.doubles("pez.loss"), golden.floats("pez.p"));
        let (subject, problem) = (tiny_subject::<B>(DType::F64), table_1_problem(start.len(), ""));
        let mut method = PezMethod::new(PEZ);
        method.begin(start, &subject, &problem);
        let each = p.chunks_exact(p.len() / free.len());
        for (step, ((free, loss), p)) in free.iter().zip(losses).zip(each).enumerate() {
            let progress = method.step(&subject, &problem, Clock { seed: 0, restart: 0, step: step as u32 }).unwrap();
            assert_eq!(&method.at.nearest.free, free, "step {step}");
            assert!((f64::from(progress.objective) - loss).abs() < 1e-4, "step {step}: {} {loss}", progress.objective);
            let difference = crate::testing::largest_difference(p, &host(method.prompt().value.clone()));
            assert!(difference < 1e-5, "step {step}: {difference}");
        }
        assert!(free.windows(2).filter(|pair| pair[0] != pair[1]).count() > 5);
    }

    /// The first prompt and all that follow are of the search vocabulary, and what goes on from a saved state goes on alike.
    fn it_keeps_to_the_search_vocabulary<B: TrackedBackend>() {
        let subject = tiny_subject::<B>(DType::F32);
        let target = crate::Target::from_text("he is", &tiny().tokenizer).unwrap();
        let options = crate::problem::PromptOptions { tokens: 4, ..Default::default() };
        let problem = Problem::new(options, target, subject.tokenizer(), subject.vocab_size()).unwrap();
        let clock = |step| Clock { seed: 3, restart: 0, step };
        let (mut method, mut resumed) = (PezMethod::<B>::new(PEZ), PezMethod::<B>::new(PEZ));
        method.start(&subject, &problem, clock(0)).unwrap();
        for step in 0..20 {
            let free = &method.at.nearest.free;
            assert!(free.iter().all(|&id| problem.prompt.allowed()[id as usize]), "{free:?}");
            if step == 10 {
                resumed.restore(method.state(), &subject, &problem).unwrap();
            }
            method.step(&subject, &problem, clock(step)).unwrap();
        }
        for step in 10..20 {
            resumed.step(&subject, &problem, clock(step)).unwrap();
        }
        assert_eq!(resumed.state(), method.state());
    }

    each_tracked_cpu_backend!(it_keeps_to_the_search_vocabulary);
}
