//! The layers of settings, weakest first: defaults, the method's own, the model's preset, `--preset`, `-c` files,
//! `DLMI_*`, `--set`, flags.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use toml::de::DeTable;

use super::presets::{self, ModelIdentity};
use super::value::Raw;
use super::{KEYS, Key, Method, Settings, find};
use crate::estimator::reinforce::Baseline;
use crate::files::utf8;
use crate::{Error, Result};

const VARIABLE: &str = "DLMI_";

/// Where a value was written.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Built in.
    Default,
    /// Built in for this method.
    Method(Method),
    /// Line of the preset that goes with the model.
    Model(String, usize),
    /// Line of a preset named by `--preset`.
    Preset(String, usize),
    /// Line of a file named by `-c`.
    File(PathBuf, usize),
    /// `DLMI_*`.
    Environment,
    /// `--set`.
    Set,
    /// A flag of its own.
    Flag,
}

impl Origin {
    /// Name of the layer, for programs.
    pub fn layer(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Method(_) => "method",
            Self::Model(..) => "model",
            Self::Preset(..) => "preset",
            Self::File(..) => "file",
            Self::Environment => "environment",
            Self::Set => "set",
            Self::Flag => "flag",
        }
    }

    /// Where the value of `key` stands, for people.
    fn place(&self, key: &str) -> String {
        match self {
            Self::Default => "default".into(),
            Self::Method(method) => format!("default of {method}"),
            Self::Model(name, line) => format!("preset {name} of the model, line {line}"),
            Self::Preset(name, line) => format!("preset {name}, line {line}"),
            Self::File(path, line) => format!("{}, line {line}", path.display()),
            Self::Environment => variable(key),
            Self::Set => "--set".into(),
            Self::Flag => format!("--{}", key.replace('_', "-")),
        }
    }

    /// The subject of a sentence about the value of `key`.
    fn subject(&self, key: &str) -> String {
        match self {
            Self::Environment | Self::Flag => format!("`{}`", self.place(key)),
            Self::Set => format!("`--set {key}`"),
            _ => format!("`{key}` ({})", self.place(key)),
        }
    }
}

fn variable(key: &str) -> String {
    format!("{VARIABLE}{}", key.to_uppercase())
}

/// One value of one layer, not yet checked.
#[derive(Debug, Clone)]
pub(super) struct Assignment {
    pub(super) key: &'static Key,
    value: Raw,
    origin: Origin,
}

impl Assignment {
    fn new(name: &str, value: Raw, origin: Origin) -> Result<Self> {
        match find(name) {
            Some(key) => Ok(Self { key, value, origin }),
            None => Err(unknown(name, &origin)),
        }
    }

    fn apply(&self, resolved: &mut Resolved) -> Result<()> {
        (self.key.set)(&mut resolved.settings, &self.value)
            .map_err(|wrong| Error::input(format!("{} {wrong}", self.origin.subject(self.key.name))))?;
        resolved.origins[index(self.key.name)] = self.origin.clone();
        Ok(())
    }
}

fn unknown(name: &str, origin: &Origin) -> Error {
    let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    let near = nearest(name, &names);
    let near = if *origin == Origin::Environment { variable(near) } else { near.into() };
    Error::input(format!("{} is not a setting; did you mean `{near}`? `dlmi config show` lists them all", origin.subject(name)))
}

/// The one of `names` that takes the fewest edits from `name`.
pub(super) fn nearest<'a>(name: &str, names: &[&'a str]) -> &'a str {
    let name = name.to_lowercase().replace('-', "_");
    let edits = |other: &&&str| strsim::osa_distance(&name, &other.replace('-', "_"));
    names.iter().min_by_key(edits).copied().unwrap_or_default()
}

fn index(name: &str) -> usize {
    KEYS.iter().position(|key| key.name == name).unwrap_or_default()
}

