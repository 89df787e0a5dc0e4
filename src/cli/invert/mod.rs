//! `dlmi invert`: from a target to a prompt that is checked.

mod count;
mod list;
mod series;

use std::process::ExitCode;

use serde_json::json;

use crate::budget::Budget;
use crate::cli::answer;
use crate::cli::args::{Cli, Invert, Print};
use crate::cli::session::Session;
use crate::cli::signals::{ended_by, watch_signals};
use crate::interrupt::Signal;
use crate::invert::folder::Folder;
use crate::invert::judge::Judged;
use crate::invert::notes::TARGET;
use crate::invert::record::Circumstances;
use crate::invert::{Inversion, Observer, Report, Scores, Snapshot, Stopped, Task};
use crate::problem::{Problem, Target};
use crate::terminal::{counted, logits};
use crate::ui::{Paint, Policy, Progress, Status, paint, print_text, visible};
use crate::{Error, Result};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Invert, policy: Policy) -> Result<ExitCode> {
    if verb.csv && verb.targets.is_none() {
        return Err(Error::option("csv", "is for the table of `--targets FILE`; name one, or ask for `--json`"));
    }
    match (&verb.targets, verb.count) {
        (Some(targets), _) => list::run(cli, verb, targets, policy),
        (None, Some(count)) => count::run(cli, verb, count, policy),
        (None, None) => one(cli, verb, policy),
    }
}

/// One target, one prompt.
#[inline]
fn one(cli: &Cli, verb: &Invert, policy: Policy) -> Result<ExitCode> {
    let session = Session::open(cli, policy)?;
    let target = target(verb, &session)?;
    let Session { mut model, resolved } = session;
    let options = resolved.settings;
    if let Some(out) = verb.out.as_deref().filter(|_| verb.resume && options.chat) {
        model.set_moment(Folder::moment(out))?;
    }
    let problem = model.problem_of(target, &options)?;
    let (budget, max_memory) = (options.budget(), options.max_memory);
    let task = Task::new(&mut model, problem.clone(), options)?.with_presets(resolved.presets);
    let (folder, resume) = folder(verb, &task)?;
    let signal = watch_signals()?;
    let mut watcher = Watcher::new(policy, problem.clone(), budget, folder, signal.clone());
    let outcome = task.with_snapshot(resume).run(&mut watcher);
    let folder = watcher.folder.take();
    drop(watcher);
    if let Err(early @ Error::Interrupted) = &outcome {
        tracing::warn!("{early}");
        return Ok(ended_by(&signal));
    }
    let mut inversion = outcome?;
    let keep = |inversion: &Inversion| folder.as_ref().map_or(Ok(()), |folder| folder.result(&crate::cli::json(inversion)));
    // What was found is printed even where it cannot be kept.
    let mut kept = keep(&inversion);
    if verb.robust {
        inversion.ask_robust(&mut model, &problem, max_memory, signal.clone());
        kept = keep(&inversion);
    }
    match verb.print {
        Some(Print::Prompt) => prompt_alone(&inversion)?,
        None => answer(cli, &inversion, || readable(&inversion, folder.is_some(), policy))?,
    }
    kept?;
    Ok(match (inversion.stopped, inversion.solved) {
        (Stopped::Signal, _) => ended_by(&signal),
        // It was not told all that it asked.
        _ if verb.robust && signal.has_come() => ended_by(&signal),
        (_, true) => ExitCode::SUCCESS,
        (_, false) => ExitCode::from(1),
    })
}

