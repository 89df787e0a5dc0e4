//! The loop around a method: budget, judging, confirming, stopping. It knows nothing of files or terminals.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::judge::{Judge, Judged, Verdict, judge};
use super::observer::{Observer, Report, RunState, Snapshot};
use super::scores::{Scores, scores};
use super::shortest::{Solved, shorter};
use crate::budget::Budget;
use crate::interrupt::{self, Interrupt, Signal};
use crate::method::{Clock, Method, Progress};
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;
use crate::{Error, Result};

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stopped {
    /// A prompt is exact, and every target token as far ahead as is asked; where the shortest one is looked for, there is no shorter one.
    Exact,
    /// The steps, or the positions, are used up.
    Budget,
    /// The seconds are used up.
    Time,
    /// The user or the system asked for it.
    Signal,
    /// The objective is not a number any more.
    Diverged,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why.
    pub stopped: Stopped,
    /// The run at its end.
    pub run: RunState,
    /// The best prompt; where the shortest one is looked for, that one.
    pub best: Judged,
    /// What the plain path says of it.
    pub verdict: Verdict,
    /// The four scores at the last step; none where a signal left no time for them.
    pub scores: Option<Scores>,
    /// When the exact prompt was found.
    pub seconds_to_exact: Option<f64>,
}

/// A method's run on one backend, with everything that does not change meanwhile.
pub struct Trial<'a, B: TrackedBackend> {
    /// The model, as the method sees it.
    pub subject: &'a Subject<B>,
    /// The model, as a user sees it.
    pub judge: &'a Judge<'a>,
    /// What is looked for.
    pub problem: &'a Problem,
    /// When to end.
    pub budget: Budget,
    /// Seed of all draws.
    pub seed: u32,
}

impl<B: TrackedBackend> Trial<'_, B> {
    /// Runs `method` until a prompt is exact or the budget is used up. With `resume`, goes on from there.
    ///
    /// # Errors
    /// Those of the method, the judge and the observer, a snapshot that does not fit the method, and a signal during the first start.
    pub fn run(&self, method: &mut dyn Method<B>, resume: Option<Snapshot>, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut run = Run {
            trial: self,
            problem: Cow::Borrowed(self.problem),
            method,
            began: Instant::now(),
            loaded: self.judge.load_seconds(),
            seconds_before: 0.0,
            at: RunState::default(),
            step_seconds: LONG_STEP,
            scored: None,
            solved: None,
        };
        self.subject.prepare(self.problem);
        match resume {
            Some(snapshot) => run.resume(snapshot)?,
            None => run.first_start(observer.signal())?,
        }
        let (stopped, seconds_to_exact) = run.until_done(observer)?;
        run.finish(stopped, seconds_to_exact, observer)
    }
}

/// Seconds from which on a step may be left before its end. It costs a copy of the run state.
const LONG_STEP: f64 = 1.0;
/// What the last scores may take once a signal has come.
const PATIENCE: Duration = Duration::from_secs(1);

/// A run in progress.
struct Run<'a, B: TrackedBackend> {
    trial: &'a Trial<'a, B>,
    /// With as many free tokens as are at work.
    problem: Cow<'a, Problem>,
    method: &'a mut dyn Method<B>,
    began: Instant,
    /// What loading the judge had taken before: what it takes now is not the run's.
    loaded: f64,
    seconds_before: f64,
    at: RunState,
    /// Of the last step; at first as if it had been a long one.
    step_seconds: f64,
    /// The four scores when they were last taken, and after how many steps.
    scored: Option<(u64, Scores)>,
    /// What the plain path said of the best prompt when that solved the problem.
    solved: Option<Verdict>,
}

impl<'a, B: TrackedBackend> Run<'a, B> {
    fn resume(&mut self, snapshot: Snapshot) -> Result<()> {
        self.trial.subject.set_cost(snapshot.run.cost);
        self.seconds_before = snapshot.run.seconds;
        self.at = snapshot.run;
        self.problem = self.problem_at_work();
        self.method.restore(snapshot.method, self.trial.subject, &self.problem)
    }

