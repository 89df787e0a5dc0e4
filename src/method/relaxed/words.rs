//! A row of Table 1 in words.

use super::TableRow;
use crate::estimator::{EstimatorKind, Rebar, Temperature};
use crate::optimiser::Adam;
use crate::setting::name;
use crate::subject::feeding::Feeding;

impl TableRow {
    /// Columns and cells: first those of Table 1, then the rest of what makes the method that method, most of it in Table 5.
    pub fn words(&self) -> [(&'static str, String); 8] {
        let redrawn = self.initial.redraw_every.map(|steps| format!(", {} every {steps} steps", normal(self.initial.redraw_deviation)));
        [
            ("soft_embedding", soft_embedding(self.estimator).to_owned()),
            ("gradient_estimator", estimator(self.estimator)),
            ("learned_temperature", temperature(self.temperature)),
            ("teacher_forcing", feeding(self.feeding)),
            ("samples", self.samples.to_string()),
            ("objective", name(&self.goal.kind).to_owned()),
            ("start", normal(self.initial.deviation) + &redrawn.unwrap_or_default()),
            ("optimiser", optimiser(self.optimiser)),
        ]
    }
}

fn soft_embedding(estimator: EstimatorKind) -> &'static str {
    match estimator {
        EstimatorKind::StraightThrough(_) => "backward only",
        _ if estimator.has_control() => "control only",
        _ if estimator.is_soft() => "yes",
        _ => "no",
    }
}

fn estimator(estimator: EstimatorKind) -> String {
    match estimator {
        EstimatorKind::GumbelSoftmax(_) => "Gumbel-softmax".to_owned(),
        EstimatorKind::Softmax => "none".to_owned(),
        EstimatorKind::Reinforce(it) if it.baseline.averages() => format!("REINFORCE, {} baseline, beta {}", name(&it.baseline), it.beta),
        EstimatorKind::Reinforce(it) => format!("REINFORCE, {} baseline", name(&it.baseline)),
        EstimatorKind::StraightThrough(it) if it.draw_again => "straight-through, drawn again".to_owned(),
        EstimatorKind::StraightThrough(_) => "straight-through Gumbel-softmax".to_owned(),
        EstimatorKind::Rebar(it) => format!("REBAR, {}", lambda(it)),
        EstimatorKind::Relax(it) => format!("RELAX, {}, {} hidden", lambda(it.rebar), it.hidden),
    }
}

fn lambda(rebar: Rebar) -> String {
    rebar.lambda.map_or_else(|| "lambda chosen".to_owned(), |lambda| format!("lambda = {lambda}"))
}

fn temperature(temperature: Temperature) -> String {
    match temperature {
        Temperature::None => "-".to_owned(),
        Temperature::Fixed(tau) => format!("no, tau = {tau}"),
        Temperature::Learned { tau0, per_position, .. } => {
            format!("yes, tau0 = {tau0}, one {}", if per_position { "per position" } else { "for all" })
        }
    }
}

fn feeding(feeding: Feeding) -> String {
    match feeding {
        Feeding::Forced => "yes".to_owned(),
        Feeding::Free(feedback) => format!("no, fed back {}", name(&feedback)),
    }
}

fn normal(deviation: f64) -> String {
    match deviation {
        0.0 => "zeros".to_owned(),
        1.0 => "N(0, 1)".to_owned(),
        _ => format!("N(0, {deviation}^2)"),
    }
}

fn optimiser(rule: Adam) -> String {
    let Adam { learning_rate, beta1, beta2, bias_correction, decay, reset_every, .. } = rule;
    let mut words = vec![format!("Adam {learning_rate} ({beta1}, {beta2})")];
    words.extend((!bias_correction).then(|| "no bias correction".to_owned()));
    words.extend((decay != 1.0).then(|| format!("decay {decay}")));
    words.extend(reset_every.map(|every| format!("reset every {every}")));
    words.join(", ")
}
