//! What every verb that uses a model begins with: settings, model, device.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::args::{Around, Cli, read_text};
use crate::backend::{self, Choice};
use crate::invert::{Judge, Model, notes};
use crate::model::LlamaConfig;
use crate::problem::Target;
use crate::problem::targets::{Labelled, parse_prompts, parse_targets};
use crate::settings::{Options, Resolved};
use crate::source::{Tokenizer, bundled};
use crate::subject::{check_context, holds};
use crate::terminal::counted;
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
        backend::open(settings.backend, settings.device, settings.dtype)
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
        self.parsed(path, parse_targets)
    }

    /// The prompts of a file, or of standard input (`-`).
    ///
    /// # Errors
    /// As [`Self::targets`].
    pub fn prompts(&self, path: &Path) -> Result<Vec<Labelled>> {
        self.parsed(path, parse_prompts)
    }

    fn parsed(&self, path: &Path, parse: fn(&str, &Path, &Tokenizer, usize) -> Result<Vec<Labelled>>) -> Result<Vec<Labelled>> {
        let text = read_text(None, Some(path.to_owned()))?.unwrap_or_default();
        parse(&text, path, self.model.tokenizer(), self.model.config().vocab_size)
    }

    /// The prompt that a command line gives, as a text with what stands around it or as ids.
    ///
    /// # Errors
    /// Those of [`Self::whole`] and [`Self::bos`]; ids without an embedding, and none at all.
    pub fn prompt(&self, around: &Around, text: Option<OsString>, ids: Option<&[u32]>) -> Result<Given> {
        let (tokenizer, bos) = (self.model.tokenizer(), self.bos()?);
        let typed = read_text(text, None)?;
        let (whole, turn, dated) = match &typed {
            Some(typed) => (self.whole(around, typed, "")?, tokenizer.encode(&turn(around, typed, "")?), self.is_dated()?),
            None => (tokenizer.decode(ids.unwrap_or_default()), ids.unwrap_or_default().to_vec(), false),
        };
        let of_text = tokenizer.encode(&whole);
        let own = ids.unwrap_or(&of_text);
        let (typeable, ids) = (own == of_text, bos.iter().chain(own).copied().collect::<Vec<_>>());
        if ids.is_empty() {
            return Err(Error::input("the prompt is empty; give a text, or --bos to let the model begin by itself"));
        }
        self.check_ids(&ids, "the prompt")?;
        let notes = [bos.map(|_| notes::BOS.to_owned()), dated.then(|| notes::DATE.to_owned()), notes::special("prompt", &turn, tokenizer)];
        Ok(Given { typed, turn, whole, typeable, ids, notes: notes.into_iter().flatten().collect() })
    }

    /// The whole prompt in which `text` is what somebody types, `behind` at the end of it all.
    ///
    /// # Errors
    /// A text that no context holds, a template without a place for it, and those of [`Model::chat`].
    pub fn whole(&self, around: &Around, text: &str, behind: &str) -> Result<String> {
        self.model.tokenizer().check_length(text, "the prompt")?;
        let turn = turn(around, text, behind)?;
        self.model.chat(self.settings())?.map_or(Ok(turn.clone()), |chat| chat.render(&turn))
    }

    /// Whether a chat that was rendered holds the date.
    fn is_dated(&self) -> Result<bool> {
        Ok(self.model.chat(self.settings())?.is_some_and(|chat| chat.template.is_dated()))
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

/// Refuses more `--tokens` than fit into the model's context behind so many of a prompt.
pub fn check_tokens(config: &LlamaConfig, prompt: usize, tokens: u32) -> Result<()> {
    let (room, needed) = (config.context().saturating_sub(prompt), prompt + tokens as usize);
    match room {
        0 => check_context(config, prompt, 1),
        _ if tokens as usize <= room => Ok(()),
        _ => Err(Error::input(format!(
            "--tokens: {tokens} of them behind {} need {needed} positions, but the model's {}; ask for {room} or fewer",
            counted(prompt as u64, "token"),
            holds(config)
        ))),
    }
}

/// A text with the template of a command line around it.
fn turn(around: &Around, text: &str, behind: &str) -> Result<String> {
    let (before, after) = around.template()?.unwrap_or_default();
    Ok(format!("{before}{text}{after}{behind}"))
}

/// A prompt as it was given, and what the model gets.
pub struct Given {
    /// The text that was typed, where no ids were given.
    pub typed: Option<String>,
    /// The ids of what was typed, `--template` included: of the user's turn of a chat.
    pub turn: Vec<u32>,
    /// The whole text.
    pub whole: String,
    /// The text gives the ids.
    pub typeable: bool,
    /// The ids that the model sees, BoS first where one is wanted.
    pub ids: Vec<u32>,
    /// What must be known of it.
    pub notes: Vec<String>,
}
