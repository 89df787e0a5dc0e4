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
}

impl Acceptance {
    /// What a candidate's objective must stay below to be taken, by a uniform draw that is made before anything is scored: a candidate
    /// that reaches it on the first target positions needs no more of them.
    pub(super) fn bound(self, current: f32, draw: f32) -> f32 {
        match self {
            Self::Better => current,
            Self::Annealed { acceptance_temperature } => current - acceptance_temperature as f32 * draw.ln(),
        }
    }
}
