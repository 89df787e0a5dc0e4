//! Between a row of Table 1 and the settings that may change it.

use super::{Settings, name};
use crate::estimator::{EstimatorKind, Temperature};
use crate::method::relaxed::TableRow;
use crate::subject::feeding::Feeding;

/// The settings that say what the row says: the defaults of its method.
pub(super) fn values(row: &TableRow) -> Vec<(&'static str, String)> {
    let mut values = vec![("samples", row.samples.to_string()), ("learning_rate", row.optimiser.learning_rate.to_string())];
    match row.temperature {
        Temperature::None => (),
        Temperature::Fixed(tau) => values.push(("tau", tau.to_string())),
        Temperature::Learned { tau0, per_position } => {
            values.extend([("tau0", tau0.to_string()), ("per_position", per_position.to_string()), ("initial_phi", name(&row.initial.phi))])
        }
    }
    if let Feeding::Free(feedback) = row.feeding {
        values.push(("feedback", name(&feedback)));
    }
    if let EstimatorKind::Reinforce(estimator) = row.estimator {
        values.extend([("baseline", name(&estimator.baseline)), ("baseline_beta", estimator.beta.to_string())]);
    }
    values
}

impl Settings {
    /// The method's row of Table 1 as these settings change it, where it has one.
    pub fn row(&self) -> Option<TableRow> {
        let mut row = self.method.row()?;
        // Without noise all samples would be the same.
        if row.estimator.is_random() {
            row.samples = self.samples;
        }
        row.optimiser.learning_rate = self.learning_rate;
        match &mut row.temperature {
            Temperature::None => (),
            Temperature::Fixed(tau) => *tau = self.tau,
            Temperature::Learned { tau0, per_position } => {
                (*tau0, *per_position, row.initial.phi) = (self.tau0, self.per_position, self.initial_phi);
            }
        }
        if let Feeding::Free(feedback) = &mut row.feeding {
            *feedback = self.feedback;
        }
        match &mut row.estimator {
            EstimatorKind::GumbelSoftmax(estimator) => estimator.largest_uniform = self.largest_uniform,
            EstimatorKind::Softmax => (),
            EstimatorKind::Reinforce(estimator) => (estimator.baseline, estimator.beta) = (self.baseline, self.baseline_beta),
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::super::{Layers, Method, Sources};

    #[test]
    fn a_methods_own_defaults_are_its_row() {
        for method in Method::value_variants() {
            let sources = Sources { flags: vec![("method", method.to_string())], ..Sources::default() };
            let settings = Layers::read(sources).unwrap().preview().unwrap().settings;
            assert_eq!(settings.row(), method.row(), "{method}");
        }
    }
}
