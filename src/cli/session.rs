//! What every verb that uses a model begins with: settings, model, device.

use std::time::Instant;

use burn::backend::Flex;
use burn::tensor::backend::Backend;

use super::args::Cli;
use crate::backend::{self, Choice, Dtype};
use crate::invert::judge::Judge;
use crate::invert::record;
use crate::model::Llama;
use crate::ops::TrackedBackend;
use crate::settings::{ModelIdentity, Resolved, Settings};
use crate::source::checkpoint::Checkpoint;
use crate::source::spec;
use crate::source::tokenizer::check_ids;
use crate::subject::Subject;
use crate::ui::Policy;
use crate::{Error, Result};

/// A model with the settings that hold for it.
pub struct Session {
    /// Header read and checked; the weights are read by [`Session::load`].
    pub checkpoint: Checkpoint,
    /// All layers, the model's preset included.
    pub resolved: Resolved,
    began: Instant,
}

impl Session {
    /// Reads the settings and opens the model that they name.
    pub fn open(cli: &Cli, policy: Policy) -> Result<Self> {
        let began = Instant::now();
        let layers = cli.layers()?;
        let spec = layers.preview()?.settings.model;
        let checkpoint = spec::open(&spec, cli.global.offline, !policy.quiet)?;
        let resolved = layers.resolve(&identity(&checkpoint))?;
        Ok(Self { checkpoint, resolved, began })
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.resolved.settings
    }

    /// Seconds since the session began.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// The device that the settings ask for.
    pub fn device(&self) -> Result<Choice> {
        let settings = self.settings();
        let choice = backend::open(settings.backend, settings.device, settings.dtype)?;
        tracing::info!("running on {}: {}", choice.device, choice.reason);
        Ok(choice)
    }

    /// Reads the weights, as the settings' type.
    pub fn load<B: Backend>(&mut self, device: &B::Device) -> Result<Llama<B>> {
        self.load_as(device, self.settings().dtype)
    }

    /// Reads the weights for the plain path: CPU, f32.
    pub fn load_plain(&mut self) -> Result<Llama<Flex>> {
        self.load_as(&Default::default(), Dtype::F32)
    }

    fn load_as<B: Backend>(&mut self, device: &B::Device, dtype: Dtype) -> Result<Llama<B>> {
        let config = self.checkpoint.config.clone();
        Llama::load(&config, &mut self.checkpoint, device, dtype.into())
    }

    /// The plain path: the subject's own model where it lives on the CPU backend, else another copy.
    pub fn judge<B: TrackedBackend>(&mut self, subject: &Subject<B>) -> Result<Judge> {
        match subject.as_flex() {
            Some(model) => Ok(Judge::new(model)),
            None => Ok(Judge::new(self.load_plain()?)),
        }
    }

    /// BoS for `--bos`: the token that starts a text.
    pub fn bos(&self) -> Result<Option<u32>> {
        match (self.settings().bos, self.start_token()) {
            (false, _) => Ok(None),
            (true, Some(bos)) => Ok(Some(bos)),
            (true, None) => Err(Error::input("--bos: this model names no token that starts a text; leave the flag out")),
        }
    }

    /// `<|endoftext|>` where the tokenizer has it, else the config's BoS.
    pub fn start_token(&self) -> Option<u32> {
        self.checkpoint.tokenizer.token_id("<|endoftext|>").or(self.checkpoint.config.bos_token_id)
    }

    /// Refuses ids that are no row of the embedding matrix.
    pub fn check_ids(&self, ids: &[u32], option: &str) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::input(format!("{option} is empty; give at least one token")));
        }
        check_ids(ids, self.checkpoint.config.vocab_size).map_err(|error| Error::input(format!("{option}: {error}")))
    }

    /// How the record names the model.
    pub fn model_identity(&self) -> record::ModelIdentity {
        record::ModelIdentity {
            spec: self.settings().model.clone(),
            digest: self.checkpoint.digest.clone(),
            architecture: self.checkpoint.config.architecture.clone(),
            vocab_size: self.checkpoint.config.vocab_size,
        }
    }
}

/// What the model presets go by.
fn identity(checkpoint: &Checkpoint) -> ModelIdentity {
    ModelIdentity {
        digest: checkpoint.digest.clone(),
        architecture: checkpoint.config.architecture.clone(),
        hidden_size: checkpoint.config.hidden_size,
        layers: checkpoint.config.num_hidden_layers,
        vocab_size: checkpoint.config.vocab_size,
    }
}
