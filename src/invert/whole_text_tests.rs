//! Text is whole: prompts, targets and completions read as one text, whatever the tokenizer does to fragments.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::judge::Judge;
use crate::method::search::random_prompt;
use crate::model::{Checkpoint, Llama, greedy};
use crate::noise::Clock;
use crate::problem::{Chat, Problem, PromptOptions, Target};
use crate::source::{Bundled, ChatTemplate, Digests, Message, Tokenizer, bundled};
use crate::tensor::ids_tensor;
use crate::testing::{golden, loaded, real_smollm2};

/// A tokenizer like SentencePiece's, with a model of its vocabulary.
fn spm(change: impl FnOnce(&mut Value)) -> (Tokenizer, Checkpoint) {
    let checkpoint = Checkpoint::open(&golden("cases/spm-legacy")).unwrap();
    let mut json: Value = serde_json::from_slice(&std::fs::read(golden("cases/spm-legacy/tokenizer.json")).unwrap()).unwrap();
    change(&mut json);
    (Tokenizer::from_json_bytes(json.to_string().as_bytes(), "spm").unwrap(), checkpoint)
}

/// The dummy prefix before every piece between special tokens, before the first only, and before every word that lacks a space.
fn spms() -> [(Tokenizer, Checkpoint); 3] {
    let metaspace = |scheme: &'static str, split: bool| {
        move |json: &mut Value| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        }
    };
    [spm(|_| ()), spm(metaspace("first", false)), spm(metaspace("always", true))]
}

fn bard() -> (Tokenizer, Checkpoint) {
    let checkpoint = Checkpoint::of(bundled("bard").map(Bundled::files).unwrap().unwrap(), &Digests::of_user()).unwrap();
    (checkpoint.tokenizer.clone(), checkpoint)
}

/// The tokenizers of all kinds, each with a model.
static MODELS: LazyLock<Vec<(Tokenizer, Llama<burn::backend::Flex>)>> = LazyLock::new(|| {
    let load = |(tokenizer, mut checkpoint): (Tokenizer, Checkpoint)| {
        let model = loaded(&mut checkpoint, burn::tensor::DType::F32);
        (tokenizer, model)
    };
    let real = real_smollm2("text_is_whole").map(|path| Checkpoint::open(&path).unwrap());
    let all = spms().into_iter().chain([bard()]).chain(real.map(|checkpoint| (checkpoint.tokenizer.clone(), checkpoint)));
    all.map(load).collect()
});

fn problem(options: PromptOptions, target: &str, tokenizer: &Tokenizer) -> Problem {
    Problem::new(options, Target::from_text(target, tokenizer).unwrap(), tokenizer, tokenizer.vocab_size()).unwrap()
}

/// Letters of several scripts, signs, and characters of more than one scalar.
const ANY: &str = "[ \\n\\ta-zA-Z0-9äéßñłЖא中文字ก👍👩\u{200d}💻e\u{301}_'\"(-]{1,10}";

/// See [`what_is_completed_is_exact`].
fn is_exact_when_completed(prompt: &str, tokens: usize) -> Result<(), TestCaseError> {
    for (tokenizer, model) in MODELS.iter() {
        let judge = Judge::new(model.clone());
        let ids = tokenizer.encode(prompt);
        let completion = greedy(model, model.embed(ids_tensor(&[&ids], &model.device())), tokens, &[]).ids.remove(0);
        let text = tokenizer.decode_behind(&ids, &completion);
        let whole = tokenizer.decode(&[&*ids, &completion].concat());
        // What is no whole character cannot be typed, and may spoil the one before it; nor can a special token, which has a text.
        let typed = !text.is_empty() && !text.contains('\u{fffd}') && !completion.iter().any(|&id| tokenizer.is_special(id));
        prop_assert!(whole == tokenizer.decode(&ids) + &text || text.contains('\u{fffd}'), "{:?} {:?}", whole, text);
        if typed {
            let target = judge.target_behind(&ids, &text, tokenizer).unwrap();
            let verdict = judge.verdict(true, &[(&ids, &target.ids)]).unwrap();
            prop_assert!(verdict.exact || verdict.min_margin == 0.0, "{:?} {:?}", text, target.ids);
        }
    }
    Ok(())
}

/// See [`what_is_admitted_reads_whole`].
fn reads_whole(prefix: &str, suffix: &str, seed: u32) -> Result<(), TestCaseError> {
    for (tokenizer, ..) in MODELS.iter() {
        let options = PromptOptions { tokens: 5, prefix: prefix.into(), suffix: suffix.into(), ..PromptOptions::default() };
        let problem = problem(options, " zounds", tokenizer);
        let free = random_prompt(&problem, Clock { seed, restart: 0, step: 0 }, 0).unwrap();
        let (text, example) = (problem.free_text(&free), problem.first());
        prop_assert_eq!(example.text(&text), format!("{prefix}{text}{suffix}"));
        prop_assert_eq!(example.typed_ids(&text), example.search_ids(&free));
        prop_assert!(free.iter().all(|&id| problem.prompt.allowed()[id as usize]));
    }
    Ok(())
}

