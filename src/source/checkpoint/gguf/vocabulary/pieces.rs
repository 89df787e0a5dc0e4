//! SentencePiece's BPE, as Llama 2, TinyLlama and Mistral have it: spaces as `▁`, one before the text too, bytes for what has no piece. Of two
//! neighbours those merge first whose piece has the highest score; the library wants these merges in a list, which is made here as
//! transformers makes it.

use super::{NORMAL, Vocabulary};
use crate::error::Result;
use serde_json::{Value, json};
use std::collections::HashSet;

/// For each token, how soon its parts become it.
const SCORES: &str = "tokenizer.ggml.scores";
/// What a space is.
const SPACE: &str = "▁";
/// Sum of the squares of all pieces' bytes, which is what cutting them everywhere takes. Real vocabularies have up to some tens of millions.
const MOST_WORK: usize = 1 << 30;

/// What stands in a `tokenizer.json` beside the vocabulary.
pub(super) fn parts(vocabulary: &Vocabulary) -> Result<Value> {
    let header = vocabulary.header;
    let prefix = header.scalar("tokenizer.ggml.add_space_prefix")?.and_then(Value::as_bool).unwrap_or(true);
    let unknown = header.scalar("tokenizer.ggml.unknown_token_id")?.and_then(Value::as_u64).unwrap_or(0);
    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![replace(SPACE, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "merges": merges(vocabulary)?, "unk_token": vocabulary.tokens.get(unknown as usize), "fuse_unk": true, "byte_fallback": true,
        },
    }))
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
}

/// Every pair of pieces that is a piece, best score first; of those that are the same piece, the one with the longest first part.
fn merges(vocabulary: &Vocabulary) -> Result<Vec<[String; 2]>> {
    let scores = scores(vocabulary)?;
    let pieces: HashSet<&str> = vocabulary.of_kinds(&[NORMAL]).map(|(_, piece)| piece).collect();
    if pieces.iter().map(|piece| piece.len() * piece.len()).sum::<usize>() > MOST_WORK {
        return Err(vocabulary.header.error("the pieces of its vocabulary are too long"));
    }
    let mut merges = Vec::new();
    for (id, piece) in vocabulary.of_kinds(&[NORMAL]) {
        let halves = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let known = halves.filter(|(left, right)| pieces.contains(left) && pieces.contains(right));
        merges.extend(known.map(|(left, right)| (id, left, right)));
    }
    // The first parts of a piece grow from cut to cut; the sort is stable.
    merges.reverse();
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]));
    Ok(merges.into_iter().map(|(_, left, right)| [left.to_owned(), right.to_owned()]).collect())
}

fn scores(vocabulary: &Vocabulary) -> Result<Vec<f32>> {
    let (header, count) = (vocabulary.header, vocabulary.tokens.len());
    let scores = header.floats(SCORES)?;
    if scores.len() != count {
        return Err(header.error(format!("has {count} tokens but {} scores", scores.len())));
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(id) => Err(header.error(format!("the score of token {id} is not finite"))),
        None => Ok(scores),
    }
}
