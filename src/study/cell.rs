//! One inversion of a study, and its id: the hash of all that decides the result.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::grid::{Given, Grid, Method, Targets};
use super::order::{balanced, balanced_groups};
use crate::error::quoted;
use crate::gradients::{Compared, Plan, Protocol};
use crate::invert::Model;
use crate::invert::record::ModelIdentity;
use crate::method::registry::MethodSettings;
use crate::problem::Target;
use crate::problem::targets::{Labelled, read_targets};
use crate::settings::{Options, Resolved, drop_what_is_off};
use crate::source::bundled;
use crate::{Error, Result};

/// Of what a cell leaves; part of every id.
pub const SCHEMA: &str = "dlmi.cell/1";
/// Hexadecimal digits of an id.
const ID_LENGTH: usize = 32;
/// Settings that say where a cell is computed and in how much memory, or that its model stands for.
const NO_SCIENCE: [&str; 3] = ["model", "device", "max_memory"];

/// One inversion.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Of what decides the result: weights, tokenizer, target tokens, every setting, a chat's template, schema. Names, host and time are not in it.
    pub id: String,
    /// Place of its model in the study.
    pub(super) model: usize,
    identity: ModelIdentity,
    /// y, with its name and k.
    pub target: Labelled,
    /// What tables call its method.
    pub method: String,
    /// All settings, resolved.
    pub options: Options,
    /// The presets that they come from.
    pub(super) presets: Vec<String>,
    /// In place of an inversion: a run of an estimator, and when it is measured.
    pub(super) measured: Option<(Compared, Protocol)>,
}

/// Names of the axes, in the order of [`Cell::axes`].
pub const AXES: [&str; 7] = ["model", "k", "method", "prompt_tokens", "steps", "max_positions", "seed"];

impl Cell {
    /// On `of`, whose place in the study is `model`.
    pub(super) fn new(model: usize, of: &Model, target: Labelled, method: &str, resolved: &Resolved, seed: u32) -> Self {
        let options = Options { seed, ..resolved.settings.clone() };
        let (method, presets) = (method.to_owned(), resolved.presets.clone());
        let mut cell = Self { id: String::new(), model, identity: of.identity(), target, method, options, presets, measured: None };
        cell.id = cell.hash(of);
        cell
    }

    /// A run of an estimator in place of the inversion.
    ///
    /// # Errors
    /// As [`Plan::new`].
    fn measured(self, estimator: Compared, protocol: Protocol, model: &Model) -> Result<Self> {
        let id = self.run_of(estimator, protocol, model)?.units[0].id.clone();
        Ok(Self { id, measured: Some((estimator, protocol)), ..self })
    }

