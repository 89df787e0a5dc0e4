//! Workers on one machine: child processes of this program, each of which does one cell at a time. One alone is a child too: what takes a
//! process with it, an end of memory or a fault of a GPU, then costs one cell.
//!
//! The parent writes ids of cells to a worker's standard input, or `stop`; the worker says how far it is, and at last what became of the
//! cell, a line each. An end of its input while it is at a cell means that the parent has died: then so does the worker. Signals are for the
//! parent.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::run::Board;
use super::{open, place};
use crate::backend::{Choice, Inventory};
use crate::cli::allocator;
use crate::cli::args::{Cli, Compute};
use crate::cli::signals::ignore_signals;
use crate::interrupt::Signal;
use crate::invert::Report;
use crate::study::{Cell, End, Foreman, Queue, Store, Study, cell, work as compute};
use crate::ui::Policy;
use crate::{Error, Result};

/// What the parent writes when workers shall leave their cells and end.
const STOP: &str = "stop";
/// How often the parent looks whether it was interrupted.
const LOOK: Duration = Duration::from_millis(100);

/// How often a worker says how far it is.
const TELL: Duration = Duration::from_secs(1);

/// What a worker writes.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    /// How far its cell is, `step 3/256`.
    At(String),
    /// What became of it.
    Ended(End),
}

/// A worker as its parent sees it.
struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    /// The cell that it is at.
    cell: Option<usize>,
    /// It has said that its GPU's context is gone, and may die of it.
    lost: bool,
}

/// The parent: hands out cells until none is left or it is interrupted.
pub(super) struct Office<'a> {
    cli: &'a Cli,
    verb: &'a Compute,
    study: &'a Study,
    store: &'a Store,
    queue: Queue,
    board: &'a mut Board,
    /// Rows of the GPUs that the workers share out; none on a CPU, or where one is named.
    gpus: Vec<usize>,
    workers: Vec<Worker>,
    count: usize,
    /// Lines of the workers by their numbers; nothing at the end of one.
    sender: Sender<(usize, Option<String>)>,
    lines: Receiver<(usize, Option<String>)>,
}

impl<'a> Office<'a> {
    pub fn new(cli: &'a Cli, verb: &'a Compute, study: &'a Study, store: &'a Store, queue: Queue, board: &'a mut Board) -> Self {
        let count = (verb.workers as usize).min(queue.len());
        let (sender, lines) = mpsc::channel();
        Self { cli, verb, study, store, queue, board, gpus: Vec::new(), workers: Vec::new(), count, sender, lines }
    }

    /// Shares out the GPUs that are like the chosen one, unless the user named it.
    pub fn on(self, choice: &Choice) -> Result<Self> {
        let named = self.cli.place()?.iter().any(|(key, _)| *key == "device");
        let gpus = if choice.device.is_gpu() && !named { Inventory::probe().like(&choice.device) } else { Vec::new() };
        Ok(Self { gpus, ..self })
    }

    pub fn run(mut self, signal: &Signal) -> Result<()> {
        let outcome = self.begin().and_then(|()| self.until_done(signal));
        // Whoever is still there, after an error, ends with its input.
        self.workers.iter_mut().for_each(|worker| drop(worker.input.take()));
        self.workers.iter_mut().for_each(|worker| _ = worker.child.wait());
        outcome
    }

    fn begin(&mut self) -> Result<()> {
        for number in 0..self.count {
            let worker = self.start(number)?;
            self.workers.push(worker);
            self.hand_out(number)?;
        }
        Ok(())
    }

