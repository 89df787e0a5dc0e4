//! Measurements against the exact gradient of a vocabulary of 6, and the file of the lines.

use std::path::Path;

use burn::backend::{Autodiff, Flex};

use super::measurement::{Clocks, authors_reference, measure, reference};
use super::*;
use crate::estimator::enumeration_tests::{at, problem, subject};
use crate::estimator::{EstimatorKind, GumbelSoftmax, Rebar, Relaxation, Temperature, exact_gradient};
use crate::invert::Model;
use crate::problem::Target;
use crate::problem::targets::Labelled;
use crate::settings::Options;
use crate::subject::feeding::{Feedback, Feeding};
use crate::testing::{one_at_a_time, peak_memory};

type B = Autodiff<Flex>;

const FED: Feeding = Feeding::Free(Feedback::Soft);
const CLOCKS: Clocks = Clocks { seed: 7, step: 0 };
const PROTOCOL: Protocol = Protocol { every: 25, bias_every: 50, draws: 40, reference_samples: 10_240 };
const GUMBEL_SOFTMAX: EstimatorKind = EstimatorKind::GumbelSoftmax(GumbelSoftmax { largest_uniform: None });
const REBAR: EstimatorKind = EstimatorKind::Rebar(Rebar { lambda: Some(1.0), beta: 0.95 });

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.map(f64::abs).fold(0.0, f64::max)
}

/// In each of the 18 entries, the unbiased one within four standard errors, which are small; and the authors' is nearly 0.
#[test]
fn the_reference_is_the_exact_gradient_and_the_authors_is_nearly_nothing() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    let at = at(&subject, &problem, FED, Temperature::None);
    let exact = exact_gradient(&at).unwrap();
    let found = reference(&at, 1280, CLOCKS);
    let errors: Vec<f64> = found.squared_errors().map(f64::sqrt).collect();
    for (i, ((mean, error), exact)) in found.mean().zip(&errors).zip(&exact).enumerate() {
        assert!((mean - exact).abs() < 4.0 * error, "{i}: {mean} ± {error}, exactly {exact}");
    }
    let size = largest(exact.into_iter());
    assert!(size > 8.0 * largest(errors.into_iter()), "errors so large that nothing would be seen");
    let at = Relaxation { samples: 8, ..at };
    assert!(largest(authors_reference(&at, 5, CLOCKS).mean()) < 0.1 * size);
}

/// What is called bias against the authors' reference is the length of the gradient, of an unbiased estimator too; the honest one tells them
/// apart, and its mean squares are those of the exact gradient.
#[test]
fn the_two_biases_tell_different_things() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    let at = |temperature| at(&subject, &problem, FED, temperature);
    let exact = exact_gradient(&at(Temperature::None)).unwrap();
    let squared = exact.iter().map(|x| x * x).sum::<f64>() / exact.len() as f64;
    let unbiased = measure(REBAR.build::<B>(), &at(Temperature::None), &PROTOCOL, CLOCKS);
    let biased = measure(GUMBEL_SOFTMAX.build::<B>(), &at(Temperature::Fixed(10.0)), &PROTOCOL, CLOCKS);
    for found in [&unbiased, &biased] {
        let (authors, gradient) = (found.bias_authors.unwrap(), found.gradient);
        assert!((authors.max / gradient.max - 1.0).abs() < 0.2, "{authors:?} {gradient:?}");
        let bias = found.bias.unwrap();
        assert!((bias.gradient_squared / squared - 1.0).abs() < 0.2, "{bias:?}, exactly {squared}");
        assert!(bias.reference_error.max <= bias.floor.max, "{bias:?}");
    }
    let [none, some] = [&unbiased, &biased].map(|found| found.bias.unwrap());
    assert!(none.max < 4.0 * none.floor.max && none.squared < none.floor_squared, "{none:?}");
    assert!(some.max > 5.0 * some.floor.max && some.squared > 0.3 * squared, "{some:?}");
    assert_eq!((unbiased.temperature, biased.temperature.unwrap().mean), (None, 10.0));
}

#[test]
fn memory_does_not_grow_with_the_reference() {
    let _guard = one_at_a_time();
    let (subject, problem) = (subject(1.0, 1e-5), problem());
    let at = at(&subject, &problem, Feeding::Forced, Temperature::None);
    let [few, many] = [4, 128].map(|count| peak_memory(|| reference(&at, count, CLOCKS)).1);
    assert!(many < few + few / 4, "{few} {many}");
}

