//! The parts of `models`.

use std::ffi::OsString;

use clap::Subcommand;

use super::setting::Flags;
use crate::Result;

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

impl Models {
    pub(super) fn flags(&self, flags: &mut Flags) -> Result<()> {
        match self {
            Self::Show { spec } => flags.os_text("model", spec),
            Self::List | Self::Pull { .. } => Ok(()),
        }
    }
}
