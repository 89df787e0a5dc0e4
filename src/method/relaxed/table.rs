//! A row of the paper's Table 1 as a value, with the constants that its Table 5 adds, and the settings that reach them.

use crate::estimator::reinforce::Baseline;
use crate::estimator::{EstimatorKind, GumbelSoftmax, Rebar, Reinforce, Relax, StraightThrough, Temperature};
use crate::objective::{Goal, margin_key, objective_key};
use crate::optimiser::Adam;
use crate::setting::{Choice, Key, Slot, choice, key, optional_real, optional_whole, positive, real, switch, whole};
use crate::subject::Footprint;
use crate::subject::feeding::{Feedback, Feeding};

/// A row of Table 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TableRow {
    /// Soft Emb. and Grad. Est.: what is made of Z, and how the gradient is had.
    pub estimator: EstimatorKind,
    /// DL-τ: how τ is chosen.
    pub temperature: Temperature,
    /// TF: what the model is fed after the prompt.
    pub feeding: Feeding,
    /// What is minimised.
    pub goal: Goal,
    /// Moves Z and Φ.
    pub optimiser: Adam,
    /// Where Z and Φ start.
    pub initial: Initial,
    /// S, prompts of a step.
    pub samples: usize,
}

/// Where Z and Φ start: Z by normal draws, once or again and again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Initial {
    /// Standard deviation of Z₀.
    pub deviation: f64,
    /// Steps after which Z is drawn again and its moments are forgotten.
    pub redraw_every: Option<u64>,
    /// Standard deviation of Z then.
    pub redraw_deviation: f64,
    /// Φ₀, where Φ is learned.
    pub phi: InitialPhi,
}

impl Initial {
    /// N(0, 1), once.
    pub const GAUSSIAN: Self = Self { deviation: 1.0, redraw_every: None, redraw_deviation: 1.0, phi: InitialPhi::Normal };
}

/// Where Φ starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialPhi {
    /// N(0, 1): the paper's
    Normal,
    /// Uniform in (0, 1): what the paper's authors ran
    Uniform,
}

impl Choice for InitialPhi {
    const ALL: &'static [(Self, &'static str, &'static str)] =
        &[(Self::Normal, "normal", "N(0, 1): the paper's"), (Self::Uniform, "uniform", "Uniform in (0, 1): what the paper's authors ran")];
}

const MANY: u64 = 1_000_000_000;