/// SmolLM2 writes `zz` in two tokens here, so the first five of its tokens end inside of a character.
#[test]
fn what_ends_inside_of_a_character_is_completed() {
    is_exact_when_completed("a▁▁azkq", 6).unwrap();
}

/// A tokenizer that sets a space before every text has one token for that and the prompt's first word for this one.
#[test]
fn what_stands_behind_a_bare_space_reads_whole() {
    reads_whole(" ", "", 0).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// `complete` prints what the model adds, and `score` finds that it writes exactly that.
    #[test]
    fn what_is_completed_is_exact(
        prompt in prop_oneof!["[A-Z]?[a-z]{1,6}([ ,.\\n]{1,2}[a-z]{1,6}){0,5}[ .:]?", ANY, "[ ▁a]{1,4}[a-z]{1,5}"],
        tokens in 1usize..7,
    ) {
        is_exact_when_completed(&prompt, tokens)?;
    }

    /// A target is written as it is given, wherever it begins.
    #[test]
    fn a_target_reads_as_it_is_given(
        text in prop_oneof!["[ \\n.,:]?[a-zA-Z]{1,8}( [a-z]{1,5}){0,3}|\\n\\n|[.,:;!?] ?[a-z]{0,5}", ANY],
    ) {
        for (tokenizer, ..) in MODELS.iter() {
            let target = Target::from_text(&text, tokenizer).unwrap();
            for before in ["a", "the king", "So.\n"] {
                let before = tokenizer.encode(before);
                prop_assert_eq!(tokenizer.decode_behind(&before, &target.ids), text.clone());
            }
            prop_assert!(target.round_trips(tokenizer));
            prop_assert_eq!(Target::from_ids(target.ids.clone(), tokenizer), target);
        }
    }

    /// A search has a start that is what was asked for, wherever it stands.
    #[test]
    fn what_is_admitted_is_as_asked(prefix in "|Q: |Say", suffix in "|\\?|, he", seed in 0u32..1000) {
        for (tokenizer, ..) in MODELS.iter() {
            let (prefix, suffix, forbid) = (prefix.clone(), suffix.clone(), "the\nmy lord".to_owned());
            let options = PromptOptions { tokens: 5, prefix, suffix, forbid, ascii: true, words: true, ..PromptOptions::default() };
            let problem = problem(options, " zounds", tokenizer);
            let free = random_prompt(&problem, Clock { seed, restart: 0, step: 0 }, 0).unwrap();
            let text = problem.free_text(&free).to_lowercase();
            let words: Vec<&str> = text.strip_prefix(' ').unwrap_or(&text).split(' ').collect();
            prop_assert!(words.iter().all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase())), "{}", text);
            prop_assert!(!words.contains(&"the") && !text.contains("my lord"), "{}", text);
            prop_assert!(problem.is_valid(&free, &problem.typed_ids(&free)));
        }
    }

    /// Whatever the fixed text, a free part whose text gives its ids stands where it should.
    #[test]
    fn what_is_admitted_reads_whole(
        prefix in prop_oneof!["|[A-Z][a-z]{0,6}[ :\\n]{0,2}|Q: |the ki", ANY],
        suffix in prop_oneof!["|[ :,?]{0,2}[a-z]{0,6}| \\?\nA:|ng", ANY],
        seed in 0u32..1000,
    ) {
        reads_whole(&prefix, &suffix, seed)?;
    }
}

#[test]
fn a_fixed_text_is_cut_where_tokens_are() {
    let (tokenizer, ..) = &MODELS[3];
    let frame = |prefix: &str, suffix: &str| {
        let options = PromptOptions { tokens: 3, prefix: prefix.into(), suffix: suffix.into(), ..PromptOptions::default() };
        let problem = problem(options, " x", tokenizer);
        let fixed = |ids: &[u32]| ids.iter().map(|&id| tokenizer.decode(&[id])).collect::<String>();
        (fixed(problem.first().head()), fixed(problem.first().tail()))
    };
    let pair = |head: &str, tail: &str| (head.to_owned(), tail.to_owned());
    assert_eq!(frame("", ""), pair("", ""));
    assert_eq!(frame("My lord, the king", " is dead"), pair("My lord, the king", " is dead"));
    // The space before a word is part of the word's token.
    assert_eq!(frame("My lord: ", "\n"), pair("My lord:", "\n"));
}

