//! Text is whole, whatever the tokenizer does to fragments; and prompts inside of other text: templates and chats.

use std::path::Path;

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

/// Two small models with tokenizers like SentencePiece's: a dummy prefix before every piece of text, and before the first.
const SPM: [&str; 3] = ["tests/golden/cases/spm-legacy", "tests/golden/cases/spm-first", "tests/golden/tiny_gguf/pieces.f16.gguf"];

fn on(model: impl AsRef<Path>, arguments: &[&str]) -> Command {
    let mut command = dlmi([Path::new("--model"), model.as_ref()]);
    command.args(["--backend", "flex"]).args(arguments);
    command
}

/// A small model with a chat template.
fn chatty(template: &str) -> TempDir {
    let model = folder();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(Path::new(SPM[0]).join(name), model.path().join(name)).expect("a copy");
    }
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template});
    std::fs::write(model.path().join("tokenizer_config.json"), config.to_string()).expect("a file");
    model
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}[assistant]";

#[test]
fn what_is_completed_is_what_score_finds() {
    for model in SPM {
        let mut whole = 0;
        for (prompt, tokens) in [("My lord, I am a", "1"), ("the king", "2"), ("So", "1"), ("What say you:\n", "3"), ("the king", "6")] {
            let written = answer(&mut on(model, &["complete", prompt, "--tokens", tokens, "--json"]));
            let text = written["completion_text"].as_str().unwrap();
            // What ends inside of a character, or holds half of one, cannot be typed.
            if text.contains('\u{fffd}') {
                continue;
            }
            whole += 1;
            let score = answer(&mut on(model, &["score", prompt, text, "--json"]));
            assert_eq!((&score["exact"], &score["target_text"]), (&json!(true), &json!(text)), "{model} {prompt:?}: {score}");
            assert_eq!(score["prompt_text"], prompt);
        }
        assert!(whole > 1, "{model}");
    }
}

#[test]
fn targets_suffixes_and_long_prompts_are_looked_for_as_they_are_given() {
    for model in SPM {
        for (target, flags) in [
            ("the king", &["--prompt-tokens", "8", "--suffix", ":"][..]),
            (" the king", &["--prompt-tokens", "8", "--prefix", "My lord, "]),
            ("ing", &["--prompt-tokens", "60"]),
            ("\nKing", &["--prompt-tokens", "4"]),
            (", and", &["--prompt-tokens", "4", "--template", "Who rules? {}\nHe"]),
        ] {
            let found = inversion(on(model, &["invert", target, "--steps", "2"]).args(flags));
            assert_eq!((&found["target_text"], &found["round_trips"]), (&json!(target), &json!(true)), "{model}: {found}");
            let fixed = |key: &str| found["settings"][key].as_str().unwrap().to_owned();
            let whole = fixed("prefix") + found["free_text"].as_str().unwrap() + &fixed("suffix");
            assert_eq!(found["prompt_text"], whole);
        }
    }
}

#[test]
fn a_chat_is_one_text_by_the_models_own_template() {
    let model = chatty(TEMPLATE);
    let whole = |turn: &str| format!("<s>[system] Be brief.\n[user] {turn}\n[assistant]");
    let chat = ["--chat", "--system", "Be brief."];
    let written = answer(on(&model, &["complete", "the king", "--tokens", "5", "--json"]).args(chat));
    let plain = answer(&mut on(&model, &["complete", &whole("the king"), "--tokens", "5", "--json"]));
    assert_eq!((&written["prompt_ids"], &written["completion_text"]), (&plain["prompt_ids"], &plain["completion_text"]));
    let text = written["completion_text"].as_str().unwrap();
    let score = answer(on(&model, &["score", "the king", text, "--json"]).args(chat));
    assert_eq!((&score["exact"], &score["free_text"]), (&json!(true), &json!("the king")), "{score}");
    assert_eq!(score["prompt_text"], whole("the king"));
    let turns = |system: &[&str]| {
        let score = answer(on(&model, &["score", "he", "she", "--chat", "--json"]).args(system));
        score["prompt_text"].as_str().unwrap().to_owned()
    };
    assert_eq!(turns(&["--system", ""]), whole("he").replace("Be brief.", ""), "a turn without a word is one");
    assert_eq!(turns(&[]), "<s>[user] he\n[assistant]");
    let inside = answer(on(&model, &["score", "king", text, "--json", "--template", "the {}"]).args(chat));
    assert_eq!(inside["prompt_ids"], score["prompt_ids"]);

    let found = inversion(on(&model, &["invert", " zounds", "--steps", "3", "--prompt-tokens", "5", "--prefix", "Say"]).args(chat));
    let free = found["free_text"].as_str().unwrap();
    assert_eq!(found["prompt_text"], whole(&format!("Say{free}")));
    assert_eq!((&found["round_trips"], &found["settings"]["chat"]), (&json!(true), &json!(true)), "{found}");
    let shown = run(on(&model, &["invert", " zounds", "--steps", "1", "--prompt-tokens", "3"]).args(chat)).out;
    assert!(shown.starts_with("found    \"") && shown.contains("\nprompt   \"<s>[system] Be brief.⏎[user] "), "{shown}");
    let turn = ["invert", " zounds", "--steps", "3", "--prompt-tokens", "5", "--prefix", "Say", "--print", "prompt"];
    assert_eq!(run(on(&model, &turn).args(chat)).out, format!("Say{free}\n"));
}

