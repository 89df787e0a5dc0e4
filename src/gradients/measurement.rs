//! One measurement: gradients of an estimator at one Z, how they scatter, and how far their mean is from two references.

use serde::{Deserialize, Deserializer, Serialize};

use super::plan::Protocol;
use super::running::Running;
use crate::estimator::reinforce::{BETA, Baseline};
use crate::estimator::{Estimator, EstimatorKind, Noise, Reinforce, Relaxation, Temperature};
use crate::interrupt;
use crate::metrics::Spread;
use crate::noise::Clock;
use crate::ops::TrackedBackend;
use crate::tensor::host;

/// Prompts of a gradient of the unbiased reference: each is compared with the 15 others.
pub const REFERENCE_PROMPTS: u32 = 16;

/// What a measurement found. Maxima and means are over the N·V entries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The objective, its mean over the draws.
    #[serde(deserialize_with = "number")]
    pub objective: f64,
    /// τ over the positions, where there is one.
    pub temperature: Option<Spread>,
    /// |ḡ|, ḡ the mean of the draws.
    pub gradient: Extent,
    /// Σ(ĝ_j − ḡ)²/(n − 1).
    pub variance: Extent,
    /// |ḡ − r|, r the mean of n REINFORCE gradients from a fresh shared baseline: what the paper's authors plot. The first of these gradients is
    /// 0 and the others nearly, so this is about |ḡ|, or the noise of r where that is larger; biased or not.
    pub bias_authors: Option<Extent>,
    /// Against a reference that is unbiased.
    pub bias: Option<Bias>,
}

/// The difference ḡ − r from leave-one-out REINFORCE, and what of it is chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bias {
    /// The largest |ḡ − r|.
    #[serde(deserialize_with = "number")]
    pub max: f64,
    /// Its mean.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
    /// Standard error of ḡ − r: what is smaller cannot be told from no bias.
    pub floor: Extent,
    /// Standard error of r alone.
    pub reference_error: Extent,
    /// Mean of (ḡ − r)² less that of the squared standard error: the mean squared bias, itself unbiased, so that it may be negative.
    #[serde(deserialize_with = "number")]
    pub squared: f64,
    /// Mean squared standard error of ḡ − r: what `squared` scatters by, about.
    #[serde(deserialize_with = "number")]
    pub floor_squared: f64,
    /// Mean of r² less that of its squared standard error: the mean squared entry of the true gradient.
    #[serde(deserialize_with = "number")]
    pub gradient_squared: f64,
}

/// The largest and the mean of some sizes; no number where one of them is none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Extent {
    /// The largest.
    #[serde(deserialize_with = "number")]
    pub max: f64,
    /// The mean.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
}

impl Extent {
    fn of(sizes: impl Iterator<Item = f64>) -> Self {
        let (count, sum, max) = sizes.fold((0u64, 0.0, 0.0f64), |(count, sum, max), x| (count + 1, sum + x, max.max(x)));
        let mean = sum / count as f64;
        // A maximum would pass over what is no number.
        Self { max: if mean.is_nan() { mean } else { max }, mean }
    }
}

impl Bias {
    pub(super) fn between(draws: &Running, reference: &Running) -> Self {
        let differences = || draws.mean().zip(reference.mean()).map(|(a, b)| a - b);
        let errors = || draws.squared_errors().zip(reference.squared_errors()).map(|(a, b)| a + b);
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (count, sum) = values.fold((0u64, 0.0), |(count, sum), x| (count + 1, sum + x));
            sum / count as f64
        };
        let Extent { max, mean: mean_size } = Extent::of(differences().map(f64::abs));
        Self {
            max,
            mean: mean_size,
            floor: Extent::of(errors().map(f64::sqrt)),
            reference_error: Extent::of(reference.squared_errors().map(f64::sqrt)),
            squared: mean(&mut differences().zip(errors()).map(|(x, error)| x * x - error)),
            floor_squared: mean(&mut errors()),
            gradient_squared: mean(&mut reference.mean().zip(reference.squared_errors()).map(|(x, error)| x * x - error)),
        }
    }
}

/// Random numbers of a measurement: none of those that the run uses, nor of another measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) seed: u32,
    pub(super) step: u32,
}

impl Clocks {
    /// Those of gradient `number` of one of three kinds. The run's own are those of restart 0.
    fn noise<B: TrackedBackend>(self, kind: u32, number: u32) -> Noise<B::InnerBackend> {
        Noise::Drawn(Clock { seed: self.seed, restart: 1 + 3 * self.step + kind, step: number })
    }
}

/// Measures a copy of a run's estimator where the run is.
pub(super) fn measure<B: TrackedBackend>(
    mut estimator: Box<dyn Estimator<B>>,
    at: &Relaxation<B>,
    protocol: &Protocol,
    clocks: Clocks,
) -> Measurement {
    estimator.settle();
    let (draws, objective) = gather(&mut *estimator, at, protocol.draws, |number| clocks.noise::<B>(0, number));
    let with_bias = protocol.bias_is_due(clocks.step.into());
    let temperature = (at.temperature != Temperature::None).then(|| Spread::of(&host(at.temperature.tau(at.phi.clone(), &at.z))));
    Measurement {
        objective,
        temperature: temperature.and_then(Spread::finite),
        gradient: Extent::of(draws.mean().map(f64::abs)),
        variance: Extent::of(draws.variances()),
        bias_authors: with_bias.then(|| {
            let reference = authors_reference(at, protocol.draws, clocks);
            Extent::of(draws.mean().zip(reference.mean()).map(|(a, b)| (a - b).abs()))
        }),
        bias: with_bias.then(|| Bias::between(&draws, &reference(at, protocol.reference_gradients(), clocks))),
    }
}

/// REINFORCE as the paper's authors compare with it: so many gradients in a row, from a fresh shared baseline.
pub(super) fn authors_reference<B: TrackedBackend>(at: &Relaxation<B>, count: u32, clocks: Clocks) -> Running {
    gather(&mut *reinforce(Baseline::Shared), at, count, |number| clocks.noise::<B>(1, number)).0
}

/// Leave-one-out REINFORCE: so many gradients of [`REFERENCE_PROMPTS`] prompts. Unbiased, each prompt being compared with others only.
pub(super) fn reference<B: TrackedBackend>(at: &Relaxation<B>, count: u32, clocks: Clocks) -> Running {
    let at = Relaxation { samples: REFERENCE_PROMPTS as usize, ..at.clone() };
    gather(&mut *reinforce(Baseline::LeaveOneOut), &at, count, |number| clocks.noise::<B>(2, number)).0
}

fn reinforce<B: TrackedBackend>(baseline: Baseline) -> Box<dyn Estimator<B>> {
    EstimatorKind::Reinforce(Reinforce { baseline, beta: BETA, reward_scale: 1.0 }).build()
}

/// So many gradients in a row at one Z, and the mean of their objectives.
fn gather<B: TrackedBackend>(
    estimator: &mut dyn Estimator<B>,
    at: &Relaxation<B>,
    count: u32,
    noise: impl Fn(u32) -> Noise<B::InnerBackend>,
) -> (Running, f64) {
    let (mut gradients, mut objective) = (Running::new(at.z.shape().num_elements()), 0.0);
    for number in 0..count {
        interrupt::check();
        let estimate = estimator.estimate(at, &noise(number));
        gradients.add(&host(estimate.dz));
        objective += estimate.loss / f64::from(count);
    }
    (gradients, objective)
}

/// A number; `null`, as which JSON has what is none, is read as that.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
