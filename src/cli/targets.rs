//! `dlmi targets`: draws targets by difficulty, makes reachable ones, or labels those of a file, on the plain path (CPU, f32).

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use super::args::{Cli, Targets};
use super::session::{Session, check_tokens};
use super::signals::{ended_by, watch_signals};
use crate::error::quoted;
use crate::files::{create, read_small, write_to};
use crate::interrupt::{self, Interrupt};
use crate::problem::targets::{Labelled, Maker, Recipe, Wanted};
use crate::subject::check_context;
use crate::ui::{Policy, Progress, Status, print_part};
use crate::{Error, Result};

pub(super) fn run(cli: &Cli, verb: &Targets, policy: Policy) -> Result<ExitCode> {
    let mut session = Session::open(cli, policy)?;
    let start = start_token(&session, verb)?;
    let wanted = wanted(&session, verb)?;
    let (digest, tokenizer) = (session.model.identity().digest, session.model.tokenizer().clone());
    let model = session.model.load(&Default::default(), crate::backend::Dtype::F32)?;
    if let Some(path) = &verb.prompts_out {
        keep_prompts(path, &wanted)?;
    }
    let maker = Maker { model: &model, tokenizer: &tokenizer, digest: &digest, start, prompt_tokens: session.settings().prompt_tokens };
    make(&maker, &wanted, policy)
}

/// Makes and prints one after the other, until all are there, somebody interrupts, or nobody reads on.
fn make(maker: &Maker, wanted: &[Wanted], policy: Policy) -> Result<ExitCode> {
    let (signal, began) = (watch_signals()?, Instant::now());
    let mut progress = Progress::new(policy, format!("{} targets", wanted.len()));
    for (done, wanted_one) in (0..).zip(wanted) {
        progress.update(&Status {
            step: done,
            steps: Some(wanted.len() as u64),
            seconds: began.elapsed().as_secs_f64(),
            ..Status::default()
        });
        let interrupt = Interrupt::on(signal.clone());
        let Some(made) = interrupt::within(interrupt, || maker.make(wanted_one)) else {
            tracing::warn!("interrupted after {done} of {} targets", wanted.len());
            return Ok(ended_by(&signal));
        };
        if !print_part(&super::json(&made))? {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn start_token(session: &Session, verb: &Targets) -> Result<u32> {
    match &verb.bos_token {
        Some(name) => session.model.token(name).ok_or_else(|| {
            Error::input(format!(
                "--bos-token: this model's vocabulary has no token `{name}`; give one by its name, such as `<|endoftext|>`"
            ))
        }),
        None => session
            .model
            .start_token()
            .ok_or_else(|| Error::input("this model names no token that starts a text; give one with --bos-token")),
    }
}

/// What is to be made, each within the model's context.
fn wanted(session: &Session, verb: &Targets) -> Result<Vec<Wanted>> {
    let (config, tokens) = (session.model.config(), verb.tokens as usize);
    if let Some(path) = &verb.label {
        let mut targets = session.targets(path)?;
        for target in &mut targets {
            named(target, check_context(config, 1, target.target.ids.len()))?;
            target.bos = target.bos.filter(|_| verb.bos_token.is_none());
        }
        return Ok(targets.into_iter().map(Wanted::Given).collect());
    }
    check_tokens(config, 1, verb.tokens)?;
    let Some(path) = &verb.from else {
        return match verb.k.iter().find(|k| **k as usize > config.vocab_size) {
            Some(k) => Err(Error::input(format!("--k: there is no rank {k} among the {} tokens of this model", config.vocab_size))),
            None => Ok(recipes(verb, session.settings().seed)),
        };
    };
    let (prompts, bos) = (session.prompts(path)?, session.bos()?);
    for prompt in &prompts {
        named(prompt, check_tokens(config, prompt.target.ids.len() + bos.iter().len(), verb.tokens))?;
    }
    Ok(prompts.into_iter().map(|prompt| Wanted::Reachable { prompt, bos, tokens }).collect())
}

/// `per_k` targets for each k; a k that is named twice counts once.
fn recipes(verb: &Targets, seed: u32) -> Vec<Wanted> {
    let ks = verb.k.iter().enumerate().filter(|(i, k)| !verb.k[..*i].contains(k)).map(|(_, &k)| k);
    let recipe = |k, sample| Recipe { k, sigma: verb.sigma, tokens: verb.tokens as usize, seed, sample };
    ks.flat_map(|k| (0..verb.per_k).map(move |sample| Wanted::Drawn(recipe(k, sample)))).collect()
}

/// Says which entry of the file an error is about.
fn named(entry: &Labelled, result: Result<()>) -> Result<()> {
    result.map_err(|error| Error::input(format!("{}: {error}", quoted(&entry.id))))
}

/// The prompts by the names of their targets, in a file that must be new, or hold the same: nothing else keeps them.
fn keep_prompts(path: &Path, wanted: &[Wanted]) -> Result<()> {
    let line = |wanted: &Wanted| match wanted {
        Wanted::Reachable { prompt: Labelled { id, target, .. }, bos, .. } => {
            format!("{}\n", super::json(&json!({ "id": id, "text": target.text, "ids": target.ids, "bos": bos })))
        }
        _ => String::new(),
    };
    let lines: String = wanted.iter().map(line).collect();
    match path.metadata() {
        Ok(found) if !found.is_file() => write_to(path, lines.as_bytes()),
        Ok(_) if read_small(path, lines.len() as u64).is_ok_and(|there| there == lines.as_bytes()) => Ok(()),
        _ => create(path, lines.as_bytes(), "prompts_out"),
    }
}
