//! Which cell is next, and what the cells came to so far.

use std::collections::VecDeque;

use super::worker::End;

/// The cells that a run still has to try, in order.
#[derive(Debug)]
pub struct Queue {
    rest: VecDeque<usize>,
    /// Those that another process was at.
    elsewhere: VecDeque<usize>,
    /// Cells that may still be computed.
    limit: usize,
    /// One was computed since the queue was last refilled.
    progress: bool,
}

impl Queue {
    /// Of these cells, at most `limit` computed.
    pub fn new(cells: impl IntoIterator<Item = usize>, limit: Option<usize>) -> Self {
        Self { rest: cells.into_iter().collect(), elsewhere: VecDeque::new(), limit: limit.unwrap_or(usize::MAX), progress: false }
    }

    /// How many may still be computed.
    pub fn len(&self) -> usize {
        (self.rest.len() + self.elsewhere.len()).min(self.limit)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next cell to try. Those that were computed elsewhere come again after the others: whoever was at them may have died.
    pub fn next_cell(&mut self) -> Option<usize> {
        if self.limit == 0 {
            return None;
        }
        if self.rest.is_empty() && std::mem::take(&mut self.progress) {
            self.rest = std::mem::take(&mut self.elsewhere);
        }
        let next = self.rest.pop_front()?;
        self.limit -= 1;
        Some(next)
    }

    /// Takes note of what became of a cell that was handed out.
    pub fn ended(&mut self, cell: usize, end: &End) {
        match end {
            End::Done { .. } | End::Failed { .. } => self.progress = true,
            End::Elsewhere => self.elsewhere.push_back(cell),
            End::Already | End::Interrupted { .. } => (),
        }
        if matches!(end, End::Elsewhere | End::Already) {
            self.limit = self.limit.saturating_add(1);
        }
    }
}

/// What the cells of a run came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Finished by this run.
    pub done: u64,
    /// Exact, of those.
    pub exact: u64,
    /// Failed in this run.
    pub failed: u64,
    /// Those that have a score.
    scored: u64,
    hard_free: f64,
}

impl Tally {
    /// Counts a cell.
    pub fn count(&mut self, end: &End) {
        match end {
            End::Done { exact, hard_free, .. } => {
                self.done += 1;
                self.exact += u64::from(*exact);
                self.scored += u64::from(hard_free.is_some());
                self.hard_free += hard_free.unwrap_or(0.0);
            }
            End::Failed { .. } => self.failed += 1,
            _ => (),
        }
    }

    /// Mean of what users get (`hard_free` of the last step), where an inversion is finished.
    pub fn score(&self) -> Option<f64> {
        (self.scored > 0).then(|| self.hard_free / self.scored as f64)
    }

    /// `3 exact, hard_free 0.41, 1 failed`.
    pub fn words(&self) -> String {
        let score = self.score().map(|score| format!("{} exact, hard_free {score:.2}", self.exact));
        let failed = (self.failed > 0).then(|| format!("{} failed", self.failed));
        score.into_iter().chain(failed).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: End = End::Done { exact: true, hard_free: Some(0.5), seconds: 1.0 };

    #[test]
    fn what_is_computed_elsewhere_comes_again_after_the_others() {
        let mut queue = Queue::new(0..3, None);
        for (cell, end) in [(0, End::Elsewhere), (1, DONE), (2, End::Already), (0, DONE)] {
            assert_eq!(queue.next_cell(), Some(cell));
            queue.ended(cell, &end);
        }
        assert_eq!(queue.next_cell(), None);
    }

    #[test]
    fn nothing_is_waited_for() {
        let mut queue = Queue::new(0..1, None);
        assert_eq!(queue.next_cell(), Some(0));
        queue.ended(0, &End::Elsewhere);
        assert_eq!(queue.next_cell(), None);
    }

    #[test]
    fn only_what_is_computed_counts_against_the_limit() {
        let mut queue = Queue::new(0..9, Some(2));
        for end in [End::Already, DONE, End::Elsewhere, End::Failed { reason: String::new(), device_lost: false }] {
            let cell = queue.next_cell().unwrap();
            queue.ended(cell, &end);
        }
        assert_eq!(queue.next_cell(), None);
    }

    #[test]
    fn a_tally_has_a_mean_once_there_is_something() {
        let mut tally = Tally::default();
        assert_eq!((tally.score(), tally.words().as_str()), (None, ""));
        tally.count(&DONE);
        tally.count(&End::Failed { reason: String::new(), device_lost: false });
        assert_eq!(tally.words(), "1 exact, hard_free 0.50, 1 failed");
    }
}
