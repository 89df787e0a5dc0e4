//! What a reader of a result must also know, in sentences.

use super::judge::{Judged, Verdict};
use super::observer::RunState;
use super::run::Stopped;
use crate::metrics::{overlap, overlap_text, shared_letters};
use crate::problem::{LONGEST_RUN, Problem, Target};
use crate::source::Tokenizer;
use crate::terminal::{acts, counted, logits};

/// What a printed prompt does not show.
pub(crate) const BOS: &str = "a beginning-of-sequence token stands before the prompt, which the printed text does not show";

/// Of a chat template that asks what day it is.
pub(crate) const DATE: &str = "the model's chat template writes today's date into the prompt, so it is another one tomorrow";

/// Of a target that was given as ids.
pub(crate) const TARGET: &str = "the target's text is tokenised to other ids than those given, so no prompt is called exact";

/// From here on a share of what is repeated is worth a word.
const HIGH: f64 = 0.5;

/// Of a prompt, without what a chat template puts around it, that repeats the target, which is a known trick: a high share of its tokens or
/// of the target's letters, and more of these in a row than the ban lets pass. Shorter runs are there by chance.
pub(crate) fn repetition(prompt: (&[u32], &str), target: &Target) -> Option<String> {
    let ((ids, text), shared) = (prompt, shared_letters(prompt.1, &target.text));
    let [tokens, letters] = [overlap(ids, &target.ids), overlap_text(text, &target.text)];
    (shared > LONGEST_RUN && tokens.max(letters) >= HIGH).then(|| {
        format!(
            "the prompt repeats much of the target: {:.0} % of its tokens are the target's, {:.0} % of the target's letters stand in it in a row",
            100.0 * tokens,
            100.0 * letters
        )
    })
}

/// Of special tokens in what somebody wrote, `what`.
pub(crate) fn special(what: &str, ids: &[u32], tokenizer: &Tokenizer) -> Option<String> {
    let id = ids.iter().find(|id| tokenizer.is_special(**id))?;
    Some(format!("the {what} holds `{}`, which is one special token and not its letters", tokenizer.decode(&[*id])))
}

/// Of a found text that is not shown as it is typed.
fn signs(text: &str) -> Option<String> {
    let shown = text.chars().find(|&c| acts(c))?;
    let example = if shown == '\n' { ", as ⏎ for a newline" } else { "" };
    Some(format!("the found text holds characters that are shown as signs{example}; `--json` has them as they are typed"))
}

/// Of a run that went on from what it had found until its budget ended.
pub(super) fn no_shorter(run: &RunState, stopped: Stopped) -> Option<String> {
    let shortest = run.shortest.as_ref().filter(|_| stopped != Stopped::Exact)?;
    let fewer = counted(shortest.prompt.free.len() as u64 - 1, "free token");
    Some(format!("no prompt of {fewer} was found before the run ended"))
}

/// Of an inversion.
pub(super) fn notes(problem: &Problem, best: &Judged, verdict: &Verdict, scored: bool, tokenizer: &Tokenizer) -> Vec<String> {
    let (options, target) = (problem.prompt.options(), &problem.first().target);
    let mut notes: Vec<String> = options.bos.map(|_| BOS.to_owned()).into_iter().collect();
    let fixed = [("prefix", &options.prefix), ("suffix", &options.suffix)];
    let holding = fixed.iter().filter(|(_, text)| problem.prompt.repeats_target(text));
    notes.extend(holding.map(|(name, _)| format!("the {name} holds words of the target, which no rule forbids there")));
    notes.extend(fixed.into_iter().filter_map(|(name, text)| special(name, &tokenizer.encode(text), tokenizer)));
    notes.extend(problem.moment().map(|_| DATE.to_owned()));
    notes.extend((!problem.can_be_exact()).then(|| TARGET.to_owned()));
    notes.extend(special("target", target.text_ids(), tokenizer));
    notes.extend(problem.broken_rule(&best.free, &best.typed).map(|rule| format!("the prompt breaks a rule: {rule}")));
    let stop = target.ids.last().filter(|_| target.stops);
    notes.extend(stop.map(|&stop| format!("the last token of the target is `{}`, at which the model stops", tokenizer.decode(&[stop]))));
    notes.extend(signs(&problem.free_text(&best.free)));
    notes.extend(repetition((&best.free, &problem.free_text(&best.free)), target));
    notes.extend(verdict.note());
    let (asked, least) = (problem.min_margin, verdict.min_margin);
    let narrow = verdict.exact && !verdict.solves(problem);
    notes.extend(narrow.then(|| format!("the smallest lead is {}, and {asked} were asked for, so this is no answer yet", logits(least))));
    notes.extend((!scored).then(|| "the run was ended before the scores of its last step could be taken".to_owned()));
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    #[test]
    fn a_repetition_is_worth_a_word_from_seven_letters_on() {
        let note = |prompt: &str, target: &str| repetition((&[], prompt), &Target::new(target, Vec::new())).is_some();
        assert!(note("say: wherefore art", "Wherefore"));
        assert!(note("a KING is dead.", "king is dead"));
        // By chance: `im` of `<|im_start|>` is no part of what is typed, and two letters of three are nothing.
        for (prompt, target) in [("Who are you?", "I'm"), ("in the sand", "ing"), ("a king", "king"), ("sorrow", "sorrow")] {
            assert!(!note(prompt, target), "{prompt} {target}");
        }
        assert!(!note("wherefore", "wherefore are you so far away from here"), "less than half of it");
    }

    #[test]
    fn what_is_not_shown_as_it_is_typed_is_said() {
        assert_eq!((signs("a king ⏎"), signs("Grüße, 世界")), (None, None));
        assert!(signs("a\nking").unwrap().contains("⏎ for a newline"));
        assert!(signs("a\u{200b}king").is_some());
    }

    #[test]
    fn special_tokens_are_seen() {
        let tokenizer = tiny().tokenizer;
        let ids = tokenizer.encode("hello<|endoftext|>hello");
        assert!(special("prompt", &ids, &tokenizer).unwrap().starts_with("the prompt holds `<|endoftext|>`"));
        assert_eq!(special("prompt", &tokenizer.encode("hello"), &tokenizer), None);
    }
}
