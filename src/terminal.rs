//! What must not reach a terminal as it is: characters that act there, hide or reorder others, and JSON without them.

use serde::Serialize;

/// Whether a terminal would act on this character, or show it in a way that hides what is there: controls, and zero-width,
/// direction-changing, line-breaking and blank characters, and selectors of another form of the one before.
pub fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{feff}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// `1 token`, `20 tokens`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A lead in logits, which is not shown as none where there is one.
pub(crate) fn logits(lead: impl Into<f64>) -> String {
    let lead = lead.into();
    if lead > 0.0 && lead < 5e-4 { format!("{lead:.0e} logits") } else { format!("{lead:.3} logits") }
}

/// A value as one line of JSON that a terminal may show: what [`acts`] is written as `\u202e`, which is the same JSON value.
///
/// # Panics
/// The value is no plain data: a map whose keys are no texts.
pub fn json(value: &impl Serialize) -> String {
    let plain = serde_json::to_string(value).expect("plain data");
    let mut safe = String::with_capacity(plain.len());
    // Such characters stand within strings only, and JSON writes those below a space as escapes by itself.
    for c in plain.chars() {
        match acts(c) {
            true => safe.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
            false => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn a_small_lead_is_not_shown_as_none() {
        let shown = [0.0, 4.7e-4, 5e-4, 1.25].map(|lead: f64| super::logits(lead));
        assert_eq!(shown, ["0.000 logits", "5e-4 logits", "0.001 logits", "1.250 logits"]);
    }
    use serde_json::{Value, json as value};

    use super::*;

    #[test]
    fn what_acts_is_escaped_and_the_value_is_the_same() {
        let text = "a\u{1b}[31m\u{7f}\u{9b}2J\u{202e}b\u{200b}\u{feff}\u{2028}\u{e0041} é 世界 🙂 \"\\\n";
        let line = json(&value!({ "a\u{85}b": text }));
        let expected = r#"{"a\u0085b":"a\u001b[31m\u007f\u009b2J\u202eb\u200b\ufeff\u2028\udb40\udc41 é 世界 🙂 \"\\\n"}"#;
        assert_eq!(line, expected);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value!({ "a\u{85}b": text }));
    }

    proptest! {
        #[test]
        fn nothing_that_acts_gets_through(text in any::<String>()) {
            let line = json(&text);
            prop_assert!(!line.chars().any(acts));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
