//! The parts of `bench` and their flags.

use clap::{Args, Subcommand, value_parser};

use super::setting::{Flags, Names, help};
use crate::method::registry::MethodName;

/// `bench`.
#[derive(Subcommand, Debug, Clone)]
pub enum Bench {
    /// One step of a method, without taking scores
    #[command(after_help = "Example:\n  dlmi bench step --method dlmi --prompt-tokens 80 --set all_tokens=true --json")]
    Step {
        /// As in the other kinds.
        #[command(flatten)]
        sizes: Sizes,
        /// Which method, and how.
        #[command(flatten)]
        method: StepMethod,
    },
    /// A batch of candidates that differ from a prompt at one position
    Score {
        /// As in the other kinds.
        #[command(flatten)]
        sizes: Sizes,
        /// Candidates of a batch
        #[arg(long, value_name = "C", default_value_t = 64, value_parser = value_parser!(u32).range(1..=65_536))]
        candidates: u32,
    },
    /// A greedy continuation
    Generate(Sizes),
    /// How far logits, greedy tokens and the first steps of the relaxed methods are from those of the CPU in f32; a random prompt
    /// for each round
    #[command(after_help = "Example:\n  dlmi bench parity --backend cuda --dtype f16 --target-tokens 32")]
    Parity(Sizes),
    /// Opening the model and reading its weights
    Load(Rounds),
}

/// N and M, and how often.
#[derive(Args, Debug, Clone)]
pub struct Sizes {
    #[arg(long, value_name = "N", help = help("prompt_tokens"), allow_negative_numbers = true)]
    prompt_tokens: Option<String>,
    /// Tokens of the target, or of the continuation (M)
    #[arg(long, value_name = "M", default_value_t = 20, value_parser = value_parser!(u32).range(1..))]
    pub target_tokens: u32,
    #[command(flatten)]
    rounds: Rounds,
}

/// What makes the steps.
#[derive(Args, Debug, Clone)]
pub struct StepMethod {
    #[arg(long, value_name = "NAME", help = help("method"), value_parser = Names::of::<MethodName>())]
    method: Option<String>,
    #[arg(long, value_name = "N", help = help("samples"), allow_negative_numbers = true)]
    samples: Option<String>,
}

/// What all kinds share.
#[derive(Args, Debug, Clone)]
pub struct Rounds {
    /// Rounds to measure, after a first one
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,
}

impl Bench {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Step { .. } => "step",
            Self::Score { .. } => "score",
            Self::Generate(_) => "generate",
            Self::Parity(_) => "parity",
            Self::Load(_) => "load",
        }
    }

    /// N and M, where it has them.
    pub fn sizes(&self) -> Option<&Sizes> {
        match self {
            Self::Step { sizes, .. } | Self::Score { sizes, .. } | Self::Generate(sizes) | Self::Parity(sizes) => Some(sizes),
            Self::Load(_) => None,
        }
    }

    /// How often is measured.
    pub fn rounds(&self) -> u32 {
        match self {
            Self::Step { sizes, .. } | Self::Score { sizes, .. } | Self::Generate(sizes) | Self::Parity(sizes) => sizes.rounds.rounds,
            Self::Load(rounds) => rounds.rounds,
        }
    }

    pub(super) fn flags(&self, flags: &mut Flags) {
        if let Some(Sizes { prompt_tokens, .. }) = self.sizes() {
            flags.text("prompt_tokens", prompt_tokens);
        }
        if let Self::Step { method: StepMethod { method, samples }, .. } = self {
            flags.text("method", method).text("samples", samples);
        }
    }
}
