//! Ids, order and refusals, on the tiny model; no weights are loaded.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::*;
use crate::source::hub::SILENT;

const TINY: &str = "tests/golden/tiny/gqa3-tied";

/// The cells of a study file on the tiny model.
fn open(text: &str) -> Result<Study> {
    let folder = tempfile::tempdir().unwrap();
    let targets: String = (0..6).map(|n| format!("{{\"id\": \"t{n}\", \"ids\": [{}, 7, 9], \"k\": {}}}\n", 3 + n, 1 + n % 3)).collect();
    std::fs::write(folder.path().join("targets.jsonl"), targets).unwrap();
    let path = folder.path().join("s.toml");
    std::fs::write(&path, text).unwrap();
    Study::open(&path, true, SILENT)
}

fn grid(rest: &str) -> String {
    format!("models = [\"{TINY}\"]\nmethods = [\"dlmi\", \"gbda\", \"snap\"]\ntargets = {{ file = \"targets.jsonl\" }}\n{rest}")
}

fn ids(text: &str) -> Vec<String> {
    open(text).unwrap().cells().iter().map(|cell| cell.id.clone()).collect()
}

#[track_caller]
fn refused(text: &str, parts: &[&str]) {
    let error = open(text).map(drop).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 2, "{message}");
    assert!(message.len() < 500 && !message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn any_beginning_compares_the_methods_on_the_same_problems_and_is_balanced_over_k_and_n() {
    let study = open(&grid("prompt_tokens = [2, 5]\nsteps = [4, 8]\nseeds = [1, 2]\n")).unwrap();
    let cells = study.cells();
    assert_eq!(cells.len(), 6 * 3 * 2 * 2 * 2);
    assert_eq!(cells.iter().map(|cell| &cell.id).collect::<HashSet<_>>().len(), cells.len());
    let without_method = |cell: &Cell| {
        let [model, k, _, rest @ ..] = cell.axes();
        (model, k, rest, cell.target.id.clone())
    };
    for block in cells.chunks(3) {
        assert!(block.iter().all(|cell| without_method(cell) == without_method(&block[0])));
        assert_eq!(block.iter().map(|cell| &cell.method).collect::<HashSet<_>>().len(), 3);
    }
    for axis in [1, 3, 4] {
        let mut counts: BTreeMap<String, usize> = cells.iter().map(|cell| (cell.axes()[axis].to_string(), 0)).collect();
        for block in cells.chunks(3) {
            *counts.get_mut(&block[0].axes()[axis].to_string()).unwrap() += 1;
            assert!(counts.values().max().unwrap() - counts.values().min().unwrap() <= 1, "axis {axis}: {counts:?}");
        }
    }
    // Shards are blocks, and together the whole.
    let blocks: Vec<usize> = (1..=7).flat_map(|number| study.shard(number, 7)).collect();
    assert_eq!(blocks, (0..cells.len()).collect::<Vec<_>>());
}

#[test]
fn an_id_is_of_what_decides_the_result() {
    let plain = grid("steps = [4]\n");
    let base = ids(&plain);
    assert_eq!(base, ids(&plain));
    assert_eq!(base[0].len(), 32);
    // Names, comments, defaults written out and the order of lines decide nothing.
    let labelled = plain.replace("\"dlmi\"", "{ name = \"dlmi\", label = \"ours\", samples = 8 }");
    let written = format!("# why\nseeds = [0]\n{plain}[settings]\neval_every = 32\n");
    assert_eq!((ids(&labelled), ids(&written)), (base.clone(), base.clone()));
    for other in ["seeds = [1]\n", "prompt_tokens = [3]\n", "[settings]\neval_every = 2\n", "[settings.snap]\nbatch = 3\n"] {
        let changed = ids(&format!("{plain}{other}"));
        let same = base.iter().filter(|id| changed.contains(id)).count();
        let expected = if other.contains("snap") { base.len() * 2 / 3 } else { 0 };
        assert_eq!(same, expected, "{other}");
    }
}

/// What is known by this id stays known by it: a change here makes every finished study pending again.
#[test]
fn ids_are_what_they_were() {
    let text = format!("models = [\"{TINY}\"]\nmethods = [\"echo\", \"gcg\"]\ntargets = {{ texts = [\" the\"] }}\nsteps = [1]\n");
    let study = open(&text).unwrap();
    for (cell, id) in study.cells().iter().zip(["0fefd8d13fc20ef44d370ce4ae583f0a", "1484fd0842bdb990b426c007360124e3"]) {
        assert_eq!(cell.id, id, "{}", cell.options.to_json());
    }
}

/// Runs that are measured too.
#[test]
fn what_lies_beside_the_weights_is_part_of_an_id() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(TINY).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let copy = folder.path().display().to_string();
    let ids = |model: &str, settings: &str| {
        let rest =
            format!("models = [\"{model}\"]\ntargets = {{ file = \"targets.jsonl\" }}\nsteps = [4]\nprompt_tokens = [2]\n{settings}");
        ["methods = [\"dlmi\"]\n", "estimators = [\"stgs\"]\n"].map(|what| ids(&format!("{what}{rest}"))).concat()
    };
    let all_differ = |a: &[String], b: &[String]| a.iter().zip(b).all(|(a, b)| a != b);
    let (plain, chat) = (ids(TINY, ""), "[settings]\nchat = true\n");
    let with_template = |text: &str| {
        std::fs::write(folder.path().join("chat_template.jinja"), text).unwrap();
        ids(&copy, chat)
    };
    let [monday, tuesday] = ["On Monday: {{ messages[0].content }}", "On Tuesday: {{ messages[0].content }}"].map(with_template);
    assert!(all_differ(&monday, &tuesday) && ids(&copy, "") == plain);
    let tokenizer = folder.path().join("tokenizer.json");
    std::fs::write(&tokenizer, std::fs::read_to_string(&tokenizer).unwrap() + "\n").unwrap();
    assert!(all_differ(&ids(&copy, ""), &plain) && all_differ(&ids(&copy, chat), &tuesday));
}

