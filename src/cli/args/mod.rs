//! What can be typed: the verbs, their flags, and how flags become the strongest layer of the settings.

mod around;
mod bench;
mod complete;
mod global;
mod gradients;
mod invert;
mod models;
mod report;
mod score;
mod setting;
pub(super) mod study;
mod targets;
mod text;

use std::ffi::OsString;

use clap::{Args, Command, FromArgMatches, Subcommand};

use crate::settings::{self, Layers, Sources};
use crate::{Error, Result};

pub use around::Around;
pub use bench::Bench;
pub use complete::Complete;
pub use global::Global;
pub use gradients::Gradients;
pub use invert::{Invert, Print};
pub use models::Models;
pub use report::Report;
pub use score::Score;
pub use study::{Cells, Compute, Slurm, Study};
pub use targets::Targets;
pub use text::read_text;

use setting::{Flags, settings_help};

/// The parsed command line.
#[derive(Debug)]
pub struct Cli {
    /// Options that every verb has.
    pub global: Global,
    /// What to do.
    pub verb: Verb,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Find a prompt that makes the model write TARGET
    Invert(Box<Invert>),
    /// Continue a prompt, always with the likeliest token
    Complete(Complete),
    /// Judge a given prompt: how much of TARGET the model writes, overlaps, perplexities
    Score(Score),
    /// Draw targets by difficulty, make targets that can be reached, or label targets
    Targets(Targets),
    /// Experiments: a grid of targets, methods, prompt lengths, budgets and seeds
    #[command(
        subcommand,
        after_help = "\
Examples:
  dlmi study cells S.toml --cost                              what there is, and the hours it takes
  dlmi study run S.toml --out DIR --workers 2                 compute it here; the same line goes on after an interruption
  dlmi study run S.toml --out DIR --shard 2/8                 one machine of eight
  dlmi study cells S.toml --ids | parallel dlmi study run S.toml --out DIR --cell {}
  dlmi study slurm S.toml --out DIR --tasks 8 > S.sbatch      a job array
  dlmi study status S.toml --out DIR
  dlmi study merge S.toml --out DIR -o S.jsonl"
    )]
    Study(Study),
    /// Variance and bias of the gradient estimators along their runs: the paper's figure 5
    Gradients(Box<Gradients>),
    /// What studies say: the paper's figures and tables, as a page and as files
    Report(Report),
    /// The paper's Table 1: what tells the relaxed methods apart
    Methods,
    /// Models: what is here, fetch one, describe one
    #[command(subcommand)]
    Models(Models),
    /// Time a step, a batch of candidates, a continuation or loading
    #[command(subcommand)]
    Bench(Bench),
    /// What this machine can compute on, and what is missing
    Doctor,
    /// Settings
    #[command(subcommand)]
    Config(Config),
    /// Completions for a shell
    #[command(after_help = "Example:\n  dlmi completions bash > ~/.local/share/bash-completion/completions/dlmi")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `config`.
#[derive(Subcommand, Debug)]
pub enum Config {
    /// Every setting with its value and the layer that set it, as a file that -c reads
    #[command(after_long_help = settings_help())]
    Show,
}

impl Cli {
    /// The layers of the settings: flags, `--set`, the environment, files and presets.
    ///
    /// # Errors
    /// See [`Layers::read`].
    pub fn layers(&self) -> Result<Layers> {
        Layers::read(self.sources(settings::environment()?)?)
    }

    fn sources(&self, environment: Vec<(String, String)>) -> Result<Sources> {
        let Global { presets, files, set, .. } = &self.global;
        // As a study does, it does as the paper unless told otherwise.
        let paper = matches!(self.verb, Verb::Gradients(_)).then(|| "paper".to_owned());
        let presets = paper.into_iter().chain(presets.iter().cloned()).collect();
        Ok(Sources { presets, files: files.clone(), environment, set: set.clone(), flags: self.flags()? })
    }

    /// Refuses settings given to a report.
    ///
    /// # Errors
    /// One was given.
    pub fn no_settings(&self) -> Result<()> {
        self.flags_among(&[], "a report has no settings; leave out").map(drop)
    }

    /// The flags that say where a study is computed.
    ///
    /// # Errors
    /// Another setting was given: a study takes all others from its file.
    pub fn place(&self) -> Result<Vec<(&'static str, String)>> {
        self.flags_among(&["backend", "device"], "a study takes its settings from its file, so write it there; leave out")
    }

