//! What every verb that uses a model begins with: settings, model, device.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::args::{Around, Cli, read_text};
use crate::backend::{self, Choice};
use crate::invert::record::DATE_NOTE;
use crate::invert::{Judge, Model};
use crate::problem::Target;
use crate::problem::targets::{Labelled, parse_targets};
use crate::settings::{Options, Resolved};
use crate::source::bundled;
use crate::ui::{Policy, transfer_bar};
use crate::{Error, Result};

/// A model with the settings that hold for it.
pub struct Session {
    /// Header read and checked; the weights are read when they are needed.
    pub model: Model,
    /// All layers, the model's preset included.
    pub resolved: Resolved,
}

impl Session {
    /// Reads the settings and opens the model that they name.
    pub fn open(cli: &Cli, policy: Policy) -> Result<Self> {
        let layers = cli.layers()?;
        let spec = layers.preview()?.settings.model;
        let model = Model::open_with(&spec, cli.global.offline, &transfer_bar(policy))?;
        let resolved = layers.resolve(&model.shape())?;
        Ok(Self { model, resolved })
    }

    /// The settings.
    pub fn settings(&self) -> &Options {
        &self.resolved.settings
    }

    /// The device that the settings ask for.
    pub fn device(&self) -> Result<Choice> {
        let settings = self.settings();
        let choice = backend::open(settings.backend, settings.device, settings.dtype)?;
        tracing::info!("running on {}: {}", choice.device, choice.reason);
        Ok(choice)
    }

    /// The plain path: CPU, f32.
    pub fn judge(&mut self) -> Result<Judge<'static>> {
        Ok(Judge::new(self.model.load(&Default::default(), backend::Dtype::F32)?))
    }

    /// The one target that a command line gives, and a name for it: a text, a file or standard input, else the bundled model's own.
    pub fn target(&self, text: Option<OsString>, file: Option<PathBuf>) -> Result<(&'static str, Target)> {
        let (name, text) = match (read_text(text, file)?, bundled(&self.settings().model)) {
            (Some(text), _) => ("text", text),
            (None, Some(bundled)) => ("bundled", bundled.default_target.to_owned()),
            (None, None) => {
                let message = "a target is needed: give the text that the model should write, --file FILE or --targets FILE";
                return Err(Error::input(message));
            }
        };
        Ok((name, Target::from_text(&text, self.model.tokenizer())?))
    }

    /// The targets of a file; `-` is standard input.
    pub fn targets(&self, path: &Path) -> Result<Vec<Labelled>> {
        let text = read_text(None, Some(path.to_owned()))?.unwrap_or_default();
        parse_targets(&text, path, self.model.tokenizer(), self.model.config().vocab_size)
    }

    /// The whole prompt in which `text` is what somebody types, `behind` at the end of it all, and what must be known of it.
    ///
    /// # Errors
    /// A text that no context holds, a template without a place for it, and those of [`Model::chat`].
    pub fn whole(&self, around: &Around, text: &str, behind: &str) -> Result<(String, Option<String>)> {
        self.model.tokenizer().check_length(text, "the prompt")?;
        let (before, after) = around.template()?.unwrap_or_default();
        let turn = format!("{before}{text}{after}{behind}");
        match self.model.chat(self.settings())? {
            Some(chat) => chat.render(&turn).map(|whole| (whole, chat.template.is_dated().then(|| DATE_NOTE.to_owned()))),
            None => Ok((turn, None)),
        }
    }

    /// BoS for `--bos`: the token that starts a text.
    pub fn bos(&self) -> Result<Option<u32>> {
        self.model.bos(self.settings().bos)
    }

    /// Refuses ids that are no row of the embedding matrix.
    pub fn check_ids(&self, ids: &[u32], option: &str) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::input(format!("{option} is empty; give at least one token")));
        }
        self.model.check_embedded(option, ids)
    }
}
