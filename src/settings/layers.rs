//! The layers of settings, weakest first: defaults, the method's own, the model's preset, `--preset`, `-c` files,
//! `DLMI_*`, `--set`, flags.

use std::path::{Path, PathBuf};

use super::assignment::{Assignment, Origin, assignments};
use super::document::Document;
use super::names::{Setting, is_variable};
use super::presets::{self, ModelShape};
use super::resolved::Resolved;
use crate::files::{read_stream, text, utf8};
use crate::setting::Written;
use crate::{Error, Result};

/// Larger than any file of settings, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

fn file(path: &Path) -> Result<Vec<Assignment>> {
    let name = format!("`{}`", path.display());
    let text = text(read_stream(path, LARGEST_FILE)?, &name)?;
    assignments(&Document { text: &text, name: &name }, &[], &|line| Origin::File(path.into(), line))
}

/// The variables of the environment that begin with `DLMI_`.
///
/// # Errors
/// A value that is not UTF-8.
pub fn environment() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| is_variable(name)) else { continue };
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
    /// Keys and values of the flags that were given: of general settings, and of settings of the method in use.
    pub flags: Vec<(&'static str, String)>,
}

/// Everything the user set, read and with known keys, weakest first; the model's preset is not known yet.
#[derive(Debug, Clone)]
pub struct Layers {
    presets: Vec<String>,
    given: Vec<Assignment>,
    /// Flags of the method in use.
    flags: Vec<(&'static str, Written)>,
}

impl Layers {
    /// Reads presets and files, and looks up every key.
    ///
    /// # Errors
    /// Unreadable files, unknown presets and keys, each named with its place and the nearest valid name.
    pub fn read(sources: Sources) -> Result<Self> {
        let (mut given, mut flags) = (Vec::new(), Vec::new());
        for name in &sources.presets {
            given.extend(presets::by_name(name)?);
        }
        for path in &sources.files {
            given.extend(file(path)?);
        }
        for (name, value) in sources.environment {
            given.push(Assignment::new(&name, Written::untyped(value), Origin::Environment)?);
        }
        for text in sources.set {
            let Some((key, value)) = text.split_once('=') else {
                return Err(Error::input(format!("`--set {text}` has no value: write --set key=value")));
            };
            given.push(Assignment::new(key.trim(), Written::untyped(value), Origin::Set)?);
        }
        for (key, value) in sources.flags {
            let value = Written::untyped(value);
            match Setting::find(key) {
                Some(setting) => given.push(Assignment { setting, value, origin: Origin::Flag }),
                None => flags.push((key, value)),
            }
        }
        Ok(Self { presets: sources.presets, given, flags })
    }

    /// Adds a value on top.
    ///
    /// # Errors
    /// There is no such setting.
    pub fn add(&mut self, name: &str, value: Written, origin: Origin) -> Result<()> {
        self.given.push(Assignment::new(name, value, origin)?);
        Ok(())
    }

    /// The settings without the model's preset: enough to open the backend and to find the model. Whether they contradict each other is not
    /// known yet.
    ///
    /// # Errors
    /// Values of the wrong kind or out of range.
    pub fn preview(&self) -> Result<Resolved> {
        self.fold(Vec::new())
    }

    /// The settings for this model.
    ///
    /// # Errors
    /// As [`Self::preview`], and values that contradict each other.
    pub fn resolve(&self, model: &ModelShape) -> Result<Resolved> {
        let Some((name, values)) = presets::of_model(model)? else { return self.preview()?.check() };
        let mut resolved = self.fold(values)?;
        resolved.presets.insert(0, name.into());
        resolved.check()
    }

