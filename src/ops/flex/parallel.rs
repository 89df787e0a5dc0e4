//! Whole jobs on threads of their own.
//!
//! A matrix product that is shared out among threads makes them wait for each other hundreds of times in one pass of the model. Where
//! there are several passes to make, the threads are divided among them first: with one thread for each pass nobody waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::interrupt;

/// Pools by the number of threads that are divided and the number of pools.
type Divisions = BTreeMap<(usize, usize), Arc<Vec<ThreadPool>>>;

/// Divisions that were made so far; pools are kept, because starting threads is slow.
static DIVISIONS: Mutex<Divisions> = Mutex::new(BTreeMap::new());

/// Groups of about `each` rows, a power of two of them, which threads divide well. It depends on nothing but the rows: so do results.
pub fn groups(rows: usize, each: usize) -> usize {
    1 << rows.div_ceil(each).max(1).ilog2()
}

/// Runs the jobs, at most `at_once` of them at a time, each with its share of the threads: a job by itself has all of them.
pub fn side_by_side<T: Send, J: FnOnce() -> T + Send>(jobs: Vec<J>, at_once: usize) -> Vec<T> {
    let count = jobs.len().min(rayon::current_num_threads()).min(at_once);
    if count < 2 {
        return jobs.into_iter().map(|job| job()).collect();
    }
    let armed = interrupt::armed();
    let results = Mutex::new(Vec::with_capacity(jobs.len()));
    let queue = Mutex::new(jobs.into_iter().enumerate());
    run(&division(count), &|| {
        loop {
            let next = queue.lock().expect("no job runs under the lock").next();
            let Some((number, job)) = next else { return };
            let result = interrupt::as_part(armed.clone(), job);
            results.lock().expect("no job runs under the lock").push((number, result));
        }
    });
    let mut results = results.into_inner().expect("no job runs under the lock");
    results.sort_unstable_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// At most `count` pools, a power of two of them so that few divisions are ever made.
fn division(count: usize) -> Arc<Vec<ThreadPool>> {
    let (all, count) = (rayon::current_num_threads(), 1 << count.ilog2());
    let share = |i: usize| (i + 1) * all / count - i * all / count;
    let pool = |i| ThreadPoolBuilder::new().num_threads(share(i)).build().expect("a thread can be started");
    let mut divisions = DIVISIONS.lock().expect("threads can be started");
    divisions.entry((all, count)).or_insert_with(|| Arc::new((0..count).map(pool).collect())).clone()
}

/// Runs `work` in each of the pools, and waits for all.
fn run(pools: &[ThreadPool], work: &(impl Fn() + Sync)) {
    if let Some((first, rest)) = pools.split_first() {
        first.in_place_scope(|scope| {
            scope.spawn(|_| work());
            run(rest, work);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_jobs() {
        let jobs: Vec<_> = (0..100u64).map(|n| move || (0..n * 1000).fold(n, |a, b| a ^ b.wrapping_mul(n))).collect();
        let expected: Vec<u64> = jobs.clone().into_iter().map(|job| job()).collect();
        for at_once in [1, 2, usize::MAX] {
            assert_eq!(side_by_side(jobs.clone(), at_once), expected);
        }
        assert!(side_by_side(Vec::<fn() -> u8>::new(), 3).is_empty());
    }

    #[test]
    fn rows_are_divided_into_groups() {
        let counts = [0, 1, 128, 129, 232, 300, 792].map(|rows| groups(rows, 128));
        assert_eq!(counts, [1, 1, 1, 2, 2, 2, 4]);
    }

    #[test]
    fn threads_are_divided_among_few_jobs() {
        let jobs: Vec<_> = (0..2).map(|_| rayon::current_num_threads).collect();
        let all = rayon::current_num_threads();
        let shares: usize = side_by_side(jobs, usize::MAX).into_iter().sum();
        // One job may have run in both pools, one after the other.
        assert!(shares <= all.max(2) + all % 2);
    }
}
