//! The top-level modules are floors: each uses only those below it, which leaves no room for a circle either.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// From the top to the ground: a module may use those that come after it.
const FLOORS: [&str; 31] = [
    "main",
    "cli",
    "report",
    "ui",
    "study",
    "gradients",
    "bench",
    "invert",
    "settings",
    "method",
    "estimator",
    "subject",
    "problem",
    "backend",
    "model",
    "optimiser",
    "ops",
    "source",
    "objective",
    "setting",
    "state",
    "budget",
    "metrics",
    "distribution",
    "noise",
    "tensor",
    "gpu_memory",
    "interrupt",
    "terminal",
    "files",
    "error",
];

/// A use of `to` in a file of the module `from`.
struct Import {
    file: PathBuf,
    line: usize,
    from: String,
    to: String,
}

#[test]
fn imports_point_down() {
    let imports = all_imports();
    assert!(imports.len() > 100, "only {} imports were found", imports.len());
    let floor = |module: &str| FLOORS.iter().position(|name| *name == module);
    let problem = |Import { file, line, from, to }: &Import| {
        let what = match (floor(from), floor(to)) {
            (Some(user), Some(used)) if user < used => return None,
            (Some(_), Some(_)) => format!("`{from}` uses `{to}`, which is above it"),
            (None, _) => format!("the module `{from}` has no floor yet: give it one in FLOORS"),
            (_, None) => format!("`{from}` uses `{to}`, which has no floor yet: give it one in FLOORS"),
        };
        Some(format!("{}:{line}: {what}", file.display()))
    };
    let problems: Vec<String> = imports.iter().filter_map(problem).collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn imports_are_found_in_every_form() {
    let names = BTreeMap::from([("Error".to_owned(), "error".to_owned())]);
    let text = "use crate::a::{b, c};\nuse crate::{Error, d, e::{f, g}, h as i}; // crate::j\n/// [`crate::k`]\nlet x = crate::l::m();";
    let found: Vec<(usize, String)> = uses(&code(text), &names);
    let expected = [(1, "a"), (2, "error"), (2, "d"), (2, "e"), (2, "h"), (4, "l")];
    assert_eq!(found, expected.map(|(line, name)| (line, name.to_owned())));
    assert_eq!(code("use crate::a;\n#[cfg(test)]\nmod tests {\n    use crate::b;\n}\n"), "use crate::a;\n");
}

/// All imports between different modules of the library, those of its tests left out.
fn all_imports() -> Vec<Import> {
    let source = Path::new("src");
    let names = re_exports(&code(&std::fs::read_to_string(source.join("lib.rs")).unwrap()));
    let mut imports = Vec::new();
    for path in rust_files(source) {
        let file = path.strip_prefix(source).unwrap().to_owned();
        let from = file.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        // The library's root names everything, and tests may build what they need from any floor.
        let is_test = |part: &std::ffi::OsStr| part == "tests" || part.to_string_lossy().ends_with("tests.rs") || part == "fixture.rs";
        let test = file.iter().any(is_test);
        if from == "lib" || from == "testing" || test {
            continue;
        }
        let found = uses(&code(&std::fs::read_to_string(&path).unwrap()), &names).into_iter().filter(|(_, to)| *to != from);
        imports.extend(found.map(|(line, to)| Import { file: file.clone(), line, from: from.clone(), to }));
    }
    imports
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => files.extend(rust_files(&entry)),
            false if entry.extension().is_some_and(|extension| extension == "rs") => files.push(entry),
            false => (),
        }
    }
    files.sort();
    files
}

/// A file without comments and without its tests, line for line.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end].lines().map(|line| format!("{}\n", line.split("//").next().unwrap_or_default())).collect()
}

/// What the library's root gives a name of its own, `pub use module::Name` or `pub use module::{Name, …}`: module by name.
fn re_exports(root: &str) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for line in root.lines().filter_map(|line| line.strip_prefix("pub use ")?.strip_suffix(';')) {
        let (module, items) = line.split_once("::").unwrap();
        for name in items.trim_matches(['{', '}']).split(',') {
            names.insert(name.trim().to_owned(), module.to_owned());
        }
    }
    names
}

/// Line and module of everything that is reached through `crate::`.
fn uses(code: &str, names: &BTreeMap<String, String>) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, word) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + word.len()..];
        let items = if let Some(group) = rest.strip_prefix('{') { first_names(group) } else { vec![identifier(rest)] };
        found.extend(items.into_iter().map(|item| (line, names.get(item).cloned().unwrap_or_else(|| item.to_owned()))));
    }
    found
}

/// The first identifier of every item of a group, up to the brace that closes it.
fn first_names(group: &str) -> Vec<&str> {
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(identifier(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => (),
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}