    fn fold(&self, model: Vec<Assignment>) -> Result<Resolved> {
        let mut resolved = Resolved::new(self.presets.clone());
        let mut written: Vec<Assignment> = model.into_iter().chain(self.given.iter().cloned()).collect();
        // The method decides what its flags mean and what its budget is, so it comes first.
        for method in written.iter().filter(|assignment| assignment.setting == Setting::named("method")) {
            resolved.apply(method)?;
        }
        resolved.budget_of_the_method();
        let section = Some(resolved.settings.method);
        let flag = |(key, value): &(&'static str, Written)| {
            let setting = Setting { section, key };
            Assignment { setting, value: value.clone(), origin: Origin::Flag }
        };
        written.extend(self.flags.iter().map(flag));
        // One setting after the other, each through all layers: a choice decides which settings there are after it.
        let order: Vec<Setting> = Setting::all().collect();
        written.sort_by_key(|assignment| order.iter().position(|setting| *setting == assignment.setting));
        for assignment in &written {
            resolved.apply(assignment)?;
        }
        resolved.given_budgets_alone();
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Options;
    use super::super::resolved::toml;
    use super::*;
    use crate::method::registry::MethodName;
    use crate::setting::names;

    fn setting(name: &str) -> Setting {
        Setting::find(name).unwrap_or_else(|| panic!("{name}"))
    }

    fn value(settings: &Options, name: &str) -> Value {
        settings.get(setting(name)).unwrap_or_else(|| panic!("{name}"))
    }

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
        let error = Layers::read(sources).and_then(|layers| layers.resolve(&unknown())).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    fn toml_file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn smollm2() -> ModelShape {
        ModelShape { digest: String::new(), architecture: "LlamaForCausalLM".into(), hidden_size: 576, layers: 30, vocab_size: 49_152 }
    }

    /// A model without a preset.
    fn unknown() -> ModelShape {
        ModelShape { hidden_size: 577, ..smollm2() }
    }

    #[test]
    fn each_layer_covers_the_weaker_ones() {
        let file = toml_file("eval_every = 3\nseed = 3\n[snap]\ntop = 3\n[dlmi]\nsamples = 3\n");
        let sources = Sources {
            presets: vec!["paper".into()],
            files: vec![file.path().into()],
            environment: vec![
                ("DLMI_DLMI_SAMPLES".into(), "4".into()),
                ("DLMI_EVAL_EVERY".into(), "4".into()),
                ("DLMI_SEED".into(), "4".into()),
            ],
            set: vec!["seed=5".into(), "dlmi.samples=5".into()],
            flags: vec![("samples", "6".into())],
        };
        let layers = Layers::read(sources).unwrap();
        let resolved = layers.resolve(&smollm2()).unwrap();
        let names = ["dlmi.samples", "seed", "eval_every", "snap.top", "early_stop", "snap.batch", "prefix", "dlmi.tau0", "steps"];
        let values = names.map(|name| value(&resolved.settings, name));
        assert_eq!(values.to_vec(), [json!(6), json!(5), json!(4), json!(3), json!(false), json!(12), json!(""), json!(100.0), json!(256)]);
        let layer = |name| resolved.origin(setting(name)).layer();
        assert_eq!(names.map(layer), ["flag", "set", "environment", "file", "preset", "model", "default", "method", "preset"]);
        assert_eq!(resolved.presets, ["smollm2-135m", "paper"]);
        assert_eq!(resolved.origin(setting("snap.top")), Origin::File(file.path().into(), 4));
    }

    /// What a method's flag sets is its own section; what is written for other methods stays with them.
    #[test]
    fn sections_are_apart() {
        let sources =
            Sources { set: vec!["dlmi.samples=5".into(), "gbda.samples=3".into()], ..flags(&[("method", "gbda"), ("samples", "2")]) };
        let settings = resolved(sources).settings;
        let samples = ["dlmi.samples", "dlmi-tf.samples", "gbda.samples"].map(|name| value(&settings, name));
        assert_eq!(samples, [json!(5), json!(8), json!(2)]);
        assert_eq!(settings.method_settings().get("samples"), Some(json!(2)));
    }

    #[test]
    fn a_setting_that_a_method_does_not_have_is_refused() {
        let has = "which has objective, margin, fluency, rough, batch";
        let message = refusal(flags(&[("method", "random"), ("samples", "2")]));
        assert!(message.starts_with("`--samples` is not for random, ") && message.contains(has), "{message}");
        assert_eq!(refusal(flags(&[("method", "echo"), ("samples", "2")])), "`--samples` is not for echo, which has no settings");
        let message = refusal(set(&["gbda.tau0=3"]));
        assert!(message.starts_with("`--set gbda.tau0` is not for gbda, which has samples, objective, tau, "), "{message}");
    }

    /// In whatever order they are written, and in whatever layers.
    #[test]
    fn a_choice_comes_before_the_settings_that_it_brings() {
        let file = toml_file("[dlmi]\nmargin = 2\nobjective = \"hinge\"\n");
        let settings = resolved(Sources { files: vec![file.path().into()], ..Sources::default() }).settings;
        assert_eq!(value(&settings, "dlmi.margin"), json!(2.0));
        let margin = vec![("DLMI_SODA_MARGIN".into(), "1".into())];
        let sources = Sources { environment: margin.clone(), set: vec!["soda.objective=hinge".into()], ..Sources::default() };
        assert_eq!(value(&resolved(sources).settings, "soda.margin"), json!(1.0));
        let message = refusal(Sources { environment: margin, ..Sources::default() });
        assert!(message.starts_with("`DLMI_SODA_MARGIN` is not for soda, which has objective, tau, "), "{message}");
    }

    /// Whatever method runs.
    #[test]
    fn every_section_is_checked() {
        for text in ["gbda.tau=0", "dlmi-tf.feedback=harder", "snap.momentum=2", "random.batch=65537"] {
            assert!(refusal(set(&["method=echo", text])).contains(text.split('=').next().unwrap()), "{text}");
        }
        let both = set(&["reinforce.baseline=leave-one-out", "reinforce.samples=1"]);
        let wrong = "`reinforce.baseline` (--set) leave-one-out compares a sample with the others: \
                     `reinforce.samples` (--set) must be at least 2, not 1";
        assert_eq!(refusal(both), wrong);
        let hard = refusal(set(&["rebar.feedback=hard"]));
        assert!(hard.starts_with("`rebar.feedback` (--set) must be soft or gumbel, not hard: "), "{hard}");
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
        for setting in Setting::all() {
            let Some(value) = Options::default().get(setting) else { continue };
            if ["backend", "method", "model"].contains(&setting.key) {
                continue;
            }
            let value = toml(&value).replace('"', "");
            let variable = (setting.variable(), value.clone());
            let sources = Sources { environment: vec![variable], set: vec![format!("{setting}={value}")], ..Sources::default() };
            assert_eq!(resolved(sources).origin(setting), Origin::Set);
        }
    }

    #[test]
    fn budgets_depend_on_the_method_and_on_each_other() {
        let budget = |pairs: &[(&'static str, &str)]| {
            let Options { steps, max_seconds, restarts, .. } = resolved(flags(pairs)).settings;
            (steps, max_seconds, restarts)
        };
        assert_eq!(budget(&[]), (None, Some(600.0), 0));
        assert_eq!(budget(&[("steps", "50")]), (Some(50), None, 0));
        assert_eq!(budget(&[("steps", "50"), ("max_seconds", "9")]), (Some(50), Some(9.0), 0));
        assert_eq!(budget(&[("max_seconds", "none")]), (None, None, 0));
        assert_eq!(budget(&[("steps", "none")]), (None, Some(600.0), 0));
        assert_eq!(budget(&[("method", "dlmi")]), (Some(256), None, 0));
        assert_eq!(budget(&[("method", "dlmi"), ("max_seconds", "9")]), (Some(256), Some(9.0), 0));
        assert_eq!(budget(&[("max_positions", "900")]), (None, None, 0));
        assert_eq!(budget(&[("method", "dlmi"), ("max_positions", "900")]), (None, None, 0));
        assert_eq!(budget(&[("max_positions", "900"), ("steps", "50"), ("max_seconds", "9")]), (Some(50), Some(9.0), 0));
        assert_eq!(budget(&[("method", "random"), ("steps", "none"), ("max_seconds", "9")]), (None, Some(9.0), 0));
        assert_eq!(resolved(flags(&[])).origin(setting("max_seconds")).to_string(), "default of snap");
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
        let message = refusal(set(&["dlmi.learnig_rate=1"]));
        assert!(message.starts_with("`--set dlmi.learnig_rate` is not a setting; did you mean `dlmi.learning_rate`?"), "{message}");
        let message = refusal(set(&["batch=1"]));
        assert!(message.starts_with("`--set batch` is not a setting; did you mean `snap.batch`?"), "{message}");
        let message = refusal(set(&["max-seconds=1"]));
        assert!(message.contains("did you mean `max_seconds`?"), "{message}");
        let message = refusal(Sources { environment: vec![("DLMI_SAMPELS".into(), "1".into())], ..Sources::default() });
        assert!(message.starts_with("`DLMI_SAMPELS` is not a setting; did you mean `DLMI_DLMI_SAMPLES`?"), "{message}");
        let message = refusal(Sources { presets: vec!["papr".into()], ..Sources::default() });
        assert!(message.starts_with("there is no preset `papr`; did you mean `paper`?"), "{message}");
        let file = toml_file("seed = 1\n[snpa]\n");
        let message = refusal(Sources { files: vec![file.path().into()], ..Sources::default() });
        let path = file.path().display();
        assert!(message.starts_with(&format!("`snpa` ({path}, line 2) is not a section; did you mean `snap`?")), "{message}");
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_place_and_range() {
        let methods = format!("`--set method` must be one of {}, not `gcq`", names::<MethodName>().join(", "));
        let cases = [
            ("prompt_tokens=0", "`--set prompt_tokens` must be a whole number from 1 to 4096, not `0`"),
            ("prompt_tokens=4097", "`--set prompt_tokens` must be a whole number from 1 to 4096, not `4097`"),
            ("dlmi.samples=1.5", "`--set dlmi.samples` must be a whole number from 1 to 1024, not `1.5`"),
            ("seed=-1", "`--set seed` must be a whole number from 0 to 4294967295, not `-1`"),
            ("steps=0", "`--set steps` must be `none` or a whole number from 1 to 1000000000, not `0`"),
            ("dlmi.learning_rate=NaN", "`--set dlmi.learning_rate` must be a number above 0 and at most 1e9, not `NaN`"),
            ("dlmi.learning_rate=0", "`--set dlmi.learning_rate` must be a number above 0 and at most 1e9, not `0`"),
            ("max_seconds=inf", "`--set max_seconds` must be `none` or a number above 0 and at most 1e9, not `inf`"),
            ("snap.momentum=1", "`--set snap.momentum` must be a number from 0 to 0.999, not `1`"),
            ("bos=yes", "`--set bos` must be true or false, not `yes`"),
            ("method=gcq", &methods),
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
        assert_eq!(
            refused("[dlmi]\nsamples = \"8\""),
            "`dlmi.samples` (f.toml, line 2) must be a whole number from 1 to 1024, not `\"8\"`"
        );
        assert_eq!(refused("bos = 1"), "`bos` (f.toml, line 1) must be true or false, not `1`");
        assert_eq!(refused("prefix = 5"), "`prefix` (f.toml, line 1) must be text in quotes, not `5`");
        assert_eq!(
            refused("dlmi.samples = [1]"),
            "`dlmi.samples` (f.toml, line 1) must be a whole number from 1 to 1024, not `a TOML array`"
        );
        assert_eq!(refused("[seed]"), "`seed` (f.toml, line 1) must be a whole number from 0 to 4294967295, not `a TOML table`");
        assert!(refused("seed = 1\nmax_seconds = none\n").ends_with("; write \"none\", in quotes"), "{}", refused("max_seconds = none"));
        assert!(refused("seed = 1\nseed = 2").starts_with("`f.toml`, line 2 is not TOML: "), "{}", refused("seed = 1\nseed = 2"));
        assert!(refused("seed = ").starts_with("`f.toml`, line 1 is not TOML: "), "{}", refused("seed = "));
        let file = toml_file("seed = 0xff\nsteps = \"none\"\nmax_seconds = 1_0.5\n[dlmi]\nlearning_rate = 1");
        let settings = resolved(Sources { files: vec![file.path().into()], ..Sources::default() }).settings;
        assert_eq!((settings.seed, settings.steps, settings.max_seconds), (255, None, Some(10.5)));
        assert_eq!(value(&settings, "dlmi.learning_rate"), json!(1.0));
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
    fn a_byte_order_mark_is_no_part_of_a_file() {
        let file = toml_file("\u{feff}seed = 3\n");
        let settings = resolved(Sources { files: vec![file.path().into()], ..Sources::default() }).settings;
        assert_eq!(settings.seed, 3);
    }

    /// Between all layers: a preset of the model may make good what the defaults contradict.
    #[test]
    fn contradictions_are_refused() {
        let outcome = |pairs: &[&str], model: &ModelShape| {
            Layers::read(set(pairs)).unwrap().resolve(model).map(|_| ()).map_err(|error| error.to_string())
        };
        let message = "`snap.batch` (--set) is 200 but `snap.batch_max` (--set) is 100: it must be at least `snap.batch`";
        assert_eq!(outcome(&["snap.batch=200", "snap.batch_max=100"], &smollm2()), Err(message.to_owned()));
        let narrow = ["snap.batch_max=12"];
        assert_eq!(outcome(&narrow, &smollm2()), Ok(()), "its preset has batches of 12");
        assert!(outcome(&narrow, &unknown()).unwrap_err().starts_with("`snap.batch` (default of snap) is 24"));
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let odd = "say \"hi\"\n\t\\ \u{7f}\u{1b} ü # x";
        for method in ["dlmi", "soda", "reinforce", "snap", "gcg", "arca", "pez", "adc", "random", "echo", "floor"] {
            let sources = flags(&[("prefix", odd), ("max_seconds", "0.1"), ("method", method)]);
            let shown = resolved(Sources { set: vec!["dlmi.learning_rate=1e9".into(), "snap.margin=0.7".into()], ..sources });
            let file = toml_file(&shown.to_string());
            let again = resolved(Sources { files: vec![file.path().into()], ..Sources::default() });
            assert_eq!(again.settings.to_json(), shown.settings.to_json());
            assert!(shown.to_string().contains("max_seconds         = 0.1 "), "{shown}");
            assert_eq!(shown.to_json()["max_seconds"], json!({ "value": 0.1, "layer": "flag", "place": "--max-seconds" }));
            assert_eq!(shown.to_string().contains(&format!("\n\n[{method}]\n")), !["echo", "floor"].contains(&method), "{shown}");
        }
    }
}
