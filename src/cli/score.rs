//! `dlmi score`: what a given prompt is worth, on the plain path (CPU, f32) whatever the backend.

use serde_json::json;

use super::args::{Cli, Score, read_text};
use super::session::Session;
use crate::Result;
use crate::invert::record::{BOS_NOTE, Overlaps, TARGET_NOTE};
use crate::invert::robust::{Answer, NOT_EXACT, Robust, Typed};
use crate::metrics::matched_prefix;
use crate::problem::Target;
use crate::subject::check_context;
use crate::ui::{Policy, print_result, visible};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Score, policy: Policy) -> Result<()> {
    let mut session = Session::open(cli, policy)?;
    let (typed, target) = verb.texts()?;
    let tokenizer = session.model.tokenizer().clone();
    let bos = session.bos()?;
    let typed = typed.map(|text| read_text(Some(text), None)).transpose()?.flatten();
    let (prompt_text, dated) = match (&typed, &verb.prompt_ids) {
        (Some(text), _) => session.whole(&verb.around, text, "")?,
        (None, ids) => (tokenizer.decode(ids.as_deref().unwrap_or_default()), None),
    };
    let own_ids = verb.prompt_ids.clone().unwrap_or_else(|| tokenizer.encode(&prompt_text));
    let prompt_ids: Vec<u32> = bos.iter().chain(&own_ids).copied().collect();
    session.check_ids(&prompt_ids, "the prompt")?;

    let given = match (target.map(|text| read_text(Some(text), None)).transpose()?.flatten(), &verb.target_ids) {
        (Some(text), _) => Target::from_text(&text, &tokenizer)?,
        (None, ids) => Target::from_ids(ids.clone().unwrap_or_default(), &tokenizer),
    };
    session.check_ids(&given.ids, "the target")?;
    check_context(session.model.config(), prompt_ids.len(), given.ids.len())?;

    let judge = session.judge()?;
    let target = if verb.target_ids.is_some() { given } else { judge.target_behind(&prompt_ids, &given.text, &tokenizer)? };
    let example = [(&*prompt_ids, &*target.ids)];
    // Ids that no text gives are neither a prompt nor a target that can be exact.
    let typeable = tokenizer.encode(&prompt_text) == own_ids;
    let target_round_trips = verb.target_ids.is_none() || target.round_trips(&tokenizer);
    let verdict = judge.verdict(typeable && target_round_trips, &example)?;
    let scores = judge.scores(&example, &verdict)?;
    let perplexities = judge.perplexities(&prompt_ids, &target.ids, session.model.start_token())?;
    let completion = &verdict.confirmations[0].completion;
    let (completion_text, matched) = (tokenizer.decode_behind(&prompt_ids, completion), matched_prefix(completion, &target.ids));
    let overlaps = Overlaps::of(&prompt_ids, &target.ids, &prompt_text, &target.text);
    let untypeable = (!typeable).then(|| "no text gives these ids, so nobody can type this prompt".to_owned());
    let bos = bos.map(|_| BOS_NOTE.to_owned());
    let other_target = (!target_round_trips).then(|| TARGET_NOTE.to_owned());
    let mut notes: Vec<String> = [bos, dated, untypeable, other_target, overlaps.note(), verdict.note()].into_iter().flatten().collect();
    // One model at a time.
    drop(judge);
    let robust = verb.robust.then(|| robust(&mut session, verb, (&prompt_ids, typed.as_deref()), &target, verdict.exact)).transpose()?;
    let (robust, untold) = robust.unzip();
    notes.extend(untold.into_iter().flatten());
    if cli.global.json {
        let mut result = json!({
            "prompt_text": prompt_text, "prompt_ids": prompt_ids, "free_text": typed.as_ref().unwrap_or(&prompt_text),
            "target_text": target.text, "target_ids": target.ids,
            "completion_text": completion_text, "completion_ids": completion,
            "exact": verdict.exact, "min_margin": verdict.min_margin.is_finite().then_some(verdict.min_margin),
            "hard_forced": scores.hard_forced, "hard_free": scores.hard_free, "matched_prefix": matched,
            "hard_forced_accuracy": scores.hard_forced_accuracy, "hard_free_accuracy": scores.hard_free_accuracy,
            "overlap": overlaps.overlap, "target_hit_ratio": overlaps.target_hit_ratio,
            "overlap_text": overlaps.overlap_text, "prompt_perplexity": perplexities.prompt,
            "target_perplexity": perplexities.target, "target_perplexity_bos": perplexities.target_bos, "notes": notes,
        });
        result.as_object_mut().expect("an object").extend(robust.map(|robust| ("robust".to_owned(), json!(robust))));
        return print_result(&super::json(&result));
    }
    let shown = |x: Option<f64>| x.map_or("none".to_owned(), |x| format!("{x:.2}"));
    let mut lines = vec![
        format!("model writes  {}", visible(&completion_text)),
        format!("exact         {}", if verdict.exact { "yes" } else { "no" }),
        format!("hard_forced   {:.3}", scores.hard_forced),
        format!("hard_free     {:.3}   ({matched} of {} tokens before the first wrong one)", scores.hard_free, target.ids.len()),
        format!(
            "overlap       {:.3}   (target tokens among the prompt's; {:.3} of the target's tokens occur)",
            overlaps.overlap, overlaps.target_hit_ratio
        ),
        format!(
            "perplexity    prompt {}, target {}, target after BoS {}",
            shown(perplexities.prompt),
            shown(perplexities.target),
            shown(perplexities.target_bos)
        ),
    ];
    lines.extend(robust.map(|robust| format!("robust        {robust}")));
    lines.extend(notes.iter().map(|note| format!("note          {}", visible(note))));
    print_result(&lines.join("\n"))
}

/// Whether a prompt, given by its ids and, where it was typed, by its text, is exact in other circumstances too, and what could not be told.
#[inline]
fn robust(
    session: &mut Session,
    verb: &Score,
    prompt: (&[u32], Option<&str>),
    target: &Target,
    exact: bool,
) -> Result<(Robust, Vec<String>)> {
    if !exact {
        return Ok((Robust::default(), vec![NOT_EXACT.to_owned()]));
    }
    let (ids, typed) = prompt;
    let (tokenizer, bos) = (session.model.tokenizer(), session.bos()?);
    let examples = |prompt: Vec<u32>| Typed { examples: vec![(prompt, target.ids.clone())] };
    let with = |behind: &str| {
        let text = match typed {
            Some(text) => session.whole(&verb.around, text, behind)?.0,
            None => tokenizer.decode(&ids[bos.iter().len()..]) + behind,
        };
        Ok(examples(bos.into_iter().chain(tokenizer.encode(&text)).collect()))
    };
    let answer = Answer { prompt: examples(ids.to_vec()), newline: with("\n")?, space: with(" ")? };
    let max_memory = session.settings().max_memory;
    Ok(session.model.robust(&answer, max_memory))
}
