//! `dlmi complete`: greedy continuation on the chosen backend.

use std::time::Instant;

use serde_json::json;

use super::args::{Cli, Complete, read_text};
use super::session::Session;
use crate::backend::{self, Job};
use crate::model::greedy;
use crate::ops::TrackedBackend;
use crate::subject::check_context;
use crate::tensor::ids_tensor;
use crate::ui::{Policy, print_result, visible_block};
use crate::{Error, Result};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Complete, policy: Policy) -> Result<()> {
    let session = Session::open(cli, policy)?;
    let mut prompt: Vec<u32> = session.bos()?.into_iter().collect();
    match &verb.ids {
        Some(ids) => prompt.extend(ids),
        None => {
            let text = read_text(verb.prompt.clone(), None)?.unwrap_or_default();
            prompt.extend(session.model.tokenizer().encode(&session.whole(&verb.around, &text, "")?.0));
        }
    }
    if prompt.is_empty() {
        return Err(Error::input("the prompt is empty; give a text, or --bos to let the model begin by itself"));
    }
    session.check_ids(&prompt, "the prompt")?;
    check_context(session.model.config(), prompt.len(), verb.tokens as usize)?;
    let stop = if verb.stop_at_eos { session.model.config().eos_token_ids.clone() } else { Vec::new() };
    let device = session.device()?.device;
    let (json, tokens) = (cli.global.json, verb.tokens as usize);
    backend::dispatch(&device, Continuation { session, prompt, tokens, stop, json })
}

struct Continuation {
    session: Session,
    prompt: Vec<u32>,
    tokens: usize,
    stop: Vec<u32>,
    json: bool,
}

impl Job for Continuation {
    type Output = Result<()>;

    fn run<B: TrackedBackend>(mut self, device: B::Device) -> Result<()> {
        let dtype = self.session.settings().dtype;
        let model = self.session.model.load::<B::InnerBackend>(&device, dtype)?;
        let began = Instant::now();
        let ids = greedy(&model, model.embed(ids_tensor(&[&self.prompt], &device)), self.tokens, &self.stop).ids.remove(0);
        let text_ids = ids.split_last().filter(|(last, _)| self.stop.contains(last)).map_or(&*ids, |(_, text)| text);
        let text = self.session.model.tokenizer().decode_behind(&self.prompt, text_ids);
        if !self.json {
            return print_result(&visible_block(&text));
        }
        let seconds = began.elapsed().as_secs_f64();
        print_result(&super::json(&json!({
            "prompt_ids": self.prompt, "completion_text": text, "completion_ids": ids, "seconds": seconds,
        })))
    }
}