/// The folder of `--out`, and how far the run in it has come.
fn folder(verb: &Invert, task: &Task) -> Result<(Option<Folder>, Option<Snapshot>)> {
    let Some(path) = &verb.out else { return Ok((None, None)) };
    let (folder, resume) = Folder::open(path, task.identity(), verb.resume)?;
    let lines = || counted(folder.dropped() as u64, "line");
    match (&resume, folder.dropped()) {
        (Some(_), 0) => (),
        (Some(_), _) => {
            tracing::warn!("going on from the last step that was saved; {} of events.jsonl behind it, to be written again", lines())
        }
        (None, 1..) => tracing::warn!(
            "--resume: that folder has no checkpoint, so the run starts at its beginning, without the {} of events.jsonl",
            lines()
        ),
        (None, 0) if verb.resume => {
            tracing::warn!("--resume: there is nothing to go on with in that folder yet, so the run starts at its beginning");
        }
        (None, 0) => (),
    }
    Ok((Some(folder), resume))
}

/// What is to be written: ids, else [`Session::target`].
fn target(verb: &Invert, session: &Session) -> Result<Target> {
    if let Some(ids) = &verb.target_ids {
        session.check_ids(ids, "--target-ids")?;
        return Ok(Target::from_ids(ids.clone(), session.model.tokenizer()));
    }
    session.target(verb.target.clone(), verb.file.clone()).map(|(_, target)| target)
}

/// `best 3/20 tokens`, the N at work before it where that becomes smaller.
fn so_far(report: &Report, m: usize) -> String {
    let length = report.prompt_tokens.map_or(String::new(), |tokens| format!("N {tokens}, "));
    format!("{length}best {}/{}", report.best.map_or(0, |best| best.matched_prefix), counted(m as u64, "token"))
}

/// Shows progress, keeps the run folder, listens for signals.
struct Watcher {
    progress: Progress,
    problem: Problem,
    budget: Budget,
    folder: Option<Folder>,
    signal: Signal,
}

impl Watcher {
    fn new(policy: Policy, problem: Problem, budget: Budget, folder: Option<Folder>, signal: Signal) -> Self {
        let progress = Progress::new(policy, format!("inverting {}", counted(problem.target_tokens() as u64, "token")));
        Self { progress, problem, budget, folder, signal }
    }
}

impl Observer for Watcher {
    fn step(&mut self, report: &Report) -> Result<()> {
        let so_far = so_far(report, self.problem.target_tokens());
        let restarts = if report.restart > 0 { format!(", start {}", report.restart + 1) } else { String::new() };
        self.progress.update(&Status {
            step: report.step,
            steps: self.budget.steps,
            seconds: report.seconds,
            max_seconds: self.budget.seconds,
            best: format!("{so_far}, objective {:.2}{restarts}", report.progress.objective),
            text: report.best.map(|best| self.problem.free_text(&best.free)),
            ..Status::default()
        });
        self.folder.as_mut().map_or(Ok(()), |folder| folder.event(report))
    }

    fn save(&mut self, snapshot: &dyn Fn() -> Snapshot) -> Result<()> {
        self.folder.as_ref().map_or(Ok(()), |folder| folder.save(&snapshot()))
    }

    fn end(&mut self, best: &Judged, scores: Option<Scores>) -> Result<()> {
        self.folder.as_mut().map_or(Ok(()), |folder| folder.end(best, scores))
    }

    fn signal(&self) -> Signal {
        self.signal.clone()
    }
}

/// The prompt; what a reader must know besides goes to stderr.
fn prompt_alone(inversion: &Inversion) -> Result<()> {
    for note in &inversion.notes {
        tracing::warn!("{note}");
    }
    if !inversion.exact {
        tracing::warn!("not exact {}", how_far(inversion));
    }
    if let Some(robust) = inversion.robust {
        tracing::warn!("robust {robust}");
    }
    print_text(&series::typed(&json!(inversion)))
}

