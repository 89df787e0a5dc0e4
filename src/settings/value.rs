//! Values as they were written, and the checks that turn them into typed ones.

use std::ops::RangeInclusive;

use clap::ValueEnum;
use toml::de::DeValue;

/// What a layer wrote for a key. TOML says what kind of value it is; everywhere else all values are text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Raw {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Untyped,
    Text,
    Whole,
    Real,
    Bool,
    Other,
}

/// Outcome of a check: the error is the end of a sentence that begins with the key, "must be …, not …".
pub(super) type Checked<T> = std::result::Result<T, String>;

impl Raw {
    /// A value from the environment, from `--set` or from a flag.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), kind: Kind::Untyped }
    }

    /// A value from a TOML document.
    pub(super) fn toml(value: &DeValue<'_>) -> Self {
        let (text, kind) = match value {
            DeValue::String(text) => (text.to_string(), Kind::Text),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => (number.to_string(), Kind::Whole),
                Err(_) => (number.to_string(), Kind::Other),
            },
            DeValue::Float(number) => (number.as_str().to_string(), Kind::Real),
            DeValue::Boolean(value) => (value.to_string(), Kind::Bool),
            other => (format!("a TOML {}", other.type_str()), Kind::Other),
        };
        Self { text, kind }
    }

    fn is(&self, kinds: &[Kind]) -> bool {
        self.kind == Kind::Untyped || kinds.contains(&self.kind)
    }

    fn refuse<T>(&self, wanted: &str) -> Checked<T> {
        let shown = match self.text.char_indices().nth(60) {
            Some((end, _)) => format!("{}…", &self.text[..end]),
            None => self.text.clone(),
        };
        let quote = if self.kind == Kind::Text { "\"" } else { "" };
        Err(format!("must be {wanted}, not `{quote}{shown}{quote}`"))
    }

    /// A whole number within `range`.
    pub(super) fn whole<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Checked<T> {
        let number = self.text.parse().ok().filter(|number| self.is(&[Kind::Whole]) && range.contains(number));
        match number.and_then(|number| T::try_from(number).ok()) {
            Some(number) => Ok(number),
            None => self.refuse(&format!("a whole number from {} to {}", range.start(), range.end())),
        }
    }

    /// A number within `range`.
    pub(super) fn real(&self, range: RangeInclusive<f64>) -> Checked<f64> {
        match self.number().filter(|number| range.contains(number)) {
            Some(number) => Ok(number),
            None => self.refuse(&format!("a number from {} to {}", range.start(), range.end())),
        }
    }

    /// A number above zero, small enough for f32 and for a clock.
    pub(super) fn positive(&self) -> Checked<f64> {
        match self.number().filter(|&number| number > 0.0 && number <= 1e9) {
            Some(number) => Ok(number),
            None => self.refuse("a number above 0 and at most 1e9"),
        }
    }

    fn number(&self) -> Option<f64> {
        self.text.parse().ok().filter(|_| self.is(&[Kind::Whole, Kind::Real]))
    }

    /// `true` or `false`; 1 and 0 too where values have no type.
    pub(super) fn switch(&self) -> Checked<bool> {
        match (self.text.as_str(), self.kind) {
            ("true", Kind::Bool | Kind::Untyped) | ("1", Kind::Untyped) => Ok(true),
            ("false", Kind::Bool | Kind::Untyped) | ("0", Kind::Untyped) => Ok(false),
            _ => self.refuse("true or false"),
        }
    }

    /// Any text.
    pub(super) fn string(&self) -> Checked<String> {
        if self.is(&[Kind::Text]) { Ok(self.text.clone()) } else { self.refuse("text in quotes") }
    }

    /// A name out of an enumeration.
    pub(super) fn choice<T: ValueEnum>(&self) -> Checked<T> {
        match T::from_str(&self.text, false) {
            Ok(value) if self.is(&[Kind::Text]) => Ok(value),
            _ => self.refuse(&format!("one of {}", names::<T>().join(", "))),
        }
    }

    /// `none`, or what `check` accepts.
    pub(super) fn optional<T>(&self, check: impl Fn(&Self) -> Checked<T>) -> Checked<Option<T>> {
        if self.text == "none" && self.is(&[Kind::Text]) {
            return Ok(None);
        }
        check(self).map(Some).map_err(|message| message.replacen("must be ", "must be `none` or ", 1))
    }
}

/// The names of an enumeration, as typed.
pub fn names<T: ValueEnum>() -> Vec<String> {
    T::value_variants().iter().map(name).collect()
}

/// The name of one of its values, as typed.
pub fn name<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