/// What stands around a turn is nobody's repetition.
#[test]
fn a_template_that_holds_the_targets_letters_is_no_repetition() {
    let model = chatty("{% for m in messages %}<wherefore art {{ m.role }}>{{ m.content }}{% endfor %}");
    let notes = |prompt: &str| {
        let score = answer(&mut on(&model, &["score", prompt, " wherefore art", "--chat", "--json"]));
        assert_eq!(score["overlap_text"], 1.0, "the number is of the whole prompt: {score}");
        score["notes"].to_string()
    };
    assert!(!notes("Who are you?").contains("repeats much"));
    assert!(notes("say: wherefore art thou").contains("repeats much of the target"));
}

/// The template trims a turn, so its first word begins without a space; and the reply ends as the model ends a text.
#[test]
fn words_and_an_end_are_asked_for_in_a_chat() {
    let model = chatty(TEMPLATE);
    let flags = ["invert", " zounds", "--chat", "--words", "--end", "--steps", "2", "--prompt-tokens", "5"];
    let found = inversion(&mut on(&model, &flags));
    let free = found["free_text"].as_str().unwrap();
    assert!(free.split(' ').count() == 5 && free.split(' ').all(|word| word.bytes().all(|b| b.is_ascii_alphabetic())), "{found}");
    assert_eq!((&found["best"]["valid"], &found["round_trips"]), (&json!(true), &json!(true)), "{found}");
    assert_eq!((ids(&found["target_ids"]).last(), &found["target_text"]), (Some(&2), &json!(" zounds")));
}

#[test]
fn what_cannot_be_a_chat_is_refused_with_a_word() {
    let model = chatty(TEMPLATE);
    refuses(&mut on(SPM[0], &["invert", "x", "--chat"]), 2, &["spm-legacy", "no chat template"]);
    refuses(&mut on(&model, &["invert", "x", "--system", "y"]), 2, &["--system", "chat"]);
    refuses(&mut on(&model, &["complete", "x", "--chat", "--bos"]), 2, &["--bos", "template"]);
    refuses(&mut on(&model, &["complete", "x", "--template", "y"]), 2, &["--template", "{}"]);
    for endless in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 99999999 }}{{ ('x' * 99999999) | replace('x', 'yyyyyyyy') }}",
    ] {
        let model = chatty(endless);
        refuses(&mut on(&model, &["invert", "x", "--chat"]), 2, &["chat template", "without end"]);
    }
    let holding = chatty("{% set ns = namespace(a=1) %}{% set ns.a = ns %}{{ ns }}");
    refuses(&mut on(&holding, &["complete", "x", "--chat"]), 2, &["chat template", "namespace as a value"]);
    let deep = chatty(&format!("{{{{ {}1 }}}}", "not ".repeat(20_000)));
    refuses(&mut on(&deep, &["complete", "x", "--chat"]), 2, &["chat template", "bytes"]);
    let refusing = chatty("{{ raise_exception('only for \u{1b}[31mtools') }}");
    refuses(&mut on(&refusing, &["score", "x", "y", "--chat"]), 2, &["only for"]);
}

/// The real model's own template, as its GGUF has it.
#[test]
fn the_real_smollm2_chats() {
    let Some(model) = std::env::var_os("SMOLLM2_GGUF").map(std::path::PathBuf::from).filter(|path| path.exists()) else {
        eprintln!("SKIPPED: the_real_smollm2_chats needs SMOLLM2_GGUF (scripts/fetch_smollm2.sh)");
        return;
    };
    let written = answer(&mut on(&model, &["complete", "Who are you?", "--chat", "--tokens", "12", "--json"]));
    let text = written["completion_text"].as_str().unwrap();
    let score: Value = answer(&mut on(&model, &["score", "Who are you?", text, "--chat", "--json"]));
    assert_eq!(score["exact"], true, "{score}");
    let prompt = score["prompt_text"].as_str().unwrap();
    assert!(
        prompt.starts_with("<|im_start|>system\n") && prompt.ends_with("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
    );
}
