//! What can be typed: the verbs, their flags, and how flags become the strongest layer of the settings.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::PathBuf;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{ArgAction, Args, Command, FromArgMatches, Subcommand, ValueEnum, value_parser};

use crate::files::utf8;
use crate::settings::{self, BackendName, Dtype, KEYS, Layers, Method, Settings, Sources};
use crate::ui::Color;
use crate::{Error, Result};

/// A text longer than any model's context; more is not worth reading.
const LONGEST_TEXT: u64 = 64 << 20;

/// The parsed command line.
#[derive(Debug)]
pub struct Cli {
    /// Options that every verb has.
    pub global: Global,
    /// What to do.
    pub verb: Verb,
}

/// Options that go before or after the verb; a flag of the settings holds the text as it was typed.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    #[arg(long, value_name = "NAME", help = help("backend"), value_parser = Names::of::<BackendName>())]
    backend: Option<String>,
    #[arg(long, value_name = "ROW", help = help("device"), allow_negative_numbers = true)]
    device: Option<String>,
    #[arg(long, value_name = "TYPE", help = help("dtype"), value_parser = Names::of::<Dtype>(), hide_possible_values = true)]
    dtype: Option<String>,
    #[arg(long, value_name = "SPEC", help = help("model"))]
    model: Option<OsString>,
    /// Settings that belong together (paper, sdlm, bard, smollm2-135m, ...); may be repeated
    #[arg(long = "preset", value_name = "NAME")]
    presets: Vec<String>,
    /// TOML file of settings; may be repeated
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Any setting, see `dlmi config show`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[arg(long, value_name = "N", help = help("seed"), allow_negative_numbers = true)]
    seed: Option<String>,
    /// Print one JSON object instead of readable lines
    #[arg(long)]
    pub json: bool,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
    /// Colour in what is printed: auto, always or never [default: auto]
    #[arg(long, value_name = "WHEN", hide_possible_values = true)]
    color: Option<Color>,
    /// No progress, only errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more (-vv: for debugging)
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
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

/// `invert`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  dlmi invert
  dlmi invert \"the king is dead\" --prompt-tokens 30
  dlmi --model HuggingFaceTB/SmolLM2-135M-Instruct invert --file target.txt --out run1
  dlmi --model HuggingFaceTB/SmolLM2-135M-Instruct invert --file target.txt --out run1 --resume --max-seconds 3600

Exit code: 0 exact, 1 not exact, 2 bad input, 3 no such device, model or disk space, 130 interrupted.")]
pub struct Invert {
    /// Text that the model shall write, taken byte for byte; `-`: standard input; none: the bundled model's own example
    #[arg(conflicts_with = "file")]
    pub target: Option<OsString>,
    #[arg(long, value_name = "NAME", help = help("method"), value_parser = Names::of::<Method>())]
    method: Option<String>,
    #[arg(long, value_name = "N", help = help("prompt_tokens"), allow_negative_numbers = true)]
    prompt_tokens: Option<String>,
    #[arg(long, value_name = "N", help = help("steps"), allow_negative_numbers = true)]
    steps: Option<String>,
    #[arg(long, value_name = "S", help = help("max_seconds"), allow_negative_numbers = true)]
    max_seconds: Option<String>,
    #[arg(long, value_name = "N", help = help("restarts"), allow_negative_numbers = true)]
    restarts: Option<String>,
    #[arg(long, value_name = "MIB", help = help("max_memory"), allow_negative_numbers = true)]
    max_memory: Option<String>,
    #[arg(long, value_name = "N", help = help("samples"), allow_negative_numbers = true)]
    samples: Option<String>,
    #[arg(long, value_name = "TEXT", help = help("prefix"))]
    prefix: Option<OsString>,
    #[arg(long, value_name = "TEXT", help = help("suffix"))]
    suffix: Option<OsString>,
    #[arg(long, help = help("allow_target_tokens"))]
    allow_target_tokens: bool,
    #[arg(long, help = help("allow_special"))]
    allow_special: bool,
    #[arg(long, help = help("bos"))]
    bos: bool,
    /// Read TARGET from a file (its last newline left out)
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Keep result, events (for TensorBoard too) and checkpoint in a folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on from the checkpoint in the folder of --out
    #[arg(long, requires = "out")]
    pub resume: bool,
}

/// `complete`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  dlmi complete \"O Romeo, Romeo!\"
  dlmi complete --ids 464,2068,7586 --tokens 5 --json")]
