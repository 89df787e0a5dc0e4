//! Flags that are settings: what they are called, what their help says, and how they reach the settings.

use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::builder::{PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser};
use serde_json::Value;

use crate::Result;
use crate::files::utf8;
use crate::method::registry::MethodName;
use crate::setting::{self, Choice};
use crate::settings::{Options, Setting};

/// Keys and values of the flags that were given, as typed.
#[derive(Default)]
pub struct Flags {
    pub given: Vec<(&'static str, String)>,
}

impl Flags {
    pub fn text(&mut self, key: &'static str, value: &Option<String>) -> &mut Self {
        self.given.extend(value.clone().map(|value| (key, value)));
        self
    }

    pub fn os_text(&mut self, key: &'static str, value: &Option<OsString>) -> Result<()> {
        if let Some(value) = value {
            self.given.push((key, utf8(value.as_encoded_bytes().to_vec(), &format!("`--{}`", key.replace('_', "-")))?));
        }
        Ok(())
    }

    pub fn switch(&mut self, key: &'static str, on: bool) -> &mut Self {
        self.given.extend(on.then(|| (key, "true".into())));
        self
    }
}

/// Help text of a setting's flag; of a setting of methods, that of the first method that has it.
pub fn help(key: &str) -> String {
    let defaults = Options::default();
    let found = Setting::all().filter(|setting| setting.key == key).find_map(|setting| Some((setting, defaults.get(setting)?)));
    let (setting, value) = found.unwrap_or_else(|| panic!("`{key}` is a setting"));
    let doc = setting.doc();
    match value {
        Value::String(text) if !text.is_empty() => format!("{doc} [default: {text}]"),
        // What budgets are depends on the method, as their help says.
        Value::Number(number) if !["steps", "max_seconds", "restarts"].contains(&key) => format!("{doc} [default: {number}]"),
        _ => doc.to_string(),
    }
}

/// Every setting of every section, and where values come from.
pub fn settings_help() -> String {
    let mut blocks = vec![block("Settings:", Setting::general().map(|setting| (setting.key, help(setting.key))).collect())];
    let mut rest: Vec<MethodName> = MethodName::all().collect();
    while let Some(first) = rest.first() {
        let keys = first.registered().defaults.keys();
        let (alike, others) = rest.into_iter().partition::<Vec<_>, _>(|method| method.registered().defaults.keys() == keys);
        rest = others;
        if !keys.is_empty() {
            let names: Vec<String> = alike.iter().map(|method| format!("[{method}]")).collect();
            let row = |(key, doc): (&'static str, &str)| (key, format!("{doc} {}", defaults(key, &alike)).trim_end().to_owned());
            blocks.push(block(&format!("Settings of {}:", names.join(", ")), keys.into_iter().map(row).collect()));
        }
    }
    format!(
        "{}\n\nLayers, weakest first: default, the method's default, the model's preset, --preset, -c, the environment (DLMI_STEPS=4, \
         DLMI_SNAP_BATCH=4), --set steps=4 or snap.batch=4, --steps 4. In a file, the settings of a method stand behind [snap].",
        blocks.join("\n\n")
    )
}

fn block(title: &str, rows: Vec<(&str, String)>) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let rows: Vec<String> = rows.iter().map(|(key, doc)| format!("  {key:width$}  {doc}")).collect();
    format!("{title}\n{}", rows.join("\n"))
}

/// What a setting is by default in each of these methods that have it: `[dlmi, gbda: 8; soda: 1]`.
fn defaults(key: &'static str, methods: &[MethodName]) -> String {
    let mut values: Vec<(String, Vec<String>)> = Vec::new();
    for method in methods {
        let text = match method.registered().defaults.get(key) {
            None => continue,
            Some(Value::Null) => "none".to_owned(),
            Some(value) => value.to_string().replace('"', ""),
        };
        match values.iter_mut().find(|(other, _)| *other == text) {
            Some((_, names)) => names.push(method.to_string()),
            None => values.push((text, vec![method.to_string()])),
        }
    }
    let values: Vec<String> = values.iter().map(|(text, names)| format!("{}: {text}", names.join(", "))).collect();
    if values.is_empty() { String::new() } else { format!("[{}]", values.join("; ")) }
}

/// Takes any text but lists the right ones in help and completions: the settings refuse the others, as they do in
/// every layer.
#[derive(Clone)]
pub struct Names(fn() -> Vec<PossibleValue>);

impl Names {
    pub fn of<T: Choice>() -> Self {
        Self(|| T::ALL.iter().map(|(_, name, about)| PossibleValue::new(name).help(about)).collect())
    }
}

impl TypedValueParser for Names {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&clap::Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0().into_iter()))
    }
}

/// Takes one of the names only: for a flag that is no setting.
pub fn choice<T: Choice + Send + Sync>() -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(Names::of::<T>().0()).map(|name| setting::named::<T>(&name).expect("one of the names"))
}