#[test]
fn long_prompts_have_a_start_with_every_tokenizer() {
    for (tokenizer, ..) in MODELS.iter() {
        for (tokens, suffix) in [(60, ""), (60, ":"), (200, "")] {
            let options = PromptOptions { tokens, suffix: suffix.into(), ..PromptOptions::default() };
            let problem = problem(options, "the king", tokenizer);
            let starts: BTreeSet<Vec<u32>> =
                (0..3).map(|seed| random_prompt(&problem, Clock { seed, restart: 0, step: 0 }, 0).unwrap()).collect();
            assert!(starts.len() == 3 && starts.iter().all(|free| problem.admits(free)));
        }
    }
}

#[test]
fn what_nobody_can_type_is_no_part_of_a_prompt() {
    let (tokenizer, ..) = &MODELS[0];
    let problem = problem(PromptOptions { tokens: 3, ..PromptOptions::default() }, " zounds", tokenizer);
    let allowed = |token: &str| problem.prompt.allowed()[tokenizer.token_id(token).unwrap() as usize];
    // A byte for a character that has a token of its own, and one that has none.
    assert!(!allowed("<0x61>") && allowed("a") && allowed("▁the") && !allowed("<s>"));
    let seven = tokenizer.token_id("<0x0A>").unwrap();
    assert_eq!(problem.prompt.allowed()[seven as usize], tokenizer.encode("a\nb").contains(&seven));
}

/// With them the character before no longer reads either, but it is not what was added.
#[test]
fn bytes_of_no_character_are_all_that_they_add() {
    let (tokenizer, ..) = &MODELS[0];
    let byte = tokenizer.token_id("<0x80>").unwrap();
    assert_eq!(tokenizer.decode_behind(&tokenizer.encode("a文"), &[byte]), "\u{fffd}");
}

#[test]
fn what_acts_on_a_terminal_is_no_part_of_a_prompt() {
    let (tokenizer, ..) = &MODELS[3];
    let problem = |allow_everything| problem(PromptOptions { tokens: 3, allow_everything, ..Default::default() }, " zounds", tokenizer);
    let (strict, all) = (problem(false), problem(true));
    let allowed = |problem: &Problem, text: &str| {
        let ids = tokenizer.encode(text);
        assert_eq!(ids.len(), 1, "{text:?} is a token");
        problem.prompt.allowed()[ids[0] as usize]
    };
    for control in (0u8..0x20).map(char::from).chain(['\u{7f}']).map(String::from) {
        assert_eq!(allowed(&strict, &control), matches!(&*control, "\t" | "\n"), "{control:?}");
        assert!(allowed(&all, &control));
    }
    let hides = |id: usize| tokenizer.decode(&[id as u32]).contains(|c: char| c.is_control() && c != '\t' && c != '\n');
    assert!((0..tokenizer.vocab_size()).all(|id| !strict.prompt.allowed()[id] || !hides(id)));
}

/// A chat in the manner of ChatML, and one that trims.
#[test]
fn a_chat_is_typed_through_its_template() {
    let (tokenizer, ..) = &MODELS[3];
    for (source, wanted) in [
        ("{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}[assistant]\n", "[system]\nBrief.\n[user]\n"),
        ("{{ messages[0].content }}: {{ messages[1].content | trim }}\n", "Brief.: "),
    ] {
        let template = Arc::new(ChatTemplate::new(source, Map::new(), "here").unwrap());
        let chat = Some(Chat { template: template.clone(), system: Some("Brief.".into()) });
        let options = PromptOptions { tokens: 4, prefix: "Say".into(), chat, allow_special: true, ..PromptOptions::default() };
        let problem = problem(options, " zounds", tokenizer);
        assert!(!problem.prompt.allowed()[tokenizer.token_id("<|endoftext|>").unwrap() as usize], "it would end the turn");
        let free = random_prompt(&problem, Clock { seed: 1, restart: 0, step: 0 }, 0).unwrap();
        let (example, text) = (problem.first(), problem.free_text(&free));
        let whole = example.text(&text);
        let turn = Message { role: "user", content: &format!("Say{text}") };
        assert_eq!(whole, template.render(&[Message { role: "system", content: "Brief." }, turn]).unwrap());
        assert!(whole.starts_with(&format!("{wanted}Say{text}")), "{whole}");
        assert_eq!(tokenizer.encode(&whole), example.search_ids(&free));
        // A space at the end is lost where the template trims: not what was searched.
        let spaced = [&free[..3], &tokenizer.encode(" ")].concat();
        assert_eq!(
            problem.admits(&spaced),
            !source.contains("trim") && tokenizer.encode(&example.text(&problem.free_text(&spaced))) == example.search_ids(&spaced)
        );
    }
    let twice = ChatTemplate::new("{{ messages[0].content }}{{ messages[0].content }}", Map::new(), "`here`").unwrap();
    let options = PromptOptions { tokens: 4, chat: Some(Chat { template: Arc::new(twice), system: None }), ..PromptOptions::default() };
    let target = Target::from_text(" x", tokenizer).unwrap();
    let error = Problem::new(options, target, tokenizer, tokenizer.vocab_size()).unwrap_err();
    assert!(error.to_string().contains("exactly once"), "{error}");
}
