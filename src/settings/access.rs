//! Options by the names of their settings: read, written, checked, as JSON.

use serde_json::{Map, Value, json};

use super::general::{KEYS, Options};
use super::names::{Setting, VARIABLE, edits};
use crate::method::registry::MethodSettings;
use crate::setting::{self, Checked, Slot, Written};
use crate::{Error, Result};

impl Options {
    /// Writes a setting by its name, `seed` or `snap.batch`. It changes that one alone: a method's own budget comes with
    /// [`Self::for_method`].
    ///
    /// # Errors
    /// There is no such setting, or the value is not for it.
    pub fn assign(&mut self, name: &str, value: &str) -> Result<()> {
        let near = || nearest_setting(name).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let unknown = || Error::input(format!("`{name}` is not a setting{}", near()));
        let setting = Setting::find(name).ok_or_else(unknown)?;
        let written = self.set(setting, &Written::untyped(value)).ok_or_else(unknown)?;
        written.map_err(|wrong| Error::input(format!("`{name}` {wrong}")))
    }

    /// Refuses values that are out of range or contradict each other.
    ///
    /// # Errors
    /// The first such setting of the general ones and of the method in use.
    pub fn check(&self) -> Result<()> {
        let mut checked = self.clone();
        for setting in Setting::general().chain(Setting::of(self.method)) {
            let text = match self.get(setting) {
                None => continue,
                Some(Value::Null) => "none".to_owned(),
                Some(Value::String(text)) => text,
                Some(other) => other.to_string(),
            };
            let outcome = checked.set(setting, &Written::untyped(text)).unwrap_or(Ok(()));
            outcome.map_err(|wrong| Error::input(format!("`{setting}` {wrong}")))?;
        }
        self.check_shortest()?;
        self.method_settings().check().map_err(Error::input)
    }

    fn check_shortest(&self) -> Result<()> {
        let message = match self.method_settings() {
            _ if !self.shortest => return Ok(()),
            MethodSettings::Search(_) if self.early_stop => return Ok(()),
            MethodSettings::Search(_) => "without early_stop no prompt counts as found before the end; leave one of them out".to_owned(),
            _ => format!(
                "{} cannot go on from a prompt that was found, as the searches on whole tokens do; leave it out, or use the method snap",
                self.method
            ),
        };
        Err(Error::option("shortest", message))
    }

    /// The value of a setting, `Null` for `none`; nothing where the method of its section has no such setting.
    pub fn get(&self, setting: Setting) -> Option<Value> {
        match setting.section {
            None => setting::find(KEYS, &mut self.clone(), setting.key).map(Slot::value),
            Some(method) => self.section(method).get(setting.key),
        }
    }

    /// Writes a setting; nothing where the method of its section has no such setting.
    pub(super) fn set(&mut self, setting: Setting, written: &Written) -> Option<Checked<()>> {
        match setting.section {
            None => setting::find(KEYS, self, setting.key).map(|slot| slot.write(written)),
            Some(method) => self.sections[method.index()].set(setting.key, written),
        }
    }

    /// What a run is made of: the general settings, and an object named after the method in use with those of its section.
    pub fn to_json(&self) -> Value {
        let values = |settings: Vec<Setting>| -> Map<String, Value> {
            settings.into_iter().filter_map(|setting| Some((setting.key.to_owned(), self.get(setting)?))).collect()
        };
        let mut all = values(Setting::general().collect());
        all.insert(self.method.to_string(), values(Setting::of(self.method).collect()).into());
        all.into()
    }
}

/// Leaves out settings that ask for nothing (`false`, no text, `none`), so that a setting that is new and off leaves the ids of what was
/// computed before it as they are.
pub(crate) fn drop_what_is_off(settings: &mut Value) {
    let Value::Object(map) = settings else { return };
    map.values_mut().for_each(drop_what_is_off);
    map.retain(|key, value| !is_off(key, value));
}

/// Whether the setting `key` with this value is as if there were none of its name. A turn of the system's without a word is a turn.
pub(crate) fn is_off(key: &str, value: &Value) -> bool {
    value.is_null() || *value == json!(false) || (*value == json!("") && key != "system")
}

/// The one whose name takes the fewest edits from `name`, with its section or without it, if half of the name is left as it is.
pub(super) fn nearest_setting(name: &str) -> Option<Setting> {
    let (name, defaults) = (name.strip_prefix(VARIABLE).unwrap_or(name), Options::default());
    let distance = |setting: &Setting| edits(name, &setting.to_string()).min(edits(name, setting.key));
    let nearest = Setting::all().filter(|setting| defaults.get(*setting).is_some()).min_by_key(distance);
    nearest.filter(|setting| 2 * distance(setting) <= name.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_writes_its_own_field_only() {
        let samples = ["echo", "7", "0.5", "true", "false", "text", "flex", "none", "f16"];
        for key in Setting::general() {
            let changed: Vec<_> = samples
                .iter()
                .filter_map(|text| {
                    let mut settings = Options::default();
                    settings.set(key, &Written::untyped(*text))?.ok()?;
                    Some(settings)
                })
                .filter(|settings| *settings != Options::default())
                .collect();
            assert!(!changed.is_empty(), "no sample changes {key}");
            for settings in changed {
                for other in Setting::all().filter(|other| *other != key) {
                    assert_eq!(settings.get(other), Options::default().get(other), "{key} writes {other}");
                }
            }
        }
    }

    #[test]
    fn settings_survive_json() {
        let settings = Options { max_seconds: Some(0.1 + 0.2), prefix: "a\n\u{1b}\"".into(), ..Options::default() };
        let json = settings.to_json();
        assert_eq!(serde_json::from_str::<Value>(&json.to_string()).unwrap(), json);
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, KEYS.iter().map(|key| key.name).chain(["snap"]).collect::<Vec<_>>());
        assert_eq!((&json["max_seconds"], &json["snap"]["margin"]), (&(0.1 + 0.2).into(), &0.3.into()));
    }

    #[test]
    fn the_nearest_name_is_one_that_can_be_set() {
        for (name, nearest) in [
            ("stepps", "steps"),
            ("max-seconds", "max_seconds"),
            ("batch", "snap.batch"),
            ("snap.bach", "snap.batch"),
            ("snpa.momentum", "snap.momentum"),
            ("samples", "dlmi.samples"),
            ("tau", "gbda.tau"),
            ("tau0", "dlmi.tau0"),
            ("dlmi_tf.feedback", "dlmi-tf.feedback"),
            ("DLMI_BASELINE", "reinforce.baseline"),
        ] {
            assert_eq!(nearest_setting(name).unwrap().to_string(), nearest, "{name}");
        }
        assert!(["foo", "", "label"].into_iter().all(|name| nearest_setting(name).is_none()));
    }
}
