//! What the objective promises of swaps: its gradient with respect to the embeddings and, where fluency counts, what tokens add by
//! themselves.

use super::Search;
use crate::ops::{Matrix, TrackedBackend};
use crate::problem::Problem;
use crate::subject::{Fluency, Subject};
use crate::tensor::{ids_tensor, norm};

/// At R positions of a prompt.
pub(super) struct Slope<B: TrackedBackend> {
    /// `[R, D]`.
    gradient: Matrix<B>,
    /// What every token adds to the objective by what it is, `[R, V]`; nothing where it adds nothing.
    direct: Option<Matrix<B>>,
}

impl Search {
    /// At all positions of a prompt, each target position counting for its emphasis, `[Σ M]`, where it has one.
    pub(super) fn slope<B: TrackedBackend>(
        &self,
        free: &[u32],
        emphasis: Option<&[f32]>,
        subject: &Subject<B>,
        problem: &Problem,
    ) -> Slope<B> {
        let gradient = subject.gradient(free, problem, self.goal.objective(), emphasis, self.products::<B::InnerBackend>());
        Slope { gradient, direct: None }.and(self.fluency_slope(&[free.to_vec()], subject, problem))
    }

    /// What fluency adds, its gradient being the mean over some prompts.
    pub(super) fn fluency_slope<B: TrackedBackend>(
        &self,
        prompts: &[Vec<u32>],
        subject: &Subject<B>,
        problem: &Problem,
    ) -> Option<Slope<B>> {
        let weight = self.fluency()?;
        let Fluency { gradient, direct } = subject.fluency(prompts, problem);
        let [rows, d] = gradient.dims();
        let gradient = gradient.reshape([prompts.len(), rows / prompts.len(), d]).sum_dim(0).squeeze_dim(0);
        Some(Slope { gradient: gradient * weight, direct: Some(direct * weight) })
    }
}

impl<B: TrackedBackend> Slope<B> {
    /// Of this gradient alone.
    pub fn of(gradient: Matrix<B>) -> Self {
        Self { gradient, direct: None }
    }

    /// With what fluency adds.
    pub fn and(self, fluency: Option<Self>) -> Self {
        match fluency {
            Some(Self { gradient, direct }) => Self { gradient: self.gradient + gradient, direct },
            None => self,
        }
    }

    /// At one of the positions.
    pub fn at(self, position: usize) -> Self {
        let row = |matrix: Matrix<B>| matrix.narrow(0, position, 1);
        Self { gradient: row(self.gradient), direct: self.direct.map(row) }
    }

    /// Length of the gradient.
    pub fn norm(&self) -> f32 {
        norm(self.gradient.clone())
    }

    /// The change that it predicts of each swap of one of R free tokens, `[R, V]`.
    pub fn predicted_change(self, free: &[u32], subject: &Subject<B>) -> Matrix<B> {
        let predicted = subject.predicted_change(free, self.gradient);
        match self.direct {
            Some(direct) => {
                let own = ids_tensor(&[free], &subject.device()).reshape([free.len(), 1]);
                predicted + direct.clone() - direct.gather(1, own)
            }
            None => predicted,
        }
    }
}