    fn start(&self, number: usize) -> Result<Worker> {
        let mut command = self.command(number)?;
        let failed = |error| Error::environment(format!("cannot start a worker: {error}"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("it is piped"));
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                _ = sender.send((number, Some(line)));
            }
            _ = sender.send((number, None));
        });
        Ok(Worker { child, input, cell: None, lost: false })
    }

    fn command(&self, number: usize) -> Result<Command> {
        let program = std::env::current_exe().map_err(|error| Error::environment(format!("cannot find this program: {error}")))?;
        let mut command = Command::new(program);
        command.args(["study", "worker"]).arg(&self.verb.file).arg("--out").arg(&self.verb.out);
        for (key, value) in self.cli.place()? {
            command.arg(format!("--{key}")).arg(value);
        }
        if !self.gpus.is_empty() {
            command.arg("--device").arg(self.gpus[number % self.gpus.len()].to_string());
        }
        command.args(self.cli.global.offline.then_some("--offline")).args(self.verb.retry.then_some("--retry"));
        command.args(self.cli.global.quiet.then_some("-q"));
        let threads = rayon::current_num_threads();
        let share = threads / self.count + usize::from(number < threads % self.count);
        command.env("RAYON_NUM_THREADS", share.max(1).to_string());
        apart(&mut command);
        Ok(command)
    }

    /// Gives a worker its next cell, or lets it go.
    fn hand_out(&mut self, number: usize) -> Result<()> {
        let worker = &mut self.workers[number];
        worker.cell = self.queue.next_cell();
        match worker.cell {
            Some(cell) => tell(worker, &self.study.cells()[cell].id)?,
            None => worker.input = None,
        }
        Ok(())
    }

    fn until_done(&mut self, signal: &Signal) -> Result<()> {
        let mut stopping = false;
        while self.workers.iter().any(|worker| worker.input.is_some()) {
            let heard = self.lines.recv_timeout(LOOK);
            // Looked at after listening: a worker that has just died may have died of the same signal.
            if !stopping && signal.has_come() {
                stopping = true;
                self.workers.iter_mut().try_for_each(|worker| tell(worker, STOP))?;
            }
            match heard {
                Ok((number, Some(line))) => self.hear(number, &line, stopping)?,
                Ok((number, None)) => self.died(number, stopping)?,
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => unreachable!("this end has a sender too"),
            }
        }
        Ok(())
    }

    /// A worker says how far it is, or what became of its cell.
    fn hear(&mut self, number: usize, line: &str, stopping: bool) -> Result<()> {
        match serde_json::from_str(line).map_err(|_| Error::environment(format!("a worker wrote `{line}`")))? {
            Word::Ended(end) => self.ended(number, end, stopping),
            Word::At(step) => {
                if let Some(cell) = self.workers[number].cell {
                    self.board.now(format!("{}: {step}", self.study.cells()[cell]));
                }
                Ok(())
            }
        }
    }

    fn ended(&mut self, number: usize, end: End, stopping: bool) -> Result<()> {
        let worker = &mut self.workers[number];
        if let Some(cell) = worker.cell.take() {
            self.queue.ended(cell, &end);
            self.board.ended(&self.study.cells()[cell].to_string(), self.study.work(cell), &end);
        }
        let worker = &mut self.workers[number];
        worker.lost = matches!(end, End::Failed { device_lost: true, .. });
        // One that has lost its GPU ends by itself.
        if !stopping && !worker.lost {
            self.hand_out(number)?;
        }
        Ok(())
    }

    /// A worker is gone: by itself when it was let go, else it takes its cell with it, and another one takes its place.
    fn died(&mut self, number: usize, stopping: bool) -> Result<()> {
        let worker = &mut self.workers[number];
        let status = worker.child.wait().map_err(|error| Error::environment(format!("cannot wait for a worker: {error}")))?;
        let released = worker.input.take().is_none();
        let cell = worker.cell.take();
        if released || stopping {
            return Ok(());
        }
        let Some(cell) = cell else {
            return if status.success() || worker.lost { self.replace(number) } else { Err(gone(&status)) };
        };
        // An exit code is the program's own: what made one worker end so (it has said what) would end the others too.
        if status.code().is_some() {
            return Err(gone(&status));
        }
        let reason = format!("its worker ended early ({status}); out of memory, or ended by somebody");
        let end = self.bury(&self.study.cells()[cell], reason)?;
        self.queue.ended(cell, &end);
        self.board.ended(&self.study.cells()[cell].to_string(), self.study.work(cell), &end);
        self.replace(number)
    }

    fn replace(&mut self, number: usize) -> Result<()> {
        if !self.queue.is_empty() {
            self.workers[number] = self.start(number)?;
            self.hand_out(number)?;
        }
        Ok(())
    }

    /// Keeps that a cell took its worker with it.
    fn bury(&self, cell: &Cell, reason: String) -> Result<End> {
        match self.store.claim(&cell.id)? {
            Some(_) if self.store.is_done(&cell.id) => Ok(End::Already),
            Some(claim) => self.store.fail(&claim, cell, &reason).map(|()| End::Failed { reason, device_lost: false }),
            None => Ok(End::Elsewhere),
        }
    }
}

