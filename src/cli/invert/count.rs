//! `dlmi invert --count`: different prompts for one target, by one search after another with another seed. They are a study of this target.

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::Value;

use super::list::{Kept, is_solved};
use crate::Result;
use crate::cli::args::{Cli, Invert};
use crate::cli::session::Session;
use crate::cli::signals::{ended_by, watch_signals};
use crate::invert::Report;
use crate::problem::targets::Labelled;
use crate::study::{Cell, End, Foreman, Queue, Store, Study, work};
use crate::terminal::counted;
use crate::ui::{Paint, Policy, Progress, Status, paint, print_part, print_result, visible};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Invert, count: u32, policy: Policy) -> Result<ExitCode> {
    let session = Session::open(cli, policy)?;
    let target = super::target(verb, &session)?;
    // What is wrong with one search is wrong with all.
    session.model.problem_of(target.clone(), session.settings())?;
    session.settings().check()?;
    let choice = session.device()?;
    let Session { model, resolved } = session;
    let target = Labelled { id: "target".into(), target, k: None, bos: None, known_prompt_tokens: None };
    // As many seeds again are there for searches that find what another has found.
    let mut study = Study::of_seeds(model, &target, &resolved, 2 * count);
    let kept = Kept::open(verb.out.as_deref())?;
    let signal = watch_signals()?;
    let mut prompts = Prompts {
        cells: study.cells().to_vec(),
        store: &kept.store,
        queue: Queue::new(0..study.cells().len(), None),
        wanted: count as usize,
        found: HashSet::new(),
        missed: 0,
        as_json: cli.global.json,
        policy,
        signal: signal.clone(),
        progress: Progress::new(policy, format!("looking for {count} prompts")),
        began: Instant::now(),
    };
    work(&mut study, &kept.store, choice, false, &mut prompts)?;
    let found = prompts.found.len();
    drop(prompts);
    if !cli.global.json {
        print_result(&format!("{found} of {count} different prompts found"))?;
    }
    Ok(match signal.load(Ordering::Relaxed) {
        0 => ExitCode::from(u8::from(found < count as usize)),
        number => ended_by(number),
    })
}

/// Hands out seeds until there are prompts enough, or as many searches have found none, and prints what they come to.
struct Prompts<'a> {
    cells: Vec<Cell>,
    store: &'a Store,
    queue: Queue,
    wanted: usize,
    /// The texts of the prompts.
    found: HashSet<String>,
    /// Searches that found nothing.
    missed: usize,
    as_json: bool,
    policy: Policy,
    signal: Arc<AtomicUsize>,
    progress: Progress,
    began: Instant,
}

impl Prompts<'_> {
    fn show(&mut self, now: Option<String>) {
        self.progress.update(&Status {
            unit: "prompt",
            step: self.found.len() as u64,
            steps: Some(self.wanted as u64),
            seconds: self.began.elapsed().as_secs_f64(),
            text: now,
            ..Status::default()
        });
    }

    /// A line for people: the prompt as it is typed, and what was verified.
    fn line(&self, inversion: &Value) -> String {
        let color = |kind, text: &str| paint(self.policy.color_out, kind, text);
        let typed = if inversion["settings"]["chat"] == true { "free_text" } else { "prompt_text" };
        let prompt = visible(inversion[typed].as_str().unwrap_or_default()).to_string();
        let verdict = if is_solved(inversion) { color(Paint::Good, "exact") } else { color(Paint::Bad, "no   ") };
        let (seed, steps) = (&inversion["seed"], counted(inversion["steps"].as_u64().unwrap_or(0), "step"));
        let [lead, seconds] = ["min_margin", "seconds"].map(|key| inversion[key].as_f64().unwrap_or(0.0));
        let prompt = color(Paint::Bold, &prompt);
        format!("{verdict}  \"{prompt}\"  (seed {seed}, smallest lead {lead:.3} logits, {seconds:.1} s, {steps})")
    }
}

impl Foreman for Prompts<'_> {
    fn next_cell(&mut self) -> Option<usize> {
        let enough = self.found.len() + self.missed >= self.wanted;
        if enough { None } else { self.queue.next_cell() }
    }

    fn step(&mut self, cell: &Cell, report: &Report) -> Result<()> {
        let so_far = super::so_far(report, cell.target_tokens());
        self.show(Some(format!("seed {}: step {}, {so_far}", cell.options.seed, report.step)));
        Ok(())
    }

    fn ended(&mut self, cell: usize, end: &End) -> Result<()> {
        self.queue.ended(cell, end);
        let Cell { id, options, .. } = &self.cells[cell];
        let Some(record) = self.store.record(id)? else { return Ok(()) };
        let inversion = &record["inversion"];
        if inversion.is_null() {
            tracing::warn!("seed {}: {}", options.seed, record["failed"].as_str().unwrap_or_default());
            self.missed += 1;
            return Ok(());
        }
        if !is_solved(inversion) {
            self.missed += 1;
        } else if !self.found.insert(inversion["prompt_text"].as_str().unwrap_or_default().to_owned()) {
            tracing::warn!("seed {} found a prompt that was found before", options.seed);
            return Ok(());
        }
        self.show(None);
        print_part(&if self.as_json { crate::cli::json(inversion) } else { self.line(inversion) }).map(|_| ())
    }

    fn signal(&self) -> Arc<AtomicUsize> {
        self.signal.clone()
    }
}
