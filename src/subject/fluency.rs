//! How well free tokens read: their likelihood under the model, each given all that stands before it.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Tensor, TensorData};

use super::gradient::slope;
use super::{Plain, Subject};
use crate::model::{Cache, Llama};
use crate::objective::Objective;
use crate::ops::{Kernels, Parallel, TrackedBackend, wide};
use crate::problem::{Example, Problem};
use crate::tensor::{host, ids_tensor};

/// What changes the mean −ln p of free tokens.
pub struct Fluency<B: Kernels> {
    /// Through what is predicted behind them: the gradient with respect to their embeddings, `[S·N, D]`.
    pub gradient: Tensor<B, 2>,
    /// Through what they are: what every token would add at every position of the first prompt, `[N, V]`.
    pub direct: Tensor<B, 2>,
}

/// What the likelihood of free tokens in one example goes by.
pub(super) struct Reading {
    /// N.
    tokens: usize,
    /// −ln p of every token as the first free one, `[V]`; none where nothing stands before it, and it is not counted.
    opening: Option<Vec<f32>>,
    /// Of the problem, over which the mean is taken.
    examples: usize,
}

impl Reading {
    /// What each free token that is predicted weighs in the mean.
    fn weight(&self) -> f64 {
        let predicted = self.tokens - usize::from(self.opening.is_none());
        1.0 / (predicted.max(1) * self.examples) as f64
    }

    /// Free tokens that are predicted by another one.
    pub fn behind_others(&self) -> usize {
        self.tokens - 1
    }

    /// What each of some free parts, with the −ln p of all its tokens but the first, adds to the mean over the examples, in nats.
    fn nll(&self, first: u32, losses: &[f32]) -> f32 {
        let opening = self.opening.as_ref().map_or(0.0, |opening| opening[first as usize]);
        (opening + losses.iter().sum::<f32>()) * self.weight() as f32
    }

    /// The same by the normalised hidden states of all their tokens but the last, `[S·(N − 1), D]`, where there are any.
    pub fn nlls<B: Kernels>(&self, model: &Llama<B>, hidden: Option<Tensor<B, 2>>, free: &[&[u32]]) -> Vec<f32> {
        let losses = hidden.map_or(Vec::new(), |hidden| host(B::margins_and_cross_entropies(hidden, model.head(), labels(free, model)).1));
        let each = self.behind_others();
        free.iter().enumerate().map(|(i, free)| self.nll(free[0], &losses[i * each..][..each])).collect()
    }
}

/// All tokens but the first of some free parts, one after another.
fn labels<B: Kernels>(free: &[&[u32]], model: &Llama<B>) -> Tensor<B, 1, burn::tensor::Int> {
    let behind: Vec<&[u32]> = free.iter().map(|free| &free[1..]).collect();
    ids_tensor(&behind, &model.device()).reshape([-1])
}

/// Embeddings of all tokens but the last of some free parts, `[S, N − 1, D]`.
fn fed<B: Kernels>(free: &[&[u32]], model: &Llama<B>) -> Tensor<B, 3> {
    let before: Vec<&[u32]> = free.iter().map(|free| &free[..free.len() - 1]).collect();
    model.embed(ids_tensor(&before, &model.device()))
}

impl<B: TrackedBackend> Subject<B> {
    /// What the likelihood of free tokens in an example goes by.
    pub(super) fn reading(&self, example: &Example, problem: &Problem) -> Reading {
        let opening = self.behind(example.head()).map(|last| {
            self.charge(0, 0, 1);
            host(surprises(&self.plain, last))
        });
        Reading { tokens: problem.prompt.tokens(), opening, examples: problem.examples.len() }
    }

    /// The mean −ln p of the free tokens of each of some prompts, in nats, `[S]`: over those before which anything stands, and over the
    /// examples. 0 where there are none.
    #[cfg(test)]
    pub(crate) fn nll(&self, free: &[impl AsRef<[u32]>], problem: &Problem) -> Vec<f32> {
        let free: Vec<&[u32]> = free.iter().map(AsRef::as_ref).collect();
        let mut sums = vec![0.0; free.len()];
        for example in &problem.examples {
            let (reading, prefix) = (self.reading(example, problem), self.prefix(example.head()));
            let (ahead, rows) = (reading.behind_others(), free.len() * reading.behind_others());
            let hidden = (ahead > 0).then(|| {
                self.charge(rows, 0, rows);
                let mut cache = prefix.repeated(free.len());
                cache.grow(prefix.len() + ahead);
                self.plain.hidden_cached(fed(&free, &self.plain).reshape([rows as i32, -1]), &mut cache, ahead)
            });
            sums.iter_mut().zip(reading.nlls(&self.plain, hidden, &free)).for_each(|(sum, nll)| *sum += nll);
        }
        sums
    }

