//! Provisional: the keys of the rows of Table 1 and of the searches, until they stand beside their structs.

use super::relaxed::{InitialPhi, Row, Temperature};
use super::search::{Proposal, Search};
use crate::backend::{BackendName, Dtype};
use crate::estimator::Estimator;
use crate::estimator::reinforce::{Baseline, Reinforce};
use crate::setting::{Choice, Key, choice, key, optional_real, optional_whole, positive, real, real32, switch, whole};
use crate::subject::feeding::{Feedback, Feeding};

const MANY: u64 = 1_000_000_000;

fn reinforce(row: &mut Row) -> Option<&mut Reinforce> {
    match &mut row.estimator {
        Estimator::Reinforce(reinforce) => Some(reinforce),
        _ => None,
    }
}

/// Of a row.
pub const ROW: &[Key<Row>] = &[
    key("samples", "Prompts that a step draws (S)", |row| match row.estimator {
        Estimator::Softmax => None,
        _ => Some(whole(&mut row.samples, 1..=1024)),
    }),
    key("learning_rate", "Adam's learning rate", |row| Some(positive(&mut row.optimiser.learning_rate))),
    key("beta1", "Decay of Adam's mean gradient", |row| Some(real(&mut row.optimiser.beta1, 0.0..=0.999999))),
    key("beta2", "Decay of Adam's mean squared gradient", |row| Some(real(&mut row.optimiser.beta2, 0.0..=0.999999))),
    key("epsilon", "What Adam adds to the root", |row| Some(positive(&mut row.optimiser.epsilon))),
    key("bias_correction", "Whether Adam's moments are divided by what they lack at first", |row| {
        Some(switch(&mut row.optimiser.bias_correction))
    }),
    key("decay", "What Z is multiplied by after every step", |row| Some(real(&mut row.optimiser.decay, 0.0..=1.0))),
    key("reset_every", "Steps after which Adam's moments are forgotten, or `none`", |row| {
        Some(optional_whole(&mut row.optimiser.reset_every, 1..=MANY))
    }),
    key("tau", "The fixed temperature", |row| match &mut row.temperature {
        Temperature::Fixed(tau) => Some(real(tau, 1e-6..=1e9)),
        _ => None,
    }),
    key("tau0", "Scale of the learned temperature, tau = tau0 (1 + tanh phi)", |row| match &mut row.temperature {
        Temperature::Learned { tau0, .. } => Some(positive(tau0)),
        _ => None,
    }),
    key("per_position", "Learn one temperature per position, not one for all", |row| match &mut row.temperature {
        Temperature::Learned { per_position, .. } => Some(switch(per_position)),
        _ => None,
    }),
    key("initial_phi", "Where phi starts", |row| match &mut row.temperature {
        Temperature::Learned { initial, .. } => Some(choice(initial)),
        _ => None,
    }),
    key("noise_clip", "Largest uniform draw that becomes Gumbel noise, or `none`", |row| match &mut row.estimator {
        Estimator::GumbelSoftmax { noise_clip } => Some(optional_real(noise_clip, 0.5..=1.0)),
        _ => None,
    }),
    key("feedback", "How the model is fed what it writes", |row| match &mut row.feeding {
        Feeding::Free(feedback) => Some(choice(feedback)),
        Feeding::Forced => None,
    }),
    key("baseline", "What is subtracted from a sample's loss", |row| reinforce(row).map(|it| choice(&mut it.baseline))),
    key("baseline_beta", "Beta of the moving average", |row| reinforce(row).map(|it| real(&mut it.beta, 0.0..=1.0))),
    key("reward_scale", "What the gradient is multiplied by", |row| reinforce(row).map(|it| positive(&mut it.reward_scale))),
    key("initial_deviation", "Standard deviation of the first Z", |row| Some(real(&mut row.initial.deviation, 0.0..=1e6))),
    key("redraw_every", "Steps after which Z is drawn anew", |row| row.initial.again.as_mut().map(|again| whole(&mut again.0, 1..=MANY))),
    key("redraw_deviation", "Standard deviation of a later Z", |row| row.initial.again.as_mut().map(|again| real(&mut again.1, 0.0..=1e6))),
];

