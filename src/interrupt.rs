//! Leaving a long computation from inside, because the user or the system asks for it or time is up.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A signal of the user or the system, which may come at any time; by default none ever does. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Signal(Arc<AtomicUsize>);

impl Signal {
    /// It comes, with this number; 0 takes it back.
    pub fn come(&self, number: usize) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// Its number once it has come, else 0.
    pub fn number(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether it has.
    pub fn has_come(&self) -> bool {
        self.number() != 0
    }

    /// Where a handler leaves the number.
    pub fn as_cell(&self) -> Arc<AtomicUsize> {
        self.0.clone()
    }
}

/// What ends a computation: whichever comes first.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    /// A signal.
    pub signal: Signal,
    /// When time is up.
    pub deadline: Option<Instant>,
}

impl Interrupt {
    /// Time is up in so long.
    pub fn after(patience: Duration) -> Self {
        Self { deadline: Instant::now().checked_add(patience), signal: Signal::default() }
    }

    /// A signal alone.
    pub fn on(signal: Signal) -> Self {
        Self { signal, deadline: None }
    }

    fn is_due(&self) -> bool {
        self.signal.has_come() || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

thread_local! {
    static ARMED: RefCell<Option<Interrupt>> = const { RefCell::new(None) };
}

/// What unwinds a computation that is left. It is no panic: no hook hears of it.
struct Left;

/// Runs `work`, and leaves it at its next [`check`] once it is due; then there is nothing. What `work` was changing may be half changed.
pub fn within<T>(interrupt: Interrupt, work: impl FnOnce() -> T) -> Option<T> {
    let outer = ARMED.replace(Some(interrupt));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    ARMED.set(outer);
    match outcome {
        Ok(done) => Some(done),
        Err(left) if left.is::<Left>() => None,
        Err(panic) => resume_unwind(panic),
    }
}

/// What the computation on this thread is left for, to be handed to the threads that share it.
pub fn armed() -> Option<Interrupt> {
    ARMED.with_borrow(Clone::clone)
}

/// Runs a part of a computation on another thread: it is left with the whole.
pub fn as_part<T>(of: Option<Interrupt>, work: impl FnOnce() -> T) -> T {
    let outer = ARMED.replace(of);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    ARMED.set(outer);
    outcome.unwrap_or_else(|left| resume_unwind(left))
}

/// Called in the loops of long computations.
pub fn check() {
    if ARMED.with_borrow(|armed| armed.as_ref().is_some_and(Interrupt::is_due)) {
        resume_unwind(Box::new(Left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_left_when_it_is_due_and_not_before() {
        let signal = Signal::default();
        let interrupt = Interrupt::on(signal.clone());
        let mut steps = 0;
        let left = within(interrupt.clone(), || {
            for step in 0..10 {
                check();
                steps = step;
                signal.come(usize::from(step == 4));
            }
        });
        assert_eq!((left, steps), (None, 4));
        check();
        assert_eq!(within(Interrupt::default(), || (check(), 7).1), Some(7));
        let elsewhere = |of: Option<Interrupt>| {
            std::thread::scope(|scope| scope.spawn(|| as_part(of, check)).join().unwrap_or_else(|left| resume_unwind(left)))
        };
        assert_eq!(within(interrupt.clone(), || elsewhere(armed())), None);
        assert_eq!(within(interrupt.clone(), || elsewhere(None)), Some(()));
        assert_eq!(within(Interrupt::after(Duration::ZERO), check), None);
        // An inner one does not outlive itself, and panics pass through.
        signal.come(0);
        assert_eq!(within(interrupt, || (within(Interrupt::after(Duration::ZERO), check), check(), 7).2), Some(7));
        assert!(catch_unwind(|| within(Interrupt::default(), || panic!("as ever"))).is_err());
    }
}
