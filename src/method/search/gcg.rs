//! gcg: *Universal and Transferable Adversarial Attacks on Aligned Language Models* (Zou et al. 2023), with the defaults of nanoGCG
//! (github.com/GraySwanAI/nanoGCG, 0.3).
//!
//! From `x x x …`: the gradient of the cross-entropy with respect to the one-hot prompt, the 256 tokens of each position with the most
//! negative entry, 512 draws of a position and one of its tokens; those that survive decode → encode are scored exactly, and the best is
//! taken, be it worse than the current prompt.
//!
//! Where it differs: what is drawn twice in a step is scored once. A step of which no draw survives leaves the prompt as it is, where
//! nanoGCG gives up. The search vocabulary is the problem's, in place of printable ASCII. A buffer begins with random words beside the
//! start, not with random single characters. A candidate that leads to the target is taken before a better one that does not. There is no
//! probe sampling, for which a smaller model is needed.

use super::{Acceptance, Proposal, Schedule, Search, Start};
use crate::objective::Goal;

/// GCG with nanoGCG's defaults: `topk`, `n_replace`, `buffer_size`, and `search_width` for a batch; `use_mellowmax` is the objective
/// [`crate::objective::Objective::Mellowmax`].
pub const GCG: Search = Search {
    start: Start::Repeated,
    proposal: Proposal::Top { top: 256, n_replace: 1 },
    goal: Goal::CROSS_ENTROPY,
    fluency: None,
    emphasis: None,
    acceptance: Acceptance::Buffer { buffer_size: 0 },
    schedule: Schedule { batch: 512, growth: None },
    sets: None,
    rough: false,
};
