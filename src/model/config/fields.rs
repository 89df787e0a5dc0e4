//! The fields of a config, one by one.

use crate::error::{Error, Result, quoted};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields of a JSON object, read one by one so that an error names the field, what is accepted and what was
/// found. A field that is `null` counts as absent.
pub(super) struct Fields<'a> {
    pub object: &'a Map<String, Value>,
    /// The file, for errors.
    pub origin: &'a str,
    /// `rope_scaling.` for the fields of that object, empty at the top.
    pub parent: String,
}

impl<'a> Fields<'a> {
    /// A field that is there and not `null`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The error about a value that is not accepted.
    pub fn wrong(&self, key: &str, accepted: &str, found: &Value) -> Error {
        Error::input(format!("{}: `{}{key}` must be {accepted}, found {}", quoted(self.origin), self.parent, quoted(&found.to_string())))
    }

    /// The error about a field that is not there.
    pub fn missing(&self, key: &str) -> Error {
        Error::input(format!("{}: `{}{key}` is missing", quoted(self.origin), self.parent))
    }

    /// A whole number within `range`.
    pub fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        let count = found.as_u64().and_then(|value| usize::try_from(value).ok());
        match count.filter(|count| range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => {
                let accepted = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(key, &accepted, found))
            }
        }
    }

    /// As [`Fields::count`], of a field that must be there.
    pub fn required(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.count(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number that is `fine`.
    pub fn number(&self, key: &str, accepted: &str, fine: impl Fn(f64) -> bool) -> Result<Option<f64>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        match found.as_f64().filter(|value| value.is_finite() && fine(*value)) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(key, accepted, found)),
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        found.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false", found))
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        found.as_str().map(Some).ok_or_else(|| self.wrong(key, "a text", found))
    }

    /// A nested object; an empty one counts as absent.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        let object = found.as_object().ok_or_else(|| self.wrong(key, "an object", found))?;
        let fields = Fields { object, origin: self.origin, parent: format!("{key}.") };
        Ok((!object.is_empty()).then_some(fields))
    }

    /// One id or a list of them. Ids outside the vocabulary occur in the wild (a shrunk copy of a model keeps the
    /// ids of the original) and can never be produced, so they are dropped with a warning.
    pub fn token_ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>> {
        let Some(found) = self.get(key) else {
            return Ok(Vec::new());
        };
        let listed = match found {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        let mut ids = Vec::new();
        for value in listed {
            let id = value.as_i64().ok_or_else(|| self.wrong(key, "a token id or a list of them", found))?;
            match u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size) {
                Some(id) => ids.push(id),
                None => tracing::warn!("{}: `{key}` {id} is outside the vocabulary and ignored", quoted(self.origin)),
            }
        }
        Ok(ids)
    }
}
