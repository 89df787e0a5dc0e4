//! What a step keeps in memory, and how much is computed at once where that has a limit.

use super::Subject;
use super::feeding::{Feedback, Feeding};
use super::gradient::{TOGETHER, group_count};
use crate::Result;
use crate::backend::memory;
use crate::model::LlamaConfig;
use crate::ops::{Kernels, Plain, TrackedBackend};
use crate::problem::Problem;

/// What the memory of a step goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Footprint {
    /// Prompts that are gone back through.
    pub samples: usize,
    /// What they are fed.
    pub feeding: Feeding,
    /// Prompts whose keys and values are held while they are scored.
    pub candidates: usize,
    /// Prompts kept as rows as wide as the vocabulary besides Z, with momentum, gradient and copies of them.
    pub dense: usize,
}

impl Default for Footprint {
    fn default() -> Self {
        Self { samples: 1, feeding: Feeding::Forced, candidates: 0, dense: 0 }
    }
}

impl<B: TrackedBackend> Subject<B> {
    /// Keeps weights and a step on `problem` within `mib` MiB, by computing less at once; without,
    /// refuses a step that does not fit into the memory that the machine has left, where that is what it computes in.
    ///
    /// # Errors
    /// That is too little for the fewest samples that are computed at once.
    pub fn within(mut self, mib: Option<u64>, problem: &Problem, footprint: Footprint) -> Result<Self> {
        let (config, width) = (self.plain.config(), self.plain.dtype().size());
        let passes = Passes::of(problem, footprint);
        let row = width * trace_numbers(config);
        let step = beside_passes(config, width, problem, footprint);
        let Some(mib) = mib else {
            // The weights are there already, and what is computed at once must not depend on what else the machine does.
            if memory::is_on_cpu::<Plain<B>>(&self.device()) {
                memory::require((step + passes.rows::<Plain<B>>(config, usize::MAX) * row) as u64, "a step on this prompt")?;
            }
            return Ok(self);
        };
        let fixed = step + width * config.parameters();
        memory::keep_within(mib, (fixed + passes.rows::<Plain<B>>(config, 1) * row) as u64, "this model and prompt need")?;
        self.max_rows = (((mib << 20) as usize - fixed) / row).max(1);
        Ok(self)
    }
}

/// Bytes of a step beside its passes: of a model whose numbers take `width` of them.
fn beside_passes(config: &LlamaConfig, width: usize, problem: &Problem, footprint: Footprint) -> usize {
    let Footprint { samples, candidates, dense, .. } = footprint;
    let (n, v, d) = (problem.prompt.tokens(), config.vocab_size, config.hidden_size);
    // The soft prompts of all samples: p of some columns, its product with W_E, e, and both gradients of e.
    let soft = 4 * samples * n * (v.min(2048) + 4 * d);
    // Of every candidate the keys and values of all positions, as if they shared none.
    let heads = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
    // Old and new Z and its moments, its gradient, and buffers as wide as the vocabulary.
    4 * (7 + 6 * dense) * n * v + soft + width * candidates * problem.longest() * heads + (128 << 20)
}

/// How many numbers a row of a pass keeps for the backward pass, in all layers.
fn trace_numbers(config: &LlamaConfig) -> usize {
    let before_norm = if config.query_key_norm { config.num_attention_heads + config.num_key_value_heads } else { 0 };
    let heads = (config.num_attention_heads + 2 * config.num_key_value_heads + before_norm) * config.head_dim;
    config.num_hidden_layers * (2 * config.hidden_size + heads + 2 * config.intermediate_size)
}

/// The passes of a step there and back.
#[derive(Debug, Clone, Copy)]
struct Passes {
    /// S.
    samples: usize,
    feeding: Feeding,
    /// Positions of a sample without the fixed tokens before the free ones.
    own: usize,
    /// And with them.
    positions: usize,
    /// M.
    tokens: usize,
}

impl Passes {
    /// Those of the longest example.
    fn of(problem: &Problem, Footprint { samples, feeding, .. }: Footprint) -> Self {
        let own = problem.examples.iter().map(|example| example.positions_behind_head()).max().unwrap_or(0);
        Self { samples, feeding, own, positions: problem.longest(), tokens: problem.target_lengths().max().unwrap_or(0) }
    }

    /// As many rows of [`trace_numbers`] as are kept at once where memory sets a limit of `max_rows`: at least those of one group. Where
    /// distributions are fed a sample keeps, besides its positions, the keys and values of all positions so far once for each of M tokens,
    /// in the cache and in the heads that looked at them, and each token's logits and noise.
    fn rows<B: Kernels>(self, config: &LlamaConfig, max_rows: usize) -> usize {
        let Self { samples, feeding, own, positions, tokens } = self;
        let groups = group_count::<B>(samples, own, max_rows);
        let group = samples.div_ceil(groups) * own;
        let forced = group * B::at_once().min(groups).min((max_rows / group).max(1));
        let decoded = TOGETHER.min(samples);
        match feeding {
            Feeding::Forced => forced,
            Feeding::Free(Feedback::Hard) => forced.max(decoded * positions),
            Feeding::Free(_) => {
                let heads = config.num_key_value_heads * config.head_dim;
                let fed_back = tokens * (4 * config.num_hidden_layers * positions * heads + 2 * config.vocab_size);
                decoded * (2 * positions + fed_back.div_ceil(trace_numbers(config)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::ops::Parallel;
    use crate::testing::tiny;

    /// What a pass keeps is counted by the groups that it is made of.
    #[test]
    fn rows_are_those_of_the_groups_at_work() {
        let config = tiny().config.clone();
        let rows = |samples, positions, max_rows| {
            let passes = Passes { samples, feeding: Feeding::Forced, own: positions, positions, tokens: 20 };
            passes.rows::<Flex>(&config, max_rows)
        };
        let threads = rayon::current_num_threads();
        // 792 rows are four groups of two samples.
        assert_eq!((rows(8, 99, 1), rows(8, 99, usize::MAX)), (198, 198 * threads.min(4)));
        assert_eq!((rows(1, 300, 1), rows(1, 300, usize::MAX)), (300, 300));
        // One after the other, as a GPU does.
        struct OneByOne;
        impl Parallel for OneByOne {}
        for (samples, positions, max_rows) in [(3, 100, 160), (8, 99, 250), (5, 7, 1)] {
            let groups = group_count::<OneByOne>(samples, positions, max_rows);
            assert!(samples.div_ceil(groups) * positions <= max_rows.max(positions));
        }
    }
}