/// The values of the TOML document `name` in the order of its lines, the key `skip` left out.
pub(super) fn assignments(text: &str, name: &str, skip: Option<&str>, origin: &dyn Fn(usize) -> Origin) -> Result<Vec<Assignment>> {
    let line = |offset: usize| 1 + text[..offset].matches('\n').count();
    let table = DeTable::parse(text).map_err(|error| {
        let place = error.span().map_or(String::new(), |span| format!(", line {}", line(span.start)));
        Error::input(format!("{name}{place} is not TOML: {}", error.message().replace('\n', ", ")))
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().filter(|(key, _)| Some(key.get_ref().as_ref()) != skip).collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
        .into_iter()
        .map(|(key, value)| Assignment::new(key.get_ref(), Raw::toml(value.get_ref()), origin(line(key.span().start))))
        .collect()
}

fn file(path: &Path) -> Result<Vec<Assignment>> {
    let name = format!("`{}`", path.display());
    let bytes = std::fs::read(path).map_err(|error| Error::reading(path, &error))?;
    assignments(&utf8(bytes, &name)?, &name, None, &|line| Origin::File(path.into(), line))
}

/// The variables of the environment that begin with `DLMI_`.
///
/// # Errors
/// A value that is not UTF-8.
pub fn environment() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(VARIABLE)) else { continue };
        found.push((name.to_string(), utf8(value.into_encoded_bytes(), &format!("`{name}`"))?));
    }
    found.sort();
    Ok(found)
}

/// What the command line and the environment say, as written.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--preset`, in order.
    pub presets: Vec<String>,
    /// `-c`, in order.
    pub files: Vec<PathBuf>,
    /// `DLMI_*` and values, see [`environment`].
    pub environment: Vec<(String, String)>,
    /// `--set key=value`, in order.
    pub set: Vec<String>,
    /// Keys and values of the flags that were given.
    pub flags: Vec<(&'static str, String)>,
}

/// Everything the user set, read and with known keys, weakest first; the model's preset is not known yet.
#[derive(Debug, Clone)]
pub struct Layers {
    presets: Vec<String>,
    given: Vec<Assignment>,
}

impl Layers {
    /// Reads presets and files, and looks up every key.
    ///
    /// # Errors
    /// Unreadable files, unknown presets and keys, each named with its place and the nearest valid name.
    pub fn read(sources: Sources) -> Result<Self> {
        let mut given = Vec::new();
        for name in &sources.presets {
            given.extend(presets::by_name(name)?);
        }
        for path in &sources.files {
            given.extend(file(path)?);
        }
        for (name, value) in sources.environment {
            let key = name.strip_prefix(VARIABLE).unwrap_or(&name).to_lowercase();
            given.push(Assignment::new(&key, Raw::text(value), Origin::Environment)?);
        }
        for text in sources.set {
            let Some((key, value)) = text.split_once('=') else {
                return Err(Error::input(format!("`--set {text}` has no value: write --set key=value")));
            };
            given.push(Assignment::new(key.trim(), Raw::text(value), Origin::Set)?);
        }
        for (key, value) in sources.flags {
            given.push(Assignment::new(key, Raw::text(value), Origin::Flag)?);
        }
        Ok(Self { presets: sources.presets, given })
    }

    /// The settings without the model's preset: enough to open the backend and to find the model.
    ///
    /// # Errors
    /// Values of the wrong kind or out of range, and values that contradict each other.
    pub fn preview(&self) -> Result<Resolved> {
        self.fold(Vec::new())
    }

    /// The settings for this model.
    ///
    /// # Errors
    /// As [`Self::preview`].
    pub fn resolve(&self, model: &ModelIdentity) -> Result<Resolved> {
        let Some((name, values)) = presets::of_model(model)? else { return self.preview() };
        let mut resolved = self.fold(values)?;
        resolved.presets.insert(0, name.into());
        Ok(resolved)
    }

    fn fold(&self, model: Vec<Assignment>) -> Result<Resolved> {
        let mut resolved =
            Resolved { settings: Settings::default(), origins: vec![Origin::Default; KEYS.len()], presets: self.presets.clone() };
        let written = || model.iter().chain(&self.given);
        // The method decides some of the defaults, so it comes first.
        for method in written().filter(|assignment| assignment.key.name == "method") {
            method.apply(&mut resolved)?;
        }
        let method = resolved.settings.method;
        for (name, value) in method.defaults() {
            Assignment::new(name, Raw::text(value), Origin::Method(method))?.apply(&mut resolved)?;
        }
        for assignment in written() {
            assignment.apply(&mut resolved)?;
        }
        // A budget in steps takes the place of the default budget in seconds.
        if resolved.settings.steps.is_some() && matches!(resolved.origin("max_seconds"), Origin::Method(_)) {
            resolved.settings.max_seconds = None;
            resolved.origins[index("max_seconds")] = Origin::Default;
        }
        resolved.check()
    }
}

