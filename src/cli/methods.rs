//! `dlmi methods`, the paper's Table 1 from the rows themselves; and from the settings to a method.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::args::Cli;
use crate::Result;
use crate::estimator::{EstimatorKind, Temperature};
use crate::method::relaxed::TableRow;
use crate::method::search::{random, snap};
use crate::method::{Method, echo, relaxed, search};
use crate::objective::Objective;
use crate::ops::TrackedBackend;
use crate::optimiser::Adam;
use crate::settings::{self, Settings, name, names};
use crate::subject::feeding::Feeding;
use crate::ui::print_result;

pub(super) fn run(cli: &Cli) -> Result<()> {
    let rows = settings::Method::value_variants().iter().filter_map(|method| method.row().map(|row| (method.to_string(), row)));
    let lines: Vec<Map<String, Value>> = rows.map(|(name, row)| cells(name, &row)).collect();
    if cli.global.json {
        return print_result(&super::json(&lines));
    }
    let text = |line: &Map<String, Value>| line.values().map(|cell| cell.as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>();
    let titles: Vec<String> = lines[0].keys().map(|title| title.replace('_', " ")).collect();
    let all: Vec<Vec<String>> = std::iter::once(titles).chain(lines.iter().map(text)).collect();
    // Table 1's columns, then the rest of what makes a method that method.
    let part = |columns: &[usize]| all.iter().map(|line| columns.iter().map(|&i| line[i].clone()).collect()).collect::<Vec<_>>();
    let others: Vec<String> =
        names::<settings::Method>().into_iter().filter(|name| lines.iter().all(|line| line["method"] != **name)).collect();
    print_result(&format!(
        "{}\n{}\nOn whole tokens, without a relaxed prompt: {}. `dlmi invert --help` says what each does.",
        columns(&part(&[0, 1, 2, 3, 4])),
        columns(&part(&[0, 5, 6, 7, 8])),
        others.join(", ")
    ))
}

/// A row of Table 1, and of what Table 5 adds to it, in words.
fn cells(method: String, row: &TableRow) -> Map<String, Value> {
    let soft = row.estimator.is_soft();
    let estimator = match row.estimator {
        EstimatorKind::GumbelSoftmax(_) => "Gumbel-softmax".to_owned(),
        EstimatorKind::Softmax => "none".to_owned(),
        EstimatorKind::Reinforce(reinforce) => {
            format!("REINFORCE, {} baseline, beta {}", name(&reinforce.baseline), reinforce.beta)
        }
    };
    let temperature = match row.temperature {
        Temperature::None => "-".to_owned(),
        Temperature::Fixed(tau) => format!("no, tau = {tau}"),
        Temperature::Learned { tau0, per_position, .. } => {
            format!("yes, tau0 = {tau0}, one {}", if per_position { "per position" } else { "for all" })
        }
    };
    let forcing = match row.feeding {
        Feeding::Forced => "yes".to_owned(),
        Feeding::Free(feedback) => format!("no, fed back {}", name(&feedback)),
    };
    let objective = match row.objective() {
        Objective::CrossEntropy => "cross-entropy",
        Objective::Hinge { .. } => "hinge",
        Objective::LogProbDifference => "log-prob difference",
    };
    let normal = |deviation: f64| match deviation {
        0.0 => "zeros".to_owned(),
        1.0 => "N(0, 1)".to_owned(),
        _ => format!("N(0, {deviation}^2)"),
    };
    let again = row.initial.redraw_every.map(|steps| format!(", {} every {steps} steps", normal(row.initial.redraw_deviation)));
    let initial = normal(row.initial.deviation) + &again.unwrap_or_default();
    let cells = json!({
        "method": method, "soft_embedding": if soft { "yes" } else { "no" }, "gradient_estimator": estimator,
        "learned_temperature": temperature, "teacher_forcing": forcing,
        "samples": row.samples.to_string(), "objective": objective, "start": initial, "optimiser": optimiser(row.optimiser),
    });
    cells.as_object().cloned().unwrap_or_default()
}

fn optimiser(rule: Adam) -> String {
    let Adam { learning_rate, beta1, beta2, bias_correction, decay, reset_every, .. } = rule;
    let mut words = vec![format!("Adam {learning_rate} ({beta1}, {beta2})")];
    words.extend((!bias_correction).then(|| "no bias correction".to_owned()));
    words.extend((decay != 1.0).then(|| format!("decay {decay}")));
    words.extend(reset_every.map(|every| format!("reset every {every}")));
    words.join(", ")
}

/// Lines of cells, the columns aligned.
fn columns(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let line = |line: &Vec<String>| line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect::<Vec<_>>().join("  ");
    lines.iter().map(|cells| format!("{}\n", line(cells).trim_end())).collect()
}

/// The method that the settings name.
pub fn method<B: TrackedBackend>(settings: &Settings) -> Box<dyn Method<B>> {
    use settings::Method::{Dlmi, DlmiTf, Echo, Gbda, Random, Reinforce, Snap, Soda};
    match settings.method {
        Dlmi | DlmiTf | Gbda | Reinforce | Soda => {
            Box::new(relaxed::RelaxedMethod::new(settings.row().expect("these are the rows of Table 1")))
        }
        Snap => {
            let search = search::Search {
                proposal: search::Proposal::Gradient { top: settings.top, momentum: settings.momentum },
                margin: settings.margin,
                acceptance: search::Acceptance::Annealed { acceptance_temperature: settings.temperature },
                schedule: search::Schedule {
                    batch: settings.batch,
                    growth: Some(search::Growth {
                        patience: settings.patience,
                        batch_max: settings.batch_max,
                        restart_when_stalled: settings.begin_anew,
                    }),
                },
                ..snap::SNAP
            };
            Box::new(search::SearchMethod::new(search))
        }
        Random => {
            let schedule = search::Schedule { batch: settings.batch, growth: None };
            Box::new(search::SearchMethod::new(search::Search { margin: settings.margin, schedule, ..random::RANDOM }))
        }
        Echo => Box::new(echo::Echo::default()),
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::DType;
    use clap::ValueEnum;

    use super::*;
    use crate::method::Clock;
    use crate::model::Llama;
    use crate::problem::Problem;
    use crate::problem::PromptOptions;
    use crate::problem::Target;
    use crate::subject::Subject;
    use crate::testing::{one_at_a_time, tiny};

    /// Objectives of some steps.
    fn objectives(settings: &Settings, dtype: DType) -> Vec<f32> {
        let mut checkpoint = tiny();
        let (config, tokenizer) = (checkpoint.config.clone(), checkpoint.tokenizer.clone());
        let target = Target::from_text("he is", &tokenizer).unwrap();
        let options = PromptOptions { tokens: 4, prefix: "on".into(), suffix: "it".into(), ..PromptOptions::default() };
        let problem = Problem::new(options, target, &tokenizer, config.vocab_size).unwrap();
        let model = Llama::load(&config, &mut checkpoint, &Default::default(), dtype).unwrap();
        let subject = Subject::<Autodiff<Flex>>::new(model, tokenizer);
        let mut method = method::<Autodiff<Flex>>(settings);
        let clock = |step| Clock { seed: 3, restart: 0, step };
        method.start(&subject, &problem, clock(0)).unwrap();
        let steps = (0..4).map(|step| method.step(&subject, &problem, clock(step)).unwrap().objective).collect();
        crate::invert::scores::scores(&*method, &subject, &problem, clock(4));
        steps
    }

    /// Nothing meets a tensor of another type, and DLMI's first step costs what it does in f32 up to 1 %: the others decide in between.
    #[test]
    fn every_method_works_in_half_width() {
        let _guard = one_at_a_time();
        for &method in settings::Method::value_variants() {
            let settings = Settings { method, samples: 2, ..Settings::default() };
            let whole = objectives(&settings, DType::F32);
            for dtype in [DType::F16, DType::BF16] {
                let half = objectives(&settings, dtype);
                assert!(half.iter().all(|x| x.is_finite()), "{method} in {dtype:?}: {half:?}");
                let near = (half[0] - whole[0]).abs() <= 0.01 * whole[0].abs();
                assert!(near || method != settings::Method::Dlmi, "{method} in {dtype:?}: {half:?}, {whole:?}");
            }
        }
    }
}
