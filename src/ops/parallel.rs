//! How a pass over many rows is divided into groups, and how the groups are computed.

/// Rows of a pass that a GPU computes at once: enough to keep it busy, few enough for its memory and for limits of single buffers.
const ROWS: usize = 4096;

/// What a backend does with a pass over many rows. The defaults are for a GPU: few large groups, one after another.
pub trait Parallel {
    /// The number of groups that a pass over `rows` rows is divided into: as few as keep each within `max_rows`, and within about 4096. A backend that
    /// computes groups side by side makes groups of about `each` rows instead.
    fn groups(rows: usize, _each: usize, max_rows: usize) -> usize {
        rows.div_ceil(max_rows.min(ROWS)).max(1)
    }

    /// Groups that are computed at once where memory sets no limit.
    fn at_once() -> usize {
        1
    }

    /// Runs jobs that do not depend on each other, at most `at_once` at a time. Results are in the order of the jobs.
    fn side_by_side<T: Send, J: FnOnce() -> T + Send>(jobs: Vec<J>, _at_once: usize) -> Vec<T> {
        jobs.into_iter().map(|job| job()).collect()
    }
}
