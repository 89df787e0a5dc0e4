//! A model that was opened: what an inversion begins with.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use serde_json::{Map, Value};

use super::record::ModelIdentity;
use crate::backend::{Dtype, memory};
use crate::model::{self, Checkpoint, Llama, LlamaConfig, Rounded};
use crate::problem::{Chat, Problem, Target};
use crate::settings::{self, Layers, Options, Sources};
use crate::source::hub::{Observer, SILENT};
use crate::source::tokenizer::check_ids;
use crate::source::{ChatTemplate, Tokenizer};
use crate::{Error, Result};

/// Config and tokenizer of a model, and where its weights are: they are read when something is computed.
pub struct Model {
    checkpoint: Checkpoint,
    /// Its chat template, once somebody has chatted.
    template: OnceLock<Arc<ChatTemplate>>,
    spec: String,
    opened: Instant,
}

impl Model {
    /// Opens a bundled model (`bard`), a folder in Hugging Face layout, a `.gguf` or `.safetensors` file, or `org/name[@revision]` on the
    /// hub.
    ///
    /// # Errors
    /// There is no such model, or its files are not what they should be.
    pub fn open(spec: &str) -> Result<Self> {
        Self::open_with(spec, false, SILENT)
    }

    /// As [`Self::open`]; `offline` never asks the hub, `observer` is told how a download goes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(spec: &str, offline: bool, observer: Observer) -> Result<Self> {
        let opened = Instant::now();
        Ok(Self { checkpoint: model::open(spec, offline, observer)?, template: OnceLock::new(), spec: spec.to_owned(), opened })
    }

    /// The architecture.
    pub fn config(&self) -> &LlamaConfig {
        &self.checkpoint.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.checkpoint.tokenizer
    }

    /// How records name it.
    pub fn identity(&self) -> ModelIdentity {
        ModelIdentity {
            spec: self.spec.clone(),
            digest: self.checkpoint.digest.clone(),
            architecture: self.config().architecture.clone(),
            vocab_size: self.config().vocab_size,
        }
    }

    /// What the presets that go with a model are chosen by.
    pub fn shape(&self) -> settings::ModelShape {
        settings::ModelShape {
            digest: self.checkpoint.digest.clone(),
            architecture: self.config().architecture.clone(),
            hidden_size: self.config().hidden_size,
            layers: self.config().num_hidden_layers,
            vocab_size: self.config().vocab_size,
        }
    }

    /// The default options with the preset of this model on top, as the command line has them.
    ///
    /// # Errors
    /// None for presets that are built in.
    pub fn options(&self) -> Result<Options> {
        Ok(Layers::read(Sources::default())?.resolve(&self.shape())?.settings)
    }

    /// Seconds since it was opened.
    pub fn seconds(&self) -> f64 {
        self.opened.elapsed().as_secs_f64()
    }

    /// Reads the weights onto a device.
    ///
    /// # Errors
    /// Files that changed meanwhile, and values that are not finite; less memory than they need.
    pub fn load<B: Backend>(&mut self, device: &B::Device, dtype: Dtype) -> Result<Llama<B>> {
        if memory::is_on_cpu::<B>(device) {
            memory::require(self.bytes(dtype), "this model")?;
        }
        let config = self.checkpoint.config.clone();
        Llama::load(&config, &mut self.checkpoint, device, dtype.into())
    }

    /// As [`Self::load`] in f32, on a CPU, the matrices rounded to 8 bits as GGUF's Q8_0 has them.
    pub(super) fn load_rounded<B: Backend>(&mut self, device: &B::Device) -> Result<Llama<B>> {
        memory::require(self.bytes(Dtype::F32), "this model")?;
        let config = self.checkpoint.config.clone();
        Llama::load(&config, &mut Rounded(&mut self.checkpoint), device, DType::F32)
    }

    /// Bytes of the weights in this type.
    fn bytes(&self, dtype: Dtype) -> u64 {
        (DType::from(dtype).size() * self.config().parameters()) as u64
    }

    /// Refuses weights in this type that do not keep within so many MiB.
    ///
    /// # Errors
    /// They need more.
    pub(super) fn check_memory(&self, dtype: Dtype, mib: Option<u64>) -> Result<()> {
        mib.map_or(Ok(()), |mib| memory::keep_within(mib, self.bytes(dtype), "this model needs"))
    }

    /// The token that starts a text: the one that the model's preset names, else the BoS of its config.
    pub fn start_token(&self) -> Option<u32> {
        let named = settings::bos_token(&self.shape()).and_then(|name| self.token(&name));
        named.or(self.config().bos_token_id)
    }

    /// The token of this name, if it has an embedding.
    pub fn token(&self, name: &str) -> Option<u32> {
        self.tokenizer().token_id(name).filter(|id| (*id as usize) < self.config().vocab_size)
    }

    /// The token that `bos` puts before a prompt.
    ///
    /// # Errors
    /// One is wanted, but the model names none.
    pub fn bos(&self, wanted: bool) -> Result<Option<u32>> {
        match (wanted, self.start_token()) {
            (false, _) => Ok(None),
            (true, Some(bos)) => Ok(Some(bos)),
            (true, None) => Err(Error::option("bos", "this model names no token that starts a text; leave it out")),
        }
    }

    /// The chat that `options` ask for.
    ///
    /// # Errors
    /// The model has no usable chat template; options that contradict each other.
    pub fn chat(&self, options: &Options) -> Result<Option<Chat>> {
        match (options.chat, &options.system) {
            (false, None) => Ok(None),
            (false, Some(_)) => Err(Error::option("system", "it is a turn of a chat; ask for one (chat), or leave it out")),
            (true, _) if options.bos => Err(Error::option("bos", "a chat begins as the model's template says; leave it out")),
            (true, system) => Ok(Some(Chat { template: self.template()?, system: system.clone() })),
        }
    }

    /// Lets a chat template that writes the date write that of another moment, in seconds since 1970: of the run that goes on. With none it
    /// is the present one.
    ///
    /// # Errors
    /// The model has no usable chat template.
    pub fn set_moment(&self, moment: Option<i64>) -> Result<()> {
        self.template().map(|template| template.set_moment(moment))
    }

    /// Its chat template, read when it is first asked for.
    fn template(&self) -> Result<Arc<ChatTemplate>> {
        if let Some(template) = self.template.get() {
            return Ok(template.clone());
        }
        let read = self.checkpoint.chat.read()?;
        Ok(self.template.get_or_init(|| read).clone())
    }

    /// Digests of what decides a result by `options` too and may be edited beside the weights: the tokenizer, a chat's template. A model that
    /// has none fails when the chat is rendered.
    pub(crate) fn beside_weights(&self, options: &Options) -> Map<String, Value> {
        let template = || self.template().ok().map(|template| template.digest());
        let chat = options.chat.then(|| ("chat_template".to_owned(), template().into()));
        std::iter::once(("tokenizer".to_owned(), self.tokenizer().digest().into())).chain(chat).collect()
    }

    /// Whether it has a chat template.
    ///
    /// # Errors
    /// The files where it would be cannot be read.
    pub fn has_chat_template(&self) -> Result<bool> {
        self.checkpoint.chat.has_template()
    }

    /// A target behind which the model must stop: in a chat with the token that ends a turn there, else with its first stop token.
    fn stopping(&self, target: Target, chat: Option<&Chat>) -> Result<Target> {
        let stops = &self.config().eos_token_ids;
        if target.ids.last().is_some_and(|last| stops.contains(last)) {
            return Err(Error::option("end", "the target ends with a stop token already; leave one of them out"));
        }
        let turn = chat.map(|chat| chat.render("x")).transpose()?.map_or(Vec::new(), |text| self.tokenizer().encode(&text));
        match turn.iter().rev().chain(stops).find(|id| stops.contains(id)) {
            Some(&stop) => Ok(target.stopping_with(stop)),
            None => Err(Error::option("end", "this model names no token at which it stops (eos_token_id); leave it out")),
        }
    }

    /// Refuses tokens that have no embedding: a tokenizer may have added some.
    pub(crate) fn check_embedded(&self, name: &str, ids: &[u32]) -> Result<()> {
        check_ids(ids, self.config().vocab_size).map_err(|error| Error::input(format!("{name}: {error}")))
    }

    /// What `options` ask to find for `target`.
    ///
    /// # Errors
    /// A target that the tokenizer cannot write, or that holds an end-of-sequence token; an added token that has no embedding; a search
    /// vocabulary without a token; no usable chat template.
    pub fn problem(&self, target: &str, options: &Options) -> Result<Problem> {
        self.problem_of(Target::from_text(target, self.tokenizer())?, options)
    }

    /// As [`Self::problem`], of a target that is tokenised already.
    ///
    /// # Errors
    /// As [`Self::problem`].
    pub fn problem_of(&self, target: Target, options: &Options) -> Result<Problem> {
        let ends = |id: &&u32| self.config().eos_token_ids.contains(id);
        if let Some(end) = target.ids.iter().find(ends).filter(|_| !options.allow_special) {
            return Err(Error::option(
                "allow_special",
                format!(
                    "the target holds the end-of-sequence token `{}`, and who decodes with a stop there never sees what follows; leave it \
                     out, or allow special tokens",
                    self.tokenizer().decode(&[*end])
                ),
            ));
        }
        self.check_embedded("the target", &target.ids)?;
        for (name, text) in [("the prefix", &options.prefix), ("the suffix", &options.suffix)] {
            self.check_embedded(name, &self.tokenizer().encode(text))?;
        }
        let prompt = options.prompt_options(self.bos(options.bos)?, self.chat(options)?);
        let target = if options.end { self.stopping(target, prompt.chat.as_ref())? } else { target };
        let problem = Problem::new(prompt, target, self.tokenizer(), self.config().vocab_size)?;
        let problem = Problem { min_margin: options.min_margin.unwrap_or(0.0) as f32, ..problem };
        self.check_embedded("the chat template", &problem.first().search_ids(&[]))?;
        Ok(problem)
    }
}
