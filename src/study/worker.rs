//! Cells one after another on one device, the model loaded once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::store::Claim;
use super::{Cell, Store, Study};
use crate::backend::{self, Choice, Job};
use crate::error::panic_message;
use crate::gradients::{self, Line, LineFile, Plan, Unit, measure_run};
use crate::interrupt::Signal;
use crate::invert::event::Event;
use crate::invert::folder::Folder;
use crate::invert::judge::Judged;
use crate::invert::task::MOMENT;
use crate::invert::{Judge, Model, Observer, Report, Scores, Snapshot, Stopped, Task};
use crate::model::Llama;
use crate::ops::TrackedBackend;
use crate::subject::Subject;
use crate::{Error, Result, gpu_memory};

/// What became of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Its record is kept.
    Done {
        /// The prompt is exact.
        exact: bool,
        /// The score of the last step's hard prompt under free decoding; none where gradients were measured.
        hard_free: Option<f64>,
        /// What the search took.
        seconds: f64,
    },
    /// It cannot be had; the reason is kept.
    Failed {
        /// One sentence.
        reason: String,
        /// A GPU was in use, whose context may be gone: this process must compute nothing more.
        device_lost: bool,
    },
    /// It was over before.
    Already,
    /// Another process is at it.
    Elsewhere,
    /// It was begun, and goes on another time.
    Interrupted {
        /// What it has come to, as in a record; null where gradients are measured, or before a first step.
        inversion: Value,
    },
}

/// Says which cells are computed, and is told how they go.
pub trait Foreman {
    /// The next cell by its place in the study.
    fn next_cell(&mut self) -> Option<usize>;

    /// After every step of a cell.
    fn step(&mut self, _cell: &Cell, _report: &Report) -> Result<()> {
        Ok(())
    }

    /// After every step of a run that is measured: how many it has made.
    fn measured(&mut self, _cell: &Cell, _steps: u64) -> Result<()> {
        Ok(())
    }

    /// When a cell is left.
    fn ended(&mut self, cell: usize, end: &End) -> Result<()>;

    /// Comes when to stop. A long step is left then.
    fn signal(&self) -> Signal;
}

/// Computes cells until `foreman` has none, or says stop, or a GPU is lost. A failed cell is computed again with `retry` only.
///
/// Inline, as is all that leads to [`backend::dispatch`].
///
/// # Errors
/// What would stop every other cell too: the disk, the foreman. What is wrong with one cell is kept as its result.
#[inline]
pub fn work(study: &mut Study, store: &Store, choice: Choice, retry: bool, foreman: &mut dyn Foreman) -> Result<()> {
    let device = choice.device.clone();
    backend::dispatch(&device, Shift { study, store, choice, retry, foreman })
}

/// Work on its way to its device.
struct Shift<'a> {
    study: &'a mut Study,
    store: &'a Store,
    choice: Choice,
    retry: bool,
    foreman: &'a mut dyn Foreman,
}

impl Job for Shift<'_> {
    type Output = Result<()>;

    fn run<B: TrackedBackend>(self, device: B::Device) -> Result<()> {
        let Self { study, store, choice, retry, foreman } = self;
        let mut worker = Worker::<B> { study, store, choice, device, loaded: None };
        while !foreman.signal().has_come() {
            let Some(cell) = foreman.next_cell() else { break };
            let end = worker.cell(cell, retry, foreman)?;
            foreman.ended(cell, &end)?;
            if matches!(end, End::Failed { device_lost: true, .. }) {
                break;
            }
        }
        Ok(())
    }
}

struct Worker<'a, B: TrackedBackend> {
    study: &'a mut Study,
    store: &'a Store,
    choice: Choice,
    device: B::Device,
    loaded: Option<Loaded<B>>,
}

/// A model on its device, and the plain copy that confirms.
struct Loaded<B: TrackedBackend> {
    model: usize,
    plain: Llama<B::InnerBackend>,
    judge: Judge<'static>,
}

