//! A study's file, as written: which axes there are, and what stands on each.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::files::read_text;
use crate::gradients::{Compared, Protocol};
use crate::setting::{self, Kind, Written};
use crate::settings::{Document, Layers, Origin, Setting, Sources, nearest, preset_names, written};
use crate::{Error, Result};

/// Larger than any study, in bytes.
const LARGEST_FILE: u64 = 4 << 20;
/// The keys of the file.
const KEYS: [&str; 11] =
    ["models", "presets", "methods", "estimators", "gradients", "prompt_tokens", "steps", "positions", "seeds", "targets", "settings"];
/// The keys of `[gradients]`.
const GRADIENTS_KEYS: [&str; 4] = ["every", "bias_every", "draws", "reference_samples"];
/// The keys of `[targets]`.
const TARGET_KEYS: [&str; 3] = ["file", "texts", "bundled"];

/// The axes of a grid, and what holds in every cell.
#[derive(Debug, Clone)]
pub struct Grid {
    path: PathBuf,
    /// Models as `--model` takes them.
    pub models: Vec<String>,
    /// Presets under everything else.
    presets: Vec<String>,
    /// Methods, each with settings of its own; or estimators, whose runs are measured.
    pub methods: Vec<Method>,
    /// When the runs of estimators are measured.
    pub protocol: Protocol,
    /// N.
    pub prompt_tokens: Vec<Given>,
    /// Budgets, in steps or in positions.
    pub budgets: Vec<Given>,
    /// Seeds.
    pub seeds: Vec<Given>,
    /// Where the targets are.
    pub targets: Targets,
    settings: Vec<Given>,
}

/// The value of a setting, and the line it stands on.
#[derive(Debug, Clone)]
pub struct Given {
    /// The setting's name.
    pub name: String,
    /// The value.
    pub value: Written,
    line: usize,
}

/// A method as a study has it.
#[derive(Debug, Clone)]
pub struct Method {
    name: Given,
    /// What tables and figures call it.
    pub label: String,
    settings: Vec<Given>,
    /// The estimator that it stands for, where gradients are measured.
    pub(super) estimator: Option<Compared>,
}

impl Method {
    /// The steps of each of its starts, where it has its own.
    fn steps(&self) -> Option<&Given> {
        self.settings.iter().find(|given| given.name == "steps")
    }
}

/// Where the targets of a study are.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// In a target file, as `dlmi targets` prints it.
    File(PathBuf),
    /// In the study's file.
    Texts(Vec<String>),
    /// Each bundled model's own.
    Bundled,
}

