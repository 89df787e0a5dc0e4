//! Text inside of text: what tokens read behind others, and which tokens a part of a text is.
//!
//! A tokenizer with a dummy prefix (SentencePiece, Metaspace) begins every text with a space that it hides again when it decodes, so it
//! encodes and decodes a fragment otherwise than the same characters inside a text.

use std::ops::Range;

use super::{Tokenizer, caught};

/// Texts that a fragment is put behind to see its tokens inside of a text; more than one, as each merges with some fragments.
const ANCHORS: [&str; 6] = ["a", ".", "\n", ")", "1", " a"];

/// Tokens before a fragment that decide how it reads: a character has at most four bytes, each of them a token.
const NEAR: usize = 8;

impl Tokenizer {
    /// The text that `ids` add behind `before`. Bytes of a character that begins in `before` belong to it.
    pub fn decode_behind(&self, before: &[u32], ids: &[u32]) -> String {
        let before = self.near(before);
        let alone = self.decode(before);
        let alone = alone.trim_end_matches('\u{fffd}');
        let whole = self.decode(&[before, ids].concat());
        // Where bytes of no character follow a character that is written in bytes, neither reads any more: what is added is those bytes.
        whole.strip_prefix(alone).map_or_else(|| self.decode(ids), str::to_owned)
    }

    /// The end of some ids, which does not begin inside of a character.
    fn near<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        let start = ids.len().saturating_sub(NEAR);
        let start = (0..=start).rev().find(|&start| start == 0 || self.is_text(ids[start])).unwrap_or(0);
        &ids[start..]
    }

    /// The ids that read `text` behind other tokens; none where it cannot be written there.
    pub fn encode_behind(&self, text: &str) -> Option<Vec<u32>> {
        let anchor = self.encode(ANCHORS[0]);
        let reads = |ids: &Vec<u32>| self.decode_behind(&anchor, ids) == text;
        let behind = |anchor: &&str| {
            let parts = self.parts(&format!("{anchor}{text}"));
            let first = parts.iter().position(|(_, range)| range.start >= anchor.len())?;
            (parts[first].1.start == anchor.len()).then(|| parts[first..].iter().map(|(id, _)| *id).collect())
        };
        Some(self.encode(text)).filter(reads).or_else(|| ANCHORS.iter().filter_map(behind).find(reads))
    }

    /// The text of `ids` inside of a text.
    pub fn decode_inside(&self, ids: &[u32]) -> String {
        self.decode_behind(&self.encode(ANCHORS[0]), ids)
    }

    /// Whether there is a text whose tokens hold this one, which reads `text`. A vocabulary may have a byte for its own character, or
    /// numbers although it cuts digits apart: nobody can type those.
    pub fn is_typeable(&self, id: u32, text: &str) -> bool {
        let ends = |anchor: &str| self.encode(&format!("{anchor}{text}")).last() == Some(&id);
        ends("") || ANCHORS.iter().any(|anchor| ends(anchor))
    }

    /// The tokens of a text, each with the bytes of the text that it stands for.
    pub fn parts(&self, text: &str) -> Vec<(u32, Range<usize>)> {
        let encoding = caught(|| self.inner.library.encode(text, false)).and_then(|encoding| encoding.map_err(|error| error.to_string()));
        encoding.map_or_else(
            |_| Vec::new(),
            |encoding| {
                let ranges = encoding.get_offsets().iter().map(|&(start, end)| start..end);
                encoding.get_ids().iter().copied().zip(ranges).collect()
            },
        )
    }
}