/// The settings of a row. Some belong to one kind of estimator, temperature, feeding or objective; such a key comes after the one that
/// chooses.
pub const KEYS: &[Key<TableRow>] = &[
    key("samples", "Prompts that a step draws (S)", |row| row.estimator.is_random().then(|| whole(&mut row.samples, 1..=1024))),
    objective_key(|row| row.goal.kind_slot()),
    margin_key(|row| row.goal.margin_slot()),
    key("tau", "The fixed temperature", |row| match &mut row.temperature {
        Temperature::Fixed(tau) => Some(real(tau, 1e-6..=1e9)),
        _ => None,
    }),
    key("tau0", "Scale of the learned temperature, tau = tau0 (1 + tanh phi)", |row| match &mut row.temperature {
        Temperature::Learned { tau0, .. } => Some(positive(tau0)),
        _ => None,
    }),
    key("per_position", "Learn one temperature per position, not one for all", |row| match &mut row.temperature {
        Temperature::Learned { per_position, .. } => Some(switch(per_position)),
        _ => None,
    }),
    key("initial_phi", "Where phi starts", |row| match row.temperature {
        Temperature::Learned { .. } => Some(choice(&mut row.initial.phi)),
        _ => None,
    }),
    key("largest_uniform", "Where uniform draws, rescaled, end before they become Gumbel noise, or `none`: as they are", |row| {
        match &mut row.estimator {
            EstimatorKind::GumbelSoftmax(GumbelSoftmax { largest_uniform })
            | EstimatorKind::StraightThrough(StraightThrough { largest_uniform, .. }) => Some(optional_real(largest_uniform, 0.5..=1.0)),
            _ => None,
        }
    }),
    key("draw_again", "Draw the tokens that are shown again from the soft sample, as the paper's authors did", |row| {
        match &mut row.estimator {
            EstimatorKind::StraightThrough(StraightThrough { draw_again, .. }) => Some(switch(draw_again)),
            _ => None,
        }
    }),
    key("feedback", "How the model is fed what it writes", |row| match &mut row.feeding {
        Feeding::Free(feedback) => Some(choice(feedback)),
        Feeding::Forced => None,
    }),
    key("baseline", "What is subtracted from a sample's loss", |row| reinforce(row, |settings| choice(&mut settings.baseline))),
    key("baseline_beta", "Beta of the moving average", |row| match &mut row.estimator {
        EstimatorKind::Reinforce(settings) if settings.baseline.averages() => Some(real(&mut settings.beta, 0.0..=1.0)),
        _ => None,
    }),
    key("reward_scale", "What the gradient is multiplied by", |row| reinforce(row, |settings| positive(&mut settings.reward_scale))),
    key("lambda", "Temperature of the control variate, or `none`: the one of least variance among 0.1, 0.3, 1, 3 and 10", |row| {
        rebar(row, |settings| optional_real(&mut settings.lambda, 1e-3..=1e3))
    }),
    key("regression_beta", "Share of the earlier means in the new ones of the regression that gives eta", |row| {
        rebar(row, |settings| real(&mut settings.beta, 0.0..=0.999_999))
    }),
    key("surrogate_hidden", "Hidden units of the control variate's network", |row| match &mut row.estimator {
        EstimatorKind::Relax(Relax { hidden, .. }) => Some(whole(hidden, 1..=1024)),
        _ => None,
    }),
    key("surrogate_rate", "Adam's learning rate for the control variate's network", |row| match &mut row.estimator {
        EstimatorKind::Relax(Relax { rate, .. }) => Some(positive(rate)),
        _ => None,
    }),
    key("learning_rate", "Adam's learning rate", |row| Some(positive(&mut row.optimiser.learning_rate))),
    key("beta1", "Adam's decay of the mean gradient", |row| Some(real(&mut row.optimiser.beta1, 0.0..=0.999_999))),
    key("beta2", "Adam's decay of the mean squared gradient", |row| Some(real(&mut row.optimiser.beta2, 0.0..=0.999_999))),
    key("epsilon", "What Adam adds to the root of the mean squared gradient", |row| Some(positive(&mut row.optimiser.epsilon))),
    key("bias_correction", "Divide Adam's means by what their short history lacks", |row| Some(switch(&mut row.optimiser.bias_correction))),
    key("decay", "What Z and phi are multiplied by after a step", |row| Some(real(&mut row.optimiser.decay, 0.0..=1.0))),
    key("reset_every", "Steps after which Adam's means are forgotten, or `none`", |row| {
        Some(optional_whole(&mut row.optimiser.reset_every, 1..=MANY))
    }),
    key("initial_deviation", "Standard deviation of Z at the start", |row| Some(real(&mut row.initial.deviation, 0.0..=1e6))),
    key("redraw_every", "Steps after which Z is drawn again, or `none`", |row| {
        Some(optional_whole(&mut row.initial.redraw_every, 1..=MANY))
    }),
    key("redraw_deviation", "Standard deviation of Z when it is drawn again", |row| {
        row.initial.redraw_every.is_some().then(|| real(&mut row.initial.redraw_deviation, 0.0..=1e6))
    }),
];

fn reinforce<'a>(row: &'a mut TableRow, slot: impl FnOnce(&'a mut Reinforce) -> Slot<'a>) -> Option<Slot<'a>> {
    match &mut row.estimator {
        EstimatorKind::Reinforce(settings) => Some(slot(settings)),
        _ => None,
    }
}

fn rebar<'a>(row: &'a mut TableRow, slot: impl FnOnce(&'a mut Rebar) -> Slot<'a>) -> Option<Slot<'a>> {
    match &mut row.estimator {
        EstimatorKind::Rebar(settings) | EstimatorKind::Relax(Relax { rebar: settings, .. }) => Some(slot(settings)),
        _ => None,
    }
}

impl TableRow {
    /// What the memory of a step goes by.
    pub fn footprint(&self) -> Footprint {
        Footprint { samples: self.samples, feeding: self.feeding, ..Footprint::default() }
    }

    /// Refuses values that contradict each other.
    ///
    /// # Errors
    /// A sentence that names them.
    pub fn check(&self) -> Result<(), String> {
        match self.estimator {
            EstimatorKind::Reinforce(Reinforce { baseline: Baseline::LeaveOneOut, .. }) if self.samples < 2 => Err(format!(
                "`baseline` leave-one-out compares a sample with the others: `samples` must be at least 2, not {}",
                self.samples
            )),
            kind if kind.has_control() && self.feeding == Feeding::Free(Feedback::Hard) => Err(
                "`feedback` must be soft or gumbel, not hard: a control variate that no gradient passes through makes the estimate biased"
                    .to_owned(),
            ),
            kind if kind.has_control() && self.temperature != Temperature::None => {
                Err("a control variate has `lambda` for a temperature, and its row none of its own".to_owned())
            }
            _ => Ok(()),
        }
    }
}
