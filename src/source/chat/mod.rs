//! The chat template of a model, rendered as transformers renders it: Jinja with `trim_blocks` and `lstrip_blocks`, Python's methods, and
//! `raise_exception`, `strftime_now` and the special tokens by name.
//!
//! A template is untrusted: what it may compute and hold in memory is bounded.

mod bounds;
mod scan;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Local, Utc};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, quoted};
use crate::files::{hex, read_text};

/// Largest file that is read, in bytes: `tokenizer_config.json` may list thousands of added tokens.
const LARGEST_FILE: u64 = 16 << 20;
/// The name of the template in its environment.
const NAME: &str = "chat";

/// Where a model keeps its template; it is read when somebody chats.
#[derive(Debug, Clone, Default)]
pub enum ChatFiles {
    /// Nowhere.
    #[default]
    None,
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// In the weights' own file.
    Inside {
        /// That file, for errors.
        origin: String,
        /// The template.
        template: Option<String>,
        /// `bos_token`, `eos_token` and so on.
        tokens: Map<String, Value>,
    },
}

/// What one side says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    /// The text.
    pub content: &'a str,
}

/// A template that was read.
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: String,
    tokens: Map<String, Value>,
    origin: String,
    date: Arc<Date>,
}

/// The moment that a template is told is now: one for all renderings, so that a search that passes midnight stays the same.
#[derive(Debug)]
struct Date {
    /// Seconds since 1970.
    now: AtomicI64,
    /// It was asked for.
    asked: AtomicBool,
}

impl Date {
    /// # Errors
    /// A format that is none.
    fn write(&self, format: &str) -> Result<String, minijinja::Error> {
        self.asked.store(true, Ordering::Relaxed);
        let items: Vec<Item> = StrftimeItems::new(format).collect();
        if items.contains(&Item::Error) {
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "it asks for the date in a form that is none"));
        }
        let now = DateTime::from_timestamp(self.now.load(Ordering::Relaxed), 0).unwrap_or_default();
        Ok(now.with_timezone(&Local).format_with_items(items.iter()).to_string())
    }
}

impl ChatFiles {
    /// The template.
    ///
    /// # Errors
    /// There is none, or it is not what it should be.
    pub fn read(&self) -> Result<Arc<ChatTemplate>> {
        let (template, tokens) = self.parts()?;
        let origin = match self {
            Self::None => "the model".to_owned(),
            Self::Inside { origin, .. } => quoted(origin),
            Self::Folder(folder) => quoted(&folder.display().to_string()),
        };
        match template {
            Some(template) => ChatTemplate::new(&template?, tokens, &origin).map(Arc::new),
            None => Err(Error::input(format!("{origin} has no chat template; give the text around the prompt yourself (--template)"))),
        }
    }

    /// Whether there is a template, usable or not.
    ///
    /// # Errors
    /// Its files cannot be read.
    pub fn has_template(&self) -> Result<bool> {
        Ok(self.parts()?.0.is_some())
    }

    /// The template, and the special tokens by name.
    fn parts(&self) -> Result<Parts> {
        match self {
            Self::None => Ok((None, Map::new())),
            Self::Inside { template, tokens, .. } => Ok((template.clone().map(Ok), tokens.clone())),
            Self::Folder(folder) => read_folder(folder),
        }
    }
}

/// The template, or why it cannot be told which of several it is, and the special tokens by name.
type Parts = (Option<Result<String>>, Map<String, Value>);

const ENDLESS: &str = "it computes without end, or more text than any chat has";