pub struct Complete {
    /// Text to continue; `-`: standard input
    #[arg(required_unless_present = "ids", conflicts_with = "ids")]
    pub prompt: Option<OsString>,
    /// Token ids to continue, in place of a text
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',')]
    pub ids: Option<Vec<u32>>,
    /// Tokens to write
    #[arg(long, value_name = "M", default_value_t = 20, value_parser = value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// End at the end-of-sequence token, which otherwise is a token like others
    #[arg(long)]
    pub stop_at_eos: bool,
    #[arg(long, help = help("bos"))]
    bos: bool,
}

/// `score`.
#[derive(Args, Debug)]
#[command(
    override_usage = "dlmi score [OPTIONS] <PROMPT> <TARGET>",
    after_help = "\
Examples:
  dlmi score \"O Romeo, Romeo!\" \" wherefore art thou Romeo?\"
  dlmi score --prompt-ids 12,7,99 \" wherefore art thou Romeo?\"
  dlmi score --prompt-ids 12,7,99 --target-ids 4,5,6 --json"
)]
pub struct Score {
    /// Prompt and target as texts (one of them may be `-`: standard input), each unless it is given as ids
    #[arg(value_name = "TEXT", num_args = 0..=2)]
    texts: Vec<OsString>,
    /// The prompt's token ids, in place of PROMPT
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',')]
    pub prompt_ids: Option<Vec<u32>>,
    /// The target's token ids, in place of TARGET
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',')]
    pub target_ids: Option<Vec<u32>>,
    #[arg(long, help = help("bos"))]
    bos: bool,
}

/// `targets`.
#[derive(Args, Debug)]
#[command(
    override_usage = "dlmi targets [OPTIONS]\n       dlmi targets --from FILE --prompts-out FILE [OPTIONS]\n       \
                      dlmi targets --label FILE [OPTIONS]",
    after_help = "\
Examples:
  dlmi targets --k 1,6 --per-k 2 > targets.jsonl
  dlmi targets --from sentences.txt --prompts-out known-prompts.jsonl > reachable.jsonl
  dlmi --model HuggingFaceTB/SmolLM2-135M-Instruct targets --label targets.json > labelled.jsonl

Without --from and --label, tokens are drawn by their rank (the paper's Algorithm 2), from a start token on.
After an end-of-sequence token it is repeated.

FILE: JSON Lines {\"id\", \"text\", \"ids\"?, \"k\"?, \"bos\"?}, of which ids win over text; the JSON of the paper's
authors; or one text on each line (empty lines are skipped). What begins with `{` is JSON, except in a .txt.

Prints JSON Lines, with or without --json: id, text, ids, k, bos (the start token), and what the model makes of the
ids after the start token: ranks, probabilities, perplexity, bits (-log2 p); prompt_tokens (N), capacity_bits
(N log2 V), retokenises (the text gives these ids again), model (SHA-256 of its weights); where known,
known_prompt_tokens, sigma, seed. Computed on the CPU in f32, whatever the backend."
)]
pub struct Targets {
    /// Ranks to draw around: 1 is the likeliest token
    #[arg(long, value_name = "K,K,...", value_delimiter = ',', default_value = "1,6,11,16,21", value_parser = value_parser!(u32).range(1..))]
    pub k: Vec<u32>,
    /// Targets for each K
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u32).range(1..=100_000))]
    pub per_k: u32,
    /// Tokens of a target (M)
    #[arg(long, value_name = "M", default_value_t = 20, value_parser = value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Standard deviation of the rank
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = deviation, allow_negative_numbers = true)]
    pub sigma: f64,
    /// The start token, by its name [default: <|endoftext|> where there is one, else the model's own]
    #[arg(long, value_name = "T")]
    pub bos_token: Option<String>,
    /// Targets that can be reached: the model's own greedy continuation of each prompt of a file (`-`: standard input)
    #[arg(long, value_name = "FILE", requires = "prompts_out", conflicts_with_all = ["k", "per_k", "sigma", "label"])]
    pub from: Option<PathBuf>,
    /// Where the prompts of --from are kept, apart from their targets: no method reads them
    #[arg(long, value_name = "FILE", requires = "from")]
    pub prompts_out: Option<PathBuf>,
    /// Label the targets of a file (`-`: standard input) anew with this model's ranks and probabilities
    #[arg(long, value_name = "FILE", conflicts_with_all = ["k", "per_k", "sigma", "tokens"])]
    pub label: Option<PathBuf>,
    #[arg(long, value_name = "N", help = help("prompt_tokens"), allow_negative_numbers = true)]
    prompt_tokens: Option<String>,
}

