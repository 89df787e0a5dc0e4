//! The flags of `targets`.

use std::path::PathBuf;

use clap::{Args, value_parser};

use super::setting::{Flags, help};

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
    /// The start token, by its name [default: the model's own; bard's and SmolLM2's is <|endoftext|>]
    #[arg(long, value_name = "T")]
    pub bos_token: Option<String>,
    /// Targets that can be reached: the model's own greedy continuation of each prompt of a file (`-`: standard input)
    #[arg(long, value_name = "FILE", requires = "prompts_out", conflicts_with_all = ["k", "per_k", "sigma", "label"])]
    pub from: Option<PathBuf>,
    /// Where the prompts of --from are kept, apart from their targets: no method reads them
    #[arg(long, value_name = "FILE", requires = "from")]
    pub prompts_out: Option<PathBuf>,
    /// Label the targets of a file (`-`: standard input) with this model's ranks and probabilities
    #[arg(long, value_name = "FILE", conflicts_with_all = ["k", "per_k", "sigma", "tokens"])]
    pub label: Option<PathBuf>,
    #[arg(long, value_name = "N", help = help("prompt_tokens"), allow_negative_numbers = true)]
    prompt_tokens: Option<String>,
}

fn deviation(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "it must be a number of 0 or more".to_owned())
}

impl Targets {
    pub(super) fn flags(&self, flags: &mut Flags) {
        flags.text("prompt_tokens", &self.prompt_tokens);
    }
}
