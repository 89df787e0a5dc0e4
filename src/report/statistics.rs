//! Means, rates and differences with their intervals. Nothing here is random: every resampling begins with the same numbers.
//!
//! The sample is nested: targets, and runs (seeds) of each. What a study wants to say holds for targets that it has not seen, so targets
//! are resampled, then runs within each; a thousand seeds of one target are still one target.

use crate::distribution::{quantile, sorted};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;
/// Share of the distribution that an interval leaves out at either end.
const TAIL: f64 = 0.025;

/// A mean and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Mean over the targets of the means over their runs: each target counts alike.
    pub mean: f64,
    /// Both ends of the interval. None where all runs are alike, or there is one only: resampling them says nothing.
    pub interval: Option<(f64, f64)>,
    /// Targets.
    pub targets: usize,
    /// Runs of all targets.
    pub runs: usize,
}

/// The mean over the targets of the means over their runs, without an interval. None without a run.
pub fn average(targets: &[impl AsRef<[f64]>]) -> Option<Estimate> {
    let targets: Vec<&[f64]> = targets.iter().map(AsRef::as_ref).filter(|runs| !runs.is_empty()).collect();
    let runs = targets.iter().map(|runs| runs.len()).sum();
    let mean = mean_of(targets.len(), |target| mean(targets[target]));
    (runs > 0).then_some(Estimate { mean, interval: None, targets: targets.len(), runs })
}

/// The mean of the runs of each target, with the percentile interval of a bootstrap over targets, runs nested in them. With a single
/// target the interval is over its runs alone. None without a run.
pub fn estimate(targets: &[Vec<f64>]) -> Option<Estimate> {
    let targets: Vec<&[f64]> = targets.iter().map(Vec::as_slice).filter(|runs| !runs.is_empty()).collect();
    let once = |draws: &mut Draws| {
        mean_of(targets.len(), |_| {
            let target = draws.below(targets.len());
            draws.resampled_mean(targets[target])
        })
    };
    let all_alike = targets.concat().windows(2).all(|pair| pair[0] == pair[1]);
    Some(Estimate { interval: (!all_alike).then(|| bootstrap(once)), ..average(&targets)? })
}

/// The mean of a − b over the targets that both have: `a[i]` and `b[i]` are runs on the same target. The interval as in [`estimate`]; none
/// where all resamples are alike.
pub fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> Option<Estimate> {
    let pairs: Vec<(&[f64], &[f64])> =
        a.iter().zip(b).map(|(a, b)| (a.as_slice(), b.as_slice())).filter(|(a, b)| !a.is_empty() && !b.is_empty()).collect();
    let runs = pairs.iter().map(|(a, b)| a.len() + b.len()).sum();
    let once = |draws: &mut Draws| {
        mean_of(pairs.len(), |_| {
            let (a, b) = pairs[draws.below(pairs.len())];
            draws.resampled_mean(a) - draws.resampled_mean(b)
        })
    };
    (!pairs.is_empty()).then(|| Estimate {
        mean: mean_of(pairs.len(), |pair| mean(pairs[pair].0) - mean(pairs[pair].1)),
        interval: (runs > 2).then(|| bootstrap(once)).filter(|(low, high)| low < high),
        targets: pairs.len(),
        runs,
    })
}

/// How many of all runs succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Those that did.
    pub successes: usize,
    /// All of them.
    pub runs: usize,
    /// Targets that they are of.
    pub targets: usize,
}

impl Rate {
    /// 0 of nothing.
    pub fn share(self) -> f64 {
        self.successes as f64 / self.runs.max(1) as f64
    }

    /// Wilson's 95 % interval, of as many trials as there are targets: the seeds of a target may all succeed or fail together, and at
    /// worst they do.
    pub fn interval(self) -> (f64, f64) {
        wilson(self.share(), self.targets)
    }
}

