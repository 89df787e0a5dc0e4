//! Target files: JSON Lines, the JSON of the paper's authors, or plain text with one target a line.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::quoted;
use crate::files::read_text;
use crate::problem::Target;
use crate::source::tokenizer::{Tokenizer, check_ids};
use crate::{Error, Result};

/// Largest file that is read, in bytes.
const LARGEST_FILE: u64 = 64 << 20;

/// A target of a file, with what the file says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// Its name, once in a file; `line7` where the file gives none.
    pub id: String,
    /// The ids as given, else those of the text.
    pub target: Target,
    /// The difficulty that it was drawn with.
    pub k: Option<u32>,
    /// The token after which it was measured.
    pub bos: Option<u32>,
    /// Tokens of a prompt that is known to lead to it.
    pub known_prompt_tokens: Option<usize>,
}

impl Labelled {
    /// Of which no more is known than its name.
    pub fn of(id: impl Into<String>, target: Target) -> Self {
        Self { id: id.into(), target, k: None, bos: None, known_prompt_tokens: None }
    }
}

/// One line of JSON Lines, or one sample of the authors; what else it says is ignored.
#[derive(Deserialize)]
struct Entry {
    id: Option<String>,
    text: Option<String>,
    ids: Option<Vec<u32>>,
    #[serde(alias = "k_target")]
    k: Option<u32>,
    bos: Option<u32>,
    known_prompt_tokens: Option<usize>,
}

/// The authors' JSON. Its ranks and probabilities are another model's and are not read.
#[derive(Deserialize)]
struct Document {
    metadata: Option<Metadata>,
    samples: Vec<Entry>,
}

#[derive(Deserialize)]
struct Metadata {
    bos_token: Option<String>,
}

