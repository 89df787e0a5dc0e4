//! The flags of `invert`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum, value_parser};

use super::around::Around;
use super::setting::{Flags, Names, help};
use super::text::{read_list, token_id};
use crate::Result;
use crate::method::registry::MethodName;

/// `invert`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  dlmi invert
  dlmi invert \"the king is dead\" --prompt-tokens 30
  dlmi --model HuggingFaceTB/SmolLM2-135M-Instruct invert --file target.txt --out run1
  dlmi --model HuggingFaceTB/SmolLM2-135M-Instruct invert --file target.txt --out run1 --resume --max-seconds 3600
  dlmi --model HuggingFaceTB/SmolLM2-135M-Instruct invert --chat \"I am sorry\"
  dlmi invert --template \"Here is a riddle: {} Answer:\" \" the king\"
  dlmi invert --targets targets.jsonl --max-seconds 60 --out list1
  dlmi invert --count 5 --max-seconds 60
  dlmi invert --shortest --max-seconds 60
  dlmi invert --print prompt | dlmi complete -

Exit code: 0 exact (by --min-margin, all of --targets or --count), 1 not, 2 bad input, 3 no such device, hub or disk space, 130 interrupted.")]
pub struct Invert {
    /// Text that the model shall write, taken byte for byte; `-`: standard input; none: the bundled model's own example
    #[arg(conflicts_with = "file")]
    pub target: Option<OsString>,
    #[arg(long, value_name = "NAME", help = help("method"), value_parser = Names::of::<MethodName>())]
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
    #[arg(long, value_name = "TEXT", help = help("prefix"), conflicts_with = "template")]
    prefix: Option<OsString>,
    #[arg(long, value_name = "TEXT", help = help("suffix"), conflicts_with = "template")]
    suffix: Option<OsString>,
    #[command(flatten)]
    around: Around,
    #[arg(long, value_name = "X", help = help("min_margin"), allow_negative_numbers = true)]
    min_margin: Option<String>,
    #[arg(long, help = help("end"))]
    end: bool,
    #[arg(long, value_name = "X", help = help("fluency"), allow_negative_numbers = true)]
    fluency: Option<String>,
    #[arg(long, help = help("shortest"))]
    shortest: bool,
    #[arg(long, help = help("allow_target_tokens"))]
    allow_target_tokens: bool,
    #[arg(long, help = help("allow_special"))]
    allow_special: bool,
    /// Words and phrases that the found text may not hold, one a line of FILE (`-`: standard input). Whole words: `cat` forbids `Cat` and `c-a-t`, but
    /// neither `cats` nor `education`
    #[arg(long, value_name = "FILE")]
    forbid: Option<PathBuf>,
    #[arg(long, help = help("ascii"))]
    ascii: bool,
    #[arg(long, help = help("words"))]
    words: bool,
    /// Read TARGET from a file (its last newline left out)
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Token ids that the model shall write, in place of a text
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id, allow_negative_numbers = true, conflicts_with_all = ["target", "file"])]
    pub target_ids: Option<Vec<u32>>,
    /// Invert every target of a file (`-`: standard input), as `dlmi targets` prints them, and print a table (with --json a line for each); --out keeps
    /// the results, and the same command goes on from there
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target", "file", "target_ids", "resume"])]
    pub targets: Option<PathBuf>,
    /// Find so many different prompts, each by a search with a seed and a budget of its own, and print each as it is found (with
    /// --json a line for each); --out keeps the results, and the same command goes on from there
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000), conflicts_with_all = ["targets", "resume"])]
    pub count: Option<u32>,
    /// Say whether each prompt that is found is exact in f16, bf16, with 8-bit weights, on the other CPU backend, and with a newline or a space typed behind it too
    #[arg(long)]
    pub robust: bool,
    /// Print the table of --targets as CSV
    #[arg(long, requires = "targets", conflicts_with = "json")]
    pub csv: bool,
    /// Print this alone, to the byte where it does not go to a terminal; a newline follows, which `-` of other verbs leaves out again
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["json", "csv", "targets", "count"])]
    pub print: Option<Print>,
    /// Keep result, events (for TensorBoard too) and checkpoint in a folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on from the checkpoint in the folder of --out
    #[arg(long, requires = "out")]
    pub resume: bool,
}

/// What of a result is printed.
#[derive(ValueEnum, Debug, Clone, Copy)]
pub enum Print {
    /// The prompt as it is typed, in a chat the user's turn
    Prompt,
}

impl Invert {
    pub(super) fn flags(&self, flags: &mut Flags) -> Result<()> {
        flags.text("method", &self.method).text("prompt_tokens", &self.prompt_tokens).text("steps", &self.steps);
        flags.text("max_seconds", &self.max_seconds).text("restarts", &self.restarts).text("samples", &self.samples);
        flags.text("max_memory", &self.max_memory).text("min_margin", &self.min_margin).text("fluency", &self.fluency);
        flags.switch("allow_target_tokens", self.allow_target_tokens).switch("allow_special", self.allow_special);
        flags.switch("ascii", self.ascii).switch("words", self.words).switch("end", self.end).switch("shortest", self.shortest);
        flags.given.extend(self.forbid.as_deref().map(read_list).transpose()?.map(|list| ("forbid", list)));
        flags.os_text("prefix", &self.prefix)?;
        flags.os_text("suffix", &self.suffix)?;
        if let Some((before, after)) = self.around.template()? {
            flags.given.extend([("prefix", before), ("suffix", after)]);
        }
        self.around.flags(flags)
    }
}
