use super::work::{Work, of_cell, total_steps};
use super::{Rates, measure};
use crate::invert::Task;
use crate::source::hub::SILENT;
use crate::study::Study;
use crate::testing::one_at_a_time;

/// Of the rivals `arca` alone: what the others are asked depends on how many of their prompts are new and can be typed, and with this
/// tokenizer's bytes few can. `snap` without sets: at a random model's prompts there are not always as many as it would try.
const METHODS: &str = r#"["dlmi", "dlmi-tf", "reinforce", "soda", "stgs", "rebar", { name = "snap", sets = 0 }, "random", "arca"]"#;

fn study() -> Study {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.toml");
    let text = format!(
        "models = [\"tests/golden/tiny/gqa3-tied\"]\nmethods = {METHODS}\ntargets = {{ texts = [\"the quick brown fox\"] }}\n\
         steps = [8]\nprompt_tokens = [6]\n[settings]\neval_every = 4\nbackend = \"flex\"\n"
    );
    std::fs::write(&path, text).unwrap();
    Study::open(&path, true, SILENT).unwrap()
}

/// What a cell really asks of the model, in positions.
fn asked(study: &mut Study, place: usize) -> f64 {
    let cell = study.cells[place].clone();
    let model = &mut study.models[cell.model];
    let problem = model.problem_of(cell.target.target.clone(), &cell.options).unwrap();
    let cost = Task::new(model, problem, cell.options.clone()).unwrap().run(&mut ()).unwrap().cost;
    (cost.forward_tokens + cost.backward_tokens) as f64
}

#[test]
fn positions_are_those_that_a_cell_asks_for() {
    let _alone = one_at_a_time();
    let mut study = study();
    for place in 0..study.cells.len() {
        let Work { positions, decoded, graph, .. } = of_cell(&study.cells[place]);
        let (predicted, asked) = (positions + decoded + graph, asked(&mut study, place));
        // What the plain path is asked at the end is not counted, nor every look at a hard prompt needed.
        assert!((predicted / asked - 1.0).abs() < 0.2, "{}: {predicted} for {asked}", study.cells[place]);
    }
}

/// A budget that is used up before the first step ends a run after it: a rate is never of nothing.
#[test]
fn a_cell_takes_a_step_at_least() {
    let mut cell = study().cells.remove(0);
    (cell.options.steps, cell.options.max_positions) = (None, Some(1));
    assert_eq!(total_steps(&cell), 1.0);
}

#[test]
fn rates_are_measured_where_no_cell_is_finished() {
    let _alone = one_at_a_time();
    let mut study = study();
    let cells: Vec<usize> = (0..study.cells.len()).collect();
    let mut rates = Rates::default();
    assert_eq!(rates.missing(&study, &cells).len(), cells.len());
    let choice = study.device(None, None).unwrap();
    fn clock() -> f64 {
        thread_local!(static TIME: std::cell::Cell<f64> = const { std::cell::Cell::new(0.0) });
        TIME.replace(TIME.get() + 1.0)
    }
    let measured = measure(&mut study, &choice, &cells[..2], clock).unwrap();
    rates.add(&study, &measured);
    let mut missing = rates.missing(&study, &cells);
    missing.sort_unstable();
    assert_eq!(missing, cells[2..]);
    let expected = measured[1].1 * study.work(1) / study.step(1);
    assert!((rates.seconds(&study, 1) / expected - 1.0).abs() < 1e-9);
}
