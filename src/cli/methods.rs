//! From the settings to a method.

use crate::method::{Method, dlmi, echo, random, relaxed, search, snap};
use crate::ops::TrackedBackend;
use crate::settings::{self, Settings};

/// The method that the settings name.
pub fn method<B: TrackedBackend>(settings: &Settings) -> Box<dyn Method<B>> {
    let margin = settings.margin as f32;
    match settings.method {
        settings::Method::Dlmi => {
            let row = dlmi::dlmi(settings.learning_rate, settings.tau0, settings.per_position, settings.samples);
            Box::new(relaxed::RelaxedMethod::new(row))
        }
        settings::Method::Snap => {
            let snap = snap::Snap {
                batch: (settings.batch, settings.batch_max),
                top: settings.top,
                momentum: settings.momentum as f32,
                margin,
                temperature: settings.temperature as f32,
                patience: settings.patience,
                begin_anew: settings.begin_anew,
            };
            Box::new(search::SearchMethod::new(snap.search()))
        }
        settings::Method::Random => Box::new(search::SearchMethod::new(random::random(settings.batch, margin))),
        settings::Method::Echo => Box::new(echo::Echo::default()),
    }
}