/// Reads a target file for a model of `vocab_size` rows, see [`parse_targets`].
///
/// # Errors
/// No regular file, more than 64 MiB, not UTF-8, and those of [`parse_targets`].
pub fn read_targets(path: &Path, tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<Labelled>> {
    parse_targets(&read_text(path, LARGEST_FILE)?, path, tokenizer, vocab_size)
}

/// The targets of a file. One that begins with `{` is JSON, unless its name ends in `.txt`: `{"id", "text", "ids"?, "k"?, "bos"?}` on
/// each line, of which `ids` win over `text`, or the authors' object with `samples`, whose texts are tokenised. Any other file has one
/// target a line, unless its name ends in `.jsonl`, and empty lines mean nothing.
///
/// # Errors
/// The first line that is wrong, by its number, and a file without a target.
pub fn parse_targets(text: &str, path: &Path, tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<Labelled>> {
    parse(text, path, tokenizer, vocab_size, Role::Target)
}

/// The prompts of a file in the form of [`parse_targets`]: their texts are tokenised as what is typed first.
///
/// # Errors
/// As [`parse_targets`].
pub fn parse_prompts(text: &str, path: &Path, tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<Labelled>> {
    parse(text, path, tokenizer, vocab_size, Role::Prompt)
}

fn parse(text: &str, path: &Path, tokenizer: &Tokenizer, vocab_size: usize, role: Role) -> Result<Vec<Labelled>> {
    let mut reader = Reader { tokenizer, vocab_size, role, names: HashSet::new(), odd: Vec::new() };
    let name = quoted(&path.display().to_string());
    let is_text = path.extension().is_some_and(|extension| extension == "txt");
    if !is_text && text.trim_start().starts_with('[') && serde_json::from_str::<Vec<serde::de::IgnoredAny>>(text).is_ok() {
        return Err(Error::input(format!(
            "{name} is a JSON array; write JSON Lines, an object on each line, or name it `.txt` if its lines are the texts"
        )));
    }
    let plain = !text.trim_start().starts_with('{') || is_text;
    if plain && path.extension().is_some_and(|extension| extension == "jsonl") && !text.trim().is_empty() {
        return Err(Error::input(format!("{name} does not begin with JSON; name it `.txt` if its lines are the texts")));
    }
    let targets: Vec<Labelled> = if plain {
        reader.read_all(lines(text).map(|(n, line)| (n, Ok(Entry::plain(line)))), &format!("{name}, line"), "line", None)?
    } else if is_document(text) {
        let document: Document =
            serde_json::from_str(text).map_err(|error| Error::input(format!("{name} is no target file ({})", shown(&error))))?;
        let bos = document.metadata.and_then(|metadata| tokenizer.token_id(&metadata.bos_token?));
        reader.read_all((1..).zip(document.samples.into_iter().map(Ok)), &format!("{name}, sample"), "sample", bos)?
    } else {
        let entries = lines(text).filter(|(_, line)| !line.trim().is_empty()).map(|(n, line)| (n, serde_json::from_str(line)));
        reader.read_all(entries, &format!("{name}, line"), "line", None)?
    };
    if targets.is_empty() {
        return Err(Error::input(format!("{name} holds no target; write one on each line")));
    }
    if let Some(first) = reader.odd.first() {
        let count = reader.odd.len();
        tracing::warn!("{name}: the ids of {count} of its targets, {first} first, do not spell their texts here; the ids are taken");
    }
    Ok(targets)
}

/// Number and content of the lines that are not empty.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.is_empty())
}

/// Whether JSON is one object over the whole file: its first line is cut off inside it, or already holds the samples.
fn is_document(text: &str) -> bool {
    let first = text.trim_start().lines().next().unwrap_or_default();
    match serde_json::from_str::<Value>(first) {
        Ok(value) => value.get("samples").is_some(),
        Err(error) => error.is_eof(),
    }
}

/// What the JSON reader says; it repeats what it was given, at any length.
fn shown(error: &serde_json::Error) -> String {
    quoted(&error.to_string())
}

impl Entry {
    fn plain(text: &str) -> Self {
        Self { id: None, text: Some(text.to_owned()), ids: None, k: None, bos: None, known_prompt_tokens: None }
    }
}

/// What a file's entries are: they read otherwise behind a prompt than where a text begins.
#[derive(Clone, Copy)]
enum Role {
    Target,
    Prompt,
}

impl Role {
    fn of_text(self, text: &str, tokenizer: &Tokenizer) -> Result<Target> {
        match self {
            Self::Target => Target::from_text(text, tokenizer),
            Self::Prompt => Target::from_typed(text, tokenizer),
        }
    }

    fn of_ids(self, ids: Vec<u32>, tokenizer: &Tokenizer) -> Target {
        match self {
            Self::Target => Target::from_ids(ids, tokenizer),
            Self::Prompt => Target::new(tokenizer.decode(&ids), ids),
        }
    }
}

/// What a file's entries are checked against.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    vocab_size: usize,
    role: Role,
    names: HashSet<String>,
    /// Targets whose ids do not spell their text.
    odd: Vec<String>,
}

impl Reader<'_> {
    fn read_all(
        &mut self,
        entries: impl Iterator<Item = (usize, serde_json::Result<Entry>)>,
        place: &str,
        kind: &str,
        bos: Option<u32>,
    ) -> Result<Vec<Labelled>> {
        entries
            .map(|(number, entry)| {
                let entry = entry.map_err(|error| Error::input(format!("it is not the JSON of a target ({})", shown(&error))));
                let target = entry.and_then(|entry| self.read(entry, format!("{kind}{number}"), bos));
                target.map_err(|error| Error::input(format!("{place} {number}: {error}")))
            })
            .collect()
    }

    fn read(&mut self, entry: Entry, number: String, bos: Option<u32>) -> Result<Labelled> {
        let Entry { id, text, ids, k, bos: own_bos, known_prompt_tokens } = entry;
        let (id, bos) = (id.unwrap_or(number), own_bos.or(bos));
        let target = match (ids, text) {
            (Some(ids), text) => self.spelt(ids, text, &id)?,
            (None, Some(text)) => self.role.of_text(&text, self.tokenizer)?,
            (None, None) => return Err(Error::input("it has neither `text` nor `ids`; a target needs one of them")),
        };
        check_ids(bos.as_slice(), self.vocab_size)?;
        check_ids(&target.ids, self.vocab_size)?;
        if !self.names.insert(id.clone()) {
            return Err(Error::input(format!("a second target is called {}; give each its own `id`", quoted(&id))));
        }
        Ok(Labelled { id, target, k, bos, known_prompt_tokens })
    }

    fn spelt(&mut self, ids: Vec<u32>, text: Option<String>, name: &str) -> Result<Target> {
        if ids.is_empty() {
            return Err(Error::input("`ids` is empty; give at least one token"));
        }
        check_ids(&ids, self.vocab_size)?;
        let target = self.role.of_ids(ids, self.tokenizer);
        if text.is_some_and(|text| text != target.text) {
            self.odd.push(quoted(name));
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    fn parse_as(name: &str, text: &str) -> Result<Vec<Labelled>> {
        let checkpoint = tiny();
        parse_targets(text, Path::new(name), &checkpoint.tokenizer, checkpoint.config.vocab_size)
    }

    fn parse(text: &str) -> Vec<Labelled> {
        parse_as("targets", text).unwrap()
    }

    #[track_caller]
    fn refused(text: &str, parts: &[&str]) {
        let error = parse_as("targets", text).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 2);
        assert!(message.starts_with("`targets`") && message.len() < 400, "{message}");
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }

    #[test]
    fn plain_text_is_a_target_a_line() {
        let targets = parse("in the sand\n\n and {so} \r\n  \nlast");
        let found: Vec<_> = targets.iter().map(|labelled| (labelled.id.as_str(), labelled.target.text.as_str())).collect();
        assert_eq!(found, [("line1", "in the sand"), ("line3", " and {so} "), ("line4", "  "), ("line5", "last")]);
        let tokenizer = tiny().tokenizer;
        assert_eq!(targets[0].target.ids, tokenizer.encode("in the sand"));
        assert_eq!((targets[0].k, targets[0].bos, targets[0].known_prompt_tokens), (None, None, None));
        // The name decides where the content could be either.
        assert_eq!(parse_as("code.txt", "{\n}\n").unwrap()[0].target.text, "{");
    }

    #[test]
    fn lines_of_json_give_ids_or_text() {
        let (the, other) = (tiny().tokenizer.encode(" the"), r#"{"text": " the"}"#);
        let text =
            format!("{}\n\n{other}\r\n", r#"{"id": "a", "text": "no matter", "ids": [1, 287], "k": 6, "bos": 3, "ranks": [], "x": {}}"#);
        let targets = parse(&text);
        assert_eq!((targets.len(), targets[0].id.as_str(), targets[1].id.as_str()), (2, "a", "line3"));
        assert_eq!((&targets[0].target.ids[..], targets[0].k, targets[0].bos), (&[1, 287][..], Some(6), Some(3)));
        assert_eq!(targets[0].target.text, tiny().tokenizer.decode(&[1, 287]), "ids win");
        assert_eq!((targets[1].target.ids.clone(), targets[1].k), (the, None));
        let known = &parse(r#"{"ids": [5], "known_prompt_tokens": 7}"#)[0];
        assert_eq!(known.known_prompt_tokens, Some(7));
    }

    #[test]
    fn the_authors_file_is_tokenised_again() {
        let path = Path::new("configs/study/targets/smollm2-135m.json");
        let checkpoint = tiny();
        let targets = read_targets(path, &checkpoint.tokenizer, checkpoint.config.vocab_size).unwrap();
        assert_eq!(targets.len(), 25);
        let first = &targets[0];
        assert_eq!((first.id.as_str(), first.k, first.bos), ("k1_sample0", Some(1), Some(0)));
        assert_eq!(first.target.text, "The 25th anniversary: A new generation of\u{a0}artists\n\nThe 25");
        assert_eq!(first.target.ids, checkpoint.tokenizer.encode(&first.target.text));
        assert_eq!(targets[24].k, Some(21));
        // Indented or not.
        let text = std::fs::read_to_string(path).unwrap();
        let dense = serde_json::from_str::<Value>(&text).unwrap().to_string();
        assert_eq!(parse(&dense), targets);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        refused("", &["no target"]);
        refused("\n\r\n\n", &["no target"]);
        refused("{\"text\": \"a\"}\n{\"text\": }\n", &["line 2", "JSON"]);
        refused("{\"text\": \"a\"}\nplain\n", &["line 2", "JSON"]);
        refused("{\"text\": \"a\"}\n\n[1]\n", &["line 3", "JSON"]);
        refused("{\"text\": a}\n", &["line 1", "JSON"]);
        refused("{\"text\": \"a\"\n", &["no target file"]);
        refused("{\n\"samples\": 3}\n", &["no target file", "line 2"]);
        refused("{\"samples\": []}", &["no target"]);
        refused("[\n{\"text\": \"a\"},\n{\"text\": \"b\"}\n]\n", &["JSON array", "JSON Lines"]);
        assert_eq!(parse("[image]\n[sic]").len(), 2, "texts");
        let mixed = "# mine\n{\"text\": \"a\"}\n";
        assert!(
            parse_as("list.jsonl", mixed).unwrap_err().to_string().starts_with("`list.jsonl` does not begin with JSON; name it `.txt`")
        );
        assert_eq!(parse(mixed).len(), 2);
        refused("{\"samples\": [{\"text\": \"a\"}, {\"text\": \"\"}]}", &["sample 2", "empty"]);
        refused("{\"text\": \"\"}", &["line 1", "empty"]);
        refused("{\"ids\": []}", &["line 1", "empty"]);
        refused("{\"id\": \"a\"}", &["line 1", "`text`", "`ids`"]);
        refused("{\"ids\": [3, 288]}", &["line 1", "288", "0 to 287"]);
        refused("{\"ids\": [-1]}", &["line 1", "-1"]);
        refused("{\"ids\": [3], \"bos\": 288}", &["line 1", "288", "0 to 287"]);
        refused("{\"id\": \"a\", \"ids\": [3]}\n{\"id\": \"a\", \"ids\": [4]}", &["line 2", "second", "`a`"]);
        refused(&format!("{{\"ids\": \"{}\"}}", "x".repeat(100_000)), &["line 1"]);
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, checkpoint) = (folder.path().join("targets"), tiny());
        let read = || read_targets(&path, &checkpoint.tokenizer, checkpoint.config.vocab_size).unwrap_err().to_string();
        assert!(read().contains("targets`"));
        std::fs::write(&path, b"in th\xe9 sand").unwrap();
        assert!(read().contains("is not UTF-8 text: byte 5 "));
    }
}
