//! `dlmi score`: what a given prompt is worth, on the plain path (CPU, f32) whatever the backend.

use std::ffi::OsString;

use serde_json::json;

use super::args::{Cli, Score, read_text};
use super::session::Session;
use crate::Result;
use crate::invert::record::{BOS_NOTE, Overlaps, TARGET_NOTE};
use crate::metrics::matched_prefix;
use crate::subject::check_context;
use crate::ui::{Policy, print_result, visible};

pub(super) fn run(cli: &Cli, verb: &Score, policy: Policy) -> Result<()> {
    let mut session = Session::open(cli, policy)?;
    let (prompt, target) = verb.texts()?;
    let tokenizer = session.model.tokenizer().clone();
    let ids = |text: Option<OsString>, ids: &Option<Vec<u32>>, what: &str| -> Result<Vec<u32>> {
        if let Some(ids) = ids {
            return Ok(ids.clone());
        }
        let text = read_text(text, None)?.unwrap_or_default();
        tokenizer.check_length(&text, what)?;
        Ok(tokenizer.encode(&text))
    };
    let mut prompt_ids: Vec<u32> = session.bos()?.into_iter().collect();
    prompt_ids.extend(ids(prompt, &verb.prompt_ids, "the prompt")?);
    let target_ids = ids(target, &verb.target_ids, "the target")?;
    session.check_ids(&prompt_ids, "the prompt")?;
    session.check_ids(&target_ids, "the target")?;
    check_context(session.model.config(), prompt_ids.len(), target_ids.len())?;

    let (judge, example) = (session.judge()?, [(&*prompt_ids, &*target_ids)]);
    // Ids that no text gives are neither a prompt nor a target that can be exact.
    let given_by_text = |ids: &[u32]| tokenizer.encode(&tokenizer.decode(ids)) == ids;
    let (typeable, target_round_trips) = (given_by_text(&prompt_ids[session.bos()?.iter().len()..]), given_by_text(&target_ids));
    let verdict = judge.verdict(typeable && target_round_trips, &example)?;
    let scores = judge.scores(&example, &verdict)?;
    let perplexities = judge.perplexities(&prompt_ids, &target_ids, session.model.start_token())?;
    let (prompt_text, target_text) = (tokenizer.decode(&prompt_ids), tokenizer.decode(&target_ids));
    let completion = &verdict.confirmations[0].completion;
    let (completion_text, matched) = (tokenizer.decode(completion), matched_prefix(completion, &target_ids));
    let overlaps = Overlaps::of(&prompt_ids, &target_ids, &prompt_text, &target_text);
    let untypeable = (!typeable).then(|| "no text gives these ids, so nobody can type this prompt".to_owned());
    let bos = session.settings().bos.then(|| BOS_NOTE.to_owned());
    let other_target = (!target_round_trips).then(|| TARGET_NOTE.to_owned());
    let notes: Vec<String> = [bos, untypeable, other_target, overlaps.note(), verdict.note()].into_iter().flatten().collect();
    if cli.global.json {
        let result = json!({
            "prompt_text": prompt_text, "prompt_ids": prompt_ids, "target_text": target_text, "target_ids": target_ids,
            "completion_text": completion_text, "completion_ids": completion,
            "exact": verdict.exact, "min_margin": verdict.min_margin.is_finite().then_some(verdict.min_margin),
            "hard_forced": scores.hard_forced, "hard_free": scores.hard_free, "matched_prefix": matched,
            "hard_forced_accuracy": scores.hard_forced_accuracy, "hard_free_accuracy": scores.hard_free_accuracy,
            "overlap": overlaps.overlap, "target_hit_ratio": overlaps.target_hit_ratio,
            "overlap_text": overlaps.overlap_text, "prompt_perplexity": perplexities.prompt,
            "target_perplexity": perplexities.target, "target_perplexity_bos": perplexities.target_bos, "notes": notes,
        });
        return print_result(&super::json(&result));
    }
    let shown = |x: Option<f64>| x.map_or("none".to_owned(), |x| format!("{x:.2}"));
    let mut lines = vec![
        format!("model writes  {}", visible(&completion_text)),
        format!("exact         {}", if verdict.exact { "yes" } else { "no" }),
        format!("hard_forced   {:.3}", scores.hard_forced),
        format!("hard_free     {:.3}   ({matched} of {} tokens before the first wrong one)", scores.hard_free, target_ids.len()),
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
    lines.extend(notes.iter().map(|note| format!("note          {}", visible(note))));
    print_result(&lines.join("\n"))
}