fn deviation(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "it must be a number of 0 or more".to_owned())
}

/// `models`.
#[derive(Subcommand, Debug)]
pub enum Models {
    /// The bundled models and those in the hub's cache
    List,
    /// Fetch a model from the hub
    #[command(after_help = "Example:\n  dlmi models pull HuggingFaceTB/SmolLM2-135M-Instruct")]
    Pull {
        /// org/name or org/name@revision
        spec: OsString,
    },
    /// Architecture, sizes, tokenizer and digest of a model
    Show {
        /// As for --model, which it takes the place of
        spec: Option<OsString>,
    },
}

/// `bench`.
#[derive(Subcommand, Debug, Clone)]
pub enum Bench {
    /// One step of a method, without taking scores
    #[command(after_help = "Example:\n  dlmi bench step --method dlmi --prompt-tokens 80 --set all_tokens=true --json")]
    Step(BenchOptions),
    /// A batch of candidates that differ from a prompt at one position
    Score {
        #[command(flatten)]
        options: BenchOptions,
        /// Candidates of a batch
        #[arg(long, value_name = "C", default_value_t = 64, value_parser = value_parser!(u32).range(1..=65_536))]
        candidates: u32,
    },
    /// A greedy continuation
    Generate(BenchOptions),
    /// How far logits and greedy tokens are from those of the CPU in f32, over one random prompt a round
    #[command(after_help = "Example:\n  dlmi bench parity --backend cuda --dtype f16 --target-tokens 32")]
    Parity(BenchOptions),
    /// Opening the model and reading its weights
    Load(BenchOptions),
}

/// What the kinds of `bench` share.
#[derive(Args, Debug, Clone)]
pub struct BenchOptions {
    #[arg(long, value_name = "NAME", help = help("method"), value_parser = Names::of::<Method>())]
    method: Option<String>,
    #[arg(long, value_name = "N", help = help("prompt_tokens"), allow_negative_numbers = true)]
    prompt_tokens: Option<String>,
    #[arg(long, value_name = "N", help = help("samples"), allow_negative_numbers = true)]
    samples: Option<String>,
    /// Tokens of the target, or of the continuation (M)
    #[arg(long, value_name = "M", default_value_t = 20, value_parser = value_parser!(u32).range(1..))]
    pub target_tokens: u32,
    /// Rounds to measure, after a first one
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,
}

impl Bench {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Step(_) => "step",
            Self::Score { .. } => "score",
            Self::Generate(_) => "generate",
            Self::Parity(_) => "parity",
            Self::Load(_) => "load",
        }
    }

    /// What they share.
    pub fn options(&self) -> &BenchOptions {
        match self {
            Self::Step(options) | Self::Score { options, .. } | Self::Generate(options) | Self::Parity(options) | Self::Load(options) => {
                options
            }
        }
    }
}

/// `config`.
#[derive(Subcommand, Debug)]
pub enum Config {
    /// Every setting with its value and the layer that set it, as a file that -c reads
    #[command(after_long_help = settings_help())]
    Show,
}

