//! An inversion: a model, a problem, a method and a budget; who watches joins when it runs.

use std::cell::RefCell;

use serde_json::Value;

use super::judge::Judge;
use super::model::Model;
use super::notes;
use super::observer::{Observer, Snapshot};
use super::record::{Circumstances, Inversion};
use super::run::Trial;
use crate::backend::{self, Choice, Dtype, Job};
use crate::method::Build;
use crate::method::registry::MethodSettings;
use crate::model::Llama;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::settings::Options;
use crate::subject::{Subject, check_context};
use crate::{Result, gpu_memory};

impl Model {
    /// An inversion of `target` that is ready to run.
    ///
    /// # Errors
    /// As [`Self::problem`], and a device that is not there.
    pub fn task(&mut self, target: &str, options: &Options) -> Result<Task<'_>> {
        let problem = self.problem(target, options)?;
        Task::new(self, problem, options.clone())
    }

    /// Finds a prompt after which the model writes `target`.
    ///
    /// Inline, as is all that leads to [`crate::backend::dispatch`]: the kernels of every backend are then compiled into the program alone.
    ///
    /// # Errors
    /// As [`Self::task`], and those of the run. That no prompt was found is none: see [`Inversion::exact`].
    #[inline]
    pub fn invert(&mut self, target: &str, options: &Options) -> Result<Inversion> {
        self.task(target, options)?.run(&mut ())
    }
}

/// What [`Task::identity`] calls the digest of the tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer_digest";
/// What it calls the moment whose date a chat template has written, in seconds since 1970. What it wrote is among the fixed tokens.
pub const MOMENT: &str = "moment";
/// What it calls the fixed tokens around the free part.
pub(super) const AROUND: &str = "around";

/// Everything that an inversion needs. `M` says which method searches.
pub struct Task<'a, M = MethodSettings> {
    model: &'a mut Model,
    problem: Problem,
    method: M,
    /// What the record calls the method.
    name: String,
    options: Options,
    /// The presets that the options come from.
    presets: Vec<String>,
    device: Choice,
    resume: Option<Snapshot>,
}

impl<'a> Task<'a> {
    /// Chooses the device that `options` ask for, and the method.
    ///
    /// # Errors
    /// Options that contradict each other; prompt and target do not fit into the context; there is no such device, or it does not
    /// compute rightly.
    pub fn new(model: &'a mut Model, problem: Problem, options: Options) -> Result<Self> {
        Self::prepared(model, problem, options, |options| backend::open(options.backend, options.device, options.dtype))
    }

    /// The same on a device that was chosen before.
    ///
    /// # Errors
    /// As [`Self::new`], but for those of the device.
    pub fn on(device: Choice, model: &'a mut Model, problem: Problem, options: Options) -> Result<Self> {
        Self::prepared(model, problem, options, |_| Ok(device))
    }

    fn prepared(
        model: &'a mut Model,
        problem: Problem,
        mut options: Options,
        device: impl FnOnce(&Options) -> Result<Choice>,
    ) -> Result<Self> {
        options.check()?;
        options.model = model.identity().spec;
        for example in &problem.examples {
            check_context(model.config(), example.positions(), example.target.ids.len())?;
        }
        if options.early_stop && !problem.can_be_exact() {
            // A run for it goes on to the end of its budget.
            tracing::warn!("{}", notes::TARGET);
        }
        let device = device(&options)?;
        let method = options.method_settings().aiming_higher(options.min_margin.unwrap_or(0.0));
        let name = options.method.to_string();
        Ok(Self { model, problem, method, name, options, presets: Vec::new(), device, resume: None })
    }
}

