//! `dlmi score`: what a given prompt is worth, on the plain path (CPU, f32) whatever the backend.

use serde_json::json;

use super::args::{Cli, Score, read_text};
use super::session::Session;
use crate::Result;
use crate::invert::judge::Judge;
use crate::metrics::{overlap, overlap_text, target_hit_ratio};
use crate::subject::check_context;
use crate::ui::{Policy, print_result, visible};

pub(super) fn run(cli: &Cli, verb: &Score, policy: Policy) -> Result<()> {
    let mut session = Session::open(cli, policy)?;
    let (prompt, target) = verb.texts()?;
    let tokenizer = session.checkpoint.tokenizer.clone();
    let ids = |text: Option<std::ffi::OsString>, ids: &Option<Vec<u32>>| -> Result<Vec<u32>> {
        match ids {
            Some(ids) => Ok(ids.clone()),
            None => Ok(tokenizer.encode(&read_text(text, None)?.unwrap_or_default())),
        }
    };
    let mut prompt_ids: Vec<u32> = session.bos()?.into_iter().collect();
    prompt_ids.extend(ids(prompt, &verb.prompt_ids)?);
    let target_ids = ids(target, &verb.target_ids)?;
    session.check_ids(&prompt_ids, "the prompt")?;
    session.check_ids(&target_ids, "the target")?;
    check_context(&session.checkpoint.config, prompt_ids.len(), target_ids.len())?;

    let judge = Judge::new(session.load_plain()?);
    let case = [(&*prompt_ids, &*target_ids)];
    let verdict = judge.verdict(true, &case);
    let (scores, matched) = (judge.scores(&case, &verdict), verdict.matched_prefix(&[&target_ids]));
    let completion = &verdict.confirmations[0].completion;
    let perplexities = judge.perplexities(&prompt_ids, &target_ids, session.start_token());
    let (prompt_text, target_text) = (tokenizer.decode(&prompt_ids), tokenizer.decode(&target_ids));
    let completion_text = tokenizer.decode(completion);
    let margin = verdict.min_margin;
    if cli.global.json {
        let result = json!({
            "prompt_text": prompt_text, "prompt_ids": prompt_ids, "target_text": target_text, "target_ids": target_ids,
            "completion_text": completion_text, "completion_ids": completion,
            "exact": verdict.exact, "min_margin": margin.is_finite().then_some(margin),
            "hard_forced": scores.hard_forced, "hard_free": scores.hard_free, "matched_prefix": matched,
            "overlap": overlap(&prompt_ids, &target_ids), "target_hit_ratio": target_hit_ratio(&prompt_ids, &target_ids),
            "overlap_text": overlap_text(&prompt_text, &target_text), "prompt_perplexity": perplexities.prompt,
            "target_perplexity": perplexities.target, "target_perplexity_bos": perplexities.target_bos,
        });
        return print_result(&result.to_string());
    }
    let shown = |x: Option<f64>| x.map_or("none".to_owned(), |x| format!("{x:.2}"));
    print_result(&format!(
        "model writes  {}\nexact         {}\nhard_forced   {:.3}\nhard_free     {:.3}   ({} of {} tokens before the first wrong one)\n\
         overlap       {:.3}   (target tokens among the prompt's; {:.3} of the target's tokens occur)\n\
         perplexity    prompt {}, target {}, target after BoS {}",
        visible(&completion_text),
        if verdict.exact { "yes" } else { "no" },
        scores.hard_forced,
        scores.hard_free,
        matched,
        target_ids.len(),
        overlap(&prompt_ids, &target_ids),
        target_hit_ratio(&prompt_ids, &target_ids),
        shown(perplexities.prompt),
        shown(perplexities.target),
        shown(perplexities.target_bos),
    ))
}