impl Score {
    /// The texts that stand for PROMPT and TARGET: what is given as ids has none.
    ///
    /// # Errors
    /// Too few or too many texts, or standard input for both.
    pub fn texts(&self) -> Result<(Option<OsString>, Option<OsString>)> {
        let mut texts = self.texts.iter().cloned();
        let mut text = |name: &str, ids: &Option<Vec<u32>>| match ids {
            Some(_) => Ok(None),
            None => texts.next().map(Some).ok_or_else(|| {
                Error::input(format!(
                    "{name} is missing: `dlmi score` takes PROMPT and TARGET, each as text or as --prompt-ids and --target-ids"
                ))
            }),
        };
        let pair = (text("PROMPT", &self.prompt_ids)?, text("TARGET", &self.target_ids)?);
        if let Some(extra) = texts.next() {
            let extra = extra.to_string_lossy();
            return Err(Error::input(format!("`{extra}` is one text too many: PROMPT or TARGET is already given as ids")));
        }
        if matches!(&pair, (Some(prompt), Some(target)) if prompt == "-" && target == "-") {
            return Err(Error::input("PROMPT and TARGET are both `-`, but standard input can be read only once"));
        }
        Ok(pair)
    }
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
        Ok(Sources { presets: presets.clone(), files: files.clone(), environment, set: set.clone(), flags: self.flags()? })
    }

    /// Keys and values of the flags that were given.
    fn flags(&self) -> Result<Vec<(&'static str, String)>> {
        let mut flags = Flags::default();
        let Global { backend, device, dtype, model, seed, .. } = &self.global;
        flags.text("backend", backend).text("device", device).text("dtype", dtype).text("seed", seed).os_text("model", model)?;
        match &self.verb {
            Verb::Invert(verb) => {
                flags.text("method", &verb.method).text("prompt_tokens", &verb.prompt_tokens).text("steps", &verb.steps);
                flags.text("max_seconds", &verb.max_seconds).text("restarts", &verb.restarts).text("samples", &verb.samples);
                flags.text("max_memory", &verb.max_memory);
                flags.os_text("prefix", &verb.prefix)?.os_text("suffix", &verb.suffix)?;
                flags.switch("allow_target_tokens", verb.allow_target_tokens).switch("allow_special", verb.allow_special);
                flags.switch("bos", verb.bos);
            }
            Verb::Complete(verb) => drop(flags.switch("bos", verb.bos)),
            Verb::Score(verb) => drop(flags.switch("bos", verb.bos)),
            Verb::Targets(verb) => drop(flags.text("prompt_tokens", &verb.prompt_tokens)),
            Verb::Bench(verb) => {
                let BenchOptions { method, prompt_tokens, samples, .. } = verb.options();
                flags.text("method", method).text("prompt_tokens", prompt_tokens).text("samples", samples);
            }
            Verb::Models(Models::Show { spec }) => drop(flags.os_text("model", spec)?),
            Verb::Models(_) | Verb::Methods | Verb::Doctor | Verb::Config(_) | Verb::Completions { .. } => (),
        }
        Ok(flags.0)
    }
}

