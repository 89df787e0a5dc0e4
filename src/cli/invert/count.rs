//! `dlmi invert --count`: different prompts for one target, by one search after another with another seed. They are a study of this target.

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::list::{Kept, is_solved, left, verdict};
use crate::Result;
use crate::cli::args::{Cli, Invert};
use crate::cli::session::Session;
use crate::cli::signals::{ended_by, watch_signals};
use crate::invert::Report;
use crate::problem::targets::Labelled;
use crate::study::{Cell, End, Foreman, Queue, Store, Study, work};
use crate::subject::check_context;
use crate::terminal::counted;
use crate::ui::{Paint, Policy, Progress, Status, paint, print_part, print_result, visible};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Invert, count: u32, policy: Policy) -> Result<ExitCode> {
    let session = Session::open(cli, policy)?;
    let target = super::target(verb, &session)?;
    // What is wrong with one search is wrong with all.
    let problem = session.model.problem_of(target.clone(), session.settings())?;
    session.settings().check()?;
    check_context(session.model.config(), problem.first().positions(), problem.target_tokens())?;
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
        progress: Progress::new(policy, format!("looking for {}", counted(count.into(), "prompt"))),
        began: Instant::now(),
        unread: false,
    };
    let outcome = work(&mut study, &kept.store, choice, true, &mut prompts);
    let found = prompts.found.len();
    drop(prompts);
    if !cli.global.json {
        print_result(&format!("{found} of {count} different prompts found"))?;
    }
    outcome?;
    Ok(match signal.load(Ordering::Relaxed) {
        0 => ExitCode::from(u8::from(found < count as usize)),
        number => ended_by(number),
    })
}

/// Hands out seeds until as many searches as prompts are wanted have found one that is new, or none, and prints what they come to.
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
    /// Nobody reads the results any more.
    unread: bool,
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

    fn print(&mut self, line: &str) -> Result<()> {
        self.unread = !print_part(line)?;
        Ok(())
    }

    /// A line for people: the prompt as it is typed, and what was verified.
    fn line(&self, inversion: &Value) -> String {
        let color = |kind, text: &str| paint(self.policy.color_out, kind, text);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let settings = &inversion["settings"];
        let typed = match settings["chat"] == true {
            true => [&settings["prefix"], &inversion["free_text"], &settings["suffix"]].map(text).concat(),
            false => text(&inversion["prompt_text"]),
        };
        let prompt = visible(&typed).to_string();
        let solved = is_solved(inversion);
        let verdict =
            color(if solved { Paint::Good } else { Paint::Bad }, &format!("{:<6}", verdict(inversion["exact"].as_bool(), solved)));
        let (seed, steps) = (&inversion["seed"], counted(inversion["steps"].as_u64().unwrap_or(0), "step"));
        let [lead, seconds] = ["min_margin", "seconds"].map(|key| inversion[key].as_f64().unwrap_or(0.0));
        let prompt = color(Paint::Bold, &prompt);
        format!("{verdict} \"{prompt}\"  (seed {seed}, smallest lead {lead:.3} logits, {seconds:.1} s, {steps})")
    }
}

impl Foreman for Prompts<'_> {
    fn next_cell(&mut self) -> Option<usize> {
        let enough = self.found.len() + self.missed >= self.wanted;
        if enough || self.unread { None } else { self.queue.next_cell() }
    }

    fn step(&mut self, cell: &Cell, report: &Report) -> Result<()> {
        let so_far = super::so_far(report, cell.target_tokens());
        self.show(Some(format!("seed {}: step {}, {so_far}", cell.options.seed, report.step)));
        Ok(())
    }

    fn ended(&mut self, cell: usize, end: &End) -> Result<()> {
        self.queue.ended(cell, end);
        let cell = &self.cells[cell];
        let (seed, Some(record)) = (cell.options.seed, left(cell, end, self.store)?) else { return Ok(()) };
        let inversion = &record["inversion"];
        if inversion.is_null() {
            tracing::warn!("seed {seed}: {}", record["failed"].as_str().unwrap_or_default());
            self.missed += 1;
            return if self.as_json { self.print(&crate::cli::json(&json!({ "seed": seed, "failed": record["failed"] }))) } else { Ok(()) };
        }
        if !is_solved(inversion) {
            if matches!(end, End::Interrupted { .. }) {
                return Ok(());
            }
            self.missed += 1;
        } else if !self.found.insert(inversion["prompt_text"].as_str().unwrap_or_default().to_owned()) {
            tracing::warn!("seed {seed} found a prompt that was found before");
            return Ok(());
        }
        self.show(None);
        self.print(&if self.as_json { crate::cli::json(inversion) } else { self.line(inversion) })
    }

    fn signal(&self) -> Arc<AtomicUsize> {
        self.signal.clone()
    }
}
