//! `invert`: what its record says, that it is true, and that a seed decides it.

use serde_json::Value;

use crate::support::*;

/// What may stand in a field of the record.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Ids,
    Flag,
    Whole,
    Number,
    /// A number, or null where there is none.
    Optional,
    Object,
    List,
}

impl Kind {
    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Ids => value.as_array().is_some_and(|ids| ids.iter().all(Value::is_u64)),
            Self::Flag => value.is_boolean(),
            Self::Whole => value.is_u64(),
            Self::Number => value.is_number(),
            Self::Optional => value.is_number() || value.is_null(),
            Self::Object => value.is_object(),
            Self::List => value.is_array(),
        }
    }
}

/// Schema `dlmi.inversion/1`: fields may be added, none renamed.
const FIELDS: &[(&str, Kind)] = &[
    ("/schema", Kind::Text),
    ("/version", Kind::Text),
    ("/model/spec", Kind::Text),
    ("/model/digest", Kind::Text),
    ("/model/architecture", Kind::Text),
    ("/model/vocab_size", Kind::Whole),
    ("/backend", Kind::Text),
    ("/device", Kind::Text),
    ("/dtype", Kind::Text),
    ("/method", Kind::Text),
    ("/preset", Kind::List),
    ("/seed", Kind::Whole),
    ("/bos", Kind::Flag),
    ("/settings", Kind::Object),
    ("/target_text", Kind::Text),
    ("/target_ids", Kind::Ids),
    ("/prompt_text", Kind::Text),
    ("/prompt_ids", Kind::Ids),
    ("/search_ids", Kind::Ids),
    ("/prompt_tokens", Kind::Whole),
    ("/free_text", Kind::Text),
    ("/completion_text", Kind::Text),
    ("/completion_ids", Kind::Ids),
    ("/exact", Kind::Flag),
    ("/solved", Kind::Flag),
    ("/round_trips", Kind::Flag),
    ("/min_margin", Kind::Optional),
    ("/lcs/relaxed_forced", Kind::Optional),
    ("/lcs/relaxed_free", Kind::Optional),
    ("/lcs/hard_forced", Kind::Number),
    ("/lcs/hard_free", Kind::Number),
    ("/best/hard_forced", Kind::Number),
    ("/best/hard_free", Kind::Number),
    ("/best/matched_prefix", Kind::Whole),
    ("/best/step", Kind::Whole),
    ("/best/valid", Kind::Flag),
    ("/best/prompt_ids", Kind::Ids),
    ("/lcs/step", Kind::Whole),
    ("/lcs/prompt_ids", Kind::Ids),
    ("/notes", Kind::List),
    ("/overlap", Kind::Number),
    ("/target_hit_ratio", Kind::Number),
    ("/overlap_text", Kind::Number),
    ("/prompt_perplexity", Kind::Optional),
    ("/target_perplexity", Kind::Optional),
    ("/target_perplexity_bos", Kind::Optional),
    ("/steps", Kind::Whole),
    ("/restarts", Kind::Whole),
    ("/load_seconds", Kind::Number),
    ("/seconds", Kind::Number),
    ("/seconds_to_exact", Kind::Optional),
    ("/cost/forward_tokens", Kind::Whole),
    ("/cost/backward_tokens", Kind::Whole),
    ("/cost/head_rows", Kind::Whole),
    ("/stopped", Kind::Text),
];

#[track_caller]
fn follows_the_schema(record: &Value) {
    for (pointer, kind) in FIELDS {
        let value = record.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is missing: {record}"));
        assert!(kind.holds(value), "{pointer} is not {kind:?}: {value}");
    }
    assert_eq!(record["schema"], "dlmi.inversion/1");
    assert_eq!(record["version"], env!("CARGO_PKG_VERSION"));
    let stops = ["exact", "budget", "time", "signal", "diverged"];
    assert!(stops.iter().any(|stop| record["stopped"] == *stop), "{record}");
    assert_eq!(record["model"]["digest"].as_str().map(str::len), Some(64), "a SHA-256");
    assert_eq!(ids(&record["completion_ids"]).len(), ids(&record["target_ids"]).len());
    assert_eq!(record["round_trips"], record["prompt_ids"] == record["search_ids"]);
    assert_eq!(record["stopped"] == "exact", record["seconds_to_exact"].is_number());
}