/// Settings, and for each of them the place that set it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The values.
    pub settings: Settings,
    /// The presets that took part, weakest first, the model's own before the others.
    pub presets: Vec<String>,
    /// Parallel to [`KEYS`].
    origins: Vec<Origin>,
}

impl Resolved {
    /// The place that set `key`.
    pub fn origin(&self, key: &str) -> &Origin {
        &self.origins[index(key)]
    }

    fn check(self) -> Result<Self> {
        let Settings { batch, batch_max, method, baseline, samples, .. } = self.settings;
        if (method, baseline, samples) == (Method::Reinforce, Baseline::LeaveOneOut, 1) {
            return Err(Error::input("`baseline` leave-one-out compares a sample with the others: `samples` must be at least 2, not 1"));
        }
        if batch > batch_max {
            let place = |key| self.origin(key).place(key);
            return Err(Error::input(format!(
                "`batch` is {batch} ({}) but `batch_max` is {batch_max} ({}): it must be at least `batch`",
                place("batch"),
                place("batch_max"),
            )));
        }
        Ok(self)
    }

    /// An object of `{"value", "layer", "place"}` by key.
    pub fn to_json(&self) -> Value {
        let row = |(key, origin): (&Key, &Origin)| {
            let shown = json!({ "value": self.settings.get(key.name), "layer": origin.layer(), "place": origin.place(key.name) });
            (key.name.to_string(), shown)
        };
        Value::Object(KEYS.iter().zip(&self.origins).map(row).collect())
    }
}

/// Aligned `key = value  # place` lines: a file that `-c` reads.
impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<_> = KEYS.iter().map(|key| toml(&self.settings.get(key.name))).collect();
        let key_width = KEYS.iter().map(|key| key.name.len()).max().unwrap_or(0);
        let value_width = values.iter().map(|value| value.chars().count()).max().unwrap_or(0).min(24);
        for ((key, value), origin) in KEYS.iter().zip(&values).zip(&self.origins) {
            writeln!(f, "{:key_width$} = {value:value_width$}  # {}", key.name, origin.place(key.name))?;
        }
        Ok(())
    }
}

