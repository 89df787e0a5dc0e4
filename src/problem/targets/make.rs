//! Makes and labels targets with one model, each as a line of JSON.

use burn::backend::Flex;
use serde::Serialize;

use super::difficulty::{Likelihood, Recipe, draw, measure, reader};
use super::file::Labelled;
use crate::model::{Llama, greedy};
use crate::problem::Target;
use crate::source::tokenizer::Tokenizer;
use crate::tensor::ids_tensor;

/// A target to make or to label.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// One of Algorithm 2's.
    Drawn(Recipe),
    /// What the model writes after a prompt, so that a solution is known to exist.
    Reachable {
        /// The prompt.
        prompt: Labelled,
        /// The token that stands before it, where one does.
        bos: Option<u32>,
        /// M.
        tokens: usize,
    },
    /// A target that is there.
    Given(Labelled),
}

/// What every target is made with: the plain path, CPU and f32: the same targets whatever backend will search.
#[derive(Debug)]
pub struct Maker<'a> {
    /// The model.
    pub model: &'a Llama<Flex>,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// SHA-256 of its weights.
    pub digest: &'a str,
    /// The token before every target, but for given ones that name their own.
    pub start: u32,
    /// Free tokens of the prompt that the targets are meant for (N).
    pub prompt_tokens: usize,
}

/// A target under a model. The fields of a target file, and what the model makes of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Its name.
    pub id: String,
    /// The text of `ids`.
    pub text: String,
    /// M tokens.
    pub ids: Vec<u32>,
    /// The difficulty it was drawn with.
    pub k: Option<u32>,
    /// The start token: what follows is conditional on it and on no prompt.
    pub bos: u32,
    /// Rank of each token among all, from 1.
    pub ranks: Vec<u32>,
    /// Probability of each token.
    pub probabilities: Vec<f32>,
    /// exp of the mean of −ln p.
    pub perplexity: Option<f64>,
    /// −log₂ p of the whole.
    pub bits: f64,
    /// N.
    pub prompt_tokens: usize,
    /// N·log₂ V: what a prompt of N tokens can say. Beside `bits` it is a hint, not a bound.
    pub capacity_bits: f64,
    /// The text, tokenised, gives `ids`.
    pub retokenises: bool,
    /// Tokens of a prompt that leads to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_prompt_tokens: Option<usize>,
    /// σ of the draw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma: Option<f64>,
    /// Seed of the draw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// SHA-256 of the weights that all this is true of.
    pub model: String,
}

