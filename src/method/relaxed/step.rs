//! The loop of the relaxed methods: an estimate of the gradient, then a step of the optimiser.

use serde::{Deserialize, Serialize};

use super::TableRow;
use super::variables::Variables;
use crate::Result;
use crate::estimator::relaxation::vocabulary_mask;
use crate::estimator::{Estimate, Estimator, Noise, Relaxation, Temperature};
use crate::method::{Clock, HardPrompt, Method, Progress, State};
use crate::metrics::Spread;
use crate::ops::{Gumbel, Kernels, Matrix, Plain, TrackedBackend, wide};
use crate::problem::Problem;
use crate::subject::Subject;
use crate::tensor::{host, norm};

/// A relaxed method at work.
pub struct RelaxedMethod<B: TrackedBackend> {
    row: TableRow,
    estimator: Box<dyn Estimator<B>>,
    variables: Option<Variables<Plain<B>>>,
    /// See [`vocabulary_mask`].
    mask: Option<Matrix<B>>,
    /// Steps made since the start.
    steps: u64,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    steps: u64,
}

impl<B: TrackedBackend> RelaxedMethod<B> {
    /// A method that is to be started.
    pub fn new(row: TableRow) -> Self {
        Self::with(row, row.estimator.build())
    }

    /// The same with an estimator that is no value of a row.
    pub fn with(row: TableRow, estimator: Box<dyn Estimator<B>>) -> Self {
        Self { row, estimator, variables: None, mask: None, steps: 0 }
    }

    /// Starts at given Z `[N, V]` and Φ, `[N, 1]` or `[1, 1]`.
    #[cfg(test)]
    pub(crate) fn set(&mut self, z: Matrix<B>, phi: Option<Matrix<B>>) {
        self.begin(Variables::new(z, phi));
    }

    /// Z `[N, V]`, and Φ where it is learned, as they are now.
    pub fn variables(&self) -> (Matrix<B>, Option<Matrix<B>>) {
        let Variables { z, phi } = self.variables.as_ref().expect("the method was started");
        (z.value.clone(), phi.as_ref().map(|phi| phi.value.clone()))
    }

    /// A copy of the estimator with what it has learned: its estimates do not disturb the run. Only of one that is the row's.
    ///
    /// # Errors
    /// It is another one.
    pub fn estimator(&self) -> Result<Box<dyn Estimator<B>>> {
        let (mut copy, mut learned) = (self.row.estimator.build(), State::default());
        self.estimator.save(&mut learned);
        copy.restore(&mut learned)?;
        Ok(copy)
    }

    /// The relaxed prompt as it is now.
    pub fn relaxation<'a>(&self, subject: &'a Subject<B>, problem: &'a Problem) -> Relaxation<'a, B> {
        let (z, phi) = self.variables();
        let TableRow { feeding, temperature, samples, .. } = self.row;
        let (objective, mask) = (self.row.goal.objective(), self.mask.clone());
        Relaxation { subject, problem, objective, feeding, temperature, z, phi, mask, samples }
    }

    /// One step with this noise.
    pub fn step_with(&mut self, subject: &Subject<B>, problem: &Problem, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>> {
        let estimate = self.estimator.estimate(&self.relaxation(subject, problem), noise);
        self.steps += 1;
        let t_z = self.row.initial.redraw_every.map_or(self.steps, |every| (self.steps - 1) % every + 1);
        let variables = self.variables.as_mut().expect("the method was started");
        variables.step(self.row.optimiser, self.steps, t_z, &estimate);
        estimate
    }

    fn begin(&mut self, variables: Variables<Plain<B>>) {
        self.estimator.reset();
        (self.variables, self.steps) = (Some(variables), 0);
    }

    /// Draws Z again where its time has come. Before a step: what the steps so far have led to was judged as it was.
    fn redraw(&mut self, clock: Clock) {
        let due = self.row.initial.redraw_every.is_some_and(|every| self.steps > 0 && self.steps.is_multiple_of(every));
        if let Some(variables) = self.variables.as_mut().filter(|_| due) {
            variables.redraw(clock, self.row.initial.redraw_deviation);
        }
    }
}

impl<B: TrackedBackend> Method<B> for RelaxedMethod<B> {
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        self.mask = vocabulary_mask(subject, problem);
        let shape = [problem.prompt.tokens(), subject.vocab_size()];
        self.begin(Variables::start(&self.row, shape, clock, (&subject.device(), wide(subject.model().dtype()))));
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        self.redraw(clock);
        let estimate = self.step_with(subject, problem, &Noise::Drawn(clock));
        let now = self.relaxation(subject, problem).soft_prompt(Gumbel::Silent);
        Ok(Progress {
            objective: estimate.loss as f32,
            gradient_norm: Some(norm(estimate.dz)),
            entropy: Some(Spread::of(&Plain::<B>::entropy(&now))),
            temperature: (self.row.temperature != Temperature::None).then(|| Spread::of(&host(now.temperature))),
            stalled: false,
        })
    }

    fn hard_prompt(&self, subject: &Subject<B>, problem: &Problem) -> HardPrompt {
        let now = self.relaxation(subject, problem).soft_prompt(Gumbel::Silent);
        HardPrompt { free: Plain::<B>::argmax_rows(now.masked()), margins: None }
    }

    fn relaxed(&self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Option<Matrix<B>> {
        self.estimator.soft_prompts(&self.relaxation(subject, problem), &Noise::Drawn(clock))
    }

    fn state(&self) -> State {
        let mut state = State::new(&Fields { steps: self.steps });
        self.variables.as_ref().expect("the method was started").save(&mut state);
        self.estimator.save(&mut state);
        state
    }

    fn restore(&mut self, mut state: State, subject: &Subject<B>, problem: &Problem) -> Result<()> {
        let shape = [problem.prompt.tokens(), subject.vocab_size()];
        self.mask = vocabulary_mask(subject, problem);
        self.steps = state.fields::<Fields>()?.steps;
        self.variables = Some(Variables::restore(&self.row, shape, &mut state, &subject.device())?);
        self.estimator.restore(&mut state)
    }
}
