//! The licences of the dependencies are those that `deny.toml` lists. `cargo deny check` holds more than that, and is another program.

use std::process::Command;

use serde_json::Value;

/// What cargo says of every package that this machine's program is made of; none where one was never fetched.
fn packages() -> Option<Vec<Value>> {
    let host = Command::new("rustc").arg("-vV").output().expect("rustc");
    let host = String::from_utf8(host.stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host").to_owned();
    let flags = ["metadata", "--locked", "--offline", "--format-version", "1", "--all-features", "--filter-platform", &host];
    let output = Command::new(env!("CARGO")).args(flags).output().expect("cargo");
    if !output.status.success() && std::env::var_os("CI").is_none() {
        eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let (known, used) = (metadata["packages"].as_array().unwrap(), metadata["resolve"]["nodes"].as_array().unwrap());
    Some(known.iter().filter(|package| used.iter().any(|node| node["id"] == package["id"])).cloned().collect())
}

fn allowed() -> Vec<String> {
    let list: toml::Table = toml::from_str(&std::fs::read_to_string("deny.toml").unwrap()).unwrap();
    let allowed = list["licenses"]["allow"].as_array().unwrap();
    allowed.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Whether an SPDX expression lets itself be met by these licences: `OR` (in old manifests `/`), `AND`, brackets, and `WITH` as a part
/// of a name.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let spaced = ["/", "(", ")"].iter().fold(expression.to_owned(), |text, sign| text.replace(sign, &format!(" {sign} ")));
    let spaced = spaced.replace(" WITH ", "~").replace('/', "OR");
    let mut words = spaced.split_whitespace().peekable();
    let met = any_of(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words, allowed: &[String]) -> bool {
    let mut met = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut Words, allowed: &[String]) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words, allowed: &[String]) -> bool {
    match words.next() {
        Some("(") => any_of(words, allowed) & words.next_if_eq(&")").is_some(),
        Some(name) => allowed.iter().any(|known| *known == name.replace('~', " WITH ")),
        None => false,
    }
}

#[test]
fn every_dependency_has_a_licence_that_is_allowed() {
    let (Some(packages), allowed) = (packages(), allowed()) else { return };
    assert!(packages.len() > 200, "{}", packages.len());
    for package in packages {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_met(licence, &allowed), "{} {}: `{licence}` is not among those of deny.toml", package["name"], package["version"]);
    }
}

#[test]
fn expressions_are_read_as_spdx_has_them() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for met in
        ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "(GPL-3.0 OR MIT) AND ISC", "GPL-3.0 AND X OR MIT", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "Apache-2.0", "(MIT", "MIT MIT", "OR MIT"] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}