#[test]
fn studies_are_the_papers_unless_they_say_otherwise() {
    let cell = |text: &str| open(&grid(text)).unwrap().cells()[0].options.clone();
    let options = cell("");
    assert!(options.all_tokens && options.allow_target_tokens && !options.early_stop);
    assert_eq!((options.prompt_tokens, options.steps, options.max_seconds), (80, Some(256), None));
    let options = cell("presets = []\nsteps = [9]\n");
    assert!(!options.all_tokens && options.early_stop && options.steps == Some(9));
    let options = cell("positions = [900]\n");
    assert!(options.all_tokens && (options.steps, options.max_positions, options.max_seconds) == (None, Some(900), None));
    // Beside positions a method may have steps of each of its starts.
    let starts = "methods = [{ name = \"gbda\", steps = 9, restarts = 5 }]\ntargets = { bundled = true }\npositions = [900]\n";
    let options = open(starts).unwrap().cells()[0].options.clone();
    assert_eq!((options.steps, options.restarts, options.max_positions), (Some(9), 5, Some(900)));
}

#[test]
fn what_is_no_study_is_refused_with_its_place() {
    refused("methods = ", &["s.toml`, line 1", "not TOML"]);
    refused("targets = { bundled = true }", &["has no `methods`"]);
    refused("methods = [\"dlmi\"]", &["has no `targets`"]);
    refused(&grid("step = [4]\n"), &["line 4", "no `step`", "did you mean `steps`"]);
    refused(&grid("steps = 4\n"), &["line 4", "list"]);
    refused(&grid("steps = []\n"), &["line 4", "list"]);
    refused(&grid("steps = [4]\npositions = [900]\n"), &["line 5", "`positions`", "one of them"]);
    refused(&grid("[settings]\nmax_positions = 9\n"), &["line 5", "`positions = [...]`"]);
    refused(&grid("steps = [0]\n"), &["`steps`", "line 4", "whole number"]);
    refused(&grid("prompt_tokens = [\"many\"]\n"), &["`prompt_tokens`", "line 4"]);
    refused(&grid("seeds = [-1]\n"), &["`seed`", "-1"]);
    refused(&grid("seeds = [1, 2, 1]\n"), &["are the same cell", "seed 1"]);
    refused(&grid("presets = [\"papr\"]\n"), &["line 4", "`papr`", "paper"]);
    refused(&grid("presets = []\n"), &["snap", "no budget in steps"]);
    refused(&grid("[settings]\nseed = 1\n"), &["line 5", "`seed` is an axis"]);
    refused("methods = [\n{ name = \"gbda\", steps = 9 }]\ntargets = { bundled = true }", &["line 2", "`steps` is an axis"]);
    refused(&grid("[settings]\nmax_seconds = 1\n"), &["line 5", "budget"]);
    refused(&grid("").replacen("\"snap\"", "{ name = \"snap\", label = \" \" }", 1), &["label of a `snap` is empty"]);
    refused(&grid("[settings]\ndevice = 1\n"), &["line 5", "`study run`"]);
    refused(&grid("[settings]\nevery = 1\n"), &["`every`", "line 5", "is not a setting"]);
    refused(&grid("[settings.gbda]\ntaus = 1\n"), &["`gbda.taus`", "line 5"]);
    refused("methods = [{ tau = 1 }]\ntargets = { bundled = true }", &["line 1", "needs a name"]);
    refused("methods = [{ name = \"gbda\", backend = \"flex\" }]\ntargets = { bundled = true }", &["line 1", "whole study"]);
    refused("methods = [\"gbda\", \"gbda\"]\ntargets = { bundled = true }", &["two methods are called `gbda`"]);
    refused("methods = [\"gbd\"]\ntargets = { bundled = true }", &["line 1", "gbda", "\"gbd\""]);
    refused("methods = [\"dlmi\"]\ntargets = { texts = [] }", &["`texts`", "list"]);
    refused("methods = [\"dlmi\"]\ntargets = { texts = [\"\"] }", &["text1", "empty"]);
    refused("methods = [\"dlmi\"]\ntargets = { texts = [\"a\"], bundled = true }", &["one of"]);
    refused("methods = [\"dlmi\"]\ntargets = { bundled = false }", &["`true`"]);
    refused("methods = [\"dlmi\"]\ntargets = { file = \"none.jsonl\" }", &["none.jsonl"]);
    refused(&format!("models = [\"{TINY}\"]\nmethods = [\"dlmi\"]\ntargets = {{ bundled = true }}"), &["no bundled model"]);
    refused("models = [\"/nonexistent\"]\nmethods = [\"dlmi\"]\ntargets = { bundled = true }", &["/nonexistent"]);
    assert!(Grid::read(Path::new("/nonexistent.toml")).is_err());
}