    /// What is measured, one run, where it is no inversion.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub(super) fn plan(&self, model: &Model) -> Result<Option<Plan>> {
        self.measured.map(|(estimator, protocol)| self.run_of(estimator, protocol, model)).transpose()
    }

    fn run_of(&self, estimator: Compared, protocol: Protocol, model: &Model) -> Result<Plan> {
        Plan::new(model, self.options.clone(), protocol, &[estimator], std::slice::from_ref(&self.target), &[self.options.seed])
    }

    /// The settings of its method or estimator.
    pub(super) fn method_settings(&self) -> MethodSettings {
        match self.measured {
            None => *self.options.method_settings(),
            Some((estimator, _)) => MethodSettings::Relaxed(estimator.row(&self.options).expect("it was checked when the cell was made")),
        }
    }

    fn hash(&self, model: &Model) -> String {
        let mut settings = self.options.to_json();
        let map = settings.as_object_mut().expect("settings are an object");
        NO_SCIENCE.iter().for_each(|key| drop(map.shift_remove(*key)));
        drop_what_is_off(&mut settings);
        let mut content = json!({
            "schema": SCHEMA,
            "record": crate::invert::record::SCHEMA,
            "model": self.identity.digest,
            "target_ids": self.target.target.ids,
            "settings": settings,
        });
        content.as_object_mut().expect("an object").extend(model.beside_weights(&self.options));
        let digest = Sha256::digest(canonical(&content));
        crate::files::hex(&digest)[..ID_LENGTH].to_owned()
    }

    /// M, the stop token included where one is asked for.
    pub fn target_tokens(&self) -> usize {
        self.target.target.ids.len() + usize::from(self.options.end)
    }

    /// Where it stands on each of [`AXES`].
    pub fn axes(&self) -> [Value; 7] {
        let Options { prompt_tokens, steps, max_positions, seed, .. } = &self.options;
        [
            self.identity.spec.clone().into(),
            self.target.k.into(),
            self.method.clone().into(),
            (*prompt_tokens).into(),
            (*steps).into(),
            (*max_positions).into(),
            (*seed).into(),
        ]
    }

    /// As it is listed, and as it stands in its record.
    pub fn summary(&self) -> Value {
        let mut summary = json!({ "id": self.id, "model_digest": self.identity.digest, "target": self.target.id });
        let map = summary.as_object_mut().expect("an object");
        map.extend(AXES.iter().zip(self.axes()).map(|(name, value)| ((*name).to_owned(), value)));
        map.insert("target_ids".into(), self.target.target.ids.clone().into());
        map.extend(self.options.max_seconds.map(|seconds| ("max_seconds".to_owned(), seconds.into())));
        map.extend(self.measured.map(|(_, protocol)| ("gradients".to_owned(), json!(protocol))));
        summary
    }
}

/// `dlmi, N 10, 64 steps, seed 1, target k6_0`.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { prompt_tokens, steps, max_positions, seed, .. } = &self.options;
        let budgets =
            [(steps, "steps"), (max_positions, "positions")].map(|(budget, unit)| budget.map(|budget| format!("{budget} {unit}, ")));
        let budgets: String = budgets.into_iter().flatten().collect();
        write!(f, "{}, N {prompt_tokens}, {budgets}seed {seed}, target {}", self.method, self.target.id)
    }
}

