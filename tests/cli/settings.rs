//! `config show`: every key, and the layer that set it.

use std::fs;

use serde_json::json;

use crate::support::*;

#[test]
fn every_key_is_shown_with_its_layer() {
    let shown = answer(&mut tiny(["config", "show", "--json"]));
    let shown = shown.as_object().unwrap();
    let keys: Vec<&str> = dlmi::settings::KEYS.iter().map(|key| key.name).collect();
    assert_eq!(shown.keys().collect::<Vec<_>>(), keys);
    for (key, row) in shown {
        let layer = match key.as_str() {
            "model" | "backend" => "flag",
            "max_seconds" => "method",
            _ => "default",
        };
        assert_eq!(row["layer"], layer, "{key}");
        assert!(row["place"].is_string() && row.get("value").is_some(), "{key}");
    }

    let ran = run(&mut tiny(["config", "show"]));
    assert_eq!((ran.code, ran.err.as_str(), ran.out.lines().count()), (Some(0), "", keys.len()), "{ran:?}");
    for (line, key) in ran.out.lines().zip(keys) {
        assert!(line.starts_with(key) && line.contains(" = ") && line.contains("  # "), "{line}");
    }
}

/// Each layer sets what the next stronger one sets too, and one key more.
#[test]
fn layers_override_in_the_documented_order() {
    let folder = folder();
    let (first, second) = (folder.path().join("first.toml"), folder.path().join("second.toml"));
    fs::write(&first, "samples = 3\nmargin = 3\ntop = 3\nseed = 3\nmomentum = 0.3\n").unwrap();
    fs::write(&second, "# later files win\nmomentum = 0.33\n").unwrap();
    let mut command = tiny(["config", "show", "--json", "--preset", "paper", "--seed", "6", "--set", "seed=5", "--set", "margin=5", "-c"]);
    command.arg(&first).arg("-c").arg(&second);
    command.env("DLMI_MARGIN", "4").env("DLMI_TOP", "4").env("DLMI_SEED", "4");
    let shown = answer(&mut command);
    for (key, value, layer, place) in [
        ("seed", json!(6), "flag", "--seed"),
        ("margin", json!(5.0), "set", "--set"),
        ("top", json!(4), "environment", "DLMI_TOP"),
        ("samples", json!(3), "file", "first.toml, line 1"),
        ("momentum", json!(0.33), "file", "second.toml, line 2"),
        ("prompt_tokens", json!(80), "preset", "preset paper"),
        ("method", json!("dlmi"), "preset", "preset paper"),
        ("patience", json!(60), "default", "default"),
    ] {
        assert_eq!((&shown[key]["value"], &shown[key]["layer"]), (&value, &layer.into()), "{key}");
        assert!(shown[key]["place"].as_str().unwrap().contains(place), "{key}: {}", shown[key]);
    }
}

#[test]
fn a_model_brings_its_preset_and_every_other_layer_is_stronger() {
    let shown = |arguments: &[&str]| answer(dlmi(["config", "show", "--json"]).args(arguments))["batch"].clone();
    assert_eq!(shown(&[])["layer"], "model");
    assert_eq!(
        (shown(&["--set", "batch=5"])["layer"].clone(), shown(&["--preset", "smollm2-135m"])["layer"].clone()),
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
    let flags = ["config", "show", "--set", odd, "--set", "method=echo", "--set", "max_seconds=2.5"];
    let written = run(&mut tiny(flags));
    fs::write(&file, &written.out).unwrap();
    let values = |command: &mut assert_cmd::Command| {
        let shown = answer(command.arg("--json"));
        shown.as_object().unwrap().iter().map(|(key, row)| (key.clone(), row["value"].clone())).collect::<Vec<_>>()
    };
    let again = values(dlmi(["config", "show", "-c"]).arg(&file));
    let direct = values(&mut tiny(flags));
    assert_eq!(again, direct);
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
    refuses(&mut with("samples = 0\n"), 2, &["samples", "1"]);
    refuses(tiny(["invert", "x"]).env("DLMI_STEPS", "-1"), 2, &["DLMI_STEPS", "-1"]);
    refuses(tiny(["invert", "x"]).env("DLMI_STEP", "1"), 2, &["DLMI_STEP", "DLMI_STEPS"]);
    refuses(&mut tiny(["invert", "x", "--set", "steps"]), 2, &["--set steps", "key=value"]);
    refuses(&mut tiny(["invert", "x", "--set", "stepps=1"]), 2, &["stepps", "`steps`"]);
    refuses(&mut tiny(["invert", "x", "--set", "batch=9", "--set", "batch_max=8"]), 2, &["batch", "batch_max"]);
    refuses(tiny(["invert", "x", "-c"]).arg(folder.path().join("absent.toml")), 2, &["absent.toml"]);
}
