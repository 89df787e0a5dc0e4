//! What settings are called: `seed`, `snap.batch`, `DLMI_SEED`, `DLMI_SNAP_BATCH`.

use std::fmt;

use super::general::KEYS;
use crate::method::registry::MethodName;

pub(super) const VARIABLE: &str = "DLMI_";

/// Which setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Setting {
    /// The method in whose section it stands; none for a general one.
    pub section: Option<MethodName>,
    /// Its name within the section.
    pub key: &'static str,
}

impl Setting {
    /// The general setting of this name.
    pub(super) const fn named(key: &'static str) -> Self {
        Self { section: None, key }
    }

    /// The general ones.
    pub fn general() -> impl Iterator<Item = Self> {
        KEYS.iter().map(|key| Self::named(key.name))
    }

    /// Those of the section of a method. It need not have all of them, see [`crate::Options::get`].
    pub fn of(method: MethodName) -> impl Iterator<Item = Self> {
        method.registered().defaults.keys().into_iter().map(move |(key, _)| Self { section: Some(method), key })
    }

    /// All of them, the general ones first.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::general().chain(MethodName::all().flat_map(Self::of))
    }

    /// The one that is called so in a file or by `--set`.
    pub fn find(name: &str) -> Option<Self> {
        Self::all().find(|setting| setting.to_string() == name)
    }

    /// The one that this variable of the environment sets.
    pub(super) fn of_variable(variable: &str) -> Option<Self> {
        Self::all().find(|setting| setting.variable() == variable.to_uppercase())
    }

    /// The variable of the environment that sets it.
    pub fn variable(self) -> String {
        format!("{VARIABLE}{}", self.to_string().replace(['-', '.'], "_").to_uppercase())
    }

    /// One line about it.
    pub fn doc(self) -> &'static str {
        let docs = match self.section {
            None => KEYS.iter().map(|key| (key.name, key.doc)).collect(),
            Some(method) => method.registered().defaults.keys(),
        };
        docs.into_iter().find(|(key, _)| *key == self.key).map_or("", |(_, doc)| doc)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.section {
            None => f.write_str(self.key),
            Some(method) => write!(f, "{method}.{}", self.key),
        }
    }
}

/// Whether a variable of the environment is meant for this program.
pub(super) fn is_variable(name: &str) -> bool {
    name.starts_with(VARIABLE)
}

/// The one of `names` that takes the fewest edits from `name`.
pub(crate) fn nearest<'a>(name: &str, names: &[&'a str]) -> &'a str {
    names.iter().min_by_key(|other| edits(name, other)).copied().unwrap_or_default()
}

/// Edits between two names; case and the kind of separator count for nothing.
pub(super) fn edits(a: &str, b: &str) -> usize {
    let plain = |name: &str| name.to_lowercase().replace(['-', '.'], "_");
    strsim::osa_distance(&plain(a), &plain(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_found_by_its_name_and_by_its_variable() {
        for setting in Setting::all() {
            assert_eq!(Setting::find(&setting.to_string()), Some(setting));
            assert_eq!(Setting::of_variable(&setting.variable()), Some(setting));
            assert!(setting.doc().len() > 5, "{setting}");
        }
        let variable = |name| Setting::find(name).unwrap().variable();
        assert_eq!([variable("max_seconds"), variable("snap.batch")], ["DLMI_MAX_SECONDS", "DLMI_SNAP_BATCH"]);
        assert_eq!(variable("dlmi-tf.samples"), "DLMI_DLMI_TF_SAMPLES");
    }
}