/// Of a search.
pub const SEARCH: &[Key<Search>] = &[
    key("batch", "Candidates scored in a step while progress is easy", |search| Some(whole(&mut search.batch, 1..=65_536))),
    key("batch_max", "Candidates scored in a step when it stalls", |search| Some(whole(&mut search.batch_max, 1..=65_536))),
    key("top", "Ranks of a position that swaps are drawn from", |search| match &mut search.proposal {
        Proposal::Gradient { top, .. } => Some(whole(top, 1..=MANY)),
        Proposal::Uniform => None,
    }),
    key("momentum", "Share of the earlier gradients in the ranking", |search| match &mut search.proposal {
        Proposal::Gradient { momentum, .. } => Some(real32(momentum, 0.0..=0.999)),
        Proposal::Uniform => None,
    }),
    key("margin", "Logit gap at which a target position counts as solved", |search| Some(real32(&mut search.margin, 0.0..=1e3))),
    key("acceptance_temperature", "How readily a worse candidate is taken (0: never)", |search| {
        Some(real32(&mut search.temperature, 0.0..=1e6))
    }),
    key("patience", "Steps without a new best before the batch doubles, and at last before it stalls", |search| {
        (search.patience < u64::MAX).then(|| whole(&mut search.patience, 1..=MANY))
    }),
    key("restart_when_stalled", "When it stalls, begin with a new random prompt, not with the best", |search| {
        Some(switch(&mut search.begin_anew))
    }),
];

/// What a row's settings say of each other.
pub fn check_row(row: &Row) -> Result<(), String> {
    match row.estimator {
        Estimator::Reinforce(Reinforce { baseline: Baseline::LeaveOneOut, .. }) if row.samples < 2 => {
            Err(format!("`baseline` leave-one-out compares a sample with the others: `samples` must be at least 2, not {}", row.samples))
        }
        _ => Ok(()),
    }
}

/// What a search's settings say of each other.
pub fn check_search(search: &Search) -> Result<(), String> {
    let Search { batch, batch_max, .. } = *search;
    match batch > batch_max {
        true => Err(format!("`batch` is {batch} but `batch_max` is {batch_max}: it must be at least `batch`")),
        false => Ok(()),
    }
}

impl Choice for InitialPhi {
    const ALL: &'static [(Self, &'static str, &'static str)] =
        &[(Self::Normal, "normal", "N(0, 1): the paper's"), (Self::Uniform, "uniform", "Uniform in (0, 1): what the paper's authors ran")];
}

impl Choice for Feedback {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Soft, "soft", "The distribution, softmax(logits) W_E, gradient and all: the paper's section 3.4"),
        (Self::Hard, "hard", "The most likely token, through which no gradient passes: what the paper's authors ran"),
        (Self::Gumbel, "gumbel", "A Gumbel-softmax sample of it at temperature 1, gradient and all: the paper's section 3.2"),
    ];
}

impl Choice for Baseline {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Ema, "ema", "b ← βb + (1 − β) mean L after each step, at first the first mean: the paper's"),
        (Self::LeaveOneOut, "leave-one-out", "The mean loss of the step's other samples"),
        (Self::Shared, "shared", "What the paper's authors ran: b ← (1 − β)b + β mean L before the step, one mean L − b for all samples"),
    ];
}

impl Choice for BackendName {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Auto, "auto", "CUDA if present, then a discrete or integrated Vulkan GPU, then flex"),
        (Self::Flex, "flex", "CPU, always there"),
        (Self::Ndarray, "ndarray", "CPU, a second opinion"),
        (Self::Wgpu, "wgpu", "Any GPU with a Vulkan driver"),
        (Self::Cuda, "cuda", "NVIDIA GPUs"),
    ];
}

impl Choice for Dtype {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::F32, "f32", "32 bits, everywhere"),
        (Self::F16, "f16", "16 bits, 10 of them after the point, on GPUs"),
        (Self::Bf16, "bf16", "16 bits with the range of f32, 7 of them after the point, on GPUs"),
    ];
}