impl Grid {
    /// Reads a study's file.
    ///
    /// # Errors
    /// What cannot be read, is no TOML, has a key or a kind of value that no study has, or lacks `methods` or `[targets]`; with the line.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_text(path, LARGEST_FILE)?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let reader = Reader { document: Document { text, name: &format!("`{}`", path.display()) }, path };
        let table = reader.document.parse()?;
        reader.only(&table, &KEYS, "a study")?;
        let value = |key: &str| table.get(key);
        let texts = |key: &str, default: &str| value(key).map_or(Ok(vec![default.to_owned()]), |value| reader.texts(key, value));
        let axis = |key: &str, name: &str| value(key).map_or(Ok(Vec::new()), |value| reader.axis(key, name, value));
        let required =
            |key: &str, what: &str| value(key).ok_or_else(|| Error::input(format!("`{}` has no `{key}`: {what}", path.display())));
        let grid = Self {
            path: path.to_owned(),
            models: texts("models", "bard")?,
            presets: value("presets").map_or(Ok(vec!["paper".to_owned()]), |value| reader.presets(value))?,
            methods: match value("estimators") {
                Some(estimators) if value("methods").is_some() => {
                    return Err(reader.wrong(estimators.span(), "`estimators` stands for `methods`: give one of them"));
                }
                Some(estimators) => reader.estimators(estimators)?,
                None => reader.methods(required("methods", "name one or more, `methods = [\"dlmi\", \"gbda\"]`")?)?,
            },
            protocol: match value("gradients") {
                Some(gradients) if value("estimators").is_none() => {
                    return Err(reader.wrong(gradients.span(), "`[gradients]` belongs to `estimators`, and this study has `methods`"));
                }
                given => given.map_or(Ok(Protocol::default()), |gradients| reader.protocol(gradients))?,
            },
            prompt_tokens: axis("prompt_tokens", "prompt_tokens")?,
            budgets: reader.budgets(value("steps"), value("positions"))?,
            seeds: axis("seeds", "seed")?,
            targets: reader.targets(required("targets", "say where they are, `targets = { file = \"targets.jsonl\" }`")?)?,
            settings: value("settings").map_or(Ok(Vec::new()), |value| reader.settings(value, None))?,
        };
        grid.distinct_labels()?;
        grid.steps_of_starts()?;
        Ok(grid)
    }

    /// Refuses steps of a method's own, but where the budget is in positions: there they are those of each of its starts.
    fn steps_of_starts(&self) -> Result<()> {
        let in_positions = self.budgets.iter().any(|budget| budget.name == "max_positions");
        match self.methods.iter().find_map(Method::steps).filter(|_| !in_positions) {
            None => Ok(()),
            Some(Given { line, .. }) => Err(Error::input(format!(
                "`{}`, line {line}: `steps` is an axis: write it as a list, above all tables; a method has its own, for each of its starts, \
                 beside `positions`",
                self.path.display()
            ))),
        }
    }

    fn distinct_labels(&self) -> Result<()> {
        for (i, method) in self.methods.iter().enumerate() {
            if self.methods[..i].iter().any(|other| other.label == method.label) {
                let label = &method.label;
                return Err(self.wrong(format!("two methods are called `{label}`; give each its own `label`")));
            }
        }
        Ok(())
    }

    /// An error about the file as a whole.
    pub(super) fn wrong(&self, message: impl std::fmt::Display) -> Error {
        Error::input(format!("`{}`: {message}", self.path.display()))
    }

    /// All settings of cells with this model, method and these values of the other axes, the weakest first: presets, `[settings]`, the
    /// method's own, the axes.
    pub(super) fn layers(&self, model: &str, method: &Method, axes: &[&Given]) -> Result<Layers> {
        let presets = self.presets.clone();
        let mut layers = Layers::read(Sources { presets, ..Sources::default() })?;
        layers.add("model", Written::new(model, Kind::Text), Origin::File(self.path.clone(), 1))?;
        for given in self.settings.iter().chain([&method.name]).chain(&method.settings).chain(axes.iter().copied()) {
            let place = || Origin::File(self.path.clone(), given.line);
            if given.name == "max_positions" && method.steps().is_none() {
                // A preset's steps would end what has positions left.
                layers.add("steps", Written::untyped("none"), place())?;
            }
            layers.add(&given.name, given.value.clone(), place())?;
        }
        Ok(layers)
    }
}

/// What is being read.
struct Reader<'a> {
    document: Document<'a>,
    path: &'a Path,
}