    /// The flags of settings that were given, if they are among those named here; `refusal` says what is wrong with another.
    fn flags_among(&self, allowed: &[&str], refusal: &str) -> Result<Vec<(&'static str, String)>> {
        let Global { presets, files, set, .. } = &self.global;
        let lists = [("--preset", presets.is_empty()), ("-c", files.is_empty()), ("--set", set.is_empty())];
        let flags = self.flags()?;
        let lists = lists.into_iter().filter(|(_, absent)| !absent).map(|(name, _)| name.to_owned());
        let others = flags.iter().filter(|(key, _)| !allowed.contains(key)).map(|(key, _)| format!("--{}", key.replace('_', "-")));
        match lists.chain(others).next() {
            None => Ok(flags),
            Some(flag) => Err(Error::input(format!("{refusal} {flag}"))),
        }
    }

    /// Keys and values of the flags that were given.
    fn flags(&self) -> Result<Vec<(&'static str, String)>> {
        let mut flags = Flags::default();
        self.global.flags(&mut flags)?;
        match &self.verb {
            Verb::Invert(verb) => verb.flags(&mut flags)?,
            Verb::Complete(verb) => verb.flags(&mut flags)?,
            Verb::Score(verb) => verb.flags(&mut flags)?,
            Verb::Targets(verb) => verb.flags(&mut flags),
            Verb::Gradients(verb) => verb.flags(&mut flags),
            Verb::Bench(verb) => verb.flags(&mut flags),
            Verb::Models(verb) => verb.flags(&mut flags)?,
            Verb::Study(_) | Verb::Report(_) | Verb::Methods | Verb::Doctor | Verb::Config(_) | Verb::Completions { .. } => (),
        }
        Ok(flags.given)
    }
}

/// The whole command, for parsing and for completions.
pub fn command() -> Command {
    let command = Command::new("dlmi")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            "Examples:\n  dlmi invert\n  dlmi complete \"O Romeo, Romeo!\"\n  dlmi doctor\n\n`dlmi help VERB` says more about a verb.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand_value_name("VERB")
        .subcommand_help_heading("Verbs");
    // The enum of the verbs brings a description of its own.
    with_global(Verb::augment_subcommands(command).about("Which prompt makes this language model say exactly that?"))
}

/// Whether a setting has a flag of its own, of some verb.
pub fn has_flag(setting: &str) -> bool {
    let flag = setting.replace('_', "-");
    let of = |command: &Command| command.get_arguments().any(|argument| argument.get_long() == Some(&flag));
    command().get_subcommands().any(of)
}

/// Adds the global options at every level. (clap's own global arguments forget what a list got before the verb when
/// it gets more after it.)
fn with_global(mut command: Command) -> Command {
    for verb in command.get_subcommands_mut() {
        *verb = with_global(std::mem::take(verb));
    }
    let options = Global::augment_args(Command::new(""));
    command.args(options.get_arguments().cloned())
}

