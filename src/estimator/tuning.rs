//! η and λ of a control variate, chosen by what the estimates so far had for a variance: never by the one that they are used for, which would
//! make it biased.

use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::rebar::Rebar;
use crate::tensor::host;

/// The λ that are tried.
pub const GRID: [f64; 5] = [0.1, 0.3, 1.0, 3.0, 10.0];

/// After the first estimates every so manieth looks at another λ, in turn.
const EXPLORE: u64 = 10;

/// Running means of products of a and c, where an estimate is a + η·c and the mean of c is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Products {
    aa: f64,
    ac: f64,
    cc: f64,
}

impl Products {
    /// The η of least variance, −⟨a, c⟩/⟨c, c⟩; at first 1.
    fn eta(self) -> f64 {
        if self.cc > 0.0 { -self.ac / self.cc } else { 1.0 }
    }

    /// The part of ⟨a, a⟩ that this η takes away.
    fn gain(self) -> f64 {
        if self.aa * self.cc > 0.0 { self.ac * self.ac / (self.aa * self.cc) } else { 0.0 }
    }
}

/// What was learned of η for each λ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Tuning {
    estimates: u64,
    products: [Products; GRID.len()],
    /// No estimate looks at another λ any more, nor is anything learned from one.
    #[serde(skip)]
    settled: bool,
}

/// λ and η of one estimate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    index: usize,
    pub(super) lambda: f64,
    pub(super) eta: f64,
}

impl Tuning {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { estimates: 0, products: Default::default(), settled: false }
    }

    /// See [`super::Estimator::settle`].
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// What the next estimate is to use.
    pub(super) fn choose(&self, settings: Rebar) -> Choice {
        let index = if settings.lambda.is_some() { 0 } else { self.index() };
        Choice { index, lambda: settings.lambda.unwrap_or(GRID[index]), eta: self.products[index].eta() }
    }

    /// Each λ once, then the best, and now and then another.
    fn index(&self) -> usize {
        let many = GRID.len() as u64;
        let turn = match self.estimates {
            _ if self.settled => None,
            first if first < many => Some(first),
            later => later.is_multiple_of(EXPLORE).then_some(later / EXPLORE % many),
        };
        turn.map_or_else(|| self.best(), |turn| turn as usize)
    }

    /// The λ that left the least variance; in the middle while nothing is known.
    fn best(&self) -> usize {
        let gain = |index: &usize| self.products[*index].gain();
        let best = (0..GRID.len()).max_by(|a, b| gain(a).total_cmp(&gain(b))).filter(|best| gain(best) > 0.0);
        best.unwrap_or(GRID.len() / 2)
    }

    /// Takes in a and c of an estimate that used this choice.
    pub(super) fn learn<B: Backend>(&mut self, settings: Rebar, choice: Choice, a: &Tensor<B, 2>, c: &Tensor<B, 2>) {
        if self.settled {
            return;
        }
        let (beta, products) = (settings.beta, &mut self.products[choice.index]);
        let found = [(&mut products.aa, dot(a, a)), (&mut products.ac, dot(a, c)), (&mut products.cc, dot(c, c))];
        found.into_iter().for_each(|(mean, value)| *mean = beta * *mean + (1.0 - beta) * value);
        self.estimates += 1;
    }
}

fn dot<B: Backend>(a: &Tensor<B, 2>, b: &Tensor<B, 2>) -> f64 {
    host((a.clone() * b.clone()).sum_dim(1)).iter().map(|x| f64::from(*x)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_settled_looks_at_no_other_lambda() {
        let best = Products { aa: 1.0, ac: 0.5, cc: 1.0 };
        let mut tuning = Tuning { estimates: 50, ..Tuning::new() };
        tuning.products[2] = best;
        let lambda = |tuning: &Tuning| tuning.choose(Rebar { lambda: None, beta: 0.9 }).lambda;
        assert_eq!(lambda(&tuning), GRID[0]);
        tuning.settle();
        assert_eq!(lambda(&tuning), GRID[2]);
        assert_eq!(lambda(&Tuning { settled: true, ..Tuning::new() }), 1.0, "nothing is known");
        assert_eq!(lambda(&Tuning { estimates: 1, ..Tuning::new() }), GRID[1], "at first each has its turn");
    }
}