type Entry<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn wrong(&self, span: Range<usize>, message: impl std::fmt::Display) -> Error {
        Error::input(format!("{}, line {}: {message}", self.document.name, self.document.line(&span)))
    }

    /// Refuses keys that `what` does not have.
    fn only(&self, table: &DeTable, keys: &[&str], what: &str) -> Result<()> {
        match table.keys().find(|key| !keys.contains(&key.get_ref().as_ref())) {
            None => Ok(()),
            Some(key) => {
                let (name, all) = (key.get_ref(), keys.join(", "));
                let near = nearest(name, keys);
                Err(self.wrong(key.span(), format!("{what} has no `{name}`; did you mean `{near}`? The keys are {all}")))
            }
        }
    }

    /// The values of a list with one value or more.
    fn list<'a, 'b>(&self, key: &str, value: &'a Entry<'b>) -> Result<&'a [Entry<'b>]> {
        match value.get_ref() {
            DeValue::Array(values) if !values.is_empty() => Ok(values),
            _ => Err(self.wrong(value.span(), format!("`{key}` must be a list with one value or more, in brackets"))),
        }
    }

    fn string(&self, key: &str, value: &Entry) -> Result<String> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => Err(self.wrong(value.span(), format!("`{key}` must hold text in quotes"))),
        }
    }

    fn texts(&self, key: &str, value: &Entry) -> Result<Vec<String>> {
        self.list(key, value)?.iter().map(|value| self.string(key, value)).collect()
    }

    /// Names of presets, of which there may be none: `[]`.
    fn presets(&self, value: &Entry) -> Result<Vec<String>> {
        if matches!(value.get_ref(), DeValue::Array(values) if values.is_empty()) {
            return Ok(Vec::new());
        }
        let names = self.texts("presets", value)?;
        let known: Vec<&str> = preset_names().collect();
        match names.iter().find(|name| !known.contains(&name.as_str())) {
            None => Ok(names),
            Some(name) => Err(self.wrong(value.span(), format!("there is no preset `{name}`; they are {}", known.join(", ")))),
        }
    }

    fn given(&self, name: impl Into<String>, value: &Entry) -> Given {
        Given { name: name.into(), value: written(value.get_ref()), line: self.document.line(&value.span()) }
    }

    fn axis(&self, key: &str, name: &str, value: &Entry) -> Result<Vec<Given>> {
        Ok(self.list(key, value)?.iter().map(|value| self.given(name, value)).collect())
    }

    /// Those in steps or those in positions.
    fn budgets(&self, steps: Option<&Entry>, positions: Option<&Entry>) -> Result<Vec<Given>> {
        match (steps, positions) {
            (Some(_), Some(positions)) => Err(self.wrong(positions.span(), "`positions` stands for `steps`: give one of them")),
            (Some(steps), None) => self.axis("steps", "steps", steps),
            (None, Some(positions)) => self.axis("positions", "max_positions", positions),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// `"gbda"`, or `{ name = "gbda", label = "gbda, cold", tau = 0.1 }`.
    fn methods(&self, value: &Entry) -> Result<Vec<Method>> {
        self.list("methods", value)?.iter().map(|value| self.method(value)).collect()
    }

    fn method(&self, value: &Entry) -> Result<Method> {
        let DeValue::Table(table) = value.get_ref() else {
            let name = self.string("methods", value)?;
            return Ok(Method { name: self.given("method", value), label: name, settings: Vec::new(), estimator: None });
        };
        let Some(named) = table.get("name") else {
            return Err(self.wrong(value.span(), "a method needs a name, `{ name = \"gbda\", tau = 0.1 }`"));
        };
        let name = self.string("name", named)?;
        let label = table.get("label").map_or(Ok(name.clone()), |label| self.string("label", label))?;
        if label.trim().is_empty() {
            return Err(self.wrong(value.span(), format!("the label of a `{name}` is empty; leave it out, or give it a name")));
        }
        Ok(Method { name: self.given("method", named), label, settings: self.settings(value, Some(&name))?, estimator: None })
    }

    /// `["reinforce", "gs-tau1"]`: each goes by the method whose section of the settings is its own.
    fn estimators(&self, value: &Entry) -> Result<Vec<Method>> {
        let estimator = |entry: &Entry| {
            let label = self.string("estimators", entry)?;
            let Some(estimator) = setting::named::<Compared>(&label) else {
                let known = setting::names::<Compared>().join(", ");
                return Err(self.wrong(entry.span(), format!("there is no estimator `{label}`; they are {known}")));
            };
            let name = Given { value: Written::new(estimator.method(), Kind::Text), ..self.given("method", entry) };
            Ok(Method { name, label, settings: Vec::new(), estimator: Some(estimator) })
        };
        self.list("estimators", value)?.iter().map(estimator).collect()
    }

    /// `[gradients]`: when runs are measured, and by how much.
    fn protocol(&self, value: &Entry) -> Result<Protocol> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong(value.span(), "`[gradients]` must be a table, `every = 25` on a line of its own"));
        };
        self.only(table, &GRADIENTS_KEYS, "`[gradients]`")?;
        let mut protocol = Protocol::default();
        for (key, value) in table {
            let key = key.get_ref().as_ref();
            let number = match value.get_ref() {
                DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
                _ => None,
            };
            let number =
                number.ok_or_else(|| self.wrong(value.span(), format!("`{key}` must be a whole number from 0 to {}", u32::MAX)))?;
            match key {
                "every" => protocol.every = number.into(),
                "bias_every" => protocol.bias_every = number.into(),
                "draws" => protocol.draws = number,
                _ => protocol.reference_samples = number,
            }
        }
        Ok(protocol)
    }

    /// Settings of every cell, or of those of a method: then `tau` is that of its section.
    fn settings(&self, value: &Entry, method: Option<&str>) -> Result<Vec<Given>> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong(value.span(), "`[settings]` must be a table, `eval_every = 32` on a line of its own"));
        };
        let mut found = Vec::new();
        for (key, value) in table.iter().filter(|(key, _)| method.is_none() || !["name", "label"].contains(&key.get_ref().as_ref())) {
            let name = key.get_ref().as_ref();
            self.may_be_set(name, method.is_some(), key.span())?;
            match (value.get_ref(), method) {
                (DeValue::Table(section), None) => {
                    found.extend(section.iter().map(|(key, value)| self.given(format!("{name}.{}", key.get_ref()), value)));
                }
                (_, Some(method)) if Setting::find(name).is_none() => found.push(self.given(format!("{method}.{name}"), value)),
                _ => found.push(self.given(name, value)),
            }
        }
        Ok(found)
    }

    /// Refuses what is an axis, and what is no part of a study.
    fn may_be_set(&self, name: &str, in_method: bool, span: Range<usize>) -> Result<()> {
        let instead = match name {
            "model" => "is an axis: write `models = [...]`",
            "method" => "is an axis: write `methods = [...]`",
            // Where it may be is seen when all of the file is known.
            "steps" if in_method => return Ok(()),
            "prompt_tokens" | "steps" => "is an axis: write it as a list, above all tables",
            "seed" => "is an axis: write `seeds = [...]`",
            "max_positions" => "is an axis: write `positions = [...]`",
            "max_seconds" => {
                "is no budget of a study, whose results must not depend on the machine: write `steps = [...]` or `positions = [...]`"
            }
            "device" => "is no part of a study: give it to `study run`",
            "backend" | "dtype" if in_method => "holds for the whole study: write it in `[settings]`",
            _ => return Ok(()),
        };
        Err(self.wrong(span, format!("`{name}` {instead}")))
    }

    fn targets(&self, value: &Entry) -> Result<Targets> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong(value.span(), "`targets` must be a table with `file`, `texts` or `bundled`"));
        };
        self.only(table, &TARGET_KEYS, "`targets`")?;
        if table.len() != 1 {
            return Err(self.wrong(value.span(), "`targets` must hold one of `file`, `texts` and `bundled`"));
        }
        let (key, value) = table.iter().next().expect("one entry");
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("file", _) => {
                let beside = self.path.parent().unwrap_or(Path::new(""));
                Ok(Targets::File(beside.join(self.string("file", value)?)))
            }
            ("texts", _) => Ok(Targets::Texts(self.texts("texts", value)?)),
            (_, DeValue::Boolean(true)) => Ok(Targets::Bundled),
            _ => Err(self.wrong(value.span(), "`bundled` must be `true`: each bundled model's own target")),
        }
    }
}