    /// What changes the mean −ln p of the free tokens, over some prompts of N of them.
    pub fn fluency(&self, free: &[Vec<u32>], problem: &Problem) -> Fluency<Plain<B>> {
        let free: Vec<&[u32]> = free.iter().map(Vec::as_slice).collect();
        let each = problem.examples.iter().map(|example| self.fluency_in(&free, example, problem));
        let sum = |a: Fluency<_>, b: Fluency<_>| Fluency { gradient: a.gradient + b.gradient, direct: a.direct + b.direct };
        each.reduce(sum).expect("a problem has an example")
    }

    fn fluency_in(&self, free: &[&[u32]], example: &Example, problem: &Problem) -> Fluency<Plain<B>> {
        let reading = self.reading(example, problem);
        let (ahead, d, dtype) = (reading.behind_others(), self.plain.config().hidden_size, wide(self.plain.dtype()));
        let opening = reading.opening.clone().unwrap_or_else(|| vec![0.0; self.vocab_size()]);
        let mut surprises_at = vec![Tensor::from_data(TensorData::new(opening, [1, self.vocab_size()]), (&self.device(), dtype))];
        if ahead == 0 {
            let gradient = Tensor::zeros([free.len(), d], (&self.device(), dtype));
            return Fluency { gradient, direct: surprises_at.remove(0) * reading.weight() };
        }
        self.charge(free.len() * ahead, free.len() * ahead, (free.len() + 1) * ahead);
        let (prefix, weight) = (self.prefix(example.head()), reading.weight() / free.len() as f64);
        let (groups, at_once) = self.groups(free.len(), ahead);
        let jobs = groups.into_iter().map(|samples| {
            let (model, prefix, free) = (self.plain.clone(), prefix.clone(), &free[samples]);
            move || group_fluency(&model, &prefix, free, weight)
        });
        let (gradients, mut hidden): (Vec<_>, Vec<_>) = Plain::<B>::side_by_side(jobs.collect(), at_once).into_iter().unzip();
        surprises_at.push(surprises(&self.plain, hidden.swap_remove(0).narrow(0, 0, ahead)));
        Fluency { gradient: Tensor::cat(gradients, 0), direct: Tensor::cat(surprises_at, 0) * reading.weight() }
    }
}

/// −ln p of every token behind normalised hidden states, `[R, D]` → `[R, V]`, in the [`wide`] type.
fn surprises<B: Kernels>(model: &Llama<B>, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
    log_softmax(model.logits(hidden).cast(wide(model.dtype())), 1).neg()
}

