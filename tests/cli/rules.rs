//! What the found text must be like, by the options that ask for it: they hold for every method, on the text as it is typed.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

/// The methods whose prompt is not given by the target.
const METHODS: [&str; 9] = ["snap", "dlmi", "soda", "reinforce", "gcg", "arca", "pez", "adc", "random"];

/// `invert` on bard with a few steps of some tokens; samples where the method has them.
fn found(method: &str, flags: &[&str]) -> Value {
    let few = ["--backend", "flex", "invert", " my lord, I will not go.", "--method", method, "--prompt-tokens", "12", "--steps", "2"];
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

/// It would be empty the second time.
#[test]
fn standard_input_is_one_thing() {
    refuses(dlmi(["invert", "-", "--forbid", "-"]).write_stdin("king\n"), 2, &["standard input", "only once"]);
    refuses(dlmi(["invert", "--targets", "-", "--forbid", "-"]).write_stdin("king\n"), 2, &["standard input", "only once"]);
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
    let (tokenizer, mut odd) = (tokenizer(), false);
    let printable = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
    let all_printable = |record: &Value| ids(&record["search_ids"]).iter().all(|&id| printable(&tokenizer.decode(&[id])));
    for method in METHODS {
        // On the tiny model, whose tokens are bytes: line feeds and tabs are among them.
        let flags = ["invert", OUT_OF_REACH, "--method", method, "--prompt-tokens", "60", "--steps", "2"];
        odd |= !all_printable(&inversion(&mut tiny(flags)));
        let found = inversion(tiny(flags).arg("--ascii"));
        assert!(all_printable(&found), "{method}: {found}");
        assert!(found["best"]["valid"] == false || printable(found["free_text"].as_str().unwrap()), "{method}: {found}");
    }
    assert!(odd, "nothing was asked for");
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
    refuses(&mut tiny(["invert", " a man and the sea", "--words"]), 2, &["--words", "none of the ", "English word"]);
    let list = file("list", b"a\nthe\nand\n");
    let flags = ["invert", "he is", "--allow-target-tokens", "--words", "--prompt-tokens", "3", "--steps", "1"];
    assert_eq!(inversion(&mut tiny(flags))["best"]["valid"], true);
    refuses(tiny(flags).args(["--forbid", &list]), 2, &["--words", "none of the "]);
    refuses(&mut tiny(["invert", "x", "--forbid", "nowhere.txt"]), 2, &["nowhere.txt"]);
    refuses(&mut tiny(["invert", "x", "--forbid", &file("odd", b"ab\xff")]), 2, &["odd", "byte 2 (0xff)"]);
    refuses(&mut tiny(["invert", "x", "--forbid", &file("large", &vec![b'a'; 1 << 21])]), 2, &["large", "1048576"]);
    let ran = run(&mut tiny([&flags[..], &["--json", "--forbid", &file("empty", b"\n\n")]].concat()));
    assert!(ran.err.contains("empty` is an empty list") && ran.out.contains("\"forbid\":\"\""), "{ran:?}");
    let piped = inversion(tiny([&flags[..], &["--forbid", "-"]].concat()).write_stdin("Moon\n sea \n"));
    assert_eq!(piped["settings"]["forbid"], "Moon\nsea");
}

/// The prompt counts only when every token leads by as much; what is exact before is called so, and is no answer yet.
#[test]
fn a_lead_is_asked_for() {
    let ask = |margin: &str, steps: &str| {
        run(&mut tiny(["invert", " and", "--prompt-tokens", "8", "--json", "--steps", steps, "--min-margin", margin]))
    };
    let lead = |record: &Value| record["min_margin"].as_f64().unwrap();
    let any = ask("none", "300").json();
    assert_eq!((&any["exact"], &any["solved"]), (&json!(true), &json!(true)), "{any}");
    let wanted = lead(&any) + 0.1;
    let ran = ask(&wanted.to_string(), "600");
    let wide = ran.json();
    assert_eq!((ran.code, &wide["solved"], &wide["stopped"]), (Some(0), &json!(true), &json!("exact")), "{wide}");
    assert!(lead(&wide) >= wanted, "{wide}");
    assert_eq!((&wide["settings"]["min_margin"], &wide["settings"]["snap"]["margin"]), (&json!(wanted), &json!(0.3)));

    let ran = ask("50", "300");
    let narrow = ran.json();
    assert_eq!((ran.code, &narrow["exact"], &narrow["solved"]), (Some(1), &json!(true), &json!(false)), "{narrow}");
    assert_eq!((&narrow["stopped"], &narrow["seconds_to_exact"]), (&json!("budget"), &Value::Null));
    assert!(narrow["notes"][0].as_str().unwrap().contains("50 were asked for"), "{narrow}");
    let shown = run(&mut tiny(["invert", " and", "--prompt-tokens", "8", "--steps", "300", "--min-margin", "50"])).out;
    assert!(shown.contains("\nexact ") && shown.contains("50 were asked for") && shown.contains("\ntry "), "{shown}");
    refuses(&mut tiny(["invert", "x", "--min-margin", "-1"]), 2, &["--min-margin", "from 0 to 100"]);
}

/// A copy of bard that stops at the third token which it writes after a line of its own kind, and the text of the first two.
fn stopping() -> (TempDir, String, u32) {
    let bard = |tokens: &str| answer(&mut dlmi(["--backend", "flex", "complete", "My lord, I am", "--json", "--tokens", tokens]));
    let (target, written) = (bard("2")["completion_text"].as_str().unwrap().to_owned(), ids(&bard("3")["completion_ids"]));
    let model = folder();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(Path::new("models/bard").join(name), model.path().join(name)).expect("a copy");
    }
    edit(model.path().join("config.json"), |config| config["eos_token_id"] = json!([written[2], 0]));
    (model, target, written[2])
}

