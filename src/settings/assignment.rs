//! One value for one setting, with the place where it was written.

use std::fmt;
use std::path::PathBuf;

use toml::de::DeValue;

use super::access::nearest_setting;
use super::document::Document;
use super::names::{Setting, nearest};
use crate::method::registry::MethodName;
use crate::setting::{Kind, Written, names};
use crate::{Error, Result};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Built in.
    Default,
    /// Built in for this method.
    Method(MethodName),
    /// Line of the preset that goes with the model.
    Model(String, usize),
    /// Line of a preset named by `--preset`.
    Preset(String, usize),
    /// Line of a file named by `-c`.
    File(PathBuf, usize),
    /// `DLMI_*`.
    Environment,
    /// `--set`.
    Set,
    /// A flag of its own.
    Flag,
}

impl Origin {
    /// Name of the layer, for programs.
    pub fn layer(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Method(_) => "method",
            Self::Model(..) => "model",
            Self::Preset(..) => "preset",
            Self::File(..) => "file",
            Self::Environment => "environment",
            Self::Set => "set",
            Self::Flag => "flag",
        }
    }

    /// Where the value of a setting stands, for people.
    pub(super) fn place(&self, setting: Setting) -> String {
        match self {
            Self::Environment => setting.variable(),
            Self::Flag => format!("--{}", setting.key.replace('_', "-")),
            _ => self.to_string(),
        }
    }

    /// The subject of a sentence about a setting.
    fn subject(&self, setting: Setting) -> String {
        match self {
            Self::Environment | Self::Flag => format!("`{}`", self.place(setting)),
            _ => self.subject_named(&setting.to_string()),
        }
    }

    /// The subject of a sentence about what may be no setting, by the name that was written.
    fn subject_named(&self, name: &str) -> String {
        match self {
            Self::Environment => format!("`{name}`"),
            Self::Set => format!("`--set {name}`"),
            _ => format!("`{name}` ({self})"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Method(method) => write!(f, "default of {method}"),
            Self::Model(name, line) => write!(f, "preset {name} of the model, line {line}"),
            Self::Preset(name, line) => write!(f, "preset {name}, line {line}"),
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Environment => f.write_str("environment"),
            Self::Set => f.write_str("--set"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// One value of one layer, not yet checked.
#[derive(Debug, Clone)]
pub(super) struct Assignment {
    pub(super) setting: Setting,
    pub(super) value: Written,
    pub(super) origin: Origin,
}

impl Assignment {
    /// A value for the setting of this name.
    pub(super) fn new(name: &str, value: Written, origin: Origin) -> Result<Self> {
        let found = if origin == Origin::Environment { Setting::of_variable(name) } else { Setting::find(name) };
        match found {
            Some(setting) => Ok(Self { setting, value, origin }),
            None => Err(unknown(name, &origin)),
        }
    }

    /// What a refusal of it begins with.
    pub(super) fn subject(&self) -> String {
        self.origin.subject(self.setting)
    }
}

fn unknown(name: &str, origin: &Origin) -> Error {
    let named = |near: Setting| if *origin == Origin::Environment { near.variable() } else { near.to_string() };
    let near = nearest_setting(name).map_or(String::new(), |near| format!("did you mean `{}`? ", named(near)));
    let subject = origin.subject_named(name);
    Error::input(format!("{subject} is not a setting; {near}`dlmi config show --help` lists them all"))
}

/// The values of a document in the order of its lines, the keys `skip` left out: `steps = 9`, and `batch = 24` in the
/// section `[snap]`.
pub(super) fn assignments(document: &Document, skip: &[&str], origin: &dyn Fn(usize) -> Origin) -> Result<Vec<Assignment>> {
    let (table, mut entries) = (document.parse()?, Vec::new());
    for (key, value) in table.iter().filter(|(key, _)| !skip.contains(&key.get_ref().as_ref())) {
        match value.get_ref() {
            DeValue::Table(section) if Setting::find(key.get_ref()).is_none() => {
                is_section(key.get_ref(), &origin(document.line(&key.span())))?;
                let full = |name: &str| format!("{}.{name}", key.get_ref());
                entries.extend(section.iter().map(|(key, value)| (key.span(), full(key.get_ref()), written(value.get_ref()))));
            }
            value => entries.push((key.span(), key.get_ref().to_string(), written(value))),
        }
    }
    entries.sort_by_key(|(place, ..)| place.start);
    entries.into_iter().map(|(place, name, value)| Assignment::new(&name, value, origin(document.line(&place)))).collect()
}

fn is_section(name: &str, origin: &Origin) -> Result<()> {
    let methods = names::<MethodName>();
    if methods.contains(&name) {
        return Ok(());
    }
    let near = nearest(name, &methods);
    Err(Error::input(format!(
        "{} is not a section; did you mean `{near}`? The sections are {}",
        origin.subject_named(name),
        methods.join(", ")
    )))
}

/// What a TOML file says for a setting.
pub fn written(value: &DeValue<'_>) -> Written {
    match value {
        DeValue::String(text) => Written::new(text.as_ref(), Kind::Text),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Written::new(number.to_string(), Kind::Whole),
            Err(_) => Written::new(number.to_string(), Kind::Other),
        },
        DeValue::Float(number) => Written::new(number.as_str(), Kind::Real),
        DeValue::Boolean(value) => Written::new(value.to_string(), Kind::Bool),
        other => Written::new(format!("a TOML {}", other.type_str()), Kind::Other),
    }
}
