//! English words: SCOWL's common ones, of letters alone (`scripts/words.sh` made the list, SCOWL.txt is its licence).

use std::collections::HashSet;
use std::sync::LazyLock;

/// Names as they are written, all others in small letters.
static ENGLISH: LazyLock<HashSet<&str>> = LazyLock::new(|| include_str!("english.txt").lines().collect());

/// Whether a text is an English word: as the list has it, with a capital first, or in capitals.
pub(super) fn is_english(word: &str) -> bool {
    let Some(rest) = word.get(1..).filter(|_| word.is_ascii()) else { return false };
    let (lower, all_capitals) = (rest.to_ascii_lowercase(), word.bytes().all(|b| b.is_ascii_uppercase()));
    let named = word[..1].to_ascii_uppercase() + &lower;
    let common = named.to_ascii_lowercase();
    let is_listed = |form: &str| ENGLISH.contains(form);
    is_listed(word) || (word == named && is_listed(&common)) || (all_capitals && (is_listed(&common) || is_listed(&named)))
}

/// Whether a text is English words, a space between two of them; one may come first.
pub(super) fn are_english(text: &str) -> bool {
    text.strip_prefix(' ').unwrap_or(text).split(' ').all(is_english)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_list_in_any_proper_case() {
        for word in ["king", "King", "KING", "a", "A", "I", "O", "Monday", "MONDAY", "education"] {
            assert!(is_english(word), "{word}");
        }
        for word in ["", "kIng", "kinG", "monday", "i", "b", "xiv", "qx", "king's", "king ", "kíng", "é", "educatio"] {
            assert!(!is_english(word), "{word}");
        }
    }

    #[test]
    fn texts_are_words_and_spaces() {
        for text in ["king", " the KING is dead", "O my lord"] {
            assert!(are_english(text), "{text:?}");
        }
        for text in ["", " ", "  king", "the  king", "king ", "the king.", "theking", "the\nking", "the, king", "a kingx"] {
            assert!(!are_english(text), "{text:?}");
        }
    }

    /// What `scripts/words.sh` promises of the list.
    #[test]
    fn the_list_is_sorted_words_of_letters() {
        let words: Vec<&str> = include_str!("english.txt").lines().collect();
        assert!(words.len() > 40_000 && words.is_sorted());
        assert!(words.iter().all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic())));
    }
}