/// JSON's numbers, booleans and strings are TOML's. What JSON leaves as it is though nobody could see it is escaped too: DEL,
/// the C1 controls, characters that hide or reorder others.
fn toml(value: &Value) -> String {
    if value.is_null() {
        return "\"none\"".into();
    }
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            ' '..='~' => text.push(c),
            _ if c.escape_debug().len() == 1 => text.push(c),
            _ => text += &format!("\\U{:08X}", u32::from(c)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(flags: &[(&'static str, &str)]) -> Sources {
        Sources { flags: flags.iter().map(|(key, value)| (*key, value.to_string())).collect(), ..Sources::default() }
    }

    fn set(set: &[&str]) -> Sources {
        Sources { set: set.iter().map(|text| text.to_string()).collect(), ..Sources::default() }
    }

    fn resolved(sources: Sources) -> Resolved {
        Layers::read(sources).unwrap().preview().unwrap()
    }

    fn refusal(sources: Sources) -> String {
        let error = Layers::read(sources).and_then(|layers| layers.preview()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    fn toml_file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn smollm2() -> ModelIdentity {
        ModelIdentity { digest: String::new(), architecture: "LlamaForCausalLM".into(), hidden_size: 576, layers: 30, vocab_size: 49_152 }
    }

    #[test]
    fn each_layer_covers_the_weaker_ones() {
        let file = toml_file("samples = 3\neval_every = 3\nseed = 3\ntop = 3\n");
        let sources = Sources {
            presets: vec!["paper".into()],
            files: vec![file.path().into()],
            environment: vec![
                ("DLMI_SAMPLES".into(), "4".into()),
                ("DLMI_EVAL_EVERY".into(), "4".into()),
                ("DLMI_SEED".into(), "4".into()),
            ],
            set: vec!["seed=5".into(), "samples=5".into()],
            flags: vec![("samples", "6".into())],
        };
        let layers = Layers::read(sources).unwrap();
        let resolved = layers.resolve(&smollm2()).unwrap();
        let Settings { samples, seed, eval_every, top, early_stop, .. } = resolved.settings;
        assert_eq!((samples, seed, eval_every, top, early_stop), (6, 5, 4, 3, false));
        let layer = |key| resolved.origin(key).layer();
        assert_eq!(
            ["samples", "seed", "eval_every", "top", "early_stop", "batch", "prefix", "tau0"].map(layer),
            ["flag", "set", "environment", "file", "preset", "model", "default", "method"]
        );
        assert_eq!(resolved.presets, ["smollm2-135m", "paper"]);
        assert_eq!(*resolved.origin("top"), Origin::File(file.path().into(), 4));
    }

    #[test]
    fn within_a_layer_the_later_wins() {
        let (a, b) = (toml_file("seed = 1"), toml_file("seed = 2"));
        let files = vec![a.path().into(), b.path().into()];
        assert_eq!(resolved(Sources { files, ..Sources::default() }).settings.seed, 2);
        assert_eq!(resolved(set(&["seed=8", "seed=7"])).settings.seed, 7);
    }

    #[test]
    fn every_key_has_a_variable_and_a_set() {
        for key in KEYS {
            let value = match key.name {
                "backend" | "method" | "model" => continue,
                name => toml(&Settings::default().get(name)).replace('"', ""),
            };
            let variable = (variable(key.name), value.clone());
            let sources = Sources { environment: vec![variable], set: vec![format!("{}={value}", key.name)], ..Sources::default() };
            assert_eq!(*resolved(sources).origin(key.name), Origin::Set);
        }
    }

    #[test]
    fn budgets_depend_on_the_method_and_on_each_other() {
        let budget = |pairs: &[(&'static str, &str)]| {
            let Settings { steps, max_seconds, restarts, .. } = resolved(flags(pairs)).settings;
            (steps, max_seconds, restarts)
        };
        assert_eq!(budget(&[]), (None, Some(600.0), 0));
        assert_eq!(budget(&[("steps", "50")]), (Some(50), None, 0));
        assert_eq!(budget(&[("steps", "50"), ("max_seconds", "9")]), (Some(50), Some(9.0), 0));
        assert_eq!(budget(&[("max_seconds", "none")]), (None, None, 0));
        assert_eq!(budget(&[("steps", "none")]), (None, Some(600.0), 0));
        assert_eq!(budget(&[("method", "dlmi")]), (Some(256), None, 0));
        assert_eq!(budget(&[("method", "dlmi"), ("max_seconds", "9")]), (Some(256), Some(9.0), 0));
        assert_eq!(budget(&[("method", "random"), ("steps", "none"), ("max_seconds", "9")]), (None, Some(9.0), 0));
        assert_eq!(resolved(flags(&[])).origin("max_seconds").place("max_seconds"), "default of snap");
    }

    #[test]
    fn the_last_method_brings_the_defaults() {
        let sources = Sources { set: vec!["method=dlmi".into()], ..flags(&[("method", "snap")]) };
        assert_eq!(resolved(sources).settings.steps, None);
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_place_and_the_nearest() {
        let file = toml_file("seed = 1\n\nprompt_token = 3\nzzz = 1");
        let path = file.path().display();
        let message = refusal(Sources { files: vec![file.path().into()], ..Sources::default() });
        assert!(
            message.starts_with(&format!("`prompt_token` ({path}, line 3) is not a setting; did you mean `prompt_tokens`?")),
            "{message}"
        );
        let message = refusal(set(&["learnig_rate=1"]));
        assert!(message.starts_with("`--set learnig_rate` is not a setting; did you mean `learning_rate`?"), "{message}");
        let message = refusal(set(&["max-seconds=1"]));
        assert!(message.contains("did you mean `max_seconds`?"), "{message}");
        let message = refusal(Sources { environment: vec![("DLMI_SAMPELS".into(), "1".into())], ..Sources::default() });
        assert!(message.starts_with("`DLMI_SAMPELS` is not a setting; did you mean `DLMI_SAMPLES`?"), "{message}");
        let message = refusal(Sources { presets: vec!["papr".into()], ..Sources::default() });
        assert!(message.starts_with("there is no preset `papr`; did you mean `paper`?"), "{message}");
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_place_and_range() {
        let cases = [
            ("prompt_tokens=0", "`--set prompt_tokens` must be a whole number from 1 to 4096, not `0`"),
            ("prompt_tokens=4097", "`--set prompt_tokens` must be a whole number from 1 to 4096, not `4097`"),
            ("samples=1.5", "`--set samples` must be a whole number from 1 to 1024, not `1.5`"),
            ("seed=-1", "`--set seed` must be a whole number from 0 to 4294967295, not `-1`"),
            ("steps=0", "`--set steps` must be `none` or a whole number from 1 to 1000000000, not `0`"),
            ("learning_rate=NaN", "`--set learning_rate` must be a number above 0 and at most 1e9, not `NaN`"),
            ("learning_rate=0", "`--set learning_rate` must be a number above 0 and at most 1e9, not `0`"),
            ("max_seconds=inf", "`--set max_seconds` must be `none` or a number above 0 and at most 1e9, not `inf`"),
            ("momentum=1", "`--set momentum` must be a number from 0 to 0.999, not `1`"),
            ("bos=yes", "`--set bos` must be true or false, not `yes`"),
            ("method=gcq", "`--set method` must be one of dlmi, dlmi-tf, gbda, reinforce, soda, snap, random, echo, not `gcq`"),
            ("bos", "`--set bos` has no value: write --set key=value"),
        ];
        for (text, message) in cases {
            assert_eq!(refusal(set(&[text])), message);
        }
        assert_eq!(refusal(flags(&[("prompt_tokens", "x")])), "`--prompt-tokens` must be a whole number from 1 to 4096, not `x`");
        let message = refusal(set(&[&format!("seed={}", "9".repeat(500))]));
        assert!(message.len() < 150 && message.contains('…'), "{message}");
    }

    #[test]
    fn toml_values_keep_their_kind() {
        let refused = |text: &str| {
            let file = toml_file(text);
            let message = refusal(Sources { files: vec![file.path().into()], ..Sources::default() });
            message.replace(&file.path().display().to_string(), "f.toml")
        };
        assert_eq!(refused("\nsamples = \"8\""), "`samples` (f.toml, line 2) must be a whole number from 1 to 1024, not `\"8\"`");
        assert_eq!(refused("bos = 1"), "`bos` (f.toml, line 1) must be true or false, not `1`");
        assert_eq!(refused("prefix = 5"), "`prefix` (f.toml, line 1) must be text in quotes, not `5`");
        assert_eq!(refused("samples = [1]"), "`samples` (f.toml, line 1) must be a whole number from 1 to 1024, not `a TOML array`");
        assert!(refused("seed = 1\nseed = 2").starts_with("`f.toml`, line 2 is not TOML: "), "{}", refused("seed = 1\nseed = 2"));
        assert!(refused("seed = ").starts_with("`f.toml`, line 1 is not TOML: "), "{}", refused("seed = "));
        let file = toml_file("learning_rate = 1\nseed = 0xff\nsteps = \"none\"\nmax_seconds = 1_0.5");
        let Settings { learning_rate, seed, steps, max_seconds, .. } =
            resolved(Sources { files: vec![file.path().into()], ..Sources::default() }).settings;
        assert_eq!((learning_rate, seed, steps, max_seconds), (1.0, 255, None, Some(10.5)));
    }

    #[test]
    fn a_file_that_is_not_text_is_refused_with_the_offset() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"seed = \xff").unwrap();
        let message = refusal(Sources { files: vec![file.path().into()], ..Sources::default() });
        assert!(message.contains("byte 7 (0xff)"), "{message}");
        let message = refusal(Sources { files: vec!["/nonexistent/x.toml".into()], ..Sources::default() });
        assert!(message.starts_with("cannot read `/nonexistent/x.toml`"), "{message}");
    }

    #[test]
    fn contradictions_are_refused() {
        let message = refusal(set(&["batch=200", "batch_max=100"]));
        assert_eq!(message, "`batch` is 200 (--set) but `batch_max` is 100 (--set): it must be at least `batch`");
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let odd = "say \"hi\"\n\t\\ \u{7f}\u{1b} ü # x";
        let shown = resolved(flags(&[("prefix", odd), ("max_seconds", "0.1"), ("learning_rate", "1e9"), ("method", "random")]));
        let file = toml_file(&shown.to_string());
        let again = resolved(Sources { files: vec![file.path().into()], ..Sources::default() });
        assert_eq!(again.settings, shown.settings);
        assert!(shown.to_string().contains("max_seconds         = 0.1 "), "{shown}");
        assert_eq!(shown.to_json()["max_seconds"], json!({ "value": 0.1, "layer": "flag", "place": "--max-seconds" }));
    }
}
