//! `config show`: every key, and the layer that set it.

use std::fs;

use serde_json::{Value, json};

use crate::support::*;

#[test]
fn every_key_is_shown_with_its_layer() {
    let shown = answer(&mut tiny(["config", "show", "--json"]));
    let mut general = shown.as_object().unwrap().clone();
    let section = general.shift_remove("snap").unwrap();
    let keys: Vec<&str> = dlmi::settings::KEYS.iter().map(|key| key.name).collect();
    assert_eq!(general.keys().collect::<Vec<_>>(), keys);
    for (key, row) in general.iter().chain(section.as_object().unwrap()) {
        let layer = match key.as_str() {
            "model" | "backend" => "flag",
            "max_seconds" => "method",
            key if keys.contains(&key) => "default",
            _ => "method",
        };
        assert_eq!(row["layer"], layer, "{key}");
        assert!(row["place"].is_string() && row.get("value").is_some(), "{key}");
    }

    let ran = run(&mut tiny(["config", "show"]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    let (top, bottom) = ran.out.split_once("\n\n[snap]\n").unwrap();
    let section: Vec<&str> = section.as_object().unwrap().keys().map(String::as_str).collect();
    assert!(["batch", "momentum", "acceptance_temperature"].iter().all(|key| section.contains(key)), "{section:?}");
    for (text, keys) in [(top, keys), (bottom, section)] {
        assert_eq!(text.lines().count(), keys.len(), "{text}");
        for (line, key) in text.lines().zip(keys) {
            assert!(line.starts_with(key) && line.contains(" = ") && line.contains("  # "), "{line}");
        }
    }
}

/// With what it means and with what it is by default, whatever method runs.
#[test]
fn every_key_of_every_section_is_in_the_help() {
    let help = run(&mut dlmi(["config", "show", "--help"])).out;
    for setting in dlmi::settings::Setting::all() {
        let line = |line: &&str| line.trim_start().starts_with(&format!("{} ", setting.key));
        // Methods of different kinds say different things of settings of one name.
        let mut said = help.lines().filter(line);
        assert!(said.any(|said| said.contains(setting.doc().split(' ').next().unwrap())), "{setting}: {help}");
    }
    for part in ["[dlmi], [dlmi-tf]", "[snap], [gcg]", "soda: 0.03", "gbda, gbda-forced: 1.0; soda: 0.05", "DLMI_SNAP_BATCH"] {
        assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains(part), "{part}: {help}");
    }
}

/// Each layer sets what the next stronger one sets too, and one key more.
#[test]
fn layers_override_in_the_documented_order() {
    let folder = folder();
    let (first, second) = (folder.path().join("first.toml"), folder.path().join("second.toml"));
    fs::write(&first, "seed = 3\n[snap]\npatience = 3\nmargin = 3\ntop = 3\nmomentum = 0.3\n").unwrap();
    fs::write(&second, "# later files win\nsnap.momentum = 0.33\n").unwrap();
    let mut command =
        tiny(["config", "show", "--json", "--preset", "paper", "--seed", "6", "--set", "seed=5", "--set", "snap.margin=5", "-c"]);
    command.arg(&first).arg("-c").arg(&second);
    command.env("DLMI_SNAP_MARGIN", "4").env("DLMI_SNAP_TOP", "4").env("DLMI_SEED", "4").env("DLMI_METHOD", "snap");
    let shown = answer(&mut command);
    for (key, value, layer, place) in [
        ("/seed", json!(6), "flag", "--seed"),
        ("/snap/margin", json!(5.0), "set", "--set"),
        ("/snap/top", json!(4), "environment", "DLMI_SNAP_TOP"),
        ("/snap/patience", json!(3), "file", "first.toml, line 3"),
        ("/snap/momentum", json!(0.33), "file", "second.toml, line 2"),
        ("/prompt_tokens", json!(80), "preset", "preset paper"),
        ("/method", json!("snap"), "environment", "DLMI_METHOD"),
        ("/max_memory", json!(null), "default", "default"),
        ("/snap/batch", json!(24), "method", "default of snap"),
    ] {
        let row = shown.pointer(key).unwrap_or_else(|| panic!("{key}: {shown}"));
        assert_eq!((&row["value"], &row["layer"]), (&value, &layer.into()), "{key}");
        assert!(row["place"].as_str().unwrap().contains(place), "{key}: {row}");
    }
}

#[test]
fn a_model_brings_its_preset_and_every_other_layer_is_stronger() {
    let shown = |arguments: &[&str]| answer(dlmi(["config", "show", "--json"]).args(arguments))["snap"]["batch"].clone();
    assert_eq!(shown(&[])["layer"], "model");
    assert_eq!(
        (shown(&["--set", "snap.batch=5"])["layer"].clone(), shown(&["--preset", "smollm2-135m"])["layer"].clone()),
        (json!("set"), json!("preset"))
    );
}

#[test]
fn budgets_depend_on_the_method() {
    let budgets = |flags: &[&str]| {
        let shown = answer(tiny(["config", "show", "--json"]).args(flags));
        (shown["steps"]["value"].clone(), shown["max_seconds"]["value"].clone())
    };
    assert_eq!(budgets(&[]), (json!(null), json!(600.0)), "ten minutes of snap");
    assert_eq!(budgets(&["--set", "steps=9"]), (json!(9), json!(null)), "a budget in steps takes their place");
    assert_eq!(budgets(&["--set", "steps=9", "--set", "max_seconds=5"]), (json!(9), json!(5.0)));
    for method in ["dlmi", "random"] {
        assert_eq!(budgets(&["--set", &format!("method={method}")]), (json!(256), json!(null)), "{method}");
    }
}

#[test]
fn what_is_shown_is_a_file_that_says_the_same() {
    let folder = folder();
    let file = folder.path().join("all.toml");
    let odd = "prefix=say \"\\\u{7f}\t\u{1b}\u{9b}\u{202e}\u{feff} grüß e\u{301} 🙂";
    for method in ["method=echo", "method=snap", "method=soda", "method=dlmi-tf"] {
        let flags = ["config", "show", "--set", odd, "--set", method, "--set", "max_seconds=2.5", "--set", "dlmi-tf.learning_rate=1e-7"];
        let written = run(&mut tiny(flags));
        fs::write(&file, &written.out).unwrap();
        // Every row without the place that set it.
        fn bare(rows: &Value) -> Value {
            match rows.get("value") {
                Some(value) => value.clone(),
                None => rows.as_object().unwrap().iter().map(|(key, row)| (key.clone(), bare(row))).collect(),
            }
        }
        let values = |command: &mut assert_cmd::Command| bare(&answer(command.arg("--json")));
        let again = values(dlmi(["config", "show", "-c"]).arg(&file));
        let direct = values(&mut tiny(flags));
        assert_eq!(again, direct);
    }
}

#[test]
fn wrong_settings_are_refused_with_their_place() {
    let folder = folder();
    let file = folder.path().join("wrong.toml");
    let with = |text: &str| {
        fs::write(&file, text).unwrap();
        let mut command = tiny(["invert", "x", "-c"]);
        command.arg(&file);
        command
    };
    refuses(&mut with("\nsteps = \"many\"\n"), 2, &["steps", "wrong.toml, line 2"]);
    refuses(&mut with("step = 3\n"), 2, &["step", "did you mean `steps`", "wrong.toml, line 1"]);
    refuses(&mut with("steps = \n"), 2, &["wrong.toml", "line 1", "TOML"]);
    refuses(&mut with("[dlmi]\nsamples = 0\n"), 2, &["dlmi.samples", "wrong.toml, line 2", "1"]);
    refuses(&mut with("batch = 3\n"), 2, &["`batch`", "did you mean `snap.batch`", "wrong.toml, line 1"]);
    refuses(&mut with("[snpa]\nbatch = 3\n"), 2, &["`snpa`", "did you mean `snap`", "wrong.toml, line 1"]);
    refuses(tiny(["invert", "x"]).env("DLMI_BATCH", "1"), 2, &["DLMI_BATCH", "DLMI_SNAP_BATCH"]);
    refuses(tiny(["invert", "x"]).env("DLMI_STEPS", "-1"), 2, &["DLMI_STEPS", "-1"]);
    refuses(tiny(["invert", "x"]).env("DLMI_STEP", "1"), 2, &["DLMI_STEP", "DLMI_STEPS"]);
    refuses(&mut tiny(["invert", "x", "--set", "steps"]), 2, &["--set steps", "key=value"]);
    refuses(&mut tiny(["invert", "x", "--set", "stepps=1"]), 2, &["stepps", "`steps`"]);
    refuses(
        &mut tiny(["invert", "x", "--set", "snap.batch=9", "--set", "snap.batch_max=8"]),
        2,
        &["`snap.batch` (--set)", "`snap.batch_max` (--set)"],
    );
    refuses(&mut tiny(["invert", "x", "--method", "dlmi", "--set", "snap.batch=0"]), 2, &["snap.batch", "1"]);
    refuses(&mut tiny(["invert", "x", "--samples", "3"]), 2, &["`--samples` is not for snap, which has objective, margin, "]);
    refuses(tiny(["invert", "x", "-c"]).arg(folder.path().join("absent.toml")), 2, &["absent.toml"]);
}