#[test]
fn an_end_is_asked_for() {
    let (model, target, stop) = stopping();
    let on = |arguments: &[&str]| {
        let mut command = dlmi(["--backend", "flex", "--model"]);
        command.arg(model.path()).args(arguments);
        command
    };
    let flags = ["--end", "--prompt-tokens", "12", "--steps", "500"];
    let found = inversion(on(&["invert", &target]).args(flags));
    assert_eq!((&found["exact"], &found["settings"]["end"]), (&json!(true), &json!(true)), "{found}");
    assert_eq!((&found["target_text"], &found["completion_text"]), (&json!(target), &json!(target)));
    assert_eq!((ids(&found["target_ids"]).len(), ids(&found["target_ids"])[2]), (3, stop));
    assert!(found["notes"].to_string().contains("at which the model stops"), "{found}");
    let prompt = found["prompt_text"].as_str().unwrap();
    let completed = answer(&mut on(&["complete", "--stop-at-eos", "--json", "--", prompt]));
    assert_eq!((&completed["completion_text"], &completed["completion_ids"]), (&json!(target), &found["target_ids"]));
    // A list counts the stop too.
    let folder = folder();
    let path = folder.path().join("targets.txt");
    fs::write(&path, format!("{target}\n")).unwrap();
    let ran = run(on(&["-q", "invert", "--targets", path.to_str().unwrap()]).args(flags));
    assert!(ran.code == Some(0) && ran.out.contains("  3/3  "), "{ran:?}");

    let both = ["invert", "--target-ids", &listed(&found["target_ids"]), "--end", "--allow-special"];
    refuses(&mut on(&both), 2, &["--end", "already"]);
    edit(model.path().join("config.json"), |config| config["eos_token_id"] = Value::Null);
    refuses(&mut on(&["invert", &target, "--end"]), 2, &["--end", "no token at which it stops", "leave it out"]);
}

#[test]
fn different_prompts_are_found_one_after_another() {
    let folder = folder();
    let out = folder.path().join("out").display().to_string();
    let flags = ["--prompt-tokens", "8", "--steps", "300"];
    let count = |more: &[&str]| run(tiny(["-q", "invert", " and", "--count", "3"]).args(flags).args(more));
    let lines = |ran: &Ran| ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let ran = count(&["--json", "--out", &out]);
    let found = lines(&ran);
    assert_eq!((ran.code, ran.err.as_str(), found.len()), (Some(0), "", 3), "{ran:?}");
    let prompts: HashSet<String> = found.iter().map(|record| record["prompt_text"].to_string()).collect();
    assert!(prompts.len() == 3 && found.iter().all(|record| record["exact"] == true), "{found:?}");
    // Each is what its seed alone gives.
    let alone = inversion(tiny(["invert", " and", "--seed", "2"]).args(flags));
    assert_eq!((&found[2]["seed"], &found[2]["prompt_ids"], &found[2]["cost"]), (&json!(2), &alone["prompt_ids"], &alone["cost"]));
    assert_eq!(lines(&count(&["--json", "--out", &out])), found, "the same command has nothing left to do");
    let shown = count(&["--out", &out]);
    let rows = |ran: &Ran| ran.out.lines().filter(|line| !line.starts_with("       note ")).count();
    assert!(rows(&shown) == 4 && shown.out.ends_with("\n3 of 3 different prompts found\n"), "{shown:?}");
    assert!(shown.out.starts_with("exact  \"") && shown.out.contains("(seed 1, smallest lead "), "{shown:?}");

    let ran = run(&mut tiny(["-q", "invert", OUT_OF_REACH, "--count", "2", "--steps", "2", "--prompt-tokens", "4"]));
    assert_eq!((ran.code, rows(&ran)), (Some(1), 3), "{ran:?}");
    assert!(ran.out.starts_with("no     \"") && ran.out.ends_with("\n0 of 2 different prompts found\n"), "{ran:?}");
    for wrong in [&["--count", "0"][..], &["--count", "2", "--resume", "--out", &out], &["--count", "2", "--targets", "x"]] {
        refuses(tiny(["invert"]).args(wrong), 2, &["--count"]);
    }
    refuses(&mut tiny(["invert", " a man and the sea", "--words", "--count", "2"]), 2, &["--words"]);
}

/// With one position and hardly a word that is not forbidden there are few prompts.
#[test]
fn a_prompt_that_was_found_before_does_not_count() {
    let folder = folder();
    let list = folder.path().join("list");
    let english = fs::read_to_string("src/problem/words/english.txt").unwrap();
    fs::write(&list, english.lines().filter(|word| *word != "lord").collect::<Vec<_>>().join("\n")).unwrap();
    let written = answer(&mut dlmi(["--backend", "flex", "complete", " lord", "--tokens", "1", "--json"]));
    let few = ["--backend", "flex", "invert", written["completion_text"].as_str().unwrap(), "--allow-target-tokens", "--words"];
    let ran = run(dlmi(few).args(["--prompt-tokens", "1", "--steps", "20", "--count", "6", "--forbid"]).arg(&list));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("found a prompt that was found before"), "{ran:?}");
    assert!(ran.out.starts_with("exact  \" lord\"  (seed 0") && ran.out.ends_with(" of 6 different prompts found\n"), "{ran:?}");
}
