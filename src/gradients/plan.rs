//! Which runs are measured, and when.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::line::SCHEMA;
use super::measurement::REFERENCE_PROMPTS;
use super::{Compared, Line};
use crate::invert::Model;
use crate::method::registry::MethodSettings;
use crate::method::relaxed::TableRow;
use crate::problem::Problem;
use crate::problem::targets::Labelled;
use crate::settings::{Options, drop_what_is_off};
use crate::subject::check_context;
use crate::{Error, Result};

/// Gradients of a measurement.
const DRAWS: RangeInclusive<u32> = 2..=1_000_000;
/// Prompts of the reference.
const REFERENCE_SAMPLES: RangeInclusive<u32> = 2 * REFERENCE_PROMPTS..=1_000_000_000;

/// When a run is measured, and by how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// Steps from one measurement of the variance to the next.
    pub every: u64,
    /// Steps from one measurement of the bias to the next.
    pub bias_every: u64,
    /// n, gradients of a measurement: 2 to 1,000,000.
    pub draws: u32,
    /// Prompts of the unbiased reference; rounded up to whole gradients of 16 prompts; 32 to 1,000,000,000.
    pub reference_samples: u32,
}

impl Default for Protocol {
    /// The paper's, and 1,024 prompts for the reference that it does not have.
    fn default() -> Self {
        Self { every: 25, bias_every: 50, draws: 5, reference_samples: 1024 }
    }
}

impl Protocol {
    /// The steps before which a run of so many is measured.
    pub fn points(&self, steps: u64) -> Vec<u64> {
        (0..steps).filter(|&step| step.is_multiple_of(self.every) || self.bias_is_due(step)).collect()
    }

    /// Whether the bias is measured before a step.
    pub fn bias_is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.bias_every)
    }

    /// Gradients of the reference.
    pub fn reference_gradients(&self) -> u32 {
        self.reference_samples.div_ceil(REFERENCE_PROMPTS)
    }

    fn check(&self) -> Result<()> {
        let at_least_one = |option, steps| if steps == 0 { Err(Error::option(option, "it must be 1 or more")) } else { Ok(()) };
        let within = |option, range: RangeInclusive<u32>, number, why: &str| match range.contains(&number) {
            true => Ok(()),
            false => Err(Error::option(option, format!("it must be from {} to {}{why}, and it is {number}", range.start(), range.end()))),
        };
        at_least_one("every", self.every)?;
        at_least_one("bias_every", self.bias_every)?;
        within("draws", DRAWS, self.draws, ", because a variance takes two")?;
        within("reference_samples", REFERENCE_SAMPLES, self.reference_samples, ", because its error takes two gradients of 16 prompts")
    }
}

/// A run that is measured: one estimator on one target with one seed.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Hash of all that decides its lines.
    pub id: String,
    /// The estimator.
    pub estimator: Compared,
    /// y, with its name and k.
    pub target: Labelled,
    /// Where its random numbers come from.
    pub seed: u32,
    /// What it runs by.
    pub row: TableRow,
}

impl Unit {
    /// Whether these lines have its measurement before a step.
    pub fn is_measured(&self, lines: &[Line], step: u64) -> bool {
        lines.iter().any(|line| line.unit == self.id && line.step == step)
    }
}

/// `gs-tau1, target k6_0, seed 0`.
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, target {}, seed {}", self.estimator.label(), self.target.id, self.seed)
    }
}

/// All runs, with what they have in common.
#[derive(Debug, Clone)]
pub struct Plan {
    /// N, steps, and the rules of the prompt; the rows come from the methods' sections.
    pub options: Options,
    /// When is measured, and by how much.
    pub protocol: Protocol,
    /// The runs, so that after any beginning the estimators can be compared.
    pub units: Vec<Unit>,
    /// Steps of a run.
    pub steps: u64,
    /// SHA-256 of the model's weights.
    pub(super) digest: String,
}

