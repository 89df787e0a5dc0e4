//! RMSNorm.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::ops::Kernels;

/// x / √(mean(x²) + ε) · weight.
#[derive(Module, Debug)]
pub struct LlamaRMSNorm<B: Backend> {
    /// `[D]`.
    pub weight: Param<Tensor<B, 1>>,
    #[module(skip)]
    pub(super) epsilon: f64,
}

impl<B: Kernels> LlamaRMSNorm<B> {
    /// Normalises every row of `x` `[rows, D]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::rms_norm(x, self.weight.val(), self.epsilon)
    }

    /// The gradient of `x` `[rows, D]` from that of the result.
    pub(super) fn backward(&self, x: Tensor<B, 2>, output: Tensor<B, 2>) -> Tensor<B, 2> {
        B::rms_norm_backward(x, self.weight.val(), self.epsilon, output)
    }

    /// Normalises every head of `x` `[rows, heads·D]` by itself.
    pub(super) fn forward_heads(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let shape = x.dims();
        self.forward(self.heads(x)).reshape(shape)
    }

    /// The gradient of `x` `[rows, heads·D]` from that of the result of [`Self::forward_heads`].
    pub(super) fn backward_heads(&self, x: Tensor<B, 2>, output: Tensor<B, 2>) -> Tensor<B, 2> {
        let shape = x.dims();
        self.backward(self.heads(x), self.heads(output)).reshape(shape)
    }

    /// `[rows, heads·D]` → `[rows·heads, D]`.
    fn heads(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let ([rows, width], [d]) = (x.dims(), self.weight.dims());
        x.reshape([rows * width / d, d])
    }
}