/// As transformers reads it: `chat_template.jinja` before `chat_template` of `tokenizer_config.json`, which may be a list of named ones;
/// special tokens of the latter, and those that it does not name of `special_tokens_map.json`.
fn read_folder(folder: &Path) -> Result<Parts> {
    let read = |name: &str| {
        let path = folder.join(name);
        if path.exists() { read_text(&path, LARGEST_FILE).map(Some) } else { Ok(None) }
    };
    let object = |name: &str| -> Result<Map<String, Value>> {
        let path = folder.join(name).display().to_string();
        let parse = |text: String| serde_json::from_str(&text);
        let parsed = read(name)?.map(parse).transpose();
        Ok(parsed.map_err(|error| Error::input(format!("{} is not valid JSON: {error}", quoted(&path))))?.unwrap_or_default())
    };
    let config = object("tokenizer_config.json")?;
    let template = match (read("chat_template.jinja")?, config.get("chat_template")) {
        (Some(template), _) => Some(Ok(template)),
        (None, Some(Value::String(template))) => Some(Ok(template.clone())),
        (None, Some(Value::Array(list))) if !list.is_empty() => Some(default_of(list, folder)),
        _ => None,
    };
    let mut tokens = special_tokens(&object("special_tokens_map.json")?);
    tokens.extend(special_tokens(&config));
    Ok((template, tokens))
}

/// Of several named templates the one that transformers takes where nobody names one.
fn default_of(list: &[Value], folder: &Path) -> Result<String> {
    let default = list.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str());
    default.map(str::to_owned).ok_or_else(|| {
        let names: Vec<String> = list.iter().filter_map(|entry| entry["name"].as_str()).map(quoted).collect();
        let folder = quoted(&folder.display().to_string());
        Error::input(format!(
            "the chat templates of {folder} are {}, and none is the `default`: put the one to be used into `chat_template.jinja`",
            names.join(", ")
        ))
    })
}

/// `bos_token` and its like: each a text, or an object with the text as `content`.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |value: &Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
    let tokens = config.iter().filter(|(key, _)| key.ends_with("_token"));
    tokens.filter_map(|(key, value)| Some((key.clone(), text(value)?.into()))).collect()
}

impl ChatTemplate {
    /// Compiles a template; `tokens` are the special tokens by name, `origin` is who has it, for errors.
    ///
    /// # Errors
    /// It is no template, or goes beyond its bounds.
    pub fn new(source: &str, tokens: Map<String, Value>, origin: &str) -> Result<Self> {
        let refused = |reason: &str| Err(unusable(origin, reason));
        if source.len() > bounds::LARGEST {
            return refused(&format!("it has {} bytes, and at most {} are read", source.len(), bounds::LARGEST));
        }
        // Their blocks mark what a training loss is taken over, and print what is in them.
        let compiled = ["generation", "endgeneration"].iter().zip(["if true", "endif"]);
        // Python's Jinja ends every line of a template alike.
        let lines = source.replace("\r\n", "\n").replace('\r', "\n");
        let compiled = compiled.fold(lines, |text, (tag, plain)| replace_tag(&text, tag, plain));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the usual delimiters");
        let lexed = scan::tokens(&compiled, &syntax);
        if !scan::holds_no_namespace(&lexed) {
            return refused("it uses a namespace as a value; set one by `{% set NAME = namespace(…) %}`, and use its attributes alone");
        }
        for name in scan::unknown_tokens(&lexed, |name| tokens.contains_key(name)) {
            tracing::warn!("the chat template of {origin} asks for `{name}`, which the model's files do not name: it is left empty");
        }
        let date = Arc::new(Date { now: Utc::now().timestamp().into(), asked: false.into() });
        let mut environment = environment(syntax, date.clone());
        match bounds::bounded(move || environment.add_template_owned(NAME, compiled).map(|()| environment))? {
            Some(Ok(environment)) => {
                Ok(Self { environment: Arc::new(environment), source: source.to_owned(), tokens, origin: origin.to_owned(), date })
            }
            Some(Err(error)) => Err(broken(origin, &error)),
            None => refused(ENDLESS),
        }
    }