impl<B: TrackedBackend> Worker<'_, B> {
    fn cell(&mut self, place: usize, retry: bool, foreman: &mut dyn Foreman) -> Result<End> {
        let cell = self.study.cells[place].clone();
        if self.is_over(&cell, retry)? {
            return Ok(End::Already);
        }
        let Some(claim) = self.store.claim(&cell.id)? else { return Ok(End::Elsewhere) };
        // It may have ended before it was claimed.
        if self.store.is_over(&cell.id, retry) {
            self.ask_robust(&claim, &cell, foreman)?;
            return Ok(End::Already);
        }
        let compute = || if cell.measured.is_some() { self.measure(&cell, foreman) } else { self.invert(&cell, foreman) };
        let (reason, device_lost) = match catch_unwind(AssertUnwindSafe(compute)) {
            Ok(Ok((_, end @ End::Interrupted { .. }))) => return Ok(end),
            Ok(Ok((found, end))) => {
                self.store.finish(&claim, &cell, found)?;
                self.ask_robust(&claim, &cell, foreman)?;
                return Ok(end);
            }
            Ok(Err(Error::Interrupted)) => return Ok(End::Interrupted { inversion: Value::Null }),
            Ok(Err(error @ Error::Environment(_))) => return Err(error),
            Ok(Err(error)) => (error.to_string(), false),
            Err(panic) => {
                self.loaded = None;
                let fault = || format!("internal fault: {}", panic_message(&*panic).unwrap_or("no message"));
                (gpu_memory::exhausted().map_or_else(fault, |error| error.to_string()), self.choice.device.is_gpu())
            }
        };
        self.store.fail(&claim, &cell, &reason)?;
        Ok(End::Failed { reason, device_lost })
    }

    /// Whether there is nothing left to compute or to ask.
    fn is_over(&self, cell: &Cell, retry: bool) -> Result<bool> {
        Ok(self.store.is_over(&cell.id, retry) && self.unasked(cell)?.is_none())
    }

    /// The record of a cell of which it is still to be asked what else its prompt withstands.
    fn unasked(&self, cell: &Cell) -> Result<Option<Value>> {
        if !self.study.robust {
            return Ok(None);
        }
        Ok(self.store.record(&cell.id)?.filter(|record| record["inversion"].is_object() && record["inversion"]["robust"].is_null()))
    }

    /// Asks what else the prompt of a cell that is done withstands, where that is still to be asked. When a signal comes, it is left for
    /// another time.
    #[inline]
    fn ask_robust(&mut self, claim: &Claim, cell: &Cell, foreman: &dyn Foreman) -> Result<()> {
        let Some(mut record) = self.unasked(cell)? else { return Ok(()) };
        let model = &mut self.study.models[cell.model];
        date(model, cell, record[MOMENT].as_i64())?;
        let inversion = &mut record["inversion"];
        let problem = model.problem_of(cell.target.target.clone(), &cell.options)?;
        let (exact, free_text) = (inversion["exact"] == true, inversion["free_text"].as_str().unwrap_or_default());
        let told = model.robust_if_exact(exact, &problem, free_text, cell.options.max_memory, foreman.signal());
        let Some((robust, notes)) = told else { return Ok(()) };
        inversion["robust"] = printed(&robust);
        if let Some(said) = inversion["notes"].as_array_mut() {
            said.extend(notes.into_iter().map(Value::from));
        }
        self.store.finish(claim, cell, record)
    }

    /// What its record holds, null if it was interrupted, and what became of it.
    fn invert(&mut self, cell: &Cell, foreman: &mut dyn Foreman) -> Result<(Value, End)> {
        let load_seconds = self.load(cell)?;
        let loaded = self.loaded.as_ref().expect("it was just loaded");
        let model = &mut self.study.models[cell.model];
        date(model, cell, Folder::moment(&self.store.work(&cell.id)))?;
        let problem = model.problem_of(cell.target.target.clone(), &cell.options)?;
        let moment = problem.moment();
        let task = Task::on(self.choice.clone(), model, problem, cell.options.clone())?.with_presets(cell.presets.clone());
        let (folder, snapshot) = begun(self.store, cell, || Folder::open(&self.store.work(&cell.id), task.identity(), true))?;
        let mut watcher = Watcher { cell, folder, foreman };
        let mut inversion = task.with_snapshot(snapshot).run_on::<B>(loaded.plain.clone(), &loaded.judge, &mut watcher)?;
        inversion.circumstances.load_seconds = load_seconds;
        if inversion.stopped == Stopped::Signal {
            return Ok((Value::Null, End::Interrupted { inversion: printed(&inversion) }));
        }
        let hard_free = Some(inversion.lcs.scores.map_or(0.0, |scores| scores.hard_free));
        let end = End::Done { exact: inversion.exact, hard_free, seconds: inversion.seconds };
        let events = Event::read(&self.store.work(&cell.id));
        let mut found = json!({ "inversion": printed(&inversion), "trace": printed(&telling(&events)) });
        if events.iter().any(|event| event.temperature.is_some()) {
            let means: Vec<Option<f64>> = events.iter().map(|event| event.temperature.map(|spread| spread.mean)).collect();
            found["temperature"] = printed(&means);
        }
        if let Some(moment) = moment {
            found[MOMENT] = moment.into();
        }
        Ok((found, end))
    }

    /// The same of a run whose gradients are measured.
    fn measure(&mut self, cell: &Cell, foreman: &mut dyn Foreman) -> Result<(Value, End)> {
        self.load(cell)?;
        let loaded = self.loaded.as_ref().expect("it was just loaded");
        let model = &self.study.models[cell.model];
        date(model, cell, None)?;
        let plan = cell.plan(model)?.expect("it is measured");
        let backend = self.choice.device.backend.as_str();
        let (file, lines) = measured(self.store, cell, &plan, backend)?;
        let (began, before) = (Instant::now(), lines.iter().map(|line| line.seconds).sum::<f64>());
        let mut measuring = Measuring { cell, foreman, file, lines };
        if !measure_run::<B>(&loaded.plain, model, &plan, &plan.units[0], &mut measuring)? {
            return Ok((Value::Null, End::Interrupted { inversion: Value::Null }));
        }
        let seconds = before + began.elapsed().as_secs_f64();
        let found = json!({ "backend": backend, "seconds": seconds, "gradients": printed(&measuring.lines) });
        Ok((found, End::Done { exact: false, hard_free: None, seconds }))
    }

    /// Makes the cell's model the loaded one. The seconds it took, 0 where it was.
    fn load(&mut self, cell: &Cell) -> Result<f64> {
        if self.loaded.as_ref().is_some_and(|loaded| loaded.model == cell.model) {
            return Ok(0.0);
        }
        // The last one goes first, and its memory back to the device: two may not fit.
        if self.loaded.take().is_some() {
            B::memory_cleanup(&self.device);
        }
        let (began, dtype) = (Instant::now(), self.study.dtype());
        let model = &mut self.study.models[cell.model];
        let plain: Llama<B::InnerBackend> = model.load(&self.device, dtype)?;
        let judge = match Subject::<B>::new(plain.clone(), model.tokenizer().clone()).as_flex() {
            Some(flex) => Judge::new(flex),
            None => Judge::new(model.load(&Default::default(), backend::Dtype::F32)?),
        };
        self.loaded = Some(Loaded { model: cell.model, plain, judge });
        Ok(began.elapsed().as_secs_f64())
    }
}