/// JSON with its keys in order: the same text for the same content.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let entries: Vec<String> =
                sorted.into_iter().map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value))).collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(values) => format!("[{}]", values.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// All cells of a grid in their order: blocks of one target, N, budget, model and seed, in which all methods come one after another. So in
/// any beginning methods are compared on the same problems, and the blocks are balanced over the other axes.
pub(super) fn list(grid: &Grid, models: &[Model]) -> Result<Vec<Cell>> {
    let targets: Vec<Vec<Labelled>> = models.iter().map(|model| targets(grid, model)).collect::<Result<_>>()?;
    let groups = groups(&targets[0]);
    let seeds = seeds(grid)?;
    // The members of a group: each target with each seed.
    let members: Vec<Vec<Vec<usize>>> = groups.iter().map(|group| balanced(&[group.len(), seeds.len()])).collect();
    let counts: Vec<usize> = members.iter().map(Vec::len).collect();
    let (ns, budgets) = (points(&grid.prompt_tokens), points(&grid.budgets));
    let resolved = resolve_all(grid, models, &ns, &budgets)?;
    let block = |(group, member, point): (usize, usize, Vec<usize>)| {
        let [n, budget, model] = point[..] else { unreachable!("one value for each size") };
        let [target, seed] = members[group][member][..] else { unreachable!("a target and a seed") };
        let target = &targets[model][groups[group][target]];
        let cell = |(method, given): (usize, &Method)| {
            let resolved = &resolved[model][method][n][budget];
            let cell = Cell::new(model, &models[model], target.clone(), &given.label, resolved, seeds[seed]);
            match given.estimator {
                None => Ok(cell),
                Some(estimator) => {
                    cell.measured(estimator, grid.protocol, &models[model]).map_err(|error| grid.wrong(format!("{}: {error}", given.label)))
                }
            }
        };
        grid.methods.iter().enumerate().map(cell).collect::<Vec<_>>()
    };
    balanced_groups(&counts, &[ns.len(), budgets.len(), models.len()]).into_iter().flat_map(block).collect()
}

/// The values of an axis; an axis without values has one point, which leaves the setting as it is.
fn points(axis: &[Given]) -> Vec<Option<&Given>> {
    if axis.is_empty() { vec![None] } else { axis.iter().map(Some).collect() }
}

/// Settings by model, method, N and budget.
fn resolve_all(grid: &Grid, models: &[Model], ns: &[Option<&Given>], budgets: &[Option<&Given>]) -> Result<Vec<Vec<Vec<Vec<Resolved>>>>> {
    let one = |model: &Model, method: &Method, n: &Option<&Given>, budget: &Option<&Given>| {
        let axes: Vec<&Given> = [*n, *budget].into_iter().flatten().collect();
        let resolved = grid.layers(&model.identity().spec, method, &axes)?.resolve(&model.shape())?;
        let Options { steps, max_positions, max_seconds, .. } = resolved.settings;
        if (steps.is_none() && max_positions.is_none()) || max_seconds.is_some() {
            return Err(grid.wrong(format!("`{}` has no budget in steps; write `steps = [256]` or `positions = [60000]`", method.label)));
        }
        resolved.settings.check().map_err(|error| grid.wrong(format!("{}: {error}", method.label)))?;
        Ok(resolved)
    };
    let by_budget = |model, method, n| budgets.iter().map(|budget| one(model, method, n, budget)).collect::<Result<Vec<_>>>();
    let by_n = |model, method| ns.iter().map(|n| by_budget(model, method, n)).collect::<Result<Vec<_>>>();
    let by_method = |model| grid.methods.iter().map(|method| by_n(model, method)).collect::<Result<Vec<_>>>();
    models.iter().map(by_method).collect()
}

fn seeds(grid: &Grid) -> Result<Vec<u32>> {
    if grid.seeds.is_empty() {
        return Ok(vec![Options::default().seed]);
    }
    let seed = |given: &Given| {
        let mut options = Options::default();
        options.assign(&given.name, given.value.as_str()).map_err(|error| grid.wrong(error))?;
        Ok(options.seed)
    };
    grid.seeds.iter().map(seed).collect()
}

/// The targets of a grid in a model's tokens.
fn targets(grid: &Grid, model: &Model) -> Result<Vec<Labelled>> {
    let labelled = |id: String, text: &str| {
        let target = Target::from_text(text, model.tokenizer()).map_err(|error| grid.wrong(format!("{id}: {error}")))?;
        Ok(Labelled::of(id, target))
    };
    match &grid.targets {
        Targets::File(path) if !path.exists() => {
            Err(grid.wrong(format!("its targets are to be in `{}`, which is not there; `dlmi targets` draws some", path.display())))
        }
        Targets::File(path) => read_targets(path, model.tokenizer(), model.config().vocab_size),
        Targets::Texts(texts) => (1..).zip(texts).map(|(n, text)| labelled(format!("text{n}"), text)).collect(),
        Targets::Bundled => {
            let spec = model.identity().spec;
            let own = bundled(&spec)
                .ok_or_else(|| grid.wrong(format!("`{spec}` is no bundled model and has no target of its own; give `file` or `texts`")))?;
            Ok(vec![labelled("bundled".into(), own.default_target)?])
        }
    }
}

/// The targets' places by k, in the order in which each k first comes.
fn groups(targets: &[Labelled]) -> Vec<Vec<usize>> {
    let mut groups: Vec<(Option<u32>, Vec<usize>)> = Vec::new();
    for (place, target) in targets.iter().enumerate() {
        match groups.iter_mut().find(|(k, _)| *k == target.k) {
            Some((_, group)) => group.push(place),
            None => groups.push((target.k, vec![place])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Refuses an id that is none.
pub fn unknown(id: &str) -> Error {
    Error::input(format!("the study has no cell {}, or not any more: `study cells FILE --ids` lists them", quoted(id)))
}
