//! Mean and variance of gradients that come one after another: memory does not grow with their number.

/// Running mean and squared deviations of vectors, entry by entry (Welford 1962).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Running {
    count: u64,
    mean: Vec<f64>,
    /// Σ (x − mean)².
    squares: Vec<f64>,
}

impl Running {
    /// Of vectors of so many entries.
    pub(super) fn new(entries: usize) -> Self {
        Self { count: 0, mean: vec![0.0; entries], squares: vec![0.0; entries] }
    }

    /// Takes in one more.
    pub(super) fn add(&mut self, vector: &[f32]) {
        self.count += 1;
        let share = 1.0 / self.count as f64;
        for ((mean, squares), &x) in self.mean.iter_mut().zip(&mut self.squares).zip(vector) {
            let before = f64::from(x) - *mean;
            *mean += before * share;
            *squares += before * (f64::from(x) - *mean);
        }
    }

    /// The mean.
    pub(super) fn mean(&self) -> impl Iterator<Item = f64> {
        self.mean.iter().copied()
    }

    /// Σ (x − mean)²/(n − 1), the variance of one vector.
    pub(super) fn variances(&self) -> impl Iterator<Item = f64> {
        let degrees = (self.count - 1) as f64;
        self.squares.iter().map(move |squares| squares / degrees)
    }

    /// The squared standard error of the mean.
    pub(super) fn squared_errors(&self) -> impl Iterator<Item = f64> {
        let count = self.count as f64;
        self.variances().map(move |variance| variance / count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Purpose, Stream};

    #[test]
    fn it_agrees_with_two_passes() {
        // Far from 0, where sums of squares would lose what matters.
        let vectors: Vec<Vec<f32>> =
            (0..37).map(|i| Stream::new(1, 0, i, Purpose::InitialLogits, 0).normal(1, 8).iter().map(|x| 1e4 + x).collect()).collect();
        let mut running = Running::new(8);
        vectors.iter().for_each(|vector| running.add(vector));
        let (means, variances): (Vec<f64>, Vec<f64>) = (running.mean().collect(), running.variances().collect());
        let errors: Vec<f64> = running.squared_errors().collect();
        for i in 0..8 {
            let column = || vectors.iter().map(|vector| f64::from(vector[i]));
            let mean = column().sum::<f64>() / 37.0;
            let variance = column().map(|x| (x - mean).powi(2)).sum::<f64>() / 36.0;
            assert!((means[i] - mean).abs() < 1e-12 * mean, "{} {mean}", means[i]);
            assert!((variances[i] - variance).abs() < 1e-9 * variance, "{} {variance}", variances[i]);
            assert_eq!(errors[i], variances[i] / 37.0);
        }
    }
}
