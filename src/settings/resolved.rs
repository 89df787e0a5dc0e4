//! The outcome of all layers: settings, and for each of them the place that set it.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::assignment::{Assignment, Origin};
use super::general::Options;
use super::names::Setting;
use crate::method::registry::MethodName;
use crate::{Error, Result};

/// Settings, and for each of them the place that set it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The values.
    pub settings: Options,
    /// The presets that took part, weakest first, the model's own before the others.
    pub presets: Vec<String>,
    /// Of what is not as built in.
    origins: HashMap<Setting, Origin>,
}

impl Resolved {
    /// Everything as built in.
    pub(super) fn new(presets: Vec<String>) -> Self {
        Self { settings: Options::default(), presets, origins: HashMap::new() }
    }

    /// The place that set `setting`.
    pub fn origin(&self, setting: Setting) -> Origin {
        let built_in = || setting.section.map_or(Origin::Default, Origin::Method);
        self.origins.get(&setting).cloned().unwrap_or_else(built_in)
    }

    fn place(&self, setting: Setting) -> String {
        self.origin(setting).place(setting)
    }

    /// Gives the method in use its own budget.
    pub(super) fn budget_of_the_method(&mut self) {
        let method = self.settings.method;
        let budget = method.registered().budget;
        (self.settings.steps, self.settings.max_seconds) = (budget.steps, budget.seconds);
        for (key, set) in [("steps", budget.steps.is_some()), ("max_seconds", budget.seconds.is_some())] {
            self.origins.extend(set.then(|| (Setting::named(key), Origin::Method(method))));
        }
    }

    /// A budget in steps takes the place of the default one in seconds, and a budget in positions that of both.
    pub(super) fn given_budgets_alone(&mut self) {
        let [steps, seconds] = ["steps", "max_seconds"].map(Setting::named);
        if self.settings.max_positions.is_some() && self.is_default(steps) {
            self.settings.steps = None;
            self.origins.remove(&steps);
        }
        if (self.settings.steps.is_some() || self.settings.max_positions.is_some()) && self.is_default(seconds) {
            self.settings.max_seconds = None;
            self.origins.remove(&seconds);
        }
    }

    /// Whether a setting is as its method has it.
    fn is_default(&self, setting: Setting) -> bool {
        matches!(self.origin(setting), Origin::Default | Origin::Method(_))
    }

    /// Writes a value.
    ///
    /// # Errors
    /// It is of the wrong kind or out of range, or its method has no such setting.
    pub(super) fn apply(&mut self, assignment: &Assignment) -> Result<()> {
        let Assignment { setting, value, origin } = assignment;
        match self.settings.set(*setting, value) {
            Some(outcome) => outcome.map_err(|wrong| Error::input(format!("{} {wrong}", assignment.subject())))?,
            None => return Err(self.inapplicable(assignment)),
        }
        self.origins.insert(*setting, origin.clone());
        Ok(())
    }

    fn inapplicable(&self, assignment: &Assignment) -> Error {
        let method = assignment.setting.section.expect("every run has the general settings");
        let names: Vec<&str> = self.shown(Setting::of(method)).map(|(setting, _)| setting.key).collect();
        let has = if names.is_empty() { "has no settings".to_owned() } else { format!("has {}", names.join(", ")) };
        Error::input(format!("{} is not for {method}, which {has}", assignment.subject()))
    }

    /// Refuses settings of a section that contradict each other, and says where they stand.
    pub(super) fn check(self) -> Result<Self> {
        for method in MethodName::all() {
            let placed = |wrong: String| Error::input(Setting::of(method).fold(wrong, |text, setting| self.placed(text, setting)));
            self.settings.section(method).check().map_err(placed)?;
        }
        Ok(self)
    }

    /// Calls `setting` by its full name wherever `text` has it in backticks, the first time with its place.
    fn placed(&self, text: String, setting: Setting) -> String {
        let (short, full) = (format!("`{}`", setting.key), format!("`{setting}`"));
        text.replacen(&short, &format!("{full} ({})", self.place(setting)), 1).replace(&short, &full)
    }

    /// Those of `settings` that there are, with their values.
    fn shown(&self, settings: impl Iterator<Item = Setting>) -> impl Iterator<Item = (Setting, Value)> {
        settings.filter_map(|setting| Some((setting, self.settings.get(setting)?)))
    }

    /// An object of `{"value", "layer", "place"}` by key, and such an object for the section of the method in use.
    pub fn to_json(&self) -> Value {
        let rows = |settings: Vec<(Setting, Value)>| -> Map<String, Value> {
            let row = |(setting, value): (Setting, Value)| {
                let shown = json!({ "value": value, "layer": self.origin(setting).layer(), "place": self.place(setting) });
                (setting.key.to_owned(), shown)
            };
            settings.into_iter().map(row).collect()
        };
        let method = self.settings.method;
        let mut all = rows(self.shown(Setting::general()).collect());
        all.insert(method.to_string(), rows(self.shown(Setting::of(method)).collect()).into());
        all.into()
    }
}

/// Aligned `key = value  # place` lines, the general settings and the section of the method in use: a file that `-c` reads.
impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = self.settings.method;
        self.lines(f, self.shown(Setting::general()).collect())?;
        let section: Vec<_> = self.shown(Setting::of(method)).collect();
        if !section.is_empty() {
            writeln!(f, "\n[{method}]")?;
        }
        self.lines(f, section)
    }
}

impl Resolved {
    fn lines(&self, f: &mut fmt::Formatter<'_>, settings: Vec<(Setting, Value)>) -> fmt::Result {
        let values: Vec<_> = settings.iter().map(|(_, value)| toml(value)).collect();
        let key_width = settings.iter().map(|(setting, _)| setting.key.len()).max().unwrap_or(0);
        let value_width = values.iter().map(|value| value.chars().count()).max().unwrap_or(0).min(24);
        for ((setting, _), value) in settings.iter().zip(&values) {
            writeln!(f, "{:key_width$} = {value:value_width$}  # {}", setting.key, self.place(*setting))?;
        }
        Ok(())
    }
}

/// JSON's numbers, booleans and strings are TOML's. What JSON leaves as it is though nobody could see it is escaped too: DEL,
/// the C1 controls, characters that hide or reorder others.
pub(super) fn toml(value: &Value) -> String {
    if value.is_null() {
        return "\"none\"".into();
    }
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            ' '..='~' => text.push(c),
            _ if c.escape_debug().len() == 1 => text.push(c),
            _ => text += &format!("\\U{:08X}", u32::from(c)),
        }
    }
    text
}
