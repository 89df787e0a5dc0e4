//! Text of others within SVG or HTML, where nothing in it may act.

use crate::ui::{abbreviated, visible};

/// Longest label, in characters.
pub(super) const LONGEST_LABEL: usize = 44;

/// Text of others within SVG or HTML: nothing in it acts.
pub fn escaped(text: &str) -> String {
    without_markup(&visible(text))
}

/// As [`escaped`], of as many characters at most as are shown.
pub fn short(text: &str, length: usize) -> String {
    without_markup(&abbreviated(&visible(text), length))
}

/// A label as figures have it.
pub fn label(text: &str) -> String {
    short(text, LONGEST_LABEL)
}

/// What would be markup as it is written where it is none.
pub(super) fn without_markup(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_inert() {
        let hostile = "<script>alert(1)</script>\" onload='x' & \u{202e}abc\u{0}\u{1b}[31m\n]]>";
        let safe = escaped(hostile);
        assert!(!safe.contains(['<', '>', '"', '\'', '\n', '\u{0}', '\u{1b}', '\u{202e}']), "{safe}");
        assert!(label(&"x".repeat(100_000)).chars().count() <= LONGEST_LABEL);
    }
}
