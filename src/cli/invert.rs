//! `dlmi invert`: from a target to a prompt that is checked.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::args::{Cli, Invert, read_text};
use super::session::Session;
use super::signals::watch_signals;
use crate::backend::{self, Choice, Job};
use crate::invert::folder::Folder;
use crate::invert::record::{Circumstances, Inversion};
use crate::invert::{Budget, Observer, Report, Snapshot, Stopped, Trial};
use crate::invert::{Scores, judge::Judged};
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::problem::Prompt;
use crate::problem::Target;
use crate::source::spec;
use crate::subject::feeding::Feeding;
use crate::subject::{Subject, check_context};
use crate::ui::{Paint, Policy, Progress, Status, paint, print_result, visible};
use crate::{Error, Result};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Invert, policy: Policy) -> Result<ExitCode> {
    let session = Session::open(cli, policy)?;
    let problem = problem(&session, verb)?;
    let choice = session.device()?;
    let folder = verb.out.as_ref().map(|path| Folder::open(path, run_identity(&session, &problem, &choice), verb.resume)).transpose()?;
    let (folder, resume) = folder.map_or((None, None), |(folder, resume)| (Some(folder), resume));
    let signal = watch_signals()?;
    let device = choice.device.clone();
    let task = Task { session, problem, choice, folder, resume, signal: signal.clone(), policy };
    let inversion = backend::dispatch(&device, task)?;
    match cli.global.json {
        true => print_result(&super::json(&inversion))?,
        false => print_result(&readable(&inversion, policy))?,
    }
    Ok(match (inversion.stopped, inversion.exact) {
        (Stopped::Signal, _) => ExitCode::from(128 + signal.load(Ordering::Relaxed) as u8),
        (_, true) => ExitCode::SUCCESS,
        (_, false) => ExitCode::from(1),
    })
}

/// The target and the shape of the prompt, from the settings.
fn problem(session: &Session, verb: &Invert) -> Result<Problem> {
    let settings = session.settings();
    let (tokenizer, config) = (&session.checkpoint.tokenizer, &session.checkpoint.config);
    let target = match (read_text(verb.target.clone(), verb.file.clone())?, spec::bundled(&settings.model)) {
        (Some(text), _) => Target::from_text(&text, tokenizer)?,
        (None, Some(bundled)) => Target::from_text(bundled.default_target, tokenizer)?,
        (None, None) => return Err(Error::input("a target is needed: give the text that the model should write, or --file FILE")),
    };
    let problem = Problem::new(settings.prompt_options(session.bos()?), target, tokenizer, config.vocab_size)?;
    check_context(config, problem.first().len(), problem.first().target.ids.len())?;
    Ok(problem)
}

/// What a run must have in common with the one it goes on from: all settings but the budgets.
fn run_identity(session: &Session, problem: &Problem, choice: &Choice) -> serde_json::Value {
    let mut identity = session.settings().to_json();
    let map = identity.as_object_mut().expect("an object");
    for budget in ["steps", "max_seconds", "restarts", "max_memory", "device", "model"] {
        map.remove(budget);
    }
    map.insert("backend".into(), choice.device.backend.to_string().into());
    map.insert("model_digest".into(), session.checkpoint.digest.clone().into());
    map.insert("target_ids".into(), problem.first().target.ids.clone().into());
    identity
}

/// Everything the run needs, on its way to the backend.
struct Task {
    session: Session,
    problem: Problem,
    choice: Choice,
    folder: Option<Folder>,
    resume: Option<Snapshot>,
    signal: Arc<AtomicUsize>,
    policy: Policy,
}

impl Job for Task {
    type Output = Result<Inversion>;

    fn run<B: TrackedBackend>(mut self, device: B::Device) -> Result<Inversion> {
        let subject = Subject::<B>::new(self.session.load(&device)?, self.session.checkpoint.tokenizer.clone());
        let settings = self.session.settings();
        let (samples, feeding) = settings.method_settings().row().map_or((1, Feeding::Forced), |row| (row.samples, row.feeding));
        let subject = subject.within(settings.max_memory, &self.problem, samples, feeding)?;
        let judge = self.session.judge(&subject)?;
        let circumstances = self.circumstances()?;
        let settings = self.session.settings();
        let mut method = settings.method_settings().build::<B>();
        let budget = settings.budget();
        let what = format!("inverting {} tokens", self.problem.first().target.ids.len());
        let mut watcher = Watcher {
            progress: Progress::new(self.policy, what),
            budget,
            folder: self.folder,
            signal: &self.signal,
            prompt: &self.problem.prompt,
            target: self.problem.first().target.ids.len(),
        };
        let trial = Trial { subject: &subject, judge: &judge, problem: &self.problem, budget, seed: settings.seed };
        let outcome = trial.run(method.as_mut(), self.resume, &mut watcher)?;
        let folder = watcher.folder.take();
        drop(watcher);
        let inversion = Inversion::new(outcome, &self.problem, &judge, circumstances, |ids| subject.tokenizer().decode(ids));
        if let Some(folder) = folder {
            folder.result(&super::json(&inversion))?;
        }
        Ok(inversion)
    }
}