impl Maker<'_> {
    /// Makes one.
    pub fn make(&self, wanted: &Wanted) -> Record {
        match wanted {
            Wanted::Drawn(recipe) => {
                let config = self.model.config();
                let path = draw(recipe, config.vocab_size, &config.eos_token_ids, self.start, reader(self.model));
                let id = format!("k{}_sample{}", recipe.k, recipe.sample);
                Record { k: Some(recipe.k), sigma: Some(recipe.sigma), seed: Some(recipe.seed), ..self.record(id, path, self.start) }
            }
            Wanted::Reachable { prompt, bos, tokens } => {
                let ids: Vec<u32> = bos.iter().chain(&prompt.target.ids).copied().collect();
                let input = self.model.embed(ids_tensor(&[ids], &self.model.device()));
                let written = greedy(self.model, input, *tokens, &[]).ids.remove(0);
                let path = measure(&written, self.start, reader(self.model));
                Record { known_prompt_tokens: Some(prompt.target.ids.len()), ..self.record(prompt.id.clone(), path, self.start) }
            }
            Wanted::Given(given) => {
                let start = given.bos.unwrap_or(self.start);
                let path = measure(&given.target.ids, start, reader(self.model));
                Record { k: given.k, known_prompt_tokens: given.known_prompt_tokens, ..self.record(given.id.clone(), path, start) }
            }
        }
    }

    fn record(&self, id: String, path: Likelihood, bos: u32) -> Record {
        let target = Target::from_ids(path.ids.clone(), self.tokenizer);
        Record {
            id,
            retokenises: target.round_trips(self.tokenizer),
            text: target.text,
            k: None,
            bos,
            probabilities: path.probabilities(),
            perplexity: path.perplexity(),
            bits: path.bits(),
            prompt_tokens: self.prompt_tokens,
            capacity_bits: self.prompt_tokens as f64 * (self.model.config().vocab_size as f64).log2(),
            known_prompt_tokens: None,
            sigma: None,
            seed: None,
            model: self.digest.to_owned(),
            ranks: path.ranks,
            ids: path.ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::DType;
    use serde_json::Value;

    use super::*;
    use crate::model::Checkpoint;
    use crate::problem::targets::read_targets;
    use crate::testing::{golden, loaded, real_smollm2, tiny};

    /// What `check` finds with a maker of this model.
    fn with<T>(mut checkpoint: Checkpoint, check: impl FnOnce(&Maker) -> T) -> T {
        let model = loaded(&mut checkpoint, DType::F32);
        check(&Maker { model: &model, tokenizer: &checkpoint.tokenizer, digest: &checkpoint.digest, start: 0, prompt_tokens: 10 })
    }

    const RECIPE: Recipe = Recipe { k: 6, sigma: 2.0, tokens: 12, seed: 3, sample: 1 };

    #[test]
    fn a_drawn_target_that_is_labelled_again_says_the_same() {
        with(tiny(), |maker| {
            let drawn = maker.make(&Wanted::Drawn(RECIPE));
            assert_eq!((drawn.id.as_str(), drawn.k, drawn.sigma, drawn.seed), ("k6_sample1", Some(6), Some(2.0), Some(3)));
            assert_eq!((drawn.prompt_tokens, drawn.capacity_bits), (10, 10.0 * 288f64.log2()));
            let line = serde_json::to_string(&drawn).unwrap();
            let given = crate::problem::targets::parse_targets(&line, "t".as_ref(), maker.tokenizer, 288).unwrap().remove(0);
            let again = maker.make(&Wanted::Given(given.clone()));
            assert_eq!(again, Record { sigma: None, seed: None, ..drawn.clone() });
            // After another start token it is another matter.
            let other = maker.make(&Wanted::Given(Labelled { bos: Some(5), ..given }));
            assert_eq!((other.bos, &other.ids), (5, &drawn.ids));
            assert_ne!(other.bits, drawn.bits);
        });
    }

    #[test]
    fn what_is_reachable_is_what_the_model_writes() {
        with(tiny(), |maker| {
            let prompt = crate::problem::targets::parse_prompts("in the sand", "p".as_ref(), maker.tokenizer, 288).unwrap().remove(0);
            for bos in [None, Some(0)] {
                let made = maker.make(&Wanted::Reachable { prompt: prompt.clone(), bos, tokens: 9 });
                let typed: Vec<u32> = bos.into_iter().chain(prompt.target.ids.clone()).collect();
                let judge = crate::invert::judge::Judge::new(maker.model.clone());
                assert!(judge.verdict(true, &[(&typed, &made.ids)]).unwrap().exact);
                assert_eq!((made.id.as_str(), made.k, made.known_prompt_tokens), ("line1", None, Some(prompt.target.ids.len())));
                // Judged after the start token, not after the prompt.
                let perplexity = judge.perplexities(&typed, &made.ids, Some(0)).unwrap();
                assert!((made.perplexity.unwrap() / perplexity.target_bos.unwrap() - 1.0).abs() < 1e-4);
                assert!(made.perplexity > perplexity.target);
                assert_eq!(made.text, maker.tokenizer.decode(&made.ids));
                assert_eq!(made.retokenises, maker.tokenizer.round_trips(&made.ids));
            }
        });
    }

    /// `tests/golden/target_ranks.py` computed the expected values with transformers.
    #[test]
    fn the_papers_first_target_under_the_real_smollm2() {
        let Some(path) = real_smollm2("the_papers_first_target_under_the_real_smollm2") else { return };
        let expected: Value = serde_json::from_slice(&std::fs::read(golden("smollm2/target_ranks.json")).unwrap()).unwrap();
        with(Checkpoint::open(&path).unwrap(), |maker| {
            let file = Path::new("configs/study/targets/smollm2-135m.json");
            let given = read_targets(file, maker.tokenizer, maker.model.config().vocab_size).unwrap().remove(0);
            let found = serde_json::to_value(maker.make(&Wanted::Given(given))).unwrap();
            for key in ["id", "bos", "ids", "ranks"] {
                assert_eq!(found[key], expected[key], "{key}");
            }
            let numbers = |value: &Value| value.as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect::<Vec<_>>();
            let (ours, theirs) = (numbers(&found["probabilities"]), numbers(&expected["probabilities"]));
            assert!(ours.iter().zip(&theirs).all(|(a, b)| (a / b - 1.0).abs() < 1e-3), "{ours:?} {theirs:?}");
            for key in ["perplexity", "bits"] {
                assert!((found[key].as_f64().unwrap() / expected[key].as_f64().unwrap() - 1.0).abs() < 1e-4, "{key}: {found}");
            }
            assert_eq!((found["retokenises"].clone(), found["k"].clone()), (true.into(), 1.into()));
        });
    }
}