/// Everything that the record claims of its prompt, asked again through the other verbs.
#[track_caller]
fn stands_up(record: &Value, model: &[&str]) {
    let ask = |arguments: &[&str]| answer(dlmi(model).arg("--json").args(arguments));
    let fixed = |key: &str| record["settings"][key].as_str().expect("a text").to_owned();
    let prompt = record["prompt_text"].as_str().expect("a text");
    assert_eq!(prompt, format!("{}{}{}", fixed("prefix"), record["free_text"].as_str().unwrap(), fixed("suffix")));

    let m = ids(&record["target_ids"]).len().to_string();
    let typed = ask(&["complete", "--tokens", &m, "--", prompt]);
    assert_eq!(typed["prompt_ids"], record["prompt_ids"], "the ids are those of the text");
    let given = ask(&["complete", "--tokens", &m, "--ids", &listed(&record["prompt_ids"])]);
    for completion in [&typed, &given] {
        assert_eq!(completion["completion_ids"], record["completion_ids"]);
        assert_eq!(completion["completion_text"], record["completion_text"]);
    }
    assert_eq!(record["exact"], record["completion_ids"] == record["target_ids"]);

    let (prompt_ids, target_ids) = (listed(&record["prompt_ids"]), listed(&record["target_ids"]));
    let score = ask(&["score", "--prompt-ids", &prompt_ids, "--target-ids", &target_ids]);
    for key in ["hard_forced", "hard_free", "matched_prefix"] {
        assert_eq!(score[key], record["best"][key], "{key}");
    }
    let margin = |record: &Value| record["min_margin"].as_f64().map(|margin| margin as f32);
    assert_eq!(margin(&score), margin(record));
    for key in ["exact", "overlap", "target_hit_ratio", "overlap_text", "completion_ids", "completion_text"] {
        assert_eq!(score[key], record[key], "{key}");
    }
    for key in ["prompt_perplexity", "target_perplexity", "target_perplexity_bos"] {
        assert_eq!(score[key], record[key], "{key}");
    }
}

#[test]
fn the_record_follows_the_schema_and_stands_up() {
    let model = ["--model", TINY, "--backend", "flex"];
    for method in ["snap", "dlmi", "gcg", "arca", "autoprompt", "pez", "adc", "random", "echo"] {
        let record = inversion(
            tiny(["invert", OUT_OF_REACH, "--method", method, "--steps", "4", "--prompt-tokens", "6"])
                .args(["--prefix", "say", "--suffix", " now:"]),
        );
        follows_the_schema(&record);
        assert_eq!(record["method"], method);
        assert_eq!((&record["exact"], &record["stopped"]), (&false.into(), &"budget".into()));
        assert_eq!(record["target_text"], OUT_OF_REACH);
        let has_a_relaxed_prompt = method == "dlmi";
        assert_eq!(record["lcs"]["relaxed_forced"].is_number(), has_a_relaxed_prompt);
        assert_eq!(record["lcs"]["relaxed_free"].is_number(), has_a_relaxed_prompt);
        stands_up(&record, &model);
    }
}

#[test]
fn a_short_target_is_found_exactly() {
    for method in ["snap", "random"] {
        let record = inversion(&mut tiny(["invert", " and", "--method", method, "--steps", "300", "--prompt-tokens", "8"]));
        follows_the_schema(&record);
        assert_eq!((&record["exact"], &record["stopped"]), (&true.into(), &"exact".into()), "{record}");
        assert_eq!(record["completion_text"], " and");
        assert!(record["min_margin"].as_f64().unwrap() > 0.0);
        for score in ["hard_forced", "hard_free"] {
            assert_eq!(record["best"][score], 1.0);
        }
        assert_eq!(record["best"]["matched_prefix"], 1);
        stands_up(&record, &["--model", TINY]);
    }
}

/// What bard writes after a line of its own kind, bard can be made to write after another one.
#[test]
fn the_bundled_model_is_inverted() {
    let written = answer(&mut dlmi(["--backend", "flex", "complete", "--json", "--tokens", "4", "What is the matter, my good lord"]));
    let target = written["completion_text"].as_str().unwrap();
    let record = record(run(&mut dlmi(["--json", "invert", "--backend", "flex", "--steps", "400", "--", target])));
    follows_the_schema(&record);
    assert_eq!(record["model"]["spec"], "bard");
    assert_eq!(record["preset"], serde_json::json!(["bard"]));
    assert_eq!(record["target_text"], target);
    assert_eq!(record["exact"], true, "{record}");
    stands_up(&record, &["--backend", "flex"]);
}

