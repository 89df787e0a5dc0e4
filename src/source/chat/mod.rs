//! The chat template of a model, rendered as transformers renders it: Jinja with `trim_blocks` and `lstrip_blocks`, Python's methods, and
//! `raise_exception`, `strftime_now` and the special tokens by name.
//!
//! A template is untrusted: what it may compute and hold in memory is bounded.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use chrono::format::{Item, StrftimeItems};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, quoted};
use crate::files::read_text;

/// Largest file that is read, in bytes: `tokenizer_config.json` may list thousands of added tokens.
const LARGEST_FILE: u64 = 16 << 20;
/// Instructions of a rendering, of which each 64 bytes of a value are one too. A chat takes some thousands.
const FUEL: u64 = 1 << 18;
/// Stack of the thread that renders: deep enough for values as deeply nested as the fuel lets them be.
const STACK: usize = 256 << 20;
/// Seconds and bytes of memory that a rendering may take: the engine does not count all that it does (sums of lists are free).
const PATIENCE: Duration = Duration::from_secs(5);
const MEMORY: u64 = 512 << 20;
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
    dated: Arc<AtomicBool>,
}

impl ChatFiles {
    /// The template.
    ///
    /// # Errors
    /// There is none, or it is not what it should be.
    pub fn read(&self) -> Result<Arc<ChatTemplate>> {
        let (origin, template, tokens) = match self {
            Self::None => ("the model".to_owned(), None, Map::new()),
            Self::Inside { origin, template, tokens } => (quoted(origin), template.clone(), tokens.clone()),
            Self::Folder(folder) => {
                let (template, tokens) = read_folder(folder)?;
                (quoted(&folder.display().to_string()), template, tokens)
            }
        };
        match template {
            Some(template) => ChatTemplate::new(&template, tokens, &origin).map(Arc::new),
            None => Err(Error::input(format!("{origin} has no chat template; give the text around the prompt yourself"))),
        }
    }
}

const ENDLESS: &str = "it computes without end, or more text than any chat has";

/// Bytes of memory that the program holds, where the system says so.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).map_or(0, |pages| pages * 4096)
}

/// As transformers reads it: `chat_template.jinja` before `chat_template` of `tokenizer_config.json`, which may be a list of named ones.
fn read_folder(folder: &Path) -> Result<(Option<String>, Map<String, Value>)> {
    let read = |name: &str| {
        let path = folder.join(name);
        if path.exists() { read_text(&path, LARGEST_FILE).map(Some) } else { Ok(None) }
    };
    let path = folder.join("tokenizer_config.json");
    let config: Map<String, Value> = match read("tokenizer_config.json")? {
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| Error::input(format!("{} is not valid JSON: {error}", quoted(&path.display().to_string()))))?,
        None => Map::new(),
    };
    let named = |list: &[Value]| {
        let default = list.iter().find(|entry| entry["name"] == "default");
        default.or(list.first()).and_then(|entry| entry["template"].as_str()).map(str::to_owned)
    };
    let own = match config.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(list)) => named(list),
        _ => None,
    };
    Ok((read("chat_template.jinja")?.or(own), special_tokens(&config)))
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
    /// It is no template.
    pub fn new(source: &str, tokens: Map<String, Value>, origin: &str) -> Result<Self> {
        let dated = Arc::new(AtomicBool::new(false));
        let mut environment = environment(dated.clone());
        // Their blocks mark what a training loss is taken over, and print what is in them.
        let compiled = ["generation", "endgeneration"].iter().zip(["if true", "endif"]);
        let compiled = compiled.fold(source.to_owned(), |text, (tag, plain)| replace_tag(&text, tag, plain));
        let added = environment.add_template_owned(NAME, compiled);
        added.map_err(|error| broken(origin, &error))?;
        Ok(Self { environment: Arc::new(environment), source: source.to_owned(), tokens, origin: origin.to_owned(), dated })
    }

    /// The text of a chat up to where the model is to reply, rendered on a thread that is waited for.
    ///
    /// # Errors
    /// What the template itself refuses, and a template that fails or goes beyond its bounds.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let mut context = json!({ "messages": messages, "tools": null, "documents": null, "add_generation_prompt": true });
        context.as_object_mut().expect("an object").extend(self.tokens.clone());
        let ((done, outcome), environment) = (mpsc::channel(), self.environment.clone());
        let render = move || done.send(environment.get_template(NAME).and_then(|template| template.render(Serde(context))));
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(render);
        thread.map_err(|error| Error::environment(format!("no thread can be started: {error}")))?;
        let (began, before) = (Instant::now(), resident());
        loop {
            match outcome.recv_timeout(Duration::from_millis(10)) {
                Ok(Ok(text)) => return Ok(text),
                Ok(Err(error)) if error.kind() == ErrorKind::OutOfFuel => return Err(self.error(ENDLESS)),
                Ok(Err(error)) => return Err(broken(&self.origin, &error)),
                Err(mpsc::RecvTimeoutError::Timeout) if began.elapsed() < PATIENCE && resident() < before + MEMORY => {}
                // The thread is left to itself, and ends with the program.
                Err(_) => return Err(self.error(ENDLESS)),
            }
        }
    }

    /// Whether it has written the date into a chat: the text is another one tomorrow.
    pub fn is_dated(&self) -> bool {
        self.dated.load(Ordering::Relaxed)
    }

    /// A sentence about it.
    pub(crate) fn error(&self, reason: &str) -> Error {
        Error::input(format!("the chat template of {} cannot be used: {reason}", self.origin))
    }
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

fn environment(dated: Arc<AtomicBool>) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters"));
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(64);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    // One moment for all renderings, so that a search that passes midnight stays the same.
    let now = chrono::Local::now();
    environment.add_function("strftime_now", move |format: String| -> Result<String, minijinja::Error> {
        dated.store(true, Ordering::Relaxed);
        let items: Vec<Item> = StrftimeItems::new(&format).collect();
        if items.contains(&Item::Error) {
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "it asks for the date in a form that is none"));
        }
        Ok(now.format_with_items(items.iter()).to_string())
    });
    environment.add_filter("tojson", to_json);
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