#[test]
fn the_variance_is_measured_every_so_often_and_the_bias_more_seldom() {
    let protocol = Protocol::default();
    assert_eq!(protocol.points(256), [0, 25, 50, 75, 100, 125, 150, 175, 200, 225, 250]);
    assert_eq!(Protocol { every: 4, bias_every: 3, ..protocol }.points(9), [0, 3, 4, 6, 8]);
    assert_eq!((protocol.bias_is_due(25), protocol.bias_is_due(50), protocol.reference_gradients()), (false, true, 64));
}

fn options() -> Options {
    Options { steps: Some(60), prompt_tokens: 4, ..Options::default() }
}

fn target(id: &str, ids: [u32; 2]) -> Labelled {
    Labelled { id: id.into(), target: Target::new("", ids.to_vec()), k: Some(2), bos: None, known_prompt_tokens: None }
}

fn planned(options: Options, estimators: &[Compared]) -> crate::Result<Plan> {
    let model = Model::open("tests/golden/tiny/gqa3-tied").unwrap();
    Plan::new(
        &model,
        options,
        Protocol::default(),
        estimators,
        &[target("a", [3, 7]), target("b", [7, 3]), target("c", [3, 7])],
        &[1, 2, 1],
    )
}

#[test]
fn all_have_one_objective_and_their_own_temperature() {
    let mut options = options();
    options.assign("dlmi-tf.samples", "3").unwrap();
    let rows: Vec<_> = Compared::all().into_iter().map(|estimator| estimator.row(&options).unwrap()).collect();
    assert!(rows.iter().all(|row| (row.samples, row.feeding) == (3, FED)));
    let learned = |tau0, per_position| Temperature::Learned { tau0, per_position };
    let temperatures: Vec<_> = rows.iter().map(|row| row.temperature).collect();
    let fixed = [Temperature::None, Temperature::Fixed(1.0), Temperature::Fixed(100.0)];
    let shared = [learned(1.0, false), learned(100.0, false), learned(1.0, true), learned(100.0, true)];
    let others = [learned(100.0, true), Temperature::None, Temperature::None];
    assert_eq!(temperatures, [&fixed[..], &shared, &others].concat());
    // The authors' feedback leaves no gradient to a control variate.
    options.assign("dlmi-tf.feedback", "hard").unwrap();
    let message = planned(options, &[Compared::GsTau1, Compared::Rebar]).unwrap_err().to_string();
    assert!(message.starts_with("rebar: `feedback` must be soft or gumbel"), "{message}");
}

#[test]
fn a_plan_is_balanced_and_its_ids_are_of_what_decides_the_lines() {
    let plan = planned(options(), &[Compared::Rebar, Compared::Stgs, Compared::Rebar]).unwrap();
    let names: Vec<String> = plan.units.iter().map(ToString::to_string).collect();
    assert_eq!(names[..3], ["rebar, target a, seed 1", "stgs, target a, seed 1", "rebar, target a, seed 2"]);
    assert_eq!(names.len(), 8, "a target by another name is the same");
    let ids = |plan: &Plan| -> Vec<String> { plan.units.iter().map(|unit| unit.id.clone()).collect() };
    let mut settings = options();
    settings.assign("stgs.learning_rate", "0.2").unwrap();
    let other = planned(settings, &[Compared::Rebar, Compared::Stgs]).unwrap();
    let same: Vec<bool> = ids(&plan).iter().zip(ids(&other)).map(|(a, b)| *a == b).collect();
    assert_eq!(same, [true, false].repeat(4));
    assert!(planned(Options { steps: None, ..options() }, &[Compared::Stgs]).is_err());
    let model = Model::open("tests/golden/tiny/gqa3-tied").unwrap();
    plan.check(&model).unwrap();
    let long = planned(Options { prompt_tokens: 300, ..options() }, &[Compared::Stgs]).unwrap().check(&model).unwrap_err();
    assert!(long.to_string().contains("256"), "{long}");
}

