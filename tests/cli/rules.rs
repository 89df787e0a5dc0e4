//! What the found text must be like, by the options that ask for it: they hold for every method, on the text as it is typed.

use std::collections::HashSet;
use std::fs;

use serde_json::{Value, json};

use crate::support::*;

/// The methods whose prompt is not given by the target.
const METHODS: [&str; 9] = ["snap", "dlmi", "soda", "reinforce", "gcg", "arca", "pez", "adc", "random"];

/// `invert` on bard with a few steps of some tokens; samples where the method has them.
fn found(method: &str, flags: &[&str]) -> Value {
    let few = ["--backend", "flex", "invert", " my lord, I will not go.", "--method", method, "--prompt-tokens", "12", "--steps", "4"];
    inversion(dlmi(few).args(flags))
}

/// What a run holds: the text of the free part, where it keeps the rules, and the texts of its tokens.
fn texts(record: &Value) -> (Option<String>, Vec<String>) {
    let tokenizer = dlmi::Model::open("bard").unwrap().tokenizer().clone();
    let tokens = ids(&record["search_ids"]).into_iter().map(|id| tokenizer.decode_inside(&[id])).collect();
    ((record["best"]["valid"] == true).then(|| record["free_text"].as_str().unwrap().to_owned()), tokens)
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[test]
fn forbidden_words_are_not_found_by_any_method() {
    let folder = folder();
    let path = folder.path().join("list");
    let listed = path.to_str().unwrap();
    for method in METHODS {
        for more in [&[][..], &["--allow-target-tokens"]] {
            let before = found(method, more);
            // All words that it has now, a phrase, and what a text editor leaves.
            let held: HashSet<String> = texts(&before).1.iter().flat_map(|token| words(token).collect::<Vec<_>>()).collect();
            let lines: Vec<&str> = held.iter().map(String::as_str).collect();
            fs::write(&path, format!("\u{feff}{}\r\n\r\n  of the \r\n", lines.join("\r\n"))).unwrap();
            let after = found(method, &[more, &["--forbid", listed]].concat());
            let (text, tokens) = texts(&after);
            assert!(tokens.iter().all(|token| words(token).all(|word| !held.contains(&word))), "{method}: {held:?} {after}");
            assert_eq!(after["settings"]["forbid"], format!("{}\nof the", lines.join("\n")), "{method}");
            let searches = ["snap", "gcg", "arca", "random"].contains(&method);
            assert!(text.is_some() || !searches, "a search holds what it may: {after}");
            let Some(text) = text else { continue };
            let read: Vec<String> = words(&text).collect();
            assert!(read.iter().all(|word| !held.contains(word)), "{method}: {held:?} {text}");
            assert!(!read.windows(2).any(|pair| pair == ["of", "the"]), "{method}: {text}");
        }
    }
}

#[test]
fn printable_ascii_is_asked_for() {
    let printable = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
    for method in METHODS {
        // On the tiny model, whose tokens are bytes: line feeds, tabs.
        let flags = ["--method", method, "--prompt-tokens", "60", "--steps", "2"];
        let tokens = |more: &[&str]| {
            let record = inversion(tiny(["invert", OUT_OF_REACH]).args(flags).args(more));
            let text = record["free_text"].as_str().unwrap().to_owned();
            let valid = record["best"]["valid"] == true;
            (ids(&record["search_ids"]), text, valid)
        };
        let tokenizer = tokenizer();
        let (ids, text, valid) = tokens(&["--ascii"]);
        assert!(ids.iter().all(|&id| printable(&tokenizer.decode(&[id]))), "{method}: {ids:?}");
        assert!(!valid || printable(&text), "{method}: {text:?}");
        if method == "dlmi" {
            assert!(!tokens(&[]).0.iter().all(|&id| printable(&tokenizer.decode(&[id]))), "it asks for something");
        }
    }
}

#[test]
fn english_words_are_asked_for() {
    let list = fs::read_to_string("src/problem/words/english.txt").unwrap();
    let english: HashSet<String> = list.lines().map(str::to_lowercase).collect();
    let is_word = |word: &str| english.contains(&word.to_lowercase());
    for method in METHODS {
        let (text, tokens) = texts(&found(method, &["--words"]));
        assert!(tokens.iter().all(|token| token.strip_prefix(' ').is_some_and(is_word)), "{method}: {tokens:?}");
        // Each is a space and a word, so the text of whichever are typed as they were searched is words.
        let text = text.unwrap_or_else(|| panic!("{method}: {tokens:?}"));
        assert!(text.strip_prefix(' ').unwrap_or(&text).split(' ').all(is_word), "{method}: {text}");
    }
    let (text, _) = texts(&found("snap", &["--words", "--ascii", "--prefix", "Say:", "--suffix", " then,"]));
    assert!(text.unwrap().trim_start().split(' ').all(is_word));
}

/// The same answer from a file of settings, a variable, `--set` and the flag; the words are what counts, not where they stood.
#[test]
fn the_words_decide_and_not_where_they_are_written() {
    let folder = folder();
    let [one, two, settings] = ["one", "two", "settings.toml"].map(|name| folder.path().join(name));
    fs::write(&one, "\nking\nmy lord\n").unwrap();
    fs::write(&two, "king  \r\n\tmy lord").unwrap();
    fs::write(&settings, "forbid = \"\"\"\nking\nmy lord\"\"\"\nascii = true\n").unwrap();
    let ask = |arguments: &[&str]| {
        let few = ["--backend", "flex", "invert", "--steps", "3", "--prompt-tokens", "8", "--seed", "4"];
        untimed(&inversion(dlmi(few).env("DLMI_ASCII", "true").args(arguments)))
    };
    let [one, two, settings] = [one, two, settings].map(|path| path.display().to_string());
    let first = ask(&["--forbid", &one]);
    assert_eq!((&first["settings"]["forbid"], &first["settings"]["ascii"]), (&json!("king\nmy lord"), &json!(true)));
    for same in [["--forbid", &two], ["-c", &settings], ["--set", "forbid=king\nmy lord"]] {
        assert_eq!(ask(&same), first, "{same:?}");
    }
    // A run goes on with the same words, wherever they stand, and with no others.
    let out = folder.path().join("run").display().to_string();
    let run = |list: &str, more: &[&str]| {
        let mut command = tiny(["invert", OUT_OF_REACH, "--prompt-tokens", "4", "--out", &out, "--forbid", list]);
        command.args(more);
        command
    };
    inversion(&mut run(&one, &["--steps", "2"]));
    assert_eq!(inversion(&mut run(&two, &["--steps", "4", "--resume"]))["steps"], 4);
    fs::write(&two, "queen").unwrap();
    refuses(&mut run(&two, &["--steps", "5", "--resume"]), 2, &["forbid", "queen"]);
}

#[test]
fn a_wish_that_leaves_nothing_and_a_list_that_is_none_are_refused() {
    let folder = folder();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    // The tiny model knows three English words, and the target has them all.
    refuses(&mut tiny(["invert", "a man and the sea", "--words"]), 2, &["--words", "none of the ", "English word"]);
    let list = file("list", b"a\nthe\nand\n");
    let flags = ["invert", "he is", "--allow-target-tokens", "--words", "--prompt-tokens", "3", "--steps", "1"];
    assert_eq!(inversion(&mut tiny(flags))["best"]["valid"], true);
    refuses(tiny(flags).args(["--forbid", &list]), 2, &["--words", "none of the "]);
    refuses(&mut tiny(["invert", "x", "--forbid", "nowhere.txt"]), 2, &["nowhere.txt"]);
    refuses(&mut tiny(["invert", "x", "--forbid", &file("odd", b"ab\xff")]), 2, &["odd", "byte 2 (0xff)"]);
    refuses(&mut tiny(["invert", "x", "--forbid", &file("large", &vec![b'a'; 1 << 21])]), 2, &["large", "1048576"]);
    assert_eq!(inversion(&mut tiny([&flags[..], &["--forbid", &file("empty", b"\n\n")]].concat()))["settings"]["forbid"], "");
}