    /// The text of a chat up to where the model is to reply, rendered on a thread that is waited for.
    ///
    /// # Errors
    /// What the template itself refuses, and a template that fails or goes beyond its bounds.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let mut context = json!({ "messages": messages, "tools": null, "documents": null, "add_generation_prompt": true });
        context.as_object_mut().expect("an object").extend(self.tokens.clone());
        let environment = self.environment.clone();
        match bounds::bounded(move || environment.get_template(NAME).and_then(|template| template.render(Serde(context))))? {
            Some(Ok(text)) => Ok(text),
            Some(Err(error)) if error.kind() != ErrorKind::OutOfFuel => Err(broken(&self.origin, &error)),
            _ => Err(self.error(ENDLESS)),
        }
    }

    /// Whether it has written the date into a chat: the text is another one tomorrow.
    pub fn is_dated(&self) -> bool {
        self.date.asked.load(Ordering::Relaxed)
    }

    /// The moment whose date it writes, in seconds since 1970: when it was read, unless another was set.
    pub fn moment(&self) -> i64 {
        self.date.now.load(Ordering::Relaxed)
    }

    /// Writes the date of another moment from now on; with none that of the present one.
    pub fn set_moment(&self, moment: Option<i64>) {
        self.date.now.store(moment.unwrap_or_else(|| Utc::now().timestamp()), Ordering::Relaxed);
    }

    /// SHA-256 of the template and of the special tokens that it may write by name.
    pub(crate) fn digest(&self) -> String {
        hex(&Sha256::digest(json!([self.source, self.tokens]).to_string()))
    }

    /// A sentence about it.
    pub(crate) fn error(&self, reason: &str) -> Error {
        unusable(&self.origin, reason)
    }
}

fn unusable(origin: &str, reason: &str) -> Error {
    Error::input(format!("the chat template of {origin} cannot be used: {reason}"))
}

impl PartialEq for ChatTemplate {
    fn eq(&self, other: &Self) -> bool {
        (&self.source, &self.tokens) == (&other.source, &other.tokens)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatTemplate({})", self.origin)
    }
}

fn broken(origin: &str, error: &minijinja::Error) -> Error {
    let line = error.line().map_or(String::new(), |line| format!(" at its line {line}"));
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Error::input(format!("the chat template of {origin} fails{line}: {}", quoted(&detail)))
}

fn environment(syntax: SyntaxConfig, date: Arc<Date>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_fuel(Some(bounds::FUEL));
    environment.set_recursion_limit(64);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| date.write(&format));
    environment.add_filter("tojson", to_json);
    // Templates are given no tools, which Python cannot go through.
    environment.add_test("iterable", |value: &minijinja::Value| !value.is_none() && value.try_iter().is_ok());
    environment
}

/// JSON as Python writes it, which Jinja's own filter would make safe for HTML.
fn to_json(value: minijinja::Value, options: minijinja::value::Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let value =
        serde_json::to_value(Serde(&value).0).map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(python_json(&value, indent.map(|width| (width, 0))))
}

/// `separators=(", ", ": ")`, or lines of an indent.
fn python_json(value: &Value, indent: Option<(usize, usize)>) -> String {
    let inner = indent.map(|(width, depth)| (width, depth + 1));
    let joined = |open: char, close: char, parts: Vec<String>| match indent {
        _ if parts.is_empty() => format!("{open}{close}"),
        None => format!("{open}{}{close}", parts.join(", ")),
        Some((width, depth)) => {
            let line = |depth: usize| format!("\n{}", " ".repeat(width.min(64) * depth));
            let parts: Vec<String> = parts.iter().map(|part| line(depth + 1) + part).collect();
            format!("{open}{}{}{close}", parts.join(","), line(depth))
        }
    };
    match value {
        Value::Array(list) => joined('[', ']', list.iter().map(|value| python_json(value, inner)).collect()),
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| format!("{}: {}", Value::from(key.as_str()), python_json(value, inner));
            joined('{', '}', map.iter().map(entry).collect())
        }
        other => other.to_string(),
    }
}

/// Puts `plain` in place of the tag that holds `tag` alone, with its signs for white space as they are.
fn replace_tag(text: &str, tag: &str, plain: &str) -> String {
    let mut rest = text;
    let mut out = String::with_capacity(text.len());
    while let Some((before, inner)) = rest.split_once("{%") {
        let Some((inside, after)) = inner.split_once("%}") else { break };
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out += before;
        out += "{%";
        out += &if word == tag { inside.replacen(tag, plain, 1) } else { inside.to_owned() };
        out += "%}";
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests;
