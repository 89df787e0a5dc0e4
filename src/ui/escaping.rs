//! Texts that others wrote, as they may stand on a terminal.

use crate::terminal::acts;

/// Text for one line of a terminal: characters that would act, hide or reorder are shown instead (ESC as `␛`, a
/// newline as `⏎`, a right-to-left override as `\u{202e}`). Model texts are the least trustworthy there are.
pub fn visible(text: &str) -> String {
    escaped(text, |_| false)
}

/// As [`visible`], but newlines and tabs are kept.
pub fn visible_block(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            _ if keep(c) => shown.push(c),
            '\n' => shown.push('⏎'),
            // Unicode has a picture of every C0 character.
            '\0'..='\u{1f}' => shown.extend(char::from_u32(0x2400 + u32::from(c))),
            '\u{7f}' => shown.push('␡'),
            _ if acts(c) => shown.extend(c.escape_unicode()),
            _ => shown.push(c),
        }
    }
    shown
}

/// At most `length` characters, the last one `…` where something was left out.
pub fn abbreviated(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some(_) => text.chars().take(length.saturating_sub(1)).chain(['…']).collect(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown() {
        assert_eq!(visible("a\u{1b}]52;c;eA==\u{7}\r\n\tb\0"), "a␛]52;c;eA==␇␍⏎␉b␀");
        assert_eq!(visible("\u{9b}31m \u{7f}"), "\\u{9b}31m ␡");
        assert_eq!(
            visible("abc\u{202e}def\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}"),
            "abc\\u{202e}def\\u{2066}\\u{200b}\\u{feff}\\u{2028}\\u{e0041}"
        );
        assert_eq!(visible_block("a\n\tb\r\u{1b}"), "a\n\tb␍␛");
        assert_eq!(visible("Grüße, 世界 🙂 'x' \\ \""), "Grüße, 世界 🙂 'x' \\ \"");
    }

    proptest! {
        #[test]
        fn nothing_that_acts_gets_through(text in any::<String>()) {
            let shown = visible(&text);
            prop_assert!(!shown.chars().any(acts));
            prop_assert_eq!(visible(&shown), shown);
        }

        #[test]
        fn an_abbreviation_is_no_longer_than_asked(text in any::<String>(), length in 1..30usize) {
            let short = abbreviated(&text, length);
            prop_assert!(short.chars().count() <= length);
            prop_assert_eq!(short == text, text.chars().count() <= length || text.ends_with('…') && text.chars().count() == length);
        }
    }
}