#[test]
fn an_exact_prompt_does_not_end_a_run_without_early_stop() {
    let arguments = ["invert", "er", "--steps", "40", "--prompt-tokens", "8", "--set", "early_stop=false"];
    let record = inversion(&mut tiny(arguments));
    assert_eq!((&record["exact"], &record["stopped"], &record["steps"]), (&true.into(), &"budget".into(), &40.into()), "{record}");
    assert!(record["best"]["step"].as_u64().unwrap() < 40);
}

#[test]
fn the_bundled_model_has_a_target_of_its_own() {
    let record = inversion(&mut dlmi(["invert", "--backend", "flex", "--steps", "1"]));
    assert!(!ids(&record["target_ids"]).is_empty());
    assert_eq!(record["method"], "snap");
    assert_eq!(record["settings"]["prompt_tokens"], 20);
    // A budget in steps takes the place of the ten minutes.
    assert_eq!(record["settings"]["max_seconds"], Value::Null);
    let documented = std::fs::read_to_string("docs/record.md").unwrap();
    for key in record.as_object().unwrap().keys() {
        assert!(documented.contains(&format!("`{key}`")), "docs/record.md does not name {key}");
    }
}

/// The same bytes from the same seed, on one thread and on two.
#[track_caller]
fn a_seed_decides(arguments: &[&str]) {
    for backend in CPU_BACKENDS {
        for method in ["snap", "dlmi", "dlmi-tf", "reinforce"] {
            let record = |threads: &str, seed: &str| {
                let mut command = dlmi(arguments);
                command.args(["--backend", backend, "--method", method, "--seed", seed]).env("RAYON_NUM_THREADS", threads);
                untimed(&inversion(&mut command)).to_string()
            };
            let first = record("1", "7");
            assert_eq!(first, record("2", "7"), "{method} on {backend}: one thread and two");
            assert_eq!(first, record("2", "7"), "{method} on {backend}: twice");
            let other: Value = serde_json::from_str(&record("2", "8")).unwrap();
            let first: Value = serde_json::from_str(&first).unwrap();
            assert_ne!(first["prompt_ids"], other["prompt_ids"], "{method} on {backend}: another seed");
        }
    }
}

#[test]
fn a_seed_decides_every_byte_on_the_tiny_model() {
    a_seed_decides(&["--model", TINY, "invert", OUT_OF_REACH, "--steps", "20"]);
}

#[test]
fn a_seed_decides_every_byte_on_the_bundled_model() {
    a_seed_decides(&["invert", " my lord, I will not go.", "--steps", "3", "--set", "eval_every=2"]);
}

/// Backends agree on what they look for, though not on every rounding.
#[test]
fn the_plain_path_judges_whatever_searched() {
    for backend in CPU_BACKENDS {
        let arguments = ["--model", TINY, "--backend", backend, "invert", "ing", "--steps", "100", "--prompt-tokens", "8"];
        let record = inversion(&mut dlmi(arguments));
        assert_eq!(record["backend"], *backend);
        assert_eq!(record["exact"], true, "{record}");
        stands_up(&record, &["--model", TINY, "--backend", "flex"]);
    }
}

/// Many candidates are told what they need before they are scored, not when memory ends.
#[test]
fn the_memory_of_candidates_counts() {
    let least = |batch: &str| {
        let sentence =
            refusal(&mut tiny(["invert", " and", "--method", "gcg", "--set", &format!("gcg.batch={batch}"), "--max-memory", "1"]), 2);
        let need = sentence.split("need ").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or_else(|| panic!("{sentence}"));
        need.parse::<u64>().unwrap_or_else(|_| panic!("{sentence}"))
    };
    assert!(least("65536") > least("64") + 100, "{} {}", least("65536"), least("64"));
}

#[test]
fn less_memory_gives_the_same_result() {
    for method in ["dlmi", "dlmi-tf", "reinforce"] {
        let bard = |memory: &[&str]| {
            let mut command = dlmi(["invert", "--backend", "flex", "--method", method, "--prompt-tokens", "9", "--samples", "9"]);
            command.args(["--steps", "2"]).args(memory);
            command
        };
        let sentence = refusal(&mut bard(&["--max-memory", "1"]), 2);
        let least = sentence.split("need ").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or_else(|| panic!("{sentence}"));
        let bare = |mut record: Value| {
            record["settings"]["max_memory"] = Value::Null;
            untimed(&record)
        };
        assert_eq!(bare(inversion(&mut bard(&["--max-memory", least]))), bare(inversion(&mut bard(&[]))), "{method}");
    }
}
