//! A setting: its name, what it means, and how a written value reaches its field. Every setting stands beside the struct that it belongs
//! to, once; files, the environment, `--set`, flags and help texts all go through it.

use std::ops::RangeInclusive;

use serde::Serialize;
use serde_json::Value;

/// One setting of a struct `S`.
pub struct Key<S: 'static> {
    /// Name within its section.
    pub name: &'static str,
    /// What it means, one line.
    pub doc: &'static str,
    slot: fn(&mut S) -> Option<Slot<'_>>,
}

/// A setting that every `S` has.
pub const fn key<S>(name: &'static str, doc: &'static str, slot: fn(&mut S) -> Option<Slot<'_>>) -> Key<S> {
    Key { name, doc, slot }
}

/// Where `settings` keep the value of the setting called `name`; nothing where they have none of that name: a struct with variants may not.
pub fn find<'a, S>(keys: &[Key<S>], settings: &'a mut S, name: &str) -> Option<Slot<'a>> {
    (keys.iter().find(|key| key.name == name)?.slot)(settings)
}

#[cfg(test)]
impl<S: Clone> Key<S> {
    pub(crate) fn applies(&self, settings: &S) -> bool {
        self.get(settings).is_some()
    }

    pub(crate) fn get(&self, settings: &S) -> Option<Value> {
        (self.slot)(&mut settings.clone()).map(Slot::value)
    }

    pub(crate) fn set(&self, settings: &mut S, written: &Written) -> Option<Checked<()>> {
        (self.slot)(settings).map(|slot| slot.write(written))
    }
}

/// Where the value of a setting is kept: what stands there, and how to write another.
pub struct Slot<'a> {
    value: Value,
    set: Box<Set<'a>>,
}

impl Slot<'_> {
    /// What stands there, `Null` for `none`.
    pub fn value(self) -> Value {
        self.value
    }

    /// Writes another value there.
    pub fn write(self, written: &Written) -> Checked<()> {
        (self.set)(written)
    }
}

/// Writes a value that somebody wrote, if it is one.
type Set<'a> = dyn FnOnce(&Written) -> Checked<()> + 'a;

/// Outcome of a check: the error is the end of a sentence that begins with the name, "must be …, not …".
pub type Checked<T> = Result<T, String>;

/// A slot that takes what `check` makes of a written value.
fn slot<'a, T: Serialize>(field: &'a mut T, check: impl FnOnce(&Written) -> Checked<T> + 'a) -> Slot<'a> {
    let value = serde_json::to_value(&*field).unwrap_or(Value::Null);
    Slot { value, set: Box::new(move |written| check(written).map(|value| *field = value)) }
}

/// A whole number within `range`.
pub fn whole<T: TryFrom<u64> + Serialize>(field: &mut T, range: RangeInclusive<u64>) -> Slot<'_> {
    slot(field, move |written| written.whole(&range))
}

/// A whole number within `range`, or `none`.
pub fn optional_whole<T: TryFrom<u64> + Serialize>(field: &mut Option<T>, range: RangeInclusive<u64>) -> Slot<'_> {
    slot(field, move |written| written.optional(|written| written.whole(&range)))
}

/// A number within `range`.
pub fn real(field: &mut f64, range: RangeInclusive<f64>) -> Slot<'_> {
    slot(field, move |written| written.real(&range))
}

/// A number within `range`, or `none`.
pub fn optional_real(field: &mut Option<f64>, range: RangeInclusive<f64>) -> Slot<'_> {
    slot(field, move |written| written.optional(|written| written.real(&range)))
}

/// A number above zero, small enough for f32 and for a clock.
pub fn positive(field: &mut f64) -> Slot<'_> {
    slot(field, Written::positive)
}

/// A number above zero, or `none`.
pub fn optional_positive(field: &mut Option<f64>) -> Slot<'_> {
    slot(field, |written| written.optional(Written::positive))
}

/// `true` or `false`.
pub fn switch(field: &mut bool) -> Slot<'_> {
    slot(field, Written::switch)
}

/// Any text.
pub fn text(field: &mut String) -> Slot<'_> {
    slot(field, Written::string)
}

/// Any text, or `none`.
pub fn optional_text(field: &mut Option<String>) -> Slot<'_> {
    slot(field, |written| written.optional(Written::string))
}

/// A name out of an enumeration.
pub fn choice<T: Choice>(field: &mut T) -> Slot<'_> {
    let value = name(field).into();
    Slot { value, set: Box::new(move |written| written.choice().map(|value| *field = value)) }
}

/// An enumeration whose values are chosen by name.
pub trait Choice: Copy + PartialEq + 'static {
    /// Each value, its name as typed, and one line about it.
    const ALL: &'static [(Self, &'static str, &'static str)];
}

