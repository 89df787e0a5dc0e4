//! Options that every verb has.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::setting::{Flags, Names, choice, help};
use crate::Result;
use crate::backend::{BackendName, Dtype};
use crate::ui::Color;

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
    /// Settings that belong together (gpu, paper, sdlm, bard, smollm2-135m, ...); may be repeated
    #[arg(long = "preset", value_name = "NAME")]
    pub(super) presets: Vec<String>,
    /// TOML file of settings; may be repeated
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// Any setting, see `dlmi config show`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    #[arg(long, value_name = "N", help = help("seed"), allow_negative_numbers = true)]
    pub(super) seed: Option<String>,
    /// Print one JSON object instead of readable lines
    #[arg(long)]
    pub json: bool,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
    /// Colour in what is printed: auto, always or never [default: auto]
    #[arg(long, value_name = "WHEN", value_parser = choice::<Color>(), hide_possible_values = true)]
    color: Option<Color>,
    /// No progress, only errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more (-vv: for debugging)
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

impl Global {
    pub(super) fn flags(&self, flags: &mut Flags) -> Result<()> {
        let Self { backend, device, dtype, model, seed, .. } = self;
        flags.text("backend", backend).text("device", device).text("dtype", dtype).text("seed", seed).os_text("model", model)
    }

    /// When to print in colour.
    pub fn color(&self) -> Color {
        self.color.unwrap_or_default()
    }

    /// -1 for `-q`, else the number of `-v`.
    pub fn verbosity(&self) -> i8 {
        if self.quiet { -1 } else { self.verbose.min(3).cast_signed() }
    }

    /// Adds what stands at a later place of the command line: single values replace, lists grow.
    pub(super) fn merge(&mut self, later: Self) {
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