#[derive(Default)]
struct Flags(Vec<(&'static str, String)>);

impl Flags {
    fn text(&mut self, key: &'static str, value: &Option<String>) -> &mut Self {
        self.0.extend(value.clone().map(|value| (key, value)));
        self
    }

    fn os_text(&mut self, key: &'static str, value: &Option<OsString>) -> Result<&mut Self> {
        if let Some(value) = value {
            self.0.push((key, utf8(value.as_encoded_bytes().to_vec(), &format!("`--{}`", key.replace('_', "-")))?));
        }
        Ok(self)
    }

    fn switch(&mut self, key: &'static str, on: bool) -> &mut Self {
        self.0.extend(on.then(|| (key, "true".into())));
        self
    }
}

impl Global {
    /// When to print in colour.
    pub fn color(&self) -> Color {
        self.color.unwrap_or_default()
    }

    /// -1 for `-q`, else the number of `-v`.
    pub fn verbosity(&self) -> i8 {
        if self.quiet { -1 } else { self.verbose.min(3).cast_signed() }
    }

    /// Adds what stands at a later place of the command line: single values replace, lists grow.
    fn merge(&mut self, later: Self) {
        fn replace<T>(value: &mut Option<T>, later: Option<T>) {
            *value = later.or(value.take());
        }
        replace(&mut self.backend, later.backend);
        replace(&mut self.device, later.device);
        replace(&mut self.dtype, later.dtype);
        replace(&mut self.model, later.model);
        self.presets.extend(later.presets);
        self.files.extend(later.files);
        self.set.extend(later.set);
        replace(&mut self.seed, later.seed);
        self.json |= later.json;
        self.offline |= later.offline;
        replace(&mut self.color, later.color);
        self.quiet |= later.quiet;
        self.verbose = self.verbose.saturating_add(later.verbose);
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

/// The text of an argument or of a file; `-` as either is standard input. One newline at the end of a file or of
/// standard input is left out; an argument is taken as it is.
///
/// # Errors
/// What cannot be read, is longer than 64 MiB, or is not UTF-8.
pub fn read_text(argument: Option<OsString>, file: Option<PathBuf>) -> Result<Option<String>> {
    if argument.as_deref() == Some(OsStr::new("-")) || file.as_deref().is_some_and(|path| path.as_os_str() == "-") {
        return read("standard input", std::io::stdin().lock()).map(Some);
    }
    match (argument, file) {
        (Some(text), _) => utf8(text.into_encoded_bytes(), "the argument").map(Some),
        (None, Some(path)) => {
            let source = std::fs::File::open(&path).map_err(|error| Error::reading(&path, &error))?;
            read(&format!("`{}`", path.display()), source).map(Some)
        }
        (None, None) => Ok(None),
    }
}

fn read(name: &str, source: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    let length = source.take(LONGEST_TEXT + 1).read_to_end(&mut bytes);
    if length.map_err(|error| Error::input(format!("cannot read {name}: {error}")))? as u64 > LONGEST_TEXT {
        return Err(Error::input(format!("{name} is longer than {} MiB, which no model's context holds", LONGEST_TEXT >> 20)));
    }
    let mut text = utf8(bytes, name)?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Help text of a setting's flag.
fn help(key: &str) -> String {
    let doc = settings::find(key).map_or("", |key| key.doc);
    match Settings::default().get(key) {
        serde_json::Value::String(text) if !text.is_empty() => format!("{doc} [default: {text}]"),
        // These depend on the method, as their help says.
        serde_json::Value::Number(number) if key != "restarts" => format!("{doc} [default: {number}]"),
        _ => doc.to_string(),
    }
}

fn settings_help() -> String {
    let width = KEYS.iter().map(|key| key.name.len()).max().unwrap_or(0);
    let rows = KEYS.iter().map(|key| format!("  {:width$}  {}", key.name, help(key.name)));
    let rows: Vec<_> = rows.collect();
    format!(
        "Settings:\n{}\n\nLayers, weakest first: default, the method's default, the model's preset, --preset, -c, the environment \
         (DLMI_SAMPLES=4), --set samples=4, --samples 4.",
        rows.join("\n")
    )
}

/// Takes any text but lists the right ones in help and completions: the settings refuse the others, as they do in
/// every layer.
#[derive(Clone)]
struct Names(fn() -> Vec<PossibleValue>);

impl Names {
    fn of<T: ValueEnum>() -> Self {
        Self(|| T::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect())
    }
}

impl TypedValueParser for Names {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&clap::Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0().into_iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Cli {
        parse(std::iter::once("dlmi").chain(line.split_whitespace())).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn settings(cli: &Cli) -> Result<Settings> {
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

        let wanted = Settings {
            method: Method::Dlmi,
            prompt_tokens: 5,
            steps: None,
            max_seconds: Some(1.5),
            samples: 2,
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
            ..Settings::default()
        };
        assert_eq!(settings(&parsed(line)).unwrap(), wanted);
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
        assert_eq!(
            message("invert x --method foo"),
            "`--method` must be one of dlmi, dlmi-tf, gbda, reinforce, soda, snap, random, echo, not `foo`"
        );
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

    #[test]
    fn score_takes_each_side_as_text_or_ids() {
        let texts = |line| match parsed(line).verb {
            Verb::Score(verb) => verb.texts().map_err(|error| error.to_string()),
            _ => panic!(),
        };
        let some = |text: &str| Some(OsString::from(text));
        assert_eq!(texts("score a b"), Ok((some("a"), some("b"))));
        assert_eq!(texts("score --prompt-ids 1,2 b"), Ok((None, some("b"))));
        assert_eq!(texts("score a --target-ids 1"), Ok((some("a"), None)));
        assert_eq!(texts("score --prompt-ids 1 --target-ids 1"), Ok((None, None)));
        assert!(texts("score a").unwrap_err().starts_with("TARGET is missing"));
        assert!(texts("score").unwrap_err().starts_with("PROMPT is missing"));
        assert!(texts("score a b --prompt-ids 1").unwrap_err().starts_with("`b` is one text too many"));
        assert!(texts("score - -").unwrap_err().contains("only once"));
    }

    #[test]
    fn texts_come_as_they_are() {
        let file = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            read_text(None, Some(file.path().into())).map(Option::unwrap)
        };
        assert_eq!(read_text(None, None).unwrap(), None);
        assert_eq!(read_text(Some(" a\n".into()), None).unwrap().unwrap(), " a\n");
        assert_eq!(file(b"a\n\n").unwrap(), "a\n");
        assert_eq!(file(b"a\r\n").unwrap(), "a");
        assert_eq!(file(b"").unwrap(), "");
        assert!(file(b"ab\xc3(").unwrap_err().to_string().ends_with("is not UTF-8 text: byte 2 (0xc3) starts no valid character"));
        assert!(read_text(None, Some("/nonexistent".into())).unwrap_err().to_string().starts_with("cannot read `/nonexistent`"));
        assert_eq!(read("standard input", std::io::repeat(b'a')).unwrap_err().exit_code(), 2);
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
        assert!(String::from_utf8(script).unwrap().contains("dlmi dlmi-tf gbda reinforce soda snap random echo"));
    }
}