    fn first_start(&mut self, signal: Signal) -> Result<()> {
        let clock = self.clock();
        let start = || self.method.start(self.trial.subject, &self.problem, clock);
        interrupt::within(Interrupt::on(signal), start).unwrap_or(Err(Error::Interrupted))
    }

    /// The problem of as many free tokens as the best prompt so far has.
    fn problem_at_work(&self) -> Cow<'a, Problem> {
        match self.at.best.as_ref().filter(|_| self.trial.budget.shortest) {
            Some(best) => Cow::Owned(self.trial.problem.of_length(best.free.len())),
            None => Cow::Borrowed(self.trial.problem),
        }
    }

    fn clock(&self) -> Clock {
        Clock { seed: self.trial.seed, restart: self.at.restart, step: self.at.step_of_start as u32 }
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.began.elapsed().as_secs_f64() - (self.trial.judge.load_seconds() - self.loaded)
    }

    fn until_done(&mut self, observer: &mut dyn Observer) -> Result<(Stopped, Option<f64>)> {
        if self.was_solved()? {
            return Ok((Stopped::Exact, Some(self.seconds())));
        }
        loop {
            if let Some(stopped) = self.over(observer) {
                observer.save(&|| self.snapshot())?;
                return Ok((stopped, None));
            }
            let Some(progress) = self.step(observer)? else {
                observer.save(&|| self.snapshot())?;
                return Ok((self.over(observer).unwrap_or(Stopped::Time), None));
            };
            self.at.step += 1;
            self.at.step_of_start += 1;
            self.at.stalled = progress.stalled;
            self.judge()?;
            let solved = self.settle();
            let due = self.at.step.is_multiple_of(self.trial.budget.eval_every);
            let scores = if due { self.scores_unless(observer.signal()) } else { None };
            if due && scores.is_none() {
                // As if it had been killed here: it goes on from its last checkpoint.
                observer.step(&self.report(progress, None))?;
                return Ok((Stopped::Signal, None));
            }
            observer.step(&self.report(progress, scores))?;
            if solved {
                observer.save(&|| self.snapshot())?;
                return Ok((Stopped::Exact, Some(self.seconds())));
            }
            if !progress.objective.is_finite() || progress.gradient_norm.is_some_and(|norm| !norm.is_finite()) {
                return Ok((Stopped::Diverged, None));
            }
            if due {
                observer.save(&|| self.snapshot())?;
            }
        }
    }

    /// A step of the method. A long one is left where the run must end, as if it had not begun.
    fn step(&mut self, observer: &dyn Observer) -> Result<Option<Progress>> {
        let (subject, began) = (self.trial.subject, Instant::now());
        let progress = if self.step_seconds < LONG_STEP {
            Some(self.whole_step()?)
        } else {
            let (before, at, solved, cost) = (self.method.state(), self.at.clone(), self.solved.clone(), subject.cost());
            let left = self.trial.budget.seconds.map(|limit| Duration::try_from_secs_f64(limit - self.seconds()).unwrap_or(Duration::ZERO));
            let interrupt = Interrupt { signal: observer.signal(), ..left.map(Interrupt::after).unwrap_or_default() };
            let progress = interrupt::within(interrupt, || self.whole_step()).transpose()?;
            if progress.is_none() {
                (self.at, self.solved) = (at, solved);
                self.problem = self.problem_at_work();
                self.method.restore(before, subject, &self.problem)?;
                subject.set_cost(cost);
            }
            progress
        };
        self.step_seconds = began.elapsed().as_secs_f64();
        Ok(progress)
    }

    /// A fresh start where one is due, and a step.
    fn whole_step(&mut self) -> Result<Progress> {
        self.start_if_due()?;
        self.method.step(self.trial.subject, &self.problem, self.clock())
    }

    /// Of a run that goes on: takes again what was taken, and charged, before its snapshot. Whether it was over by that.
    fn was_solved(&mut self) -> Result<bool> {
        let cost = self.trial.subject.cost();
        if self.at.step > 0 && self.at.step.is_multiple_of(self.trial.budget.eval_every) {
            self.scores();
        }
        if let Some(mut best) = self.at.best.take() {
            self.ask(&mut best)?;
            self.at.best = Some(best);
        }
        self.trial.subject.set_cost(cost);
        Ok(self.settle())
    }

    /// Why the run must not take another step, if so.
    fn over(&self, observer: &dyn Observer) -> Option<Stopped> {
        if observer.signal().has_come() {
            return Some(Stopped::Signal);
        }
        let positions = self.trial.budget.positions.is_some_and(|limit| self.trial.subject.cost().positions() >= limit);
        if positions || (self.used_up() && !self.may_restart()) {
            return Some(Stopped::Budget);
        }
        self.trial.budget.seconds.is_some_and(|limit| self.seconds() >= limit).then_some(Stopped::Time)
    }

    /// The clock of the step just made.
    fn last_clock(&self) -> Clock {
        Clock { step: self.clock().step.saturating_sub(1), ..self.clock() }
    }

    /// The four scores of the step just made, taken once.
    fn scores(&mut self) -> Scores {
        match self.scored {
            Some((step, scores)) if step == self.at.step => scores,
            _ => {
                let now = scores(self.method, self.trial.subject, &self.problem, self.last_clock());
                self.scored = Some((self.at.step, now));
                now
            }
        }
    }

    /// The same, unless a signal comes first.
    fn scores_unless(&mut self, signal: Signal) -> Option<Scores> {
        interrupt::within(Interrupt::on(signal), || self.scores())
    }

    /// Judges the hard prompt at hand, unless it is the one that was judged last.
    fn judge(&mut self) -> Result<()> {
        let prompt = self.method.hard_prompt(self.trial.subject, &self.problem);
        if self.at.best.is_some() && prompt.free == self.at.judged {
            return Ok(());
        }
        self.at.judged.clone_from(&prompt.free);
        let mut judged = judge(prompt, self.trial.subject, &self.problem, self.at.step);
        let beats = |judged: &Judged, best: Option<&Judged>| best.is_none_or(|best| judged.beats(best));
        if beats(&judged, self.at.best.as_ref()) {
            // No prompt is given up for one that only seems to be better.
            self.ask(&mut judged)?;
        }
        if beats(&judged, self.at.best.as_ref()) {
            self.at.best = Some(judged);
        }
        Ok(())
    }

    /// Whether a prompt was found that ends the run. Where the shortest one is looked for, it is kept, and ends the run only if no shorter one
    /// can be begun at.
    fn settle(&mut self) -> bool {
        if !self.trial.budget.early_stop || self.solved.is_none() {
            return false;
        }
        if !self.trial.budget.shortest {
            return true;
        }
        let (prompt, seconds) = (self.at.best.clone().expect("it was judged"), self.seconds());
        let ends = shorter(&prompt.free, &self.problem, self.clock()).is_none();
        if !self.shortest_is_at_work() {
            self.at.shortest = Some(Solved { prompt, seconds });
        }
        ends
    }

    /// Whether the shortest prompt found has as many free tokens as are at work: the next step begins with one less.
    fn shortest_is_at_work(&self) -> bool {
        self.at.shortest.as_ref().is_some_and(|solved| solved.prompt.free.len() == self.problem.prompt.tokens())
    }

    /// Asks the plain path of a prompt that seems to solve the problem. One that fails there is marked down.
    fn ask(&mut self, judged: &mut Judged) -> Result<()> {
        let problem = &*self.problem;
        if !problem.can_be_exact() || !judged.solves(problem) {
            return Ok(());
        }
        let verdict = self.verdict(judged)?;
        if verdict.solves(problem) {
            self.solved = Some(verdict);
        } else if verdict.exact {
            judged.shortfall = problem.min_margin - verdict.min_margin;
        } else {
            // A target that is written by a tie counts as one that is not.
            judged.matched_prefix = verdict.matched_prefix(problem).min(problem.target_tokens() - 1);
        }
        Ok(())
    }

    /// What the plain path says of a judged prompt, charged.
    fn verdict(&self, judged: &Judged) -> Result<Verdict> {
        let examples = judged.examples(self.trial.problem);
        for (typed, target) in examples.iter().filter(|(typed, _)| !typed.is_empty()) {
            self.trial.subject.charge(typed.len() + target.len() - 1, 0, target.len());
        }
        self.trial.judge.verdict(judged.valid && self.trial.problem.can_be_exact(), &examples)
    }

    /// Whether all steps of this start were made.
    fn used_up(&self) -> bool {
        self.trial.budget.steps.is_some_and(|steps| self.at.step_of_start >= steps)
    }

    fn may_restart(&self) -> bool {
        self.at.restart < self.trial.budget.restarts
    }

    /// Only when the next step is certain, so that the prompt at the end is what the last step left.
    fn start_if_due(&mut self) -> Result<()> {
        let restarts = (self.at.stalled || self.used_up()) && self.may_restart();
        let shortens = self.shortest_is_at_work();
        if shortens {
            // Before the clock of a restart: it was by this one that there is a shorter prompt to begin at.
            self.shorten()?;
        }
        if restarts {
            self.at.restart += 1;
            self.at.step_of_start = 0;
        }
        if restarts && !shortens {
            let started = self.method.start(self.trial.subject, &self.problem, self.clock());
            // Where no other start is found, what was found goes on.
            _ = started.inspect_err(|error| tracing::warn!("start {}: {error}", self.at.restart + 1));
        }
        Ok(())
    }

    /// Goes on from the solved prompt with one free token less.
    fn shorten(&mut self) -> Result<()> {
        let solved = self.at.shortest.as_ref().expect("a prompt was found");
        let (problem, starts) = shorter(&solved.prompt.free, &self.problem, self.clock()).expect("there was a shorter one");
        self.problem = Cow::Owned(problem);
        self.method.start_at(&starts, self.trial.subject, &self.problem, self.clock())?;
        // What solves as it begins is not lost to the step that follows.
        (self.at.best, self.solved) = (None, None);
        self.judge()
    }

    fn report(&self, progress: Progress, scores: Option<Scores>) -> Report<'_> {
        let (step, restart, best) = (self.at.step, self.at.restart, self.at.best.as_ref());
        let prompt_tokens = self.trial.budget.shortest.then(|| self.problem.prompt.tokens());
        Report { step, restart, seconds: self.seconds(), prompt_tokens, progress, best, scores, cost: self.trial.subject.cost() }
    }

    /// The run as it is now.
    fn state(&self) -> RunState {
        RunState { seconds: self.seconds(), cost: self.trial.subject.cost(), ..self.at.clone() }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { run: self.state(), method: self.method.state() }
    }

    fn finish(mut self, stopped: Stopped, seconds_to_exact: Option<f64>, observer: &mut dyn Observer) -> Result<Outcome> {
        if self.at.best.is_none() {
            // A run that never took a step.
            self.judge()?;
        }
        let scores = match stopped {
            Stopped::Signal => interrupt::within(Interrupt::after(PATIENCE), || self.scores()),
            _ => self.scores_unless(observer.signal()),
        };
        let stopped = if scores.is_none() { Stopped::Signal } else { stopped };
        let best = self.at.best.clone().expect("a prompt was judged");
        observer.end(&best, scores)?;
        let (best, seconds_to_exact) = match self.at.shortest.clone() {
            Some(Solved { prompt, seconds }) => (prompt, Some(seconds)),
            None => (best, seconds_to_exact),
        };
        let verdict = self.solved.take().map_or_else(|| self.verdict(&best), Ok)?;
        Ok(Outcome { stopped, run: self.state(), best, verdict, scores, seconds_to_exact })
    }
}
