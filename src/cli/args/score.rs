//! The flags of `score`.

use std::ffi::OsString;

use clap::Args;

use super::around::Around;
use super::setting::Flags;
use super::text::token_id;
use crate::{Error, Result};

/// `score`.
#[derive(Args, Debug)]
#[command(
    override_usage = "dlmi score [OPTIONS] <PROMPT> <TARGET>",
    after_help = "\
Examples:
  dlmi score \"O Romeo, Romeo!\" \" wherefore art thou Romeo?\"
  dlmi --model HuggingFaceTB/SmolLM2-135M-Instruct score --chat \"Who are you?\" \"I am SmolLM\"
  dlmi score --prompt-ids 12,7,99 \" wherefore art thou Romeo?\"
  dlmi score --prompt-ids 12,7,99 --target-ids 4,5,6 --json"
)]
pub struct Score {
    /// Prompt and target as texts (one of them may be `-`: standard input), each unless it is given as ids
    #[arg(value_name = "TEXT", num_args = 0..=2)]
    texts: Vec<OsString>,
    /// The prompt's token ids, in place of PROMPT
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id, conflicts_with_all = ["template", "chat", "system"])]
    pub prompt_ids: Option<Vec<u32>>,
    /// The target's token ids, in place of TARGET
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id)]
    pub target_ids: Option<Vec<u32>>,
    /// Say whether an exact prompt is exact in f16, bf16, with 8-bit weights, on the other CPU backend, and with a newline or a space typed behind it too
    #[arg(long)]
    pub robust: bool,
    /// What stands around the prompt.
    #[command(flatten)]
    pub around: Around,
}

impl Score {
    pub(super) fn flags(&self, flags: &mut Flags) -> Result<()> {
        self.around.flags(flags)
    }

    /// The texts that stand for PROMPT and TARGET: what is given as ids has none.
    ///
    /// # Errors
    /// Too few or too many texts, or standard input for both.
    pub fn texts(&self) -> Result<(Option<OsString>, Option<OsString>)> {
        let mut texts = self.texts.iter().cloned();
        let mut text = |name: &str, ids: &Option<Vec<u32>>| match ids {
            Some(_) => Ok(None),
            None => texts.next().map(Some).ok_or_else(|| {
                Error::input(format!(
                    "{name} is missing: `dlmi score` takes PROMPT and TARGET, each as text or as --prompt-ids and --target-ids"
                ))
            }),
        };
        let pair = (text("PROMPT", &self.prompt_ids)?, text("TARGET", &self.target_ids)?);
        if let Some(extra) = texts.next() {
            let extra = extra.to_string_lossy();
            return Err(Error::input(format!("`{extra}` is one text too many: PROMPT or TARGET is already given as ids")));
        }
        if matches!(&pair, (Some(prompt), Some(target)) if prompt == "-" && target == "-") {
            return Err(Error::input("PROMPT and TARGET are both `-`, but standard input can be read only once"));
        }
        Ok(pair)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verb;
    use super::super::tests::parsed;
    use super::*;

    #[test]
    fn score_takes_each_side_as_text_or_ids() {
        let texts = |line| match parsed(line).verb {
            Verb::Score(verb) => verb.texts().map_err(|error| error.to_string()),
            _ => panic!(),
        };
        let some = |text: &str| Some(OsString::from(text));
        assert_eq!(texts("score a b"), Ok((some("a"), some("b"))));
        assert_eq!(texts("score --prompt-ids 1,2 b"), Ok((None, some("b"))));
        assert_eq!(texts("score a --target-ids 1"), Ok((some("a"), None)));
        assert_eq!(texts("score --prompt-ids 1 --target-ids 1"), Ok((None, None)));
        assert!(texts("score a").unwrap_err().starts_with("TARGET is missing"));
        assert!(texts("score").unwrap_err().starts_with("PROMPT is missing"));
        assert!(texts("score a b --prompt-ids 1").unwrap_err().starts_with("`b` is one text too many"));
        assert!(texts("score - -").unwrap_err().contains("only once"));
    }
}