/// Parses arguments, the program's name first.
///
/// # Errors
/// Wrong usage, and requests for help or the version: clap's error prints itself and knows the exit code.
pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let mut global = Global::from_arg_matches(&matches)?;
    let mut level = matches.subcommand();
    while let Some((_, matches)) = level {
        global.merge(Global::from_arg_matches(matches)?);
        level = matches.subcommand();
    }
    Ok(Cli { global, verb: Verb::from_arg_matches(&matches)? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::backend::{BackendName, Dtype};
    use crate::method::registry::MethodName;
    use crate::setting::{named, names};
    use crate::settings::Options;

    pub(super) fn parsed(line: &str) -> Cli {
        parse(std::iter::once("dlmi").chain(line.split_whitespace())).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn settings(cli: &Cli) -> Result<Options> {
        Ok(Layers::read(cli.sources(Vec::new())?)?.preview()?.settings)
    }

    fn refused(line: &str) -> clap::Error {
        let error = parse(std::iter::once("dlmi").chain(line.split_whitespace())).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
        error
    }

    #[test]
    fn the_command_is_sound_and_every_option_has_a_help_text() {
        fn check(command: &Command) {
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.len() > 5, "{} {}", command.get_name(), argument.get_id());
            }
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains("before or after"), "{}: {about}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        command().debug_assert();
        check(&command());
    }

    #[test]
    fn global_options_go_before_and_after_the_verb() {
        let line = "--set a=1 -v --preset paper --seed 1 invert --set b=2 x -v --preset sdlm --seed 2 --json";
        let Cli { global, .. } = parsed(line);
        assert_eq!(global.set, ["a=1", "b=2"]);
        assert_eq!(global.presets, ["paper", "sdlm"]);
        assert_eq!(global.seed.as_deref(), Some("2"));
        assert_eq!(global.verbosity(), 2);
        assert!(global.json);
        for line in ["--offline models list", "models --offline list", "models list --offline"] {
            assert!(parsed(line).global.offline, "{line}");
        }
        assert_eq!(parsed("doctor -q").global.verbosity(), -1);
    }

    #[test]
    fn flags_become_settings() {
        let line = "--backend flex --device 1 --dtype bf16 --model m --seed 3 invert t --method dlmi --prompt-tokens 5 --steps none --samples 2 \
                    --restarts 4 --max-seconds 1.5 --prefix a --suffix b --allow-target-tokens --allow-special --bos";

        let wanted = Options {
            method: named("dlmi").unwrap(),
            prompt_tokens: 5,
            steps: None,
            max_seconds: Some(1.5),
            restarts: 4,
            prefix: "a".into(),
            suffix: "b".into(),
            allow_target_tokens: true,
            allow_special: true,
            bos: true,
            seed: 3,
            backend: BackendName::Flex,
            device: Some(1),
            dtype: Dtype::Bf16,
            model: "m".into(),
            ..Options::default()
        };
        let found = settings(&parsed(line)).unwrap();
        assert_eq!(found.method_settings().get("samples"), Some(json!(2)));
        assert_eq!(Options { sections: wanted.sections.clone(), ..found }, wanted);
        for line in ["complete x --bos", "score a b --bos"] {
            assert!(settings(&parsed(line)).unwrap().bos);
        }
        assert_eq!(settings(&parsed("models show here")).unwrap().model, "here");
    }

    #[test]
    fn a_flag_is_stronger_than_set_wherever_it_stands() {
        let steps = settings(&parsed("invert x --steps 7 --set steps=9")).unwrap().steps;
        assert_eq!(steps, Some(7));
    }

    #[test]
    fn a_wrong_value_of_a_flag_is_one_sentence() {
        let message = |line| settings(&parsed(line)).unwrap_err().to_string();
        let methods = names::<MethodName>().join(", ");
        assert_eq!(message("invert x --method foo"), format!("`--method` must be one of {methods}, not `foo`"));
        assert_eq!(message("invert x --backend metal"), "`--backend` must be one of auto, flex, ndarray, wgpu, cuda, not `metal`");
        assert_eq!(message("invert x --dtype f8"), "`--dtype` must be one of f32, f16, bf16, not `f8`");
        assert_eq!(message("invert x --prompt-tokens -3"), "`--prompt-tokens` must be a whole number from 1 to 4096, not `-3`");
        assert_eq!(message("invert x --device -1"), "`--device` must be `none` or a whole number from 0 to 1023, not `-1`");
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for line in [
            "",
            "frobnicate",
            "invert x --file f",
            "invert x --resume",
            "invert x y",
            "complete",
            "complete x --ids 1",
            "complete --ids 1,x",
            "complete x --tokens 0",
            "targets --k 0",
            "targets --k 1,x",
            "targets --per-k 0",
            "targets --tokens 0",
            "targets --sigma -1",
            "targets --sigma nan",
            "targets --sigma inf",
            "targets --from f",
            "targets --prompts-out f",
            "targets --from f --prompts-out p --k 1",
            "targets --from f --prompts-out p --label g",
            "targets --label f --tokens 5",
            "score a b c",
            "doctor -q -v",
            "models",
            "config",
            "completions tcsh",
        ] {
            refused(line);
        }
    }

    #[test]
    fn ids_are_lists() {
        let Verb::Complete(verb) = parsed("complete --ids 1,2,3 --tokens 5").verb else { panic!() };
        assert_eq!((verb.ids, verb.tokens, verb.prompt), (Some(vec![1, 2, 3]), 5, None));
    }

    #[cfg(unix)]
    #[test]
    fn an_argument_that_is_not_text_is_refused_with_the_offset() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"abc\xff".to_vec());
        assert_eq!(
            read_text(Some(odd.clone()), None).unwrap_err().to_string(),
            "the argument is not UTF-8 text: byte 3 (0xff) starts no valid character"
        );
        let cli = parse(["dlmi".into(), "invert".into(), "x".into(), "--prefix".into(), odd]).unwrap();
        assert!(settings(&cli).unwrap_err().to_string().contains("byte 3 (0xff)"));
    }

    #[test]
    fn completions_know_the_methods() {
        let mut script = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut command(), "dlmi", &mut script);
        assert!(String::from_utf8(script).unwrap().contains(&names::<MethodName>().join(" ")));
    }
}
