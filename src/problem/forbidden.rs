//! Words and phrases that the found text may not hold, however they are written: folded as the target's words are for the ban.

use std::collections::HashSet;

use super::ban::{FOLDS, apart, joined, plain};

/// A list of words and phrases.
#[derive(Debug, Clone)]
pub(super) struct Forbidden {
    /// The entries with a letter or digit under each of [`FOLDS`].
    lists: Vec<List>,
    /// The others in plain letters. They are not folded, because the look-alike of `|` is a letter.
    signs: Vec<String>,
}

#[derive(Debug, Clone)]
struct List {
    /// The words of each entry, in both readings.
    phrases: HashSet<Vec<String>>,
    /// Words of the longest.
    longest: usize,
}

impl Forbidden {
    /// Of a list with one entry a line.
    pub fn new(list: &str) -> Self {
        let entries = list.lines().map(str::trim).filter(|entry| !entry.is_empty());
        let (words, signs): (Vec<&str>, Vec<&str>) = entries.partition(|entry| plain(entry).contains(char::is_alphanumeric));
        Self {
            lists: FOLDS.iter().map(|fold| List::new(words.iter().map(|entry| fold(entry)))).collect(),
            signs: signs.into_iter().map(plain).collect(),
        }
    }

    /// Whether a text holds none of them as whole words. Spaces and punctuation between letters count for nothing, but where an entry
    /// consists of nothing else.
    pub fn allows(&self, text: &str) -> bool {
        let letters = plain(text);
        self.signs.iter().all(|sign| !letters.contains(sign)) && FOLDS.iter().zip(&self.lists).all(|(fold, list)| list.allows(&fold(text)))
    }
}

impl List {
    fn new(entries: impl Iterator<Item = String>) -> Self {
        let phrases: HashSet<Vec<String>> = entries.flat_map(|entry| readings(&entry)).collect();
        Self { longest: phrases.iter().map(Vec::len).max().unwrap_or(0), phrases }
    }

    fn allows(&self, text: &str) -> bool {
        !readings(text).iter().any(|words| self.occurs(words))
    }

    fn occurs(&self, words: &[String]) -> bool {
        let from = |start: usize| (start + 1..=words.len().min(start + self.longest)).any(|end| self.phrases.contains(&words[start..end]));
        (0..words.len()).any(from)
    }
}

/// The words of a folded text, read in two ways: `e`, `mail` and `email`.
fn readings(text: &str) -> [Vec<String>; 2] {
    [apart(text).flat_map(words).collect(), joined(text)]
}

/// Where a script has no capitals it may have no spaces either: every letter is a word there, so that words are found inside of others.
fn words(run: &str) -> impl Iterator<Item = String> {
    let caseless = |c: char| c.is_alphabetic() && !c.is_lowercase() && !c.is_uppercase();
    run.split_inclusive(caseless)
        .flat_map(move |part| {
            let last = part.chars().next_back().filter(|&c| caseless(c)).map_or(0, char::len_utf8);
            [&part[..part.len() - last], &part[part.len() - last..]]
        })
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_words_do_not_pass_however_they_are_written() {
        let list = Forbidden::new("cat\n\n  New York \ndon't\ne-mail\n;\n\u{732b}\n");
        let texts =
            ["a cat", "CAT", "c a t", "c-a-t", "cat's", "the\ncat.", "ｃａｔ", "сat", "new york", "New\n York", "new-york", "new, York"];
        let others = ["Don't", "dont", "don t", "email", "E-Mail", "an e mail", "so;so", "\u{9ed1}\u{732b}\u{767d}"];
        for text in texts.iter().chain(&others) {
            assert!(!list.allows(text), "{text}");
        }
        for text in ["", "education", "cats", "ca t", "new yorks", "York new", "new", "don", "mail", "so:so", "\u{9ed1}\u{767d}"] {
            assert!(list.allows(text), "{text}");
        }
    }

    /// `|` looks like the letters l and I, and `%` like a circle, a stroke and another.
    #[test]
    fn signs_are_looked_for_as_they_stand() {
        let list = Forbidden::new("|\n%\n--\n");
        for text in ["|", "a||b", " |||", "5 %", "five\u{ff05}", "a -- b"] {
            assert!(!list.allows(text), "{text}");
        }
        for text in ["I", "l", "1", "Ill", "0/0", "a - b", "\u{b0}/"] {
            assert!(list.allows(text), "{text}");
        }
    }

    #[test]
    fn a_list_without_entries_forbids_nothing() {
        for list in ["", "\n \n\t\n"] {
            assert!(Forbidden::new(list).allows("a cat; 猫"), "{list:?}");
        }
    }

    proptest! {
        /// Words of plain letters: the list finds exactly what looking for them one after another finds.
        #[test]
        fn a_phrase_is_found_where_its_words_stand_in_a_row(
            phrase in proptest::collection::vec("[abe]{2,3}", 1..4),
            text in proptest::collection::vec("[abe]{2,3}", 0..12),
            capitals in any::<bool>(),
        ) {
            let list = Forbidden::new(&phrase.join(" "));
            let written = text.join(" ");
            let stands = text.windows(phrase.len()).any(|words| words == phrase);
            prop_assert_eq!(list.allows(&if capitals { written.to_uppercase() } else { written }), !stands);
        }
    }
}