/// The gradient of the weighted sum of −ln p of all free tokens but the first, `[S·N, D]`, and the hidden states that predict them.
fn group_fluency<B: Kernels>(model: &Llama<B>, prefix: &Cache<B>, free: &[&[u32]], weight: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let input = fed(free, model);
    let [samples, ahead, d] = input.dims();
    let (hidden, trace) = model.trace(input, prefix, ahead);
    let loss = B::target_loss(hidden.clone(), model.head(), labels(free, model), Objective::CrossEntropy);
    let dtype: DType = loss.losses.dtype();
    let (slope, scale) = slope(loss.hidden, weight, model.dtype());
    let gradient = model.backward(slope, trace).reshape([samples, ahead, d]).cast(dtype) / scale;
    // Nothing free is predicted by the last one.
    let last = Tensor::zeros([samples, 1, d], (&model.device(), dtype));
    (Tensor::cat(vec![gradient, last], 1).reshape([samples * (ahead + 1), d]), hidden)
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;
    use crate::problem::{Context, PromptOptions, Target};
    use crate::testing::{each_tracked_cpu_backend, one_at_a_time, tiny_subject};

    fn subject<B: TrackedBackend>(dtype: DType) -> Subject<B> {
        tiny_subject(dtype)
    }

    /// So many free tokens behind each of some texts, the first of which may be none.
    fn problem<B: TrackedBackend>(subject: &Subject<B>, tokens: usize, before: &[&str]) -> Problem {
        let target = || Target::from_text("he", subject.tokenizer()).unwrap();
        let example = |before: &&str| (Context { before: (*before).into(), between: " it".into() }, target());
        let options = PromptOptions { tokens, allow_everything: true, ..PromptOptions::default() };
        Problem::with_examples(options, before.iter().map(example).collect(), subject.tokenizer(), subject.vocab_size()).unwrap()
    }

    const CONTEXTS: [&[&str]; 4] = [&["so "], &[""], &["", "so "], &["on the ", "so ", "x"]];
    const FREE: [u32; 4] = [12, 90, 7, 201];

    /// The mean −ln p by the definition: one pass over everything, embeddings given, ids for labels.
    fn by_definition<B: TrackedBackend>(subject: &Subject<B>, problem: &Problem, embedded: Tensor<Plain<B>, 3>, free: &[u32]) -> f64 {
        let of_example = |example: &Example| {
            let (head, ids) = (example.head(), [example.head(), free].concat());
            let prompt = match head.is_empty() {
                true => embedded.clone(),
                false => Tensor::cat(vec![subject.embed(&[head]), embedded.clone()], 1),
            };
            let rows = log_softmax(subject.plain.logits(subject.plain.hidden(prompt, ids.len())), 1);
            let predicted = head.len().max(1)..ids.len();
            let of = |position: usize| {
                let row = rows.clone().slice([position - 1..position, ids[position] as usize..ids[position] as usize + 1]);
                -row.into_data().iter::<f64>().next().unwrap()
            };
            predicted.clone().map(of).sum::<f64>() / predicted.len().max(1) as f64
        };
        problem.examples.iter().map(of_example).sum::<f64>() / problem.examples.len() as f64
    }

    fn the_likelihood_is_that_of_the_definition<B: TrackedBackend>() {
        let subject = subject::<B>(DType::F32);
        for before in CONTEXTS {
            for tokens in [1, 2, 4] {
                let problem = problem(&subject, tokens, before);
                let free = [&FREE[..tokens], &FREE[4 - tokens..]];
                for (found, free) in subject.nll(&free, &problem).into_iter().zip(free) {
                    let expected = by_definition(&subject, &problem, subject.embed(&[free]), free);
                    assert!((f64::from(found) - expected).abs() < 1e-4, "{before:?} {tokens}: {found} {expected}");
                }
            }
        }
    }

    /// What a token adds by itself is all that changes at the last position, where nothing free is predicted from it.
    fn a_swap_at_the_end_changes_what_its_token_adds<B: TrackedBackend>() {
        let subject = subject::<B>(DType::F32);
        for before in CONTEXTS {
            for tokens in [1, 4] {
                let (problem, free) = (problem(&subject, tokens, before), &FREE[..tokens]);
                let Fluency { gradient, direct } = subject.fluency(&[free.to_vec()], &problem);
                assert!(host(gradient.narrow(0, tokens - 1, 1)).iter().all(|value| *value == 0.0));
                let row = host(direct.narrow(0, tokens - 1, 1));
                let swapped: Vec<Vec<u32>> = [3, 77, 250].iter().map(|&token| [&free[..tokens - 1], &[token]].concat()).collect();
                let own = subject.nll(&[free], &problem)[0];
                for (nll, swap) in subject.nll(&swapped, &problem).into_iter().zip(&swapped) {
                    let promised = row[swap[tokens - 1] as usize] - row[free[tokens - 1] as usize];
                    assert!((nll - own - promised).abs() < 1e-4, "{before:?}: {nll} {own} {promised}");
                }
            }
        }
    }

    each_tracked_cpu_backend!(the_likelihood_is_that_of_the_definition, a_swap_at_the_end_changes_what_its_token_adds);

    /// In f64, against central differences: one prompt, and the mean of several.
    #[test]
    fn the_gradient_is_that_of_central_differences() {
        let _guard = one_at_a_time();
        let subject = subject::<Autodiff<Flex>>(DType::F64);
        let d = subject.plain.config().hidden_size;
        for before in CONTEXTS {
            let problem = problem(&subject, 4, before);
            for prompts in [vec![FREE.to_vec()], vec![FREE.to_vec(), vec![5, 90, 33, 8], vec![12, 1, 7, 100]]] {
                let gradient: Vec<f64> = subject.fluency(&prompts, &problem).gradient.into_data().iter().collect();
                let embedded: Vec<f64> = subject.embed(&prompts).into_data().iter().collect();
                let at = |sample: usize, values: &[f64]| {
                    let own = TensorData::new(values[sample * 4 * d..][..4 * d].to_vec(), [1, 4, d]);
                    let own = Tensor::from_data(own, (&subject.device(), DType::F64));
                    by_definition(&subject, &problem, own, &prompts[sample]) / prompts.len() as f64
                };
                for entry in (0..embedded.len()).step_by(23) {
                    let (mut up, mut down) = (embedded.clone(), embedded.clone());
                    (up[entry], down[entry]) = (embedded[entry] + 1e-5, embedded[entry] - 1e-5);
                    let sample = entry / (4 * d);
                    let expected = (at(sample, &up) - at(sample, &down)) / 2e-5;
                    assert!((gradient[entry] - expected).abs() < 1e-7, "{before:?} {entry}: {} {expected}", gradient[entry]);
                }
            }
        }
    }
}
