//! The paper's five methods, and what is said of them.

use serde_json::Value;

use crate::support::{dlmi, refuses, run, tiny};
#[cfg(feature = "ndarray")]
use crate::support::{events, folder, inversion};

/// Those with a row in Table 1.
pub const TABLE_1: [&str; 5] = ["dlmi", "dlmi-tf", "gbda", "reinforce", "soda"];

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn table_1_is_printed_from_its_rows() {
    let shown = run(&mut tiny(["methods"]));
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let line = |name: &str| shown.out.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap().to_owned();
    assert!(
        line("dlmi").ends_with("yes             Gumbel-softmax                     yes, tau0 = 100, one per position  yes"),
        "{}",
        shown.out
    );
    assert!(line("soda").contains("tau = 0.05") && line("gbda").contains("fed back soft"), "{}", shown.out);
    let rows = json(&run(&mut tiny(["methods", "--json"])).out);
    let cell = |name: &str, column: &str| rows.as_array().unwrap().iter().find(|row| row["method"] == name).unwrap()[column].clone();
    assert_eq!(TABLE_1.map(|name| cell(name, "teacher_forcing").as_str().unwrap().starts_with("yes")), [true, false, false, false, true]);
    assert_eq!(cell("soda", "optimiser"), "Adam 0.03 (0.9, 0.995), no bias correction, decay 0.98, reset every 50");
    assert_eq!(cell("reinforce", "gradient_estimator"), "REINFORCE, ema baseline, beta 0.9");
    let columns = ["soft_embedding", "gradient_estimator", "learned_temperature", "teacher_forcing"];
    let others =
        ["stgs", "rebar", "relax", "gbda-forced"].map(|name| columns.map(|column| cell(name, column).as_str().unwrap().to_owned()));
    let expected = [
        ["backward only", "straight-through Gumbel-softmax", "yes, tau0 = 100, one per position", "yes"],
        ["control only", "REBAR, lambda chosen", "-", "no, fed back soft"],
        ["control only", "RELAX, lambda chosen, 16 hidden", "-", "no, fed back soft"],
        ["yes", "Gumbel-softmax", "no, tau = 1", "yes"],
    ];
    assert_eq!(others, expected.map(|row| row.map(str::to_owned)));
}

#[test]
fn a_control_variate_that_no_gradient_passes_through_is_refused() {
    for method in ["rebar", "relax"] {
        let hard = ["--method", method, "--set", &format!("{method}.feedback=hard")];
        refuses(tiny(["invert", "he is"]).args(hard), 2, &[&format!("`{method}.feedback` (--set) must be soft or gumbel, not hard")]);
    }
}

/// The hard scores are those of the prompt as a user would have it scored; there are relaxed ones where there is a relaxed prompt. On
/// the bundled model, which guesses some tokens of any English target.
#[test]
fn every_method_takes_the_four_scores() {
    let bard = |arguments: &[&str]| json(&run(dlmi(["--backend", "flex", "-q", "--json"]).args(arguments)).out);
    let ids = |ids: &Value| ids.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    for method in TABLE_1 {
        let record = bard(&["invert", "--method", method, "--prompt-tokens", "3", "--steps", "3", "--preset", "paper"]);
        // Those of the last step are of the prompt at the last step, which need not be the best.
        let (prompt, target) = (ids(&record["lcs"]["prompt_ids"]), ids(&record["target_ids"]));
        let score = bard(&["score", "--prompt-ids", &prompt, "--target-ids", &target]);
        for name in ["hard_forced", "hard_free"] {
            assert_eq!(record["lcs"][name], score[name], "{method} {name}");
        }
        assert!(score["hard_forced"].as_f64().unwrap() > 0.0, "{method}: {score}");
        for name in ["relaxed_forced", "relaxed_free"] {
            assert_eq!(record["lcs"][name].is_null(), method == "reinforce", "{method} {name}");
        }
        assert_eq!((&record["method"], &record["steps"]), (&method.into(), &3.into()));
    }
}

/// On the bundled model, with plain Burn's products and layers in place of ours. What `gbda` feeds back is as sharp as τ = 1 makes it, and a
/// rounding grows from token to token.
#[cfg(feature = "ndarray")]
#[test]
fn first_steps_have_the_loss_and_gradient_of_ndarray() {
    for method in TABLE_1 {
        let steps = ["flex", "ndarray"].map(|backend| {
            let out = folder();
            let record = inversion(
                dlmi(["--backend", backend, "-q", "--preset", "paper", "invert", "--method", method, "--prompt-tokens", "5"])
                    .args(if method == "soda" { &[][..] } else { &["--samples", "4"] })
                    .args(["--steps", "3", "--out"])
                    .arg(out.path()),
            );
            assert_eq!(record["exact"], false, "{record}");
            events(out.path())
        });
        assert_eq!(steps.each_ref().map(Vec::len), [3, 3], "{method}");
        for (flex, ndarray) in steps[0].iter().zip(&steps[1]) {
            for (figure, most) in [("objective", 1e-4), ("gradient_norm", if method == "gbda" { 1e-3 } else { 1e-4 })] {
                let [flex, ndarray] = [flex, ndarray].map(|event| event[figure].as_f64().unwrap());
                assert!((flex - ndarray).abs() < most * flex.abs(), "{method}, {figure}: {flex}, {ndarray}");
            }
        }
    }
}

#[test]
fn a_methods_settings_change_its_row_and_contradictions_are_refused() {
    let samples = |arguments: &[&str]| json(&run(tiny(["--json", "config", "show"]).args(arguments)).out);
    let soda = samples(&["--preset", "paper", "--set", "method=soda"]);
    assert_eq!((&soda["soda"]["learning_rate"]["value"], &soda["soda"]["decay"]["value"]), (&0.03.into(), &0.98.into()));
    assert_eq!(soda["soda"]["tau"]["place"], "default of soda");
    let contradiction = ["--set", "reinforce.baseline=leave-one-out", "--samples", "1"];
    let parts = ["`reinforce.baseline` (--set)", "`reinforce.samples` (--samples) must be at least 2"];
    refuses(tiny(["invert", "he is", "--method", "reinforce"]).args(contradiction), 2, &parts);
}
