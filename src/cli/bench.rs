//! `dlmi bench`: what things cost on this machine.

use burn::tensor::backend::Backend;
use serde_json::{Map, Value, json};

use super::answer;
use super::args::{Bench, Cli};
use super::session::Session;
use crate::Result;
use crate::backend::{self, BackendName, Choice, Dtype, Job};
use crate::bench::{self, peak_mib};
use crate::invert::Model;
use crate::method::Build;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::problem::PromptOptions;
use crate::problem::Target;
use crate::source::hub::SILENT;
use crate::subject::{Subject, check_context};
use crate::ui::Policy;
use crate::ui::table::pairs;

#[inline]
pub(super) fn run(cli: &Cli, what: &Bench, policy: Policy) -> Result<()> {
    let session = Session::open(cli, policy)?;
    if let Some(sizes) = what.sizes() {
        check_context(session.model.config(), session.settings().prompt_tokens, sizes.target_tokens as usize)?;
    }
    let choice = session.device()?;
    let device = choice.device.clone();
    let measured = backend::dispatch(&device, Measurement { session, what: what.clone(), choice, offline: cli.global.offline })?;
    answer(cli, &measured, || readable(&measured))
}

/// One measurement, on its way to the backend.
struct Measurement {
    session: Session,
    what: Bench,
    choice: Choice,
    offline: bool,
}

impl Job for Measurement {
    type Output = Result<Map<String, Value>>;

    fn run<B: TrackedBackend>(mut self, device: B::Device) -> Self::Output {
        let (m, rounds) = (self.what.sizes().map_or(0, |sizes| sizes.target_tokens) as usize, self.what.rounds() as usize);
        let (seed, dtype, n) = {
            let settings = self.session.settings();
            (settings.seed, settings.dtype, settings.prompt_tokens)
        };
        let measured = match self.what {
            Bench::Load(_) => {
                let (spec, offline) = (self.session.settings().model.clone(), self.offline);
                let load = |_| {
                    let model = Model::open_with(&spec, offline, SILENT)?.load::<B::InnerBackend>(&device, dtype)?;
                    B::InnerBackend::sync(&device).ok();
                    Ok(model)
                };
                json!(bench::timed(rounds, load)?)
            }
            Bench::Generate(_) => {
                let model = self.session.model.load::<B::InnerBackend>(&device, dtype)?;
                json!(bench::generate(&model, &tokens(&self.session, n), m, rounds)?)
            }
            Bench::Parity(_) => {
                let problem = problem(&self.session, m)?;
                let subject = self.subject::<B>(&device, dtype)?;
                let plain = self.subject(&Default::default(), Dtype::F32)?;
                let mut measured = json!(bench::parity(subject.model(), plain.model(), n, m, rounds, seed));
                measured["first_steps"] = json!(bench::first_steps(&subject, &plain, &problem, seed)?);
                measured
            }
            Bench::Score { candidates, .. } => {
                let problem = problem(&self.session, m)?;
                let subject = self.subject::<B>(&device, dtype)?;
                json!(bench::score(&subject, &problem, seed, rounds, candidates as usize)?)
            }
            Bench::Step { .. } => {
                let problem = problem(&self.session, m)?;
                let subject = self.subject::<B>(&device, dtype)?;
                let settings = self.session.settings();
                let method = settings.method_settings();
                let subject = subject.within(settings.max_memory, &problem, method.footprint())?;
                json!(bench::step(&subject, method, &problem, seed, rounds)?)
            }
        };
        Ok(self.circumstances(measured))
    }
}

impl Measurement {
    fn subject<B: TrackedBackend>(&mut self, device: &B::Device, dtype: Dtype) -> Result<Subject<B>> {
        Ok(Subject::new(self.session.model.load(device, dtype)?, self.session.model.tokenizer().clone()))
    }

    /// What was measured and where, before the figures.
    fn circumstances(&self, measured: Value) -> Map<String, Value> {
        let settings = self.session.settings();
        let mut all = Map::new();
        let mut put = |name: &str, value: Value| drop(all.insert(name.into(), value));
        put("bench", self.what.name().into());
        if let Bench::Step { .. } = self.what {
            put("method", settings.method.to_string().into());
        }
        if let Some(sizes) = self.what.sizes() {
            put("prompt_tokens", settings.prompt_tokens.into());
            put("target_tokens", sizes.target_tokens.into());
        }
        match self.what {
            Bench::Step { .. } => put("samples", settings.method_settings().footprint().samples.into()),
            Bench::Score { candidates, .. } => put("candidates", candidates.into()),
            _ => (),
        }
        put("model_digest", self.session.model.identity().digest.into());
        put("backend", self.choice.device.backend.to_string().into());
        put("device", self.choice.device.name.clone().into());
        put("dtype", json!(settings.dtype));
        put("threads", rayon::current_num_threads().into());
        put("rounds", self.what.rounds().into());
        let on_cpu = matches!(self.choice.device.backend, BackendName::Flex | BackendName::Ndarray);
        put("peak_mib", json!(peak_mib().filter(|_| on_cpu)));
        if let Value::Object(measured) = measured {
            all.extend(measured);
        }
        all
    }
}

/// Ids that no tokenizer is needed for, spread over the vocabulary.
fn tokens(session: &Session, count: usize) -> Vec<u32> {
    let v = session.model.config().vocab_size;
    (0..count).map(|i| ((i * 37 + 100) % v) as u32).collect()
}

/// A target of M tokens. It means nothing: a step costs the same whatever it says.
fn problem(session: &Session, m: usize) -> Result<Problem> {
    let (settings, tokenizer) = (session.settings(), session.model.tokenizer());
    let ids = tokens(session, m);
    let target = Target::new(tokenizer.decode(&ids), ids);
    let options = PromptOptions {
        tokens: settings.prompt_tokens,
        allow_everything: settings.all_tokens,
        allow_target_tokens: true,
        ..PromptOptions::default()
    };
    Problem::new(options, target, tokenizer, session.model.config().vocab_size)
}

/// A line for each figure that there is.
fn readable(measured: &Map<String, Value>) -> String {
    let figures = measured.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| match value.as_f64() {
        Some(number) if value.is_f64() && (number == 0.0 || number.abs() >= 1e-3) => (name.clone(), format!("{number:.4}").into()),
        Some(number) if value.is_f64() => (name.clone(), format!("{number:.1e}").into()),
        _ => (name.clone(), value.clone()),
    });
    pairs(&figures.collect())
}