impl<'a, M: Build> Task<'a, M> {
    /// The same with another method, which the record calls `name`.
    pub fn with_method<N: Build>(self, name: &str, method: N) -> Task<'a, N> {
        let Self { model, problem, options, presets, device, resume, .. } = self;
        Task { model, problem, method, name: name.to_owned(), options, presets, device, resume }
    }

    /// Names the presets that the options come from, for the record.
    #[must_use]
    pub fn with_presets(self, presets: Vec<String>) -> Self {
        Self { presets, ..self }
    }

    /// Goes on from a snapshot, where there is one.
    #[must_use]
    pub fn with_snapshot(self, resume: Option<Snapshot>) -> Self {
        Self { resume, ..self }
    }

    /// What is looked for.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What a run must have in common with the one it goes on from: all settings but the budgets.
    pub fn identity(&self) -> Value {
        let mut identity = self.options.to_json();
        let map = identity.as_object_mut().expect("settings are an object");
        for budget in ["steps", "max_positions", "max_seconds", "restarts", "max_memory", "device", "model"] {
            map.shift_remove(budget);
        }
        map.insert("backend".into(), self.device.device.backend.to_string().into());
        map.insert("model_digest".into(), self.model.identity().digest.into());
        map.insert(TOKENIZER.into(), self.model.tokenizer().digest().into());
        map.insert("method".into(), self.name.clone().into());
        map.insert("target_ids".into(), self.problem.first().target.ids.clone().into());
        map.extend(self.problem.moment().map(|moment| (MOMENT.to_owned(), moment.into())));
        // What stands around the free part may come from a chat template, which may be another one tomorrow.
        let around = self.problem.examples.iter().map(|example| (example.head(), example.tail()));
        map.insert(AROUND.into(), serde_json::json!(around.collect::<Vec<_>>()));
        if self.problem.examples.len() > 1 {
            let targets = self.problem.examples.iter().map(|example| &example.target.ids);
            map.insert("targets".into(), serde_json::json!(targets.collect::<Vec<_>>()));
        }
        identity
    }

    /// Runs to the end, watched by `observer`.
    ///
    /// # Errors
    /// Those of loading, of the method and of the observer; a GPU has no room ([`gpu_memory::or_error`]).
    #[inline]
    pub fn run(self, observer: &mut dyn Observer) -> Result<Inversion> {
        let device = self.device.device.clone();
        gpu_memory::or_error(|| backend::dispatch(&device, Watched { task: self, observer }))
    }

    /// As [`Self::run`], on a model that is loaded already, for those who run one task after another.
    ///
    /// # Errors
    /// Those of the method and of the observer.
    pub fn run_on<B: TrackedBackend>(self, plain: Llama<B::InnerBackend>, judge: &Judge, observer: &mut dyn Observer) -> Result<Inversion> {
        let subject = Subject::<B>::new(plain, self.model.tokenizer().clone());
        let circumstances = self.circumstances();
        let Task { problem, method, options, resume, .. } = self;
        Search { problem, method, options, resume, circumstances }.run(subject, judge, observer)
    }

    fn circumstances(&self) -> Circumstances {
        Circumstances {
            model: self.model.identity(),
            backend: self.device.device.backend.to_string(),
            device: self.device.device.name.clone(),
            dtype: self.options.dtype.to_string(),
            method: self.name.clone(),
            preset: self.presets.clone(),
            seed: self.options.seed,
            bos: self.options.bos,
            settings: self.options.to_json(),
            bos_token: self.model.start_token(),
            load_seconds: self.model.seconds(),
        }
    }
}

/// A task on its way to its device.
struct Watched<'a, 'b, M> {
    task: Task<'a, M>,
    observer: &'b mut dyn Observer,
}

impl<M: Build> Job for Watched<'_, '_, M> {
    type Output = Result<Inversion>;

    fn run<B: TrackedBackend>(self, device: B::Device) -> Result<Inversion> {
        let Watched { task, observer } = self;
        let subject = Subject::<B>::new(task.model.load(&device, task.options.dtype)?, task.model.tokenizer().clone());
        let circumstances = task.circumstances();
        let Task { model, problem, method, options, resume, .. } = task;
        let judge = match subject.as_flex() {
            Some(plain) => Judge::new(plain),
            None => {
                let model = RefCell::new(model);
                Judge::lazy(move || model.borrow_mut().load(&Default::default(), Dtype::F32))
            }
        };
        Search { problem, method, options, resume, circumstances }.run(subject, &judge, observer)
    }
}

/// A task whose model is loaded.
struct Search<M> {
    problem: Problem,
    method: M,
    options: Options,
    resume: Option<Snapshot>,
    circumstances: Circumstances,
}

impl<M: Build> Search<M> {
    fn run<B: TrackedBackend>(self, subject: Subject<B>, judge: &Judge, observer: &mut dyn Observer) -> Result<Inversion> {
        let Self { problem, method, options, resume, circumstances } = self;
        let subject = subject.within(options.max_memory, &problem, method.footprint())?;
        let mut method = method.build::<B>();
        let trial = Trial { subject: &subject, judge, problem: &problem, budget: options.budget(), seed: options.seed };
        let outcome = trial.run(method.as_mut(), resume, observer)?;
        Inversion::new(outcome, &problem, judge, circumstances, subject.tokenizer())
    }
}
