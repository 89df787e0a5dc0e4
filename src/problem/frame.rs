//! The fixed text around the free part, and which tokens it fixes.

use std::sync::Arc;

use crate::source::{ChatTemplate, Message, Tokenizer};

/// A chat in which the prompt is the user's turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// The model's own.
    pub template: Arc<ChatTemplate>,
    /// The system's turn, where there is one.
    pub system: Option<String>,
}

impl Chat {
    /// The whole text with `turn` as the user's turn, up to where the model is to reply.
    ///
    /// # Errors
    /// Those of the template.
    pub fn render(&self, turn: &str) -> crate::Result<String> {
        let system = self.system.as_deref().map(|content| Message { role: "system", content });
        let messages: Vec<Message> = system.into_iter().chain([Message { role: "user", content: turn }]).collect();
        self.template.render(&messages)
    }

    /// The moment whose date the template has written into chats, in seconds since 1970, where it has.
    pub fn moment(&self) -> Option<i64> {
        self.template.is_dated().then(|| self.template.moment())
    }

    /// What stands before and behind the user's turn.
    ///
    /// # Errors
    /// Those of the template, and one that shows the user's turn not once.
    fn around(&self) -> crate::Result<(String, String)> {
        let whole = self.render(MARK)?;
        let mut pieces = whole.split(MARK);
        match (pieces.next(), pieces.next(), pieces.next()) {
            (Some(before), Some(after), None) => Ok((before.to_owned(), after.to_owned())),
            _ => Err(self.template.error("it does not show the user's turn exactly once; give the text around it yourself")),
        }
    }
}

/// A turn that no template has words for.
const MARK: &str = "x\u{f8ff}x";

/// Text around the free part. Where a fixed text is cut inside a token, as `Answer: ` is before a word, the piece beyond the cut
/// belongs to the free tokens, which must then begin with it.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    before: String,
    after: String,
    /// The chat, and what of the user's turn is fixed: before and behind the free part.
    chat: Option<(Chat, String, String)>,
    /// Fixed tokens before the free part.
    pub head: Vec<u32>,
    /// Fixed tokens behind it.
    pub tail: Vec<u32>,
    /// Text that the free tokens begin with.
    opening: String,
    /// Text that they end with.
    closing: String,
}

/// Free parts that the ends of the fixed tokens are found with.
const PROBES: [&str; 5] = ["the", " the", "A", "king", "I"];

impl Frame {
    /// # Errors
    /// Those of the chat's template.
    pub fn new(before: &str, after: &str, chat: Option<&Chat>, tokenizer: &Tokenizer) -> crate::Result<Self> {
        let (start, end) = chat.map(Chat::around).transpose()?.unwrap_or_default();
        let chat = chat.map(|chat| (chat.clone(), before.to_owned(), after.to_owned()));
        let (before, after) = (start + before, after.to_owned() + &end);
        let probed: Vec<_> = PROBES.iter().map(|probe| fixed(&before, probe, &after, tokenizer)).collect();
        let (head, begun) = most_common(probed.iter().map(|(head, _)| head));
        let (tail, ended) = most_common(probed.iter().map(|(_, tail)| tail));
        let (opening, closing) = (before[begun..].to_owned(), after[..ended].to_owned());
        Ok(Self { before, after, chat, head, tail, opening, closing })
    }

    /// The text of free tokens where they stand.
    pub fn free_text(&self, free: &[u32], tokenizer: &Tokenizer) -> String {
        let text = tokenizer.decode_behind(&self.head, free);
        let text = text.strip_prefix(&self.opening).unwrap_or(&text);
        let text = text.strip_suffix(&self.closing).unwrap_or(text);
        // Behind a special token some tokenizers hide a space once more.
        match text.strip_prefix(' ') {
            Some(bare) if self.head.last().is_some_and(|&id| tokenizer.is_special(id)) => {
                let same = |text: &str| tokenizer.encode(&self.plain(text)) == [&self.head, free, &self.tail].concat();
                if !same(text) && same(bare) { bare.to_owned() } else { text.to_owned() }
            }
            _ => text.to_owned(),
        }
    }

    fn plain(&self, free: &str) -> String {
        format!("{}{free}{}", self.before, self.after)
    }

    /// All that is typed, or that the chat's template makes of what is typed; `behind` is typed last.
    ///
    /// # Errors
    /// Those of the template.
    pub fn whole(&self, free: &str, behind: &str) -> crate::Result<String> {
        match &self.chat {
            None => Ok(self.plain(free) + behind),
            Some((chat, before, after)) => chat.render(&format!("{before}{free}{after}{behind}")),
        }
    }
}

/// Tokens and a place in a text.
type Cut = (Vec<u32>, usize);

/// The tokens before and behind a free part that hold nothing of it, with where in `before` the former end and in `after` the latter begin.
fn fixed(before: &str, probe: &str, after: &str, tokenizer: &Tokenizer) -> (Cut, Cut) {
    let parts = tokenizer.parts(&format!("{before}{probe}{after}"));
    let (first, last) = (before.len(), before.len() + probe.len());
    let head = parts.iter().take_while(|(_, range)| range.end <= first).count();
    let tail = parts.iter().rev().take_while(|(_, range)| range.start >= last).count();
    let ids = |parts: &[(u32, std::ops::Range<usize>)]| parts.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    // A space that the tokenizer sets before a text has the place of the first character, so the first token may end where the next begins
    // a second time.
    let begun = parts.get(head).map_or(first, |(_, range)| range.start.min(first));
    let ended = parts.len() - tail;
    let ended_at = parts.get(ended).map_or(after.len(), |(_, range)| range.start - last);
    ((ids(&parts[..head]), begun), (ids(&parts[ended..]), ended_at))
}

/// The one that comes most often; of several, the one with the most tokens.
fn most_common<'a>(cuts: impl Iterator<Item = &'a Cut> + Clone) -> Cut {
    let count = |cut: &Cut| cuts.clone().filter(|other| *other == cut).count();
    cuts.clone().max_by_key(|cut| (count(cut), cut.0.len())).cloned().unwrap_or_default()
}
