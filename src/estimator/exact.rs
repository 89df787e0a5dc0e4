//! The exact gradient of the expected objective, for problems so small that all prompts can be tried: what estimators are tested against.

use burn::tensor::activation::softmax;

use super::Relaxation;
use crate::ops::{Gumbel, TrackedBackend};
use crate::tensor::data;

/// Prompts that are tried at most.
const MOST_PROMPTS: usize = 1 << 16;

/// ∇_Z E f(x) = Σ p(x)·f(x)·∇ log p(x) over all V^N prompts, `[N·V]`; nothing where there are more than 65,536. What is fed back must not be
/// drawn: f is then a function of the prompt.
pub fn exact_gradient<B: TrackedBackend>(at: &Relaxation<B>) -> Option<Vec<f64>> {
    let [n, v] = at.z.dims();
    let count = v.checked_pow(n as u32).filter(|count| *count <= MOST_PROMPTS)?;
    let p: Vec<f64> = data(softmax(at.soft_prompt(Gumbel::Silent).masked(), 1)).iter().collect();
    let prompts: Vec<Vec<u32>> = (0..count).map(|x| (0..n).map(|i| (x / v.pow(i as u32) % v) as u32).collect()).collect();
    let losses = at.subject.losses(&prompts, at.problem, at.objective, &at.feeding.fed(Gumbel::Silent));
    let mut gradient = vec![0.0; n * v];
    for (prompt, loss) in prompts.iter().zip(losses) {
        let likelihood: f64 = prompt.iter().enumerate().map(|(i, &token)| p[i * v + token as usize]).product();
        for (i, gradient) in gradient.iter_mut().enumerate() {
            *gradient += likelihood * loss * (f64::from(u8::from(prompt[i / v] as usize == i % v)) - p[i]);
        }
    }
    Some(gradient)
}
