//! `dlmi bench`: what it measures and says, never how long it took.

use serde_json::Value;

use crate::methods::TABLE_1;
use crate::support::*;

fn bench(arguments: &[&str]) -> Value {
    answer(tiny(["bench", "--json"]).args(arguments).args(["--rounds", "2"]))
}

fn sound(measured: &Value) {
    let seconds = |name: &str| measured[name].as_f64().unwrap_or_else(|| panic!("{name} in {measured}"));
    assert!(0.0 < seconds("seconds_min") && seconds("seconds_min") <= seconds("seconds_median"));
    assert!(seconds("seconds_median") <= seconds("seconds_max"));
    assert_eq!(measured["model_digest"].as_str().unwrap().len(), 64);
    assert_eq!(measured["backend"], "flex");
    assert!(measured["threads"].as_u64().unwrap() > 0);
    if cfg!(target_os = "linux") {
        assert!(measured["peak_mib"].as_u64().unwrap() > 0);
    }
}

#[test]
fn a_step_is_timed_with_its_losses_and_operations() {
    let arguments = ["step", "--method", "dlmi", "--prompt-tokens", "3", "--target-tokens", "4", "--samples", "2"];
    let (measured, again) = (bench(&arguments), bench(&arguments));
    sound(&measured);
    assert_eq!(measured["losses"].as_array().unwrap().len(), 3);
    assert_eq!(measured["losses"], again["losses"]);
    // (2·(3 + 4 − 1) positions forth and back)·layers, 8 rows of the head forth and back, 6 soft embeddings forth and back.
    let model = answer(&mut tiny(["models", "show", "--json"]));
    let field = |name: &str| model[name].as_u64().unwrap_or_else(|| panic!("{name} in {model}"));
    let (d, v, f) = (field("hidden_size"), field("vocab_size"), field("intermediate_size"));
    let (heads, kv) = (field("attention_heads") * field("head_dim"), field("key_value_heads") * field("head_dim"));
    let layers = field("layers") * (2 * d * heads + 2 * d * kv + 3 * d * f);
    assert_eq!(measured["flops"].as_f64().unwrap() as u64, 2 * (24 * layers + 2 * 8 * v * d + 2 * 6 * v * d));
    assert!(measured["achieved_gflops"].as_f64().unwrap() > 0.0 && measured["ceiling_gflops"].as_f64().unwrap() > 0.0);
}

#[test]
fn every_method_has_steps() {
    for method in ["snap", "gcg", "arca", "autoprompt", "pez", "adc", "random", "echo", "floor"] {
        let measured = bench(&["step", "--method", method, "--prompt-tokens", "3", "--target-tokens", "4"]);
        sound(&measured);
        // Prompts that a step goes back through.
        let samples = match method {
            "adc" => 8,
            "arca" => 32,
            _ => 1,
        };
        assert_eq!((&measured["method"], &measured["samples"]), (&method.into(), &samples.into()));
    }
}

#[test]
fn candidates_continuations_and_loading_are_timed() {
    let scored = bench(&["score", "--prompt-tokens", "5", "--target-tokens", "4", "--candidates", "9"]);
    sound(&scored);
    let positions = ids(&scored["positions"]);
    assert!(positions.len() == 9 && positions.iter().all(|position| *position < 5));
    assert!(scored["candidates_per_second"].as_f64().unwrap() > 0.0);
    sound(&bench(&["generate", "--prompt-tokens", "3", "--target-tokens", "4"]));
    sound(&bench(&["load"]));
}

#[test]
fn a_model_is_compared_with_flex() {
    let arguments = ["parity", "--prompt-tokens", "5", "--target-tokens", "4"];
    let figure = |measured: &Value, name: &str| measured[name].as_f64().unwrap_or_else(|| panic!("{name} in {measured}"));
    let itself = bench(&arguments);
    assert_eq!(itself["positions"], 2 * 9);
    assert_eq!((figure(&itself, "largest_difference"), figure(&itself, "widest_lost_margin")), (0.0, 0.0));
    assert_eq!((figure(&itself, "same_argmax"), figure(&itself, "greedy_agreement")), (1.0, 1.0));
    let steps =
        |measured: &Value| TABLE_1.map(|method| ["objective", "gradient_norm"].map(|of| figure(&measured["first_steps"][method], of)));
    assert_eq!(steps(&itself), [[0.0; 2]; 5]);
    if cfg!(feature = "ndarray") {
        let other = answer(tiny(["bench", "--json", "--backend", "ndarray"]).args(arguments).args(["--rounds", "2"]));
        let relative = figure(&other, "relative_difference");
        assert!(0.0 < relative && relative < 1e-4, "{other}");
        assert_eq!(figure(&other, "largest_logit"), figure(&itself, "largest_logit"));
        assert!(steps(&other).as_flattened().iter().all(|off| *off < 1e-4), "{other}");
        assert_ne!(steps(&other), steps(&itself));
    }
}

#[test]
fn figures_are_readable_without_json() {
    let ran = run(tiny(["bench", "generate"]).args(["--rounds", "1"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.lines().any(|line| line.starts_with("seconds_median  ")), "{}", ran.out);
}

#[test]
fn what_cannot_be_timed_is_refused() {
    refuses(tiny(["bench", "step", "--prompt-tokens", "4000"]).args(["--rounds", "1"]), 2, &["context"]);
    refuses(&mut tiny(["bench", "step", "--rounds", "0"]), 2, &["rounds"]);
    refuses(&mut tiny(["bench", "step", "--method", "none"]), 2, &["none"]);
    refuses(&mut tiny(["bench", "step", "--set", "max_memory=1"]), 2, &["MiB"]);
    // What would change nothing.
    refuses(&mut tiny(["bench", "generate", "--samples", "2"]), 2, &["--samples"]);
    refuses(&mut tiny(["bench", "load", "--prompt-tokens", "4000"]), 2, &["--prompt-tokens"]);
}