/// The steps that were scored, and those at which the best prompt matched more than before.
fn telling(events: &[Event]) -> Vec<&Event> {
    let mut most = 0;
    let mut tells = |event: &&Event| {
        let now = event.best.as_ref().map_or(0, |best| best.matched_prefix);
        let gained = now > most;
        most = most.max(now);
        gained || event.scores.is_some()
    };
    events.iter().filter(|event| tells(event)).collect()
}

/// Lets the date that a chat may hold be that on which its cell was begun: `moment`, the present one where it was not.
///
/// # Errors
/// The model has no usable chat template.
fn date(model: &Model, cell: &Cell, moment: Option<i64>) -> Result<()> {
    if cell.options.chat { model.set_moment(moment) } else { Ok(()) }
}

/// What `open` finds of a cell that was begun. What another backend or version began, or is broken, is begun again.
fn begun<T>(store: &Store, cell: &Cell, open: impl Fn() -> Result<T>) -> Result<T> {
    match open() {
        Err(error @ (Error::Input(_) | Error::Option { .. })) => {
            tracing::warn!("{error}; the cell is begun again");
            store.clear(&cell.id);
            open()
        }
        opened => opened,
    }
}

/// The measurements of a cell by this backend, and those that it has.
fn measured(store: &Store, cell: &Cell, plan: &Plan, backend: &str) -> Result<(LineFile, Vec<Line>)> {
    let folder = store.work(&cell.id);
    begun(store, cell, || {
        std::fs::create_dir_all(&folder).map_err(|error| Error::writing(&folder, &error))?;
        LineFile::open(&folder.join(format!("gradients.{backend}.jsonl")), plan)
    })
}

/// Keeps the run folder of a cell.
struct Watcher<'a> {
    cell: &'a Cell,
    folder: Folder,
    foreman: &'a mut dyn Foreman,
}

impl Observer for Watcher<'_> {
    fn step(&mut self, report: &Report) -> Result<()> {
        self.folder.event(report)?;
        self.foreman.step(self.cell, report)
    }

    fn save(&mut self, snapshot: &dyn Fn() -> Snapshot) -> Result<()> {
        self.folder.save(&snapshot())
    }

    fn end(&mut self, best: &Judged, scores: Option<Scores>) -> Result<()> {
        self.folder.end(best, scores)
    }

    fn signal(&self) -> Signal {
        self.foreman.signal()
    }
}

/// Keeps the measurements of a cell.
struct Measuring<'a> {
    cell: &'a Cell,
    foreman: &'a mut dyn Foreman,
    file: LineFile,
    lines: Vec<Line>,
}

impl gradients::Observer for Measuring<'_> {
    fn step(&mut self, _: &Unit, steps: u64) -> Result<()> {
        self.foreman.measured(self.cell, steps)
    }

    fn has(&self, unit: &Unit, step: u64) -> bool {
        unit.is_measured(&self.lines, step)
    }

    fn line(&mut self, line: Line) -> Result<()> {
        self.file.add(&line)?;
        self.lines.push(line);
        Ok(())
    }

    fn signal(&self) -> Signal {
        self.foreman.signal()
    }
}

/// A value as it is printed: numbers of 32 bits in their own shortest digits, not in those of 64.
fn printed(value: &impl Serialize) -> Value {
    let text = serde_json::to_string(value).expect("plain data");
    serde_json::from_str(&text).expect("it was just written")
}
