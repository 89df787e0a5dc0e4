//! The flags of `gradients`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::setting::{Flags, choice, help};
use crate::gradients::Compared;

/// `gradients`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  dlmi gradients --out gradients.jsonl
  dlmi gradients --targets targets.jsonl --seeds 10,20,30 --out gradients.jsonl
  dlmi gradients \"the king is dead\" --prompt-tokens 10 --steps 64 --estimators gs-tau1,rebar --reference-samples 8192

Every estimator moves a prompt of its own, as its method does; every few steps the run stands still, and n gradients are
drawn at its Z. Settings are those of --preset paper unless others are given. --samples and --set dlmi-tf.KEY=VALUE set
what all have in common (samples, objective, feedback); the rest of an estimator's settings is its method's.

Each measurement is a JSON line: docs/record.md says what stands in it. With --out, the same command goes on where it
was stopped, and a summary is printed; without, the lines are printed, and the summary after them as one more.

Exit code: 0 all is measured, 2 bad input, 3 no such device, hub or disk space, 130 interrupted.")]
pub struct Gradients {
    /// Text that the model shall write; `-`: standard input; none: the bundled model's own example
    #[arg(conflicts_with_all = ["file", "targets"])]
    pub target: Option<OsString>,
    /// Read TARGET from a file (its last newline left out)
    #[arg(long, value_name = "FILE", conflicts_with = "targets")]
    pub file: Option<PathBuf>,
    /// Targets, as `dlmi targets` prints them; `-`: standard input
    #[arg(long, value_name = "FILE")]
    pub targets: Option<PathBuf>,
    /// Seeds, a run of each estimator on each target for each [default: --seed]
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    pub seeds: Vec<u32>,
    /// Estimators to compare [default: all]
    #[arg(long, value_name = "NAME,NAME,...", value_delimiter = ',', value_parser = choice::<Compared>())]
    pub estimators: Vec<Compared>,
    /// Free tokens of the prompt (N) [default: 80]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    prompt_tokens: Option<String>,
    /// Steps of a run [default: 256]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<String>,
    #[arg(long, value_name = "S", help = help("samples"), allow_negative_numbers = true)]
    samples: Option<String>,
    /// Steps from one measurement of the variance to the next
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub every: u64,
    /// Steps from one measurement of the bias to the next
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub bias_every: u64,
    /// Gradients of a measurement (n), 2 or more
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub draws: u32,
    /// Prompts of the unbiased reference: more of them show a smaller bias; 32 or more
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub reference_samples: u32,
    /// Add the lines to a file; what it holds already is not measured again
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

impl Gradients {
    pub(super) fn flags(&self, flags: &mut Flags) {
        // What is set for the method in use, is set for all.
        flags.text("method", &Some(crate::gradients::SHARED.to_owned())).text("samples", &self.samples);
        flags.text("prompt_tokens", &self.prompt_tokens).text("steps", &self.steps);
    }
}