/// A few lines for people: the prompt, what the model writes, what was verified, and what to try when it failed. `kept`
/// in a folder.
fn readable(inversion: &Inversion, kept: bool, policy: Policy) -> String {
    let color = |kind, text: &str| paint(policy.color_out, kind, text);
    // In quotes: a space at either end is part of the text.
    let found = format!("found    \"{}\"", color(Paint::Bold, &visible(&inversion.free_text)));
    let whole = inversion.free_text == inversion.prompt_text;
    let mut lines: Vec<String> = (!whole).then_some(found).into_iter().collect();
    lines.extend([
        format!("prompt   \"{}\"", color(Paint::Bold, &visible(&inversion.prompt_text))),
        format!("writes   \"{}\"", visible(&inversion.completion_text)),
        format!("target   \"{}\"", visible(&inversion.target_text)),
    ]);
    let found = match inversion.seconds_to_exact {
        Some(seconds) => format!("found in {seconds:.1} s after {}", counted(inversion.best.step, "step")),
        None => format!("found in step {} of {}", inversion.best.step, inversion.steps),
    };
    let m = inversion.target_ids.len();
    let notes = inversion.notes.iter().map(|note| format!("{}     {}", color(Paint::Notice, "note"), visible(note)));
    if inversion.exact {
        lines.push(format!(
            "{}    the model, given this text, writes the {} of the target greedily (CPU, f32, smallest lead {}); \
             {} of prompt, {found}",
            color(Paint::Good, "exact"),
            if m == 1 { "token".to_owned() } else { format!("{m} tokens") },
            logits(inversion.min_margin.unwrap_or(0.0)),
            counted(inversion.prompt_ids.len() as u64, "token"),
        ));
    } else {
        lines.push(format!("{} {}", color(Paint::Bad, "not exact"), how_far(inversion)));
    }
    lines.extend(inversion.robust.map(|robust| format!("robust   {robust}")));
    lines.extend(notes);
    lines.extend((!inversion.solved).then(|| format!("try      {}", advice(inversion, kept))));
    lines.join("\n")
}

/// Tokens matched, and the first wrong one.
fn how_far(inversion: &Inversion) -> String {
    let matched = inversion.best.judged.as_ref().map_or(0, |judged| judged.matched_prefix);
    let m = inversion.target_ids.len();
    let diverged = if inversion.stopped == Stopped::Diverged { "the objective was not a number any more; " } else { "" };
    let wrong = match (inversion.target_ids.get(matched), inversion.completion_ids.get(matched)) {
        (Some(wanted), Some(written)) => format!(", then writes token {written} instead of {wanted}"),
        _ => String::new(),
    };
    let (steps, tokens) = (counted(inversion.steps, "step"), counted(m as u64, "token"));
    format!("after {:.1} s and {steps}: {diverged}the model writes {matched} of {tokens}{wrong}", inversion.seconds)
}

fn advice(inversion: &Inversion, kept: bool) -> String {
    let Circumstances { method, settings, dtype, .. } = &inversion.circumstances;
    let valid = inversion.best.judged.as_ref().is_some_and(|judged| judged.valid);
    match (method.as_str(), inversion.stopped) {
        _ if inversion.notes.iter().any(|note| note == TARGET) => "the target as text, or the ids that its text gives".into(),
        (_, Stopped::Signal) if kept => "the same command with --resume, to go on where it stopped".into(),
        (_, Stopped::Signal) => "--out DIR, which keeps what a run has done, for --resume to go on with".into(),
        (method, Stopped::Diverged) if settings[method]["learning_rate"].is_number() => "a smaller learning_rate".into(),
        (_, Stopped::Diverged) if dtype != "f32" => "--dtype f32".into(),
        (_, Stopped::Diverged) => "another model (--model): the numbers of this one overflow".into(),
        ("echo", _) if !valid => "--allow-target-tokens, since echo repeats the target".into(),
        ("echo" | "floor", _) => "--method snap, which searches".into(),
        (method, stopped) => {
            let more = match stopped {
                Stopped::Time => "more time (--max-seconds)",
                _ if settings["max_positions"].is_number() => "more positions (--set max_positions=N)",
                _ => "more steps (--steps)",
            };
            let other = if method == "snap" { "a larger model (--model)" } else { "--method snap, the best at text that can be typed" };
            format!("{more}, more tokens (--prompt-tokens), another --seed, or {other}")
        }
    }
}