/// Wilson's 95 % interval of a rate over n trials (Wilson 1927). 0 to 1 of nothing.
fn wilson(rate: f64, n: usize) -> (f64, f64) {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return (0.0, 1.0);
    }
    let n = n as f64;
    let middle = (rate + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

/// Density of a sample at `points`, by a Gaussian kernel with Silverman's bandwidth.
pub fn density(sample: &[f64], points: &[f64]) -> Vec<f64> {
    let sorted = sorted(sample);
    let (n, centre) = (sample.len() as f64, mean(sample));
    let deviation = (sample.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
    let range = (quantile(&sorted, 0.75) - quantile(&sorted, 0.25)) / 1.34;
    let spread = [deviation, range].into_iter().filter(|x| *x > 0.0).fold(f64::INFINITY, f64::min);
    let width = if spread.is_finite() { 0.9 * spread * n.powf(-0.2) } else { 0.01 };
    let at =
        |x: f64| sample.iter().map(|y| (-((x - y) / width).powi(2) / 2.0).exp()).sum::<f64>() / (n * width * std::f64::consts::TAU.sqrt());
    points.iter().map(|&x| at(x)).collect()
}

/// Mean of one number or more.
pub fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

fn mean_of(n: usize, of: impl FnMut(usize) -> f64) -> f64 {
    (0..n).map(of).sum::<f64>() / n as f64
}

/// The percentile interval of a statistic that is resampled by `once`.
fn bootstrap(mut once: impl FnMut(&mut Draws) -> f64) -> (f64, f64) {
    let mut draws = Draws(0);
    let resampled = sorted(&(0..RESAMPLES).map(|_| once(&mut draws)).collect::<Vec<_>>());
    (quantile(&resampled, TAIL), quantile(&resampled, 1.0 - TAIL))
}

/// SplitMix64 (Steele et al. 2014).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number below n.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// The mean of as many of some numbers, drawn one by one.
    fn resampled_mean(&mut self, numbers: &[f64]) -> f64 {
        mean_of(numbers.len(), |_| numbers[self.below(numbers.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: (f64, f64), wanted: (f64, f64)) {
        assert!((found.0 - wanted.0).abs() < 5e-4 && (found.1 - wanted.1).abs() < 5e-4, "{found:?}, not {wanted:?}");
    }

    /// The examples of Newcombe 1998, table I.
    #[test]
    fn wilson_is_what_others_compute() {
        near(wilson(81.0 / 263.0, 263), (0.2553, 0.3662));
        near(wilson(15.0 / 148.0, 148), (0.0624, 0.1605));
        near(wilson(0.0 / 20.0, 20), (0.0, 0.1611));
        near(wilson(1.0 / 29.0, 29), (0.0061, 0.1718));
        near(wilson(20.0 / 20.0, 20), (0.8389, 1.0));
        assert_eq!(wilson(0.0, 0), (0.0, 1.0));
    }

    #[test]
    fn each_target_counts_alike_and_one_run_has_no_interval() {
        let found = estimate(&[vec![1.0, 1.0, 1.0], vec![0.0], vec![]]).unwrap();
        assert_eq!((found.mean, found.targets, found.runs), (0.5, 2, 4));
        assert_eq!(found.interval, Some((0.0, 1.0)));
        assert_eq!(estimate(&[vec![0.3]]), Some(Estimate { mean: 0.3, interval: None, targets: 1, runs: 1 }));
        assert_eq!(estimate(&[]), None);
        assert_eq!(estimate(&[vec![]]), None);
        let constant = estimate(&[vec![0.25; 4], vec![0.25; 2]]).unwrap();
        assert_eq!((constant.mean, constant.interval), (0.25, None));
    }

    /// A normal number: the sum of twelve uniform ones.
    fn normal(draws: &mut Draws) -> f64 {
        (0..12).map(|_| draws.next() as f64 / u64::MAX as f64).sum::<f64>() - 6.0
    }

    /// Share of simulated studies whose interval holds the truth: targets differ by 1, runs of a target by 0.5.
    fn coverage(targets: usize, runs: usize, interval: impl Fn(&[Vec<f64>], &mut Draws) -> (f64, f64)) -> f64 {
        let mut draws = Draws(99);
        let study = |draws: &mut Draws| -> Vec<Vec<f64>> {
            let target = |draws: &mut Draws| {
                let own = normal(draws);
                (0..runs).map(|_| own + 0.5 * normal(draws)).collect()
            };
            (0..targets).map(|_| target(draws)).collect()
        };
        let holds = |_| {
            let study = study(&mut draws);
            let (low, high) = interval(&study, &mut draws);
            f64::from(u8::from(low <= 0.0 && 0.0 <= high))
        };
        mean(&(0..200).map(holds).collect::<Vec<_>>())
    }

    /// What `docs/experiments.md` says of small studies. Runs that were taken for targets would give a false certainty.
    #[test]
    fn an_interval_holds_the_truth_as_often_as_is_said() {
        let of_targets = |study: &[Vec<f64>], _: &mut Draws| estimate(study).unwrap().interval.unwrap();
        let many = coverage(25, 3, of_targets);
        let few = coverage(3, 3, of_targets);
        let naive = coverage(5, 20, |study, draws| of_targets(&study.concat().into_iter().map(|x| vec![x]).collect::<Vec<_>>(), draws));
        println!("25 targets {many}, 3 targets {few}, runs taken for targets {naive}");
        assert!((0.89..=0.99).contains(&many) && (0.65..0.9).contains(&few) && naive < 0.55, "{many} {few} {naive}");
    }

    /// Targets differ far more than methods do: only the difference on the same targets tells.
    #[test]
    fn a_paired_difference_is_seen_through_the_scatter_of_the_targets() {
        let mut draws = Draws(5);
        let hard: Vec<f64> = (0..12).map(|_| 5.0 * normal(&mut draws)).collect();
        let mut runs = |shift: f64| -> Vec<Vec<f64>> {
            hard.iter().map(|own| (0..3).map(|_| own + shift + 0.1 * normal(&mut draws)).collect()).collect()
        };
        let (a, b) = (runs(0.3), runs(0.0));
        let (low, high) = difference(&a, &b).unwrap().interval.unwrap();
        assert!(0.15 < low && low < 0.3 && 0.3 < high && high < 0.45, "{low} {high}");
        let apart = [&a, &b].map(|runs| estimate(runs).unwrap().interval.unwrap());
        assert!(apart[0].0 < apart[1].1, "apart they tell nothing: {apart:?}");
        let back = difference(&b, &a).unwrap();
        assert!((back.mean + difference(&a, &b).unwrap().mean).abs() < 1e-12);
    }

    #[test]
    fn a_difference_is_over_what_both_have() {
        let found = difference(&[vec![1.0], vec![9.0], vec![]], &[vec![0.5, 0.7], vec![], vec![1.0]]).unwrap();
        assert!((found.mean - 0.4).abs() < 1e-12);
        assert_eq!((found.targets, found.runs), (1, 3));
        assert_eq!(difference(&[vec![]], &[vec![1.0]]), None);
        assert_eq!(difference(&[vec![1.0]], &[vec![1.0]]).unwrap().interval, None);
        let none = [vec![0.0], vec![0.0], vec![0.0]];
        assert_eq!(difference(&none, &none).unwrap().interval, None, "that two are never exact does not show that they are alike");
    }

    #[test]
    fn a_density_integrates_to_one_and_stands_where_the_sample_is() {
        let sample = [0.0, 0.1, 0.2, 0.3, 3.0];
        let points: Vec<f64> = (-200..600).map(|i| f64::from(i) / 100.0).collect();
        let found = density(&sample, &points);
        assert!((found.iter().sum::<f64>() / 100.0 - 1.0).abs() < 1e-3);
        assert!(found[215] > 5.0 * found[400]);
        assert!(density(&[1.0, 1.0], &[1.0])[0].is_finite() && density(&[1.0], &[1.0])[0].is_finite());
    }
}