/// The name of a value, as typed.
pub fn name<T: Choice>(value: &T) -> &'static str {
    T::ALL.iter().find(|(other, ..)| other == value).map_or("", |(_, name, _)| name)
}

/// The names of an enumeration, as typed.
pub fn names<T: Choice>() -> Vec<&'static str> {
    T::ALL.iter().map(|(_, name, _)| *name).collect()
}

/// The value called `name`.
pub fn named<T: Choice>(name: &str) -> Option<T> {
    T::ALL.iter().find(|(_, other, _)| *other == name).map(|(value, ..)| *value)
}

/// What somebody wrote for a setting. TOML says what kind of value it is; everywhere else all values are text.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    text: String,
    kind: Kind,
}

/// What kind of value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody said: an argument or a variable.
    Untyped,
    /// Text in quotes.
    Text,
    /// A whole number.
    Whole,
    /// Another number.
    Real,
    /// `true` or `false`.
    Bool,
    /// Something that no setting takes.
    Other,
}

impl Written {
    /// A value of a known kind.
    pub fn new(text: impl Into<String>, kind: Kind) -> Self {
        Self { text: text.into(), kind }
    }

    /// A value from the environment, from `--set` or from a flag.
    pub fn untyped(text: impl Into<String>) -> Self {
        Self::new(text, Kind::Untyped)
    }

    /// What was written.
    pub fn as_str(&self) -> &str {
        &self.text
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

    fn whole<T: TryFrom<u64>>(&self, range: &RangeInclusive<u64>) -> Checked<T> {
        let number = self.text.parse().ok().filter(|number| self.is(&[Kind::Whole]) && range.contains(number));
        match number.and_then(|number| T::try_from(number).ok()) {
            Some(number) => Ok(number),
            None => self.refuse(&format!("a whole number from {} to {}", range.start(), range.end())),
        }
    }

    fn real(&self, range: &RangeInclusive<f64>) -> Checked<f64> {
        match self.number().filter(|number| range.contains(number)) {
            Some(number) => Ok(number),
            None => self.refuse(&format!("a number from {} to {}", range.start(), range.end())),
        }
    }

    fn positive(&self) -> Checked<f64> {
        match self.number().filter(|&number| number > 0.0 && number <= 1e9) {
            Some(number) => Ok(number),
            None => self.refuse("a number above 0 and at most 1e9"),
        }
    }

    fn number(&self) -> Option<f64> {
        self.text.parse().ok().filter(|_| self.is(&[Kind::Whole, Kind::Real]))
    }

    /// `true` or `false`; 1 and 0 too where values have no type.
    fn switch(&self) -> Checked<bool> {
        match (self.text.as_str(), self.kind) {
            ("true", Kind::Bool | Kind::Untyped) | ("1", Kind::Untyped) => Ok(true),
            ("false", Kind::Bool | Kind::Untyped) | ("0", Kind::Untyped) => Ok(false),
            _ => self.refuse("true or false"),
        }
    }

    fn string(&self) -> Checked<String> {
        if self.is(&[Kind::Text]) { Ok(self.text.clone()) } else { self.refuse("text in quotes") }
    }

    fn choice<T: Choice>(&self) -> Checked<T> {
        match named(&self.text) {
            Some(value) if self.is(&[Kind::Text]) => Ok(value),
            _ => self.refuse(&format!("one of {}", names::<T>().join(", "))),
        }
    }

    /// `none`, or what `check` accepts.
    fn optional<T>(&self, check: impl FnOnce(&Self) -> Checked<T>) -> Checked<Option<T>> {
        if self.text == "none" && self.is(&[Kind::Text]) {
            return Ok(None);
        }
        check(self).map(Some).map_err(|message| message.replacen("must be ", "must be `none` or ", 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    enum Shape {
        Circle { radius: f64 },
        Square,
    }

    const RADIUS: Key<Shape> = key("radius", "How far", |shape| match shape {
        Shape::Circle { radius } => Some(real(radius, 0.0..=2.0)),
        Shape::Square => None,
    });

    #[test]
    fn a_key_belongs_to_the_variants_that_have_its_field() {
        let mut circle = Shape::Circle { radius: 1.0 };
        assert_eq!(RADIUS.get(&circle), Some(1.0.into()));
        assert_eq!(RADIUS.set(&mut circle, &Written::untyped("1.5")), Some(Ok(())));
        assert_eq!(RADIUS.get(&circle), Some(1.5.into()));
        let refused = RADIUS.set(&mut circle, &Written::untyped("3")).unwrap().unwrap_err();
        assert_eq!(refused, "must be a number from 0 to 2, not `3`");
        assert_eq!(RADIUS.get(&circle), Some(1.5.into()));
        let mut other = Shape::Square;
        assert!(!RADIUS.applies(&other) && RADIUS.set(&mut other, &Written::untyped("1")).is_none());
    }
}
