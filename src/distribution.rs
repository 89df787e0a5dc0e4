//! Samples of a number: quartiles, and whether two of them may come from one distribution.

use serde::Serialize;

/// A sample in five numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quartiles {
    /// How many numbers there are.
    pub n: usize,
    /// The smallest.
    pub min: f64,
    /// A quarter is below it.
    pub q1: f64,
    /// Half is below it.
    pub median: f64,
    /// Three quarters are below it.
    pub q3: f64,
    /// The largest.
    pub max: f64,
}

impl Quartiles {
    /// Of one finite number or more; between two neighbours of the sorted sample, linearly.
    pub fn of(sample: &[f64]) -> Option<Self> {
        let sorted = sorted(sample);
        if sorted.is_empty() {
            return None;
        }
        let at = |share: f64| quantile(&sorted, share);
        Some(Self { n: sorted.len(), min: at(0.0), q1: at(0.25), median: at(0.5), q3: at(0.75), max: at(1.0) })
    }
}

/// A quantile of sorted numbers, of which there must be one: between two neighbours in proportion.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The finite ones of some numbers, in order.
pub fn sorted(sample: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = sample.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// What [`kolmogorov_smirnov`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct KolmogorovSmirnov {
    /// D, the largest distance between the two distribution functions.
    pub statistic: f64,
    /// How probable a D as large is for two samples of one distribution: Kolmogorov's limit for many independent numbers.
    pub p: f64,
}

/// The two-sided test on two samples of one finite number or more.
pub fn kolmogorov_smirnov(a: &[f64], b: &[f64]) -> Option<KolmogorovSmirnov> {
    let (a, b) = (sorted(a), sorted(b));
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let (m, n) = (a.len() as f64, b.len() as f64);
    let share = |sample: &[f64], x: f64| sample.partition_point(|y| *y <= x) as f64 / sample.len() as f64;
    let statistic = a.iter().chain(&b).map(|&x| (share(&a, x) - share(&b, x)).abs()).fold(0.0, f64::max);
    Some(KolmogorovSmirnov { statistic, p: exceeded((m * n / (m + n)).sqrt() * statistic) })
}

/// Q(λ) = 2 Σ (−1)^(j−1) exp(−2 j² λ²), j from 1, which for small λ is had from the same function's other series,
/// 1 − √(2π)/λ Σ exp(−(2j − 1)² π²/(8 λ²)).
fn exceeded(lambda: f64) -> f64 {
    use std::f64::consts::PI;
    if lambda < 0.05 {
        return 1.0;
    }
    if lambda < 1.0 {
        let term = |j: i32| (-f64::from(2 * j - 1).powi(2) * PI * PI / (8.0 * lambda * lambda)).exp();
        return 1.0 - (2.0 * PI).sqrt() / lambda * (1..=4).map(term).sum::<f64>();
    }
    let term = |j: i32| f64::from(2 * (j % 2) - 1) * (-2.0 * f64::from(j * j) * lambda * lambda).exp();
    2.0 * (1..=6).map(term).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 7] = [0.61, 1.2, 3.5, 0.02, 2.2, 0.9, 1.7];
    const B: [f64; 9] = [2.9, 4.1, 0.8, 5.5, 3.3, 6.0, 2.5, 4.4, 1.7];

    #[track_caller]
    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{found} {expected}");
    }

    /// scipy 1.17.1: `ks_2samp(x, y).statistic` and `special.kolmogorov(sqrt(m * n / (m + n)) * statistic)`, ties among them.
    #[test]
    fn two_samples_are_as_far_apart_as_scipy_says() {
        let expected: [(&[f64], &[f64], f64, f64); 4] = [
            (&A, &B, 0.6349206349206349, 0.08361527273178201),
            (&A, &A, 0.0, 1.0),
            (&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], 1.0, 0.09956184831478034),
            (&B, &[1.7, 1.7, 3.0], 0.5555555555555556, 0.4909800301352646),
        ];
        for (a, b, statistic, p) in expected {
            for found in [kolmogorov_smirnov(a, b), kolmogorov_smirnov(b, a)].map(Option::unwrap) {
                near(found.statistic, statistic);
                near(found.p, p);
            }
        }
        assert_eq!(kolmogorov_smirnov(&A, &[f64::NAN]), None);
    }

    /// scipy 1.17.1: `special.kolmogorov`.
    #[test]
    fn the_limit_distribution_is_scipys() {
        let expected = [
            (0.01, 1.0),
            (0.2, 0.999999999999495),
            (0.5, 0.9639452436648751),
            (0.8, 0.5441424115741981),
            (1.0, 0.26999967167735456),
            (1.18, 0.1234538094297657),
            (1.5, 0.022217962616525127),
            (2.0, 0.0006709252557796953),
            (3.0, 3.045995948942526e-08),
            (5.0, 3.8574996959278356e-22),
        ];
        expected.into_iter().for_each(|(lambda, p)| near(exceeded(lambda), p));
    }

    /// numpy's `percentile`.
    #[test]
    fn quartiles_lie_between_neighbours() {
        let found = Quartiles::of(&A).unwrap();
        let Quartiles { n, min, q1, median, q3, max } = found;
        assert_eq!((n, min, median, max), (7, 0.02, 1.2, 3.5));
        near(q1, 0.755);
        near(q3, 1.95);
        assert_eq!(Quartiles::of(&[]), None);
        assert_eq!(Quartiles::of(&[2.0]).unwrap().q1, 2.0);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), 2.0);
        assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
        assert_eq!(quantile(&[4.0], 0.9), 4.0);
    }
}
