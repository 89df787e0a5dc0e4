//! The ban on the target's words, checked on a prompt's text: whichever tokens spell them, in capitals, with look-alike letters, or with
//! spaces or hyphens between the letters.

use unicode_normalization::UnicodeNormalization;
use unicode_security::skeleton;

use super::Target;
use crate::metrics::longest_common_run;

/// Letters and digits in a row that a prompt may share with a target at most.
pub(crate) const LONGEST_RUN: usize = 6;

/// Words shorter than this are everywhere.
const SHORTEST_WORD: usize = 3;

/// Words shorter than this stand inside of many others by chance.
const SHORTEST_PART: usize = 5;

/// What may not be read in a prompt.
#[derive(Debug, Clone)]
pub struct Ban {
    /// Each target under each of [`FOLDS`].
    targets: Vec<Folded>,
}

/// A text folded so that what reads alike is alike.
#[derive(Debug, Clone)]
struct Folded {
    /// All letters and digits.
    letters: Vec<char>,
    /// Its words, what stands in them between letters left out, and neighbouring single letters as one word.
    words: Vec<String>,
}

/// Two ways to see look-alikes: by small letters and by capitals, because some letters resemble others in one of the two alone.
pub(super) const FOLDS: [fn(&str) -> String; 2] = [
    |text| skeleton(&plain(text).to_lowercase()).collect(),
    |text| skeleton(&plain(text).to_uppercase()).collect::<String>().to_lowercase(),
];

/// Compatibility forms (full-width, ligatures, accents apart) in their plain letters.
pub(super) fn plain(text: &str) -> String {
    text.nfkd().collect()
}

impl Ban {
    /// Bans the words of these targets.
    pub fn new(targets: &[&Target]) -> Self {
        Self { targets: FOLDS.iter().flat_map(|fold| targets.iter().map(|target| Folded::new(&fold(&target.text)))).collect() }
    }

    /// Whether `text` holds none of the targets' words of three letters or more, as a word or, from five letters on, inside of one, and no
    /// more than six of their letters and digits in a row.
    pub fn allows(&self, text: &str) -> bool {
        let each = self.targets.len() / FOLDS.len();
        FOLDS.iter().zip(self.targets.chunks(each.max(1))).all(|(fold, targets)| {
            let text = Folded::new(&fold(text));
            targets.iter().all(|target| !text.repeats(target))
        })
    }
}

impl Folded {
    fn new(text: &str) -> Self {
        let words = joined(text).into_iter().chain(apart(text).map(str::to_owned));
        Self {
            letters: text.chars().filter(|c| c.is_alphanumeric()).collect(),
            words: words.filter(|word| word.chars().count() >= SHORTEST_WORD).collect(),
        }
    }

    fn repeats(&self, target: &Self) -> bool {
        let same = |word: &str, banned: &str| word == banned || (banned.chars().count() >= SHORTEST_PART && word.contains(banned));
        let holds = |word: &String| target.words.iter().any(|banned| same(word, banned));
        self.words.iter().any(holds) || longest_common_run(&self.letters, &target.letters) > LONGEST_RUN
    }
}

/// The words of a text, where whatever is no letter or digit parts them: `it`, `s`.
pub(super) fn apart(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// The words of a text, where spaces alone part them, and neighbouring single letters are one word: `its`.
pub(super) fn joined(text: &str) -> Vec<String> {
    let (mut words, mut spelled) = (Vec::new(), String::new());
    for chunk in text.split_whitespace() {
        let word: String = chunk.chars().filter(|c| c.is_alphanumeric()).collect();
        match word.chars().count() {
            0 => {}
            1 => spelled.push_str(&word),
            _ => {
                words.extend((!spelled.is_empty()).then(|| std::mem::take(&mut spelled)));
                words.push(word);
            }
        }
    }
    words.extend((!spelled.is_empty()).then_some(spelled));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(text: &str) -> bool {
        let target = Target::new("I'll not be a king, and Wherefore.", Vec::new());
        Ban::new(&[&target]).allows(text)
    }

    #[test]
    fn words_of_the_target_do_not_pass_however_they_are_written() {
        for text in [
            "a king",
            "a KING",
            "a KiNg",
            "КING",
            "kіng",
            "ｋｉｎｇ",
            "k i n g",
            "k-i-n-g",
            "so K. I. N. G.",
            "k1ng",
            "KlNG",
            "kíng",
            "xwhereforex",
            "w herefo re",
            "WHERE fore",
            "whe-re-fore",
            "the r e f o r e w h e r e f o r e",
        ] {
            assert!(!allows(text), "{text}");
        }
    }

    #[test]
    fn other_words_pass() {
        for text in ["", " die cont Richard by sorrow", "in g k", "be a I", "where", "wheref", "kin g", "kings", "n o te", "ki ngdom"] {
            assert!(allows(text), "{text}");
        }
    }

    #[test]
    fn every_target_counts() {
        let target = |text: &str| Target::new(text, Vec::new());
        let (a, b) = (target("the queen"), target("a crown"));
        let ban = Ban::new(&[&a, &b]);
        assert!(!ban.allows("QUEEN") && !ban.allows("a CROWN") && ban.allows("a jewel"));
    }
}