/// Writes a line to a worker. That it is gone is heard from its output.
fn tell(worker: &mut Worker, line: &str) -> Result<()> {
    let Some(input) = &mut worker.input else { return Ok(()) };
    match writeln!(input, "{line}").and_then(|()| input.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::environment(format!("cannot write to a worker: {error}")))
        }
        _ => Ok(()),
    }
}

fn gone(status: &std::process::ExitStatus) -> Error {
    Error::environment(format!("a worker ended early ({status}); what is done is kept"))
}

/// Ctrl-C is for the parent, which tells its workers; and Linux ends them with it.
#[cfg(target_os = "linux")]
fn apart(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: both calls may be made between fork and exec, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // The parent may have died before.
            if libc::getppid().cast_unsigned() == parent { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
        });
    }
}

/// Ctrl-C is for the parent, which tells its workers.
#[cfg(all(unix, not(target_os = "linux")))]
fn apart(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

#[cfg(not(unix))]
fn apart(_: &mut Command) {}

/// The worker: does what its parent writes.
#[inline]
pub(super) fn work(cli: &Cli, verb: &Compute, policy: Policy) -> Result<ExitCode> {
    ignore_signals()?;
    allocator::die_when_refused();
    let mut study = open(cli, &verb.file, policy)?;
    let (backend, device) = place(cli)?;
    let choice = study.device(backend, device)?;
    let store = Store::create(&verb.out)?;
    let ids = study.cells().iter().map(|cell| cell.id.clone()).collect();
    let mut foreman = Parent { inbox: Inbox::listen(), ids, unknown: None, told: Instant::now() };
    compute(&mut study, &store, choice, verb.retry, &mut foreman)?;
    foreman.unknown.map_or(Ok(ExitCode::SUCCESS), |id| Err(cell::unknown(&id)))
}

/// What the parent has written.
struct Inbox {
    ids: Receiver<String>,
    /// Comes when it says so.
    stop: Signal,
    /// A cell is under way.
    busy: Arc<AtomicBool>,
}

impl Inbox {
    fn listen() -> Self {
        let (sender, ids) = mpsc::channel();
        let (stop, busy) = (Signal::default(), Arc::new(AtomicBool::new(false)));
        let inbox = Self { ids, stop: stop.clone(), busy: busy.clone() };
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
                if line == STOP {
                    stop.come(1);
                    // No more ids: who waits for one is woken.
                    break;
                }
                busy.store(true, Ordering::Relaxed);
                _ = sender.send(line);
            }
            if !stop.has_come() && busy.load(Ordering::Relaxed) {
                std::process::exit(i32::from(super::INCOMPLETE));
            }
        });
        inbox
    }
}

/// The parent, as its worker sees it.
struct Parent {
    inbox: Inbox,
    ids: Vec<String>,
    unknown: Option<String>,
    /// When it was last told how far this one is.
    told: Instant,
}

impl Parent {
    /// Says how far the cell is, unless it was said lately.
    fn tell(&mut self, step: impl FnOnce() -> String) -> Result<()> {
        if self.told.elapsed() < TELL {
            return Ok(());
        }
        self.told = Instant::now();
        crate::ui::print_result(&crate::cli::json(&Word::At(step())))
    }
}

impl Foreman for Parent {
    fn next_cell(&mut self) -> Option<usize> {
        let id = self.inbox.ids.recv().ok()?;
        let found = self.ids.iter().position(|known| *known == id);
        if found.is_none() {
            self.unknown = Some(id);
        }
        found
    }

    fn step(&mut self, cell: &Cell, report: &Report) -> Result<()> {
        self.tell(|| match (cell.options.steps, cell.options.max_positions) {
            (Some(steps), _) => format!("step {}/{steps}", report.step),
            (None, Some(positions)) => format!("position {}/{positions}", report.cost.positions()),
            (None, None) => format!("step {}", report.step),
        })
    }

    fn measured(&mut self, cell: &Cell, steps: u64) -> Result<()> {
        self.tell(|| format!("step {steps}/{}", cell.options.steps.unwrap_or(steps)))
    }

    fn ended(&mut self, _cell: usize, end: &End) -> Result<()> {
        self.inbox.busy.store(false, Ordering::Relaxed);
        crate::ui::print_result(&crate::cli::json(&Word::Ended(end.clone())))
    }

    fn signal(&self) -> Signal {
        self.inbox.stop.clone()
    }
}
