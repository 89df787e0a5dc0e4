//! `dlmi complete`: greedy continuation on the chosen backend.

use std::time::Instant;

use serde_json::json;

use super::args::{Cli, Complete};
use super::session::{Given, Session, check_tokens};
use crate::Result;
use crate::backend::{self, Job};
use crate::invert::notes;
use crate::model::greedy;
use crate::ops::TrackedBackend;
use crate::problem::Target;
use crate::tensor::ids_tensor;
use crate::terminal::counted;
use crate::ui::{Policy, print_result, print_text};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Complete, policy: Policy) -> Result<()> {
    let session = Session::open(cli, policy)?;
    let ids = verb.ids.as_deref();
    let prompt = session.prompt(&verb.around, verb.prompt.clone(), ids)?;
    check_tokens(session.model.config(), prompt.ids.len(), verb.tokens)?;
    let stop = if verb.stop_at_eos { session.model.config().eos_token_ids.clone() } else { Vec::new() };
    let device = session.device()?.device;
    let (json, tokens) = (cli.global.json, verb.tokens as usize);
    backend::dispatch(&device, Continuation { session, prompt, tokens, stop, json })
}

struct Continuation {
    session: Session,
    prompt: Given,
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
        let ids = greedy(&model, model.embed(ids_tensor(&[&self.prompt.ids], &device)), self.tokens, &self.stop).ids.remove(0);
        self.print(&ids, began.elapsed().as_secs_f64())
    }
}

impl Continuation {
    fn print(&self, ids: &[u32], seconds: f64) -> Result<()> {
        let text_ids = ids.split_last().filter(|(last, _)| self.stop.contains(last)).map_or(ids, |(_, text)| text);
        let text = self.session.model.tokenizer().decode_behind(&self.prompt.ids, text_ids);
        let notes = self.notes(text_ids, &text);
        if self.json {
            return print_result(&super::json(&json!({
                "prompt_ids": self.prompt.ids, "completion_text": text, "completion_ids": ids, "seconds": seconds, "notes": notes,
            })));
        }
        for note in notes {
            tracing::warn!("{note}");
        }
        print_text(&text)
    }

    /// What the printed text does not show.
    fn notes(&self, ids: &[u32], text: &str) -> Vec<String> {
        let (model, mut notes) = (&self.session.model, self.prompt.notes.clone());
        let stops = &model.config().eos_token_ids;
        let end = ids.iter().position(|id| stops.contains(id)).map(|at| {
            let (written, stop) = (counted(at as u64, "token"), model.tokenizer().decode(&ids[at..=at]));
            format!("the model ends its text after {written}, with `{stop}`; --stop-at-eos leaves that and what follows out")
        });
        notes.extend(end.or_else(|| notes::special("completion", ids, model.tokenizer())));
        // What it stands for may be whole characters of that kind.
        let broken = text.contains('\u{fffd}') && !Target::new(text, ids.to_vec()).round_trips(model.tokenizer());
        let half = "the completion holds or ends with half a character, shown as \u{fffd}, so that no text is exactly these tokens";
        notes.extend(broken.then(|| half.to_owned()));
        notes
    }
}
