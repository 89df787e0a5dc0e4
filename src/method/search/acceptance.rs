//! What is taken: how good the best candidate of a step must be to become the current prompt.

/// What is taken of a step's candidates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Acceptance {
    /// The best one, if it is better than the current prompt.
    Better,
    /// Also one that is worse by Δ, with probability exp(−Δ/T).
    Annealed {
        /// T, in units of the objective; 0: never.
        acceptance_temperature: f64,
    },
    /// The best one, whatever it is worth.
    Any,
    /// nanoGCG's buffer of the best prompts, which the search goes on from. What enters it behind its best is never looked at again, so the
    /// best is all that is kept of it.
    Buffer {
        /// Prompts in the buffer, all of them scored at the start; 0: the best candidate is taken whatever it is worth.
        buffer_size: usize,
    },
}

impl Acceptance {
    /// What a candidate's objective must stay below to be taken, by a uniform draw that is made before anything is scored: a candidate
    /// that reaches it on the first target positions needs no more of them.
    pub(super) fn bound(self, current: f32, draw: f32) -> f32 {
        match self {
            Self::Better => current,
            Self::Any | Self::Buffer { buffer_size: 0 } => f32::INFINITY,
            Self::Buffer { .. } => current,
            Self::Annealed { acceptance_temperature } => current - acceptance_temperature as f32 * draw.ln(),
        }
    }

    /// Prompts that a search begins with, the best of which it goes on from.
    pub(super) fn starts(self) -> u32 {
        match self {
            Self::Buffer { buffer_size } => buffer_size.max(1) as u32,
            _ => 1,
        }
    }
}
