//! `dlmi invert --count`: different prompts for one target, by one search after another with another seed. They are a study of this target.

use std::collections::HashSet;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::series::{Aim, Kept, Series, is_solved, notes, robust, typed, verdict};
use crate::Result;
use crate::cli::args::{Cli, Invert};
use crate::cli::session::Session;
use crate::cli::signals::{ended_by, watch_signals};
use crate::problem::targets::Labelled;
use crate::study::{Cell, End, Study, work};
use crate::subject::check_context;
use crate::terminal::{counted, logits};
use crate::ui::{Paint, Policy, paint, print_result, visible};

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
    let target = Labelled::of("target", target);
    // As many seeds again are there for searches that find what another has found.
    let mut study = Study::of_seeds(model, &target, &resolved, 2 * count).robust(verb.robust);
    let kept = Kept::open(verb.out.as_deref())?;
    let signal = watch_signals()?;
    let aim = Prompts { wanted: count as usize, found: HashSet::new(), missed: 0, as_json: cli.global.json, policy };
    let what = format!("looking for {}", counted(count.into(), "prompt"));
    let mut prompts = Series::new(&study, &kept.store, what, policy, signal.clone(), aim);
    let outcome = work(&mut study, &kept.store, choice, true, &mut prompts);
    let found = prompts.aim.found.len();
    drop(prompts);
    if !cli.global.json {
        print_result(&format!("{found} of {count} different prompts found"))?;
    }
    outcome?;
    let missed = ExitCode::from(u8::from(found < count as usize));
    Ok(if signal.has_come() { ended_by(&signal) } else { missed })
}

/// As many prompts as are wanted, each a new one. A search that finds none counts too, but not one that was interrupted, nor one whose prompt
/// another has found.
struct Prompts {
    wanted: usize,
    /// The texts of the prompts.
    found: HashSet<String>,
    /// Searches that found nothing.
    missed: usize,
    as_json: bool,
    policy: Policy,
}

impl Prompts {
    /// A line for people: the prompt as it is typed, and what was verified.
    fn line(&self, inversion: &Value) -> String {
        let color = |kind, text: &str| paint(self.policy.color_out, kind, text);
        let settings = &inversion["settings"];
        let solved = is_solved(inversion);
        let verdict = format!("{:<6}", verdict(inversion["exact"].as_bool(), solved));
        let verdict = color(if solved { Paint::Good } else { Paint::Bad }, &verdict);
        let (seed, steps) = (&inversion["seed"], counted(inversion["steps"].as_u64().unwrap_or(0), "step"));
        let [lead, seconds] = ["min_margin", "seconds"].map(|key| inversion[key].as_f64().unwrap_or(0.0));
        let length = if settings["shortest"] == true { format!("N {}, ", inversion["prompt_tokens"]) } else { String::new() };
        let how_far = match inversion["exact"] == true {
            true => format!("smallest lead {}", logits(lead)),
            false => {
                let m = inversion["target_ids"].as_array().map_or(0, Vec::len);
                format!("writes {} of {}", inversion["best"]["matched_prefix"], counted(m as u64, "token"))
            }
        };
        let prompt = color(Paint::Bold, &visible(&typed(inversion)).to_string());
        let line = format!("{verdict} \"{prompt}\"  (seed {seed}, {length}{how_far}, {seconds:.1} s, {steps})");
        let robust = robust(inversion).filter(|_| inversion["exact"] == true).map(|robust| format!("\n       robust {robust}"));
        let notes = notes(inversion).map(|note| format!("\n       {} {}", color(Paint::Notice, "note"), visible(note)));
        std::iter::once(line).chain(robust).chain(notes).collect()
    }
}

impl Aim for Prompts {
    const UNIT: &'static str = "prompt";

    fn name(&self, cell: &Cell) -> String {
        format!("seed {}", cell.options.seed)
    }

    fn is_met(&self) -> bool {
        self.found.len() + self.missed >= self.wanted
    }

    fn so_far(&self) -> (usize, usize, String) {
        (self.found.len(), self.wanted, String::new())
    }

    fn take(&mut self, cell: &Cell, end: &End, record: Option<Value>) -> Option<String> {
        let record = record?;
        let inversion = &record["inversion"];
        if inversion.is_null() {
            self.missed += 1;
            return self.as_json.then(|| crate::cli::json(&json!({ "seed": cell.options.seed, "failed": record["failed"] })));
        }
        let interrupted = matches!(end, End::Interrupted { .. });
        if !is_solved(inversion) {
            self.missed += usize::from(!interrupted);
        } else if !self.found.insert(inversion["prompt_text"].as_str().unwrap_or_default().to_owned()) {
            tracing::warn!("{} found a prompt that was found before", self.name(cell));
            return None;
        }
        Some(if self.as_json { crate::cli::json(inversion) } else { self.line(inversion) })
    }
}
