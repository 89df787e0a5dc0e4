//! The frozen language model: a Llama with Hugging Face field names, generic over the backend.

pub mod attention;
pub mod config;
pub mod generate;
pub mod llama;
pub mod rope;

pub use attention::Cache;
pub use config::{LlamaConfig, RopeScaling};
pub use generate::{Generation, greedy};
pub use llama::{Llama, WeightSource};

#[cfg(test)]
mod tests {
    //! Parity with transformers on tiny random models; `tests/golden/tiny_models.py` made the expected values.

    use burn::tensor::{DType, backend::Backend};

    use super::generate::{greedy, host, ids_tensor};
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::testing::{Golden, each_cpu_backend};

    fn load<B: Backend>(path: &str) -> Llama<B> {
        let mut checkpoint = Checkpoint::open(&crate::testing::golden(path)).unwrap();
        let config = checkpoint.config.clone();
        Llama::load(&config, &mut checkpoint, &B::Device::default(), DType::F32).unwrap()
    }

    /// Largest difference to the expected logits over all positions and the whole vocabulary, and the greedy tokens.
    fn compare<B: Backend>(model: &str, expected: &str) {
        let llama = load::<B>(model);
        let golden = Golden::open(expected);
        let ids = golden.ids("input_ids");
        let embedded = llama.embed(ids_tensor(&ids, &llama.device()));
        let [_, t, _] = embedded.dims();
        let logits = host(llama.logits(llama.hidden(embedded.clone(), 0..t)));
        let difference = golden.largest_difference("logits", &logits);
        assert!(difference < 1e-4, "{model}: logits differ by {difference}");
        let written = golden.ids("greedy");
        assert_eq!(greedy(&llama, embedded, written[0].len(), &[]).ids, written, "{model}");
    }

    const TINY: [&str; 8] =
        ["gqa1-tied", "gqa3-tied", "gqa4-untied-llama3", "head-dim-llama3", "biases", "sharded", "smollm3-list", "smollm3-interval"];

    fn tiny_models<B: Backend>() {
        for name in TINY {
            compare::<B>(&format!("tiny/{name}"), &format!("tiny/{name}/expected.safetensors"));
        }
    }

    /// One sequence at a time, its beginning and its end in separate passes, gives the states of one pass.
    fn cached_passes<B: Backend>() {
        let llama = load::<B>("tiny/gqa3-tied");
        let ids = Golden::open("tiny/gqa3-tied/expected.safetensors").ids("input_ids");
        let whole = llama.embed(ids_tensor(&ids, &llama.device()));
        let [s, t, d] = whole.dims();
        let all = llama.forward(whole.clone(), None).reshape([s, t, d]);
        let mut cache = Cache::new(llama.config().num_hidden_layers);
        let first = llama.forward(whole.clone().narrow(1, 0, 5), Some(&mut cache)).reshape([s, 5, d]);
        let second = llama.forward(whole.narrow(1, 5, t - 5), Some(&mut cache)).reshape([s, t - 5, d]);
        let difference = host((burn::tensor::Tensor::cat(vec![first, second], 1) - all).abs().max())[0];
        assert!(difference < 1e-5, "{difference}");
        assert_eq!(cache.len(), t);
    }

    each_cpu_backend!(tiny_models, cached_passes);
}
