//! The flags of `complete`.

use std::ffi::OsString;

use clap::{Args, value_parser};

use super::around::Around;
use super::setting::Flags;
use super::text::token_id;
use crate::Result;

/// `complete`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  dlmi complete \"O Romeo, Romeo!\"
  dlmi --model HuggingFaceTB/SmolLM2-135M-Instruct complete --chat \"Who are you?\" --stop-at-eos --tokens 60
  dlmi complete --ids 464,268,758 --tokens 5 --json")]
pub struct Complete {
    /// Text to continue; `-`: standard input
    #[arg(required_unless_present = "ids", conflicts_with = "ids")]
    pub prompt: Option<OsString>,
    /// Token ids to continue, in place of a text
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id, conflicts_with_all = ["template", "chat", "system"])]
    pub ids: Option<Vec<u32>>,
    /// Tokens to write
    #[arg(long, value_name = "M", default_value_t = 20, value_parser = value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// End at an end-of-sequence token, which is no part of the text then; otherwise it is a token like others
    #[arg(long)]
    pub stop_at_eos: bool,
    /// What stands around the prompt.
    #[command(flatten)]
    pub around: Around,
}

impl Complete {
    pub(super) fn flags(&self, flags: &mut Flags) -> Result<()> {
        self.around.flags(flags)
    }
}
