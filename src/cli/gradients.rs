//! `dlmi gradients`: variance and bias of the estimators' gradients, the paper's figure 5.

use std::process::ExitCode;
use std::time::Instant;

use super::args::{Cli, Gradients};
use super::session::Session;
use super::signals::{ended_by, watch_signals};
use crate::Result;
use crate::distribution::{KolmogorovSmirnov, Quartiles};
use crate::gradients::{Both, Compared, Figures, Line, LineFile, Observer, Plan, Protocol, Summary, Tests, Unit, measure_all};
use crate::interrupt::Signal;
use crate::problem::targets::Labelled;
use crate::ui::table::columns;
use crate::ui::{Policy, Progress, Status, print_part, print_result};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Gradients, policy: Policy) -> Result<ExitCode> {
    let mut session = Session::open(cli, policy)?;
    let plan = plan(&session, verb)?;
    let (file, lines) = match &verb.out {
        Some(path) => LineFile::open(path, &plan).map(|(file, lines)| (Some(file), lines))?,
        None => (None, Vec::new()),
    };
    let due = plan.due(&lines);
    let signal = watch_signals()?;
    let mut watcher = Watcher::new(policy, &plan, due.len(), file, lines, signal.clone());
    if !due.is_empty() {
        let device = session.device()?;
        measure_all(&mut session.model, &plan, &due, device, &mut watcher)?;
    }
    let Watcher { lines, nobody_reads, progress, .. } = watcher;
    drop(progress);
    let summary = Summary::of(&lines);
    match cli.global.json || verb.out.is_none() {
        _ if nobody_reads => (),
        true => print_result(&super::json(&summary))?,
        false => print_result(&readable(&summary))?,
    }
    Ok(if signal.has_come() { ended_by(&signal) } else { ExitCode::SUCCESS })
}

fn plan(session: &Session, verb: &Gradients) -> Result<Plan> {
    let Gradients { every, bias_every, draws, reference_samples, .. } = *verb;
    let protocol = Protocol { every, bias_every, draws, reference_samples };
    let options = session.settings().clone();
    let estimators = if verb.estimators.is_empty() { Compared::all() } else { verb.estimators.clone() };
    let seeds = if verb.seeds.is_empty() { vec![options.seed] } else { verb.seeds.clone() };
    let plan = Plan::new(&session.model, options, protocol, &estimators, &targets(session, verb)?, &seeds)?;
    plan.check(&session.model)?;
    Ok(plan)
}

/// The targets of a file, else the one that is given.
fn targets(session: &Session, verb: &Gradients) -> Result<Vec<Labelled>> {
    if let Some(path) = &verb.targets {
        return session.targets(path);
    }
    let (id, target) = session.target(verb.target.clone(), verb.file.clone())?;
    Ok(vec![Labelled::of(id, target)])
}

/// Keeps or prints the lines, shows progress, listens for signals.
struct Watcher {
    progress: Progress,
    began: Instant,
    /// Steps of all runs so far, and at the end.
    steps: [u64; 2],
    /// Steps of one run.
    of_a_run: u64,
    file: Option<LineFile>,
    lines: Vec<Line>,
    nobody_reads: bool,
    signal: Signal,
}

impl Watcher {
    fn new(policy: Policy, plan: &Plan, due: usize, file: Option<LineFile>, lines: Vec<Line>, signal: Signal) -> Self {
        let before = plan.units.len() - due;
        let what = if before > 0 { format!("{due} runs ({before} are measured)") } else { format!("{due} runs") };
        let of_a_run = plan.points().last().copied().unwrap_or_default();
        let progress = Progress::new(policy, what);
        Self { progress, began: Instant::now(), steps: [0, of_a_run * due as u64], of_a_run, file, lines, nobody_reads: false, signal }
    }
}

impl Observer for Watcher {
    fn step(&mut self, unit: &Unit, steps: u64) -> Result<()> {
        self.steps[0] += 1;
        self.progress.update(&Status {
            step: self.steps[0],
            steps: Some(self.steps[1]),
            seconds: self.began.elapsed().as_secs_f64(),
            text: Some(format!("{unit}: step {steps}/{}", self.of_a_run)),
            ..Status::default()
        });
        Ok(())
    }

    fn has(&self, unit: &Unit, step: u64) -> bool {
        unit.is_measured(&self.lines, step)
    }

    fn line(&mut self, line: Line) -> Result<()> {
        match &mut self.file {
            Some(file) => file.add(&line)?,
            None => self.nobody_reads = !print_part(&line.to_json())?,
        }
        self.lines.push(line);
        Ok(())
    }

    fn signal(&self) -> Signal {
        self.signal.clone()
    }

    fn interrupted(&self) -> bool {
        self.nobody_reads || self.signal.has_come()
    }
}

/// What a summary has of every estimator.
type Quantity = fn(&Figures) -> &Both;

const QUANTITIES: [(&str, Quantity); 4] = [
    ("variance", |figures| &figures.variance),
    ("bias, authors'", |figures| &figures.bias_authors),
    ("bias", |figures| &figures.bias),
    ("floor of bias", |figures| &figures.floor),
];

/// What of it is a share of the true gradient's length.
type Share = fn(&Figures) -> Option<Quartiles>;

const SHARES: [(&str, Share); 2] =
    [("relative bias", |figures| figures.relative_bias), ("relative floor", |figures| figures.relative_floor)];

/// A table of the estimators, and one of every two of them.
fn readable(summary: &Summary) -> String {
    let heads = ["largest entry of", "estimator", "n", "median", "quarter", "three quarters", "least", "most", "mean entry"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for (what, both) in QUANTITIES {
        let row = |figures: &Figures| row([what, figures.estimator], both(figures).max, scientific, both(figures).mean);
        rows.extend(summary.estimators.iter().map(row));
    }
    for (what, share) in SHARES {
        let row = |figures: &Figures| row([what, figures.estimator], share(figures), |x| format!("{x:.2}"), None);
        rows.extend(summary.estimators.iter().map(row));
    }
    match summary.tests.is_empty() {
        true => columns(&rows),
        false => format!("{}\n{}", columns(&rows), columns(&tests(summary))),
    }
}

/// What of which estimator, its quartiles, and the median of the mean entries.
fn row(names: [&str; 2], quartiles: Option<Quartiles>, digits: fn(f64) -> String, means: Option<Quartiles>) -> Vec<String> {
    let mut row = names.map(str::to_owned).to_vec();
    row.push(quartiles.map_or(0, |of| of.n).to_string());
    match quartiles {
        Some(Quartiles { min, q1, median, q3, max, .. }) => row.extend([median, q1, q3, min, max].map(digits)),
        None => row.extend(["-"; 5].map(str::to_owned)),
    }
    row.push(means.map_or_else(String::new, |of| scientific(of.median)));
    row
}

fn tests(summary: &Summary) -> Vec<Vec<String>> {
    let shown = |of: Option<KolmogorovSmirnov>| of.map_or("-".to_owned(), |of| format!("{:.2} ({})", of.statistic, scientific(of.p)));
    let heads = ["Kolmogorov-Smirnov, D (p)", "variance", "bias, authors'", "bias"].map(str::to_owned).to_vec();
    let row = |of: &Tests| vec![format!("{}, {}", of.a, of.b), shown(of.variance), shown(of.bias_authors), shown(of.bias)];
    std::iter::once(heads).chain(summary.tests.iter().map(row)).collect()
}

fn scientific(x: f64) -> String {
    format!("{x:.1e}")
}