/// Lines of a unit, made up.
fn lines(plan: &Plan, unit: &Unit) -> Vec<Line> {
    let extent = Extent { max: 0.1, mean: f64::NAN };
    let bias =
        Bias { max: 0.25, mean: 0.1, floor: extent, reference_error: extent, squared: -1e-9, floor_squared: 0.02, gradient_squared: 0.5 };
    let line = |step| Line {
        schema: "dlmi.gradients/1".into(),
        unit: unit.id.clone(),
        estimator: unit.estimator.label().into(),
        target: unit.target.id.clone(),
        k: unit.target.k,
        seed: unit.seed,
        step,
        steps: 60,
        model: "digest".into(),
        prompt_tokens: 4,
        vocab_size: 288,
        target_tokens: 2,
        samples: 8,
        draws: 5,
        reference_samples: 1024,
        measurement: Measurement {
            objective: 3.5,
            temperature: None,
            gradient: extent,
            variance: Extent { max: 0.1 + step as f64, mean: 0.1 },
            bias_authors: None,
            bias: (step != 25).then_some(bias),
        },
        seconds: 0.5,
    };
    plan.points().into_iter().map(line).collect()
}

fn written(path: &Path, lines: &[Line], rest: &str) {
    let text: String = lines.iter().map(|line| format!("{}\n", line.to_json())).collect();
    std::fs::write(path, text + rest).unwrap();
}

#[test]
fn what_was_measured_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    let all = planned(options(), &[Compared::Rebar, Compared::Stgs]).unwrap();
    let plan = planned(options(), &[Compared::Rebar]).unwrap();
    // A run that is whole, one of an estimator that the plan leaves out, the beginning of one, and a torn line of it.
    let [whole, foreign, begun] = [0, 1, 2].map(|i| lines(&all, &all.units[i]));
    written(&path, &[&whole[..], &foreign, &begun[..2]].concat(), &begun[2].to_json()[..40]);
    let (mut file, found) = LineFile::open(&path, &plan).unwrap();
    assert_eq!(format!("{found:?}"), format!("{:?}", [&whole[..], &begun[..2]].concat()));
    let due = |lines: &[Line]| plan.due(lines).into_iter().map(|unit| unit.id).collect::<Vec<_>>();
    assert_eq!(due(&found), [1, 2, 3].map(|i| plan.units[i].id.clone()));
    let held = LineFile::open(&path, &plan).unwrap_err().to_string();
    assert!(held.contains("another process"), "{held}");
    file.add(&begun[2]).unwrap();
    drop(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let expected: String = [&whole[..], &foreign, &begun[..3]].concat().iter().map(|line| format!("{}\n", line.to_json())).collect();
    assert_eq!(text, expected);
    assert!(text.contains(r#""mean":null"#) && text.contains(r#""squared":-1e-9"#), "{text}");
}

#[test]
fn a_file_of_something_else_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    let plan = planned(options(), &[Compared::Rebar]).unwrap();
    let mut other = lines(&plan, &plan.units[0]);
    other.iter_mut().for_each(|line| line.unit = "other".into());
    for (text, part) in [
        ("{\"a\": 1}\n", "line 1"),
        ("\n", "line 1"),
        (&format!("{}\n", other[0].to_json().replace("gradients/1", "gradients/2")), "dlmi.gradients/1"),
        (&format!("{}\n", other[0].to_json()), "rebar, target a, seed 1"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = LineFile::open(&path, &plan).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(part), "{part}: {error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    assert_eq!(LineFile::open(&folder.path().join("no/where"), &plan).unwrap_err().exit_code(), 3);
}

#[test]
fn a_summary_has_every_estimator_and_every_two_of_them() {
    let plan = planned(options(), &[Compared::Stgs, Compared::Rebar]).unwrap();
    let all: Vec<Line> = plan.units.iter().flat_map(|unit| lines(&plan, unit)).collect();
    let summary = Summary::of(&all);
    assert_eq!(summary.estimators.iter().map(|figures| figures.estimator).collect::<Vec<_>>(), ["stgs", "rebar"]);
    let figures = &summary.estimators[0];
    let variance = figures.variance.max.unwrap();
    assert_eq!((variance.n, variance.min, variance.median, variance.max), (12, 0.1, 25.1, 50.1));
    assert_eq!((figures.bias.max.unwrap().n, figures.bias_authors.max, figures.floor.mean), (8, None, None));
    assert_eq!((figures.relative_bias.unwrap().max, figures.relative_floor.unwrap().max), (0.0, 0.2));
    assert_eq!(summary.tests.len(), 1);
    assert_eq!(summary.tests[0].variance.unwrap().p, 1.0);
}