impl Plan {
    /// Each estimator on each target with each seed; what is named twice counts once.
    ///
    /// # Errors
    /// Settings that contradict each other or have no budget in steps. Whether the targets can be sought is [`Self::check`]'s.
    pub fn new(
        model: &Model,
        options: Options,
        protocol: Protocol,
        estimators: &[Compared],
        targets: &[Labelled],
        seeds: &[u32],
    ) -> Result<Self> {
        protocol.check()?;
        let steps = options.steps.ok_or_else(|| Error::option("steps", "a run that is measured needs a number of steps"))?;
        let rows = once(estimators).map(|estimator| Ok((*estimator, estimator.row(&options)?))).collect::<Result<Vec<_>>>()?;
        let mut plan = Self { options, protocol, units: Vec::new(), steps, digest: model.identity().digest };
        for target in targets {
            for &seed in once(seeds) {
                let unit = |&(estimator, row)| Unit {
                    id: plan.id(model, estimator, &row, target, seed),
                    estimator,
                    target: target.clone(),
                    seed,
                    row,
                };
                let units: Vec<Unit> = rows.iter().map(unit).collect();
                plan.units.extend(units);
            }
        }
        let mut seen = HashSet::new();
        plan.units.retain(|unit| seen.insert(unit.id.clone()));
        Ok(plan)
    }

    /// Refuses targets that cannot be sought. It takes a tenth of a second for each.
    ///
    /// # Errors
    /// A target for which nothing is left that may stand in a prompt, or that does not fit into the context.
    pub fn check(&self, model: &Model) -> Result<()> {
        let mut seen = HashSet::new();
        let mut targets = self.units.iter().map(|unit| &unit.target).filter(|target| seen.insert(&target.id));
        targets.try_for_each(|target| self.problem(model, target).map(drop))
    }

    /// The steps before which each run is measured.
    pub fn points(&self) -> Vec<u64> {
        self.protocol.points(self.steps)
    }

    /// The runs of which these lines lack a measurement.
    pub fn due(&self, lines: &[Line]) -> Vec<Unit> {
        let points = self.points();
        self.units.iter().filter(|unit| !points.iter().all(|&step| unit.is_measured(lines, step))).cloned().collect()
    }

    pub(super) fn problem(&self, model: &Model, target: &Labelled) -> Result<Problem> {
        let problem = model.problem_of(target.target.clone(), &self.options).map_err(|error| match error {
            Error::Input(message) => Error::input(format!("target {}: {message}", target.id)),
            Error::Option { option, message } => Error::Option { option, message: format!("target {}: {message}", target.id) },
            other => other,
        })?;
        check_context(model.config(), problem.first().positions(), problem.target_tokens())?;
        Ok(problem)
    }

    fn id(&self, model: &Model, estimator: Compared, row: &TableRow, target: &Labelled, seed: u32) -> String {
        let Options { prompt_tokens, prefix, suffix, bos, all_tokens, allow_special, allow_target_tokens, dtype, .. } = &self.options;
        let Protocol { every, bias_every, draws, .. } = self.protocol;
        let row = MethodSettings::Relaxed(*row);
        let row: Map<String, Value> = row.keys().into_iter().filter_map(|(name, _)| Some((name.to_owned(), row.get(name)?))).collect();
        let mut content = json!({
            "schema": SCHEMA, "model": self.digest, "estimator": estimator.label(), "row": row,
            "target_ids": target.target.ids, "seed": seed,
            "prompt_tokens": prompt_tokens, "prefix": prefix, "suffix": suffix, "bos": bos, "all_tokens": all_tokens,
            "allow_special": allow_special, "allow_target_tokens": allow_target_tokens, "dtype": dtype.as_str(),
            "steps": self.steps, "every": every, "bias_every": bias_every, "draws": draws,
            "reference_gradients": self.protocol.reference_gradients(),
        });
        let Options { forbid, ascii, words, end, chat, system, .. } = &self.options;
        let mut asked = json!({ "forbid": forbid, "ascii": ascii, "words": words, "end": end, "chat": chat, "system": system });
        drop_what_is_off(&mut asked);
        let content = content.as_object_mut().expect("an object");
        content.append(asked.as_object_mut().expect("an object"));
        content.extend(model.beside_weights(&self.options));
        crate::files::hex(&Sha256::digest(json!(content).to_string())[..16])
    }
}

/// Every value the first time that it comes.
fn once<T: PartialEq>(values: &[T]) -> impl Iterator<Item = &T> {
    values.iter().enumerate().filter(|(i, value)| !values[..*i].contains(value)).map(|(_, value)| value)
}