impl Task {
    fn circumstances(&self) -> Result<Circumstances> {
        let settings = self.session.settings();
        Ok(Circumstances {
            model: self.session.model_identity(),
            backend: self.choice.device.backend.to_string(),
            device: self.choice.device.name.clone(),
            dtype: settings.dtype.to_string(),
            method: settings.method.to_string(),
            preset: self.session.resolved.presets.clone(),
            seed: settings.seed,
            bos: settings.bos,
            settings: settings.to_json(),
            bos_token: self.session.start_token(),
            load_seconds: self.session.seconds(),
        })
    }
}

/// Shows progress, keeps the run folder, listens for signals.
struct Watcher<'a> {
    progress: Progress,
    budget: Budget,
    folder: Option<Folder>,
    signal: &'a AtomicUsize,
    prompt: &'a Prompt,
    target: usize,
}

impl Observer for Watcher<'_> {
    fn step(&mut self, report: &Report) -> Result<()> {
        let matched = report.best.map_or(0, |best| best.matched_prefix);
        let restarts = if report.restart > 0 { format!(", start {}", report.restart + 1) } else { String::new() };
        self.progress.update(&Status {
            step: report.step,
            steps: self.budget.steps,
            seconds: report.seconds,
            max_seconds: self.budget.seconds,
            best: format!("best {matched}/{} tokens, objective {:.2}{restarts}", self.target, report.progress.objective),
            text: report.best.map(|best| self.prompt.text(&best.free)),
        });
        self.folder.as_mut().map_or(Ok(()), |folder| folder.event(report))
    }

    fn save(&mut self, snapshot: &dyn Fn() -> Snapshot) -> Result<()> {
        self.folder.as_ref().map_or(Ok(()), |folder| folder.save(&snapshot()))
    }

    fn end(&mut self, best: &Judged, scores: Scores) -> Result<()> {
        self.folder.as_mut().map_or(Ok(()), |folder| folder.end(best, scores))
    }

    fn interrupted(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }
}

/// A few lines for people: the prompt, what the model writes, what was verified, and what to try when it failed.
fn readable(inversion: &Inversion, policy: Policy) -> String {
    let color = |kind, text: &str| paint(policy.color_out, kind, text);
    let mut lines = vec![
        // In quotes: a space at either end is part of the text.
        format!("prompt   \"{}\"", color(Paint::Bold, &visible(&inversion.prompt_text))),
        format!("writes   \"{}\"", visible(&inversion.completion_text)),
        format!("target   \"{}\"", visible(&inversion.target_text)),
    ];
    let (seconds, m) = (inversion.seconds, inversion.target_ids.len());
    if inversion.exact {
        lines.push(format!(
            "{}    the model, given this text, writes the {m} tokens of the target greedily (CPU, f32, smallest lead {:.3} logits); \
             {} tokens of prompt, found in {:.1} s after {} steps",
            color(Paint::Good, "exact"),
            inversion.min_margin.unwrap_or(0.0),
            inversion.prompt_ids.len(),
            inversion.seconds_to_exact.unwrap_or(seconds),
            inversion.steps,
        ));
        return lines.join("\n");
    }
    lines.push(format!("{} {}", color(Paint::Bad, "not exact"), how_far(inversion)));
    lines.push(format!("try      {}", advice(inversion)));
    lines.join("\n")
}

/// Tokens matched, and the first wrong one.
fn how_far(inversion: &Inversion) -> String {
    let (matched, m) = (inversion.best.matched_prefix, inversion.target_ids.len());
    let rules = match (inversion.best.valid, inversion.stopped) {
        (false, _) => "the prompt breaks the rules (longer than N after tokenising again, or holds forbidden tokens); ",
        (true, Stopped::Diverged) => "the objective was not a number any more; ",
        (true, _) => "",
    };
    let wrong = match (inversion.target_ids.get(matched), inversion.completion_ids.get(matched)) {
        (Some(wanted), Some(written)) => format!(", then writes token {written} instead of {wanted}"),
        _ => String::new(),
    };
    format!("after {:.1} s and {} steps: {rules}the model writes {matched} of {m} tokens{wrong}", inversion.seconds, inversion.steps)
}

fn advice(inversion: &Inversion) -> &'static str {
    match (inversion.method.as_str(), inversion.stopped) {
        (_, Stopped::Signal) => "the same command again, with --out DIR and --resume to go on where it stopped",
        (_, Stopped::Diverged) => "a smaller learning_rate",
        ("snap", _) => "more tokens (--prompt-tokens), more time (--max-seconds), another --seed, or a larger model (--model)",
        _ => "--method snap, which searches prompts that can be typed; more tokens (--prompt-tokens) or more steps (--steps)",
    }
}
