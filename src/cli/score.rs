//! `dlmi score`: what a given prompt is worth, on the plain path (CPU, f32) whatever the backend.

use std::ffi::OsString;

use serde::Serialize;

use super::answer;
use super::args::{Cli, Score, read_text};
use super::session::{Given, Session};
use crate::Result;
use crate::invert::notes;
use crate::invert::record::Overlaps;
use crate::invert::robust::{Answer, NOT_EXACT, Robust, Typed};
use crate::metrics::matched_prefix;
use crate::problem::Target;
use crate::subject::check_context;
use crate::terminal::{counted, logits};
use crate::ui::{Policy, visible};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Score, policy: Policy) -> Result<()> {
    let mut session = Session::open(cli, policy)?;
    let (typed, target) = verb.texts()?;
    let prompt = session.prompt(&verb.around, typed, verb.prompt_ids.as_deref())?;
    let target = given_target(&session, verb, target)?;
    check_context(session.model.config(), prompt.ids.len(), target.ids.len())?;
    let mut scored = scored(&mut session, verb, &prompt, target)?;
    if verb.robust {
        let (robust, untold) = robust(&mut session, verb, &prompt, &scored)?;
        scored.robust = Some(robust);
        scored.notes.extend(untold);
    }
    answer(cli, &scored, || readable(&scored))
}

/// What a prompt is worth.
#[derive(Serialize)]
struct Scored {
    prompt_text: String,
    prompt_ids: Vec<u32>,
    free_text: String,
    target_text: String,
    target_ids: Vec<u32>,
    completion_text: String,
    completion_ids: Vec<u32>,
    exact: bool,
    /// Nothing where a logit is no finite number.
    min_margin: Option<f32>,
    hard_forced: f64,
    hard_free: f64,
    matched_prefix: usize,
    hard_forced_accuracy: f64,
    hard_free_accuracy: f64,
    #[serde(flatten)]
    overlaps: Overlaps,
    prompt_perplexity: Option<f64>,
    target_perplexity: Option<f64>,
    target_perplexity_bos: Option<f64>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    robust: Option<Robust>,
}

/// The target as text or as ids.
fn given_target(session: &Session, verb: &Score, text: Option<OsString>) -> Result<Target> {
    let tokenizer = session.model.tokenizer();
    let target = match (read_text(text, None)?, &verb.target_ids) {
        (Some(text), _) => Target::from_text(&text, tokenizer)?,
        (None, ids) => Target::from_ids(ids.clone().unwrap_or_default(), tokenizer),
    };
    session.check_ids(&target.ids, "the target")?;
    Ok(target)
}

#[inline]
fn scored(session: &mut Session, verb: &Score, prompt: &Given, given: Target) -> Result<Scored> {
    let (tokenizer, start) = (session.model.tokenizer().clone(), session.model.start_token());
    let judge = session.judge()?;
    let target = if verb.target_ids.is_some() { given } else { judge.target_behind(&prompt.ids, &given.text, &tokenizer)? };
    let example = [(&*prompt.ids, &*target.ids)];
    // Ids that no text gives are neither a prompt nor a target that can be exact.
    let target_round_trips = verb.target_ids.is_none() || target.round_trips(&tokenizer);
    let verdict = judge.verdict(prompt.typeable && target_round_trips, &example)?;
    let scores = judge.scores(&example, &verdict)?;
    let perplexities = judge.perplexities(&prompt.ids, &target.ids, start)?;
    let completion = verdict.confirmations[0].completion.clone();
    let free_text = prompt.typed.clone().unwrap_or_else(|| prompt.whole.clone());
    let untypeable = (!prompt.typeable).then(|| "no text gives these ids, so nobody can type this prompt".to_owned());
    let about_target = [(!target_round_trips).then(|| notes::TARGET.to_owned()), notes::special("target", &target.ids, &tokenizer)];
    let repetition = notes::repetition((&prompt.turn, &free_text), &target);
    let notes = prompt.notes.iter().cloned().chain(untypeable).chain(about_target.into_iter().flatten());
    Ok(Scored {
        notes: notes.chain(repetition).chain(verdict.note()).collect(),
        completion_text: tokenizer.decode_behind(&prompt.ids, &completion),
        matched_prefix: matched_prefix(&completion, &target.ids),
        completion_ids: completion,
        exact: verdict.exact,
        min_margin: verdict.min_margin.is_finite().then_some(verdict.min_margin),
        hard_forced: scores.hard_forced,
        hard_free: scores.hard_free,
        hard_forced_accuracy: scores.hard_forced_accuracy,
        hard_free_accuracy: scores.hard_free_accuracy,
        overlaps: Overlaps::of(&prompt.ids, &target.ids, &prompt.whole, &target.text),
        prompt_perplexity: perplexities.prompt,
        target_perplexity: perplexities.target,
        target_perplexity_bos: perplexities.target_bos,
        prompt_text: prompt.whole.clone(),
        prompt_ids: prompt.ids.clone(),
        free_text,
        target_text: target.text,
        target_ids: target.ids,
        robust: None,
    })
}

/// A few lines for people.
fn readable(scored: &Scored) -> String {
    let shown = |x: Option<f64>| x.map_or("none".to_owned(), |x| format!("{x:.2}"));
    let Scored { overlaps, matched_prefix, target_ids, .. } = scored;
    let tokens = counted(target_ids.len() as u64, "token");
    let exact = match (scored.exact, scored.min_margin) {
        (true, Some(lead)) => format!("yes     (smallest lead {})", logits(lead)),
        (exact, _) => if exact { "yes" } else { "no" }.to_owned(),
    };
    let mut lines = vec![
        format!("model writes  {}", visible(&scored.completion_text)),
        format!("exact         {exact}"),
        format!("hard_forced   {:.3}", scored.hard_forced),
        format!("hard_free     {:.3}   ({matched_prefix} of {tokens} before the first wrong one)", scored.hard_free),
        format!(
            "overlap       {:.3}   (target tokens among the prompt's; {:.3} of the target's tokens occur)",
            overlaps.overlap, overlaps.target_hit_ratio
        ),
        format!(
            "perplexity    prompt {}, target {}, target after BoS {}",
            shown(scored.prompt_perplexity),
            shown(scored.target_perplexity),
            shown(scored.target_perplexity_bos)
        ),
    ];
    lines.extend(scored.robust.map(|robust| format!("robust        {robust}")));
    lines.extend(scored.notes.iter().map(|note| format!("note          {}", visible(note))));
    lines.join("\n")
}

/// Whether the prompt is exact in other circumstances too, and what could not be told.
#[inline]
fn robust(session: &mut Session, verb: &Score, prompt: &Given, scored: &Scored) -> Result<(Robust, Vec<String>)> {
    if !scored.exact {
        return Ok((Robust::default(), vec![NOT_EXACT.to_owned()]));
    }
    let (tokenizer, bos) = (session.model.tokenizer(), session.bos()?);
    let examples = |prompt: Vec<u32>| Typed { examples: vec![(prompt, scored.target_ids.clone())] };
    let with = |behind: &str| {
        let text = match &prompt.typed {
            Some(text) => session.whole(&verb.around, text, behind)?,
            None => prompt.whole.clone() + behind,
        };
        Ok(examples(bos.into_iter().chain(tokenizer.encode(&text)).collect()))
    };
    let answer = Answer { prompt: examples(prompt.ids.clone()), newline: with("\n")?, space: with(" ")? };
    let max_memory = session.settings().max_memory;
    Ok(session.model.robust(&answer, max_memory))
}
