//! Which prompt makes this language model say exactly that?
//!
//! Given a frozen model and a target text y of M tokens, find a prompt x of N tokens such that the model, decoding greedily from x,
//! writes y. The paper (*Language Model Inversion through End-to-End Differentiation*, arXiv 2602.11044), in a page:
//!
//! 1. A prompt is relaxed to logits Z `[N, V]` with a temperature τ for each position, learned through Φ `[N]`
//!    ([`method::relaxed`], [`method::dlmi`]).
//! 2. Each step draws Gumbel noise g ([`noise`]) and forms soft embeddings softmax((Z + g)/τ)·W_E ([`ops`]).
//! 3. `[x; y₁ … y_{M−1}]` goes through the model from embeddings ([`model`], [`subject`]); the M positions that predict y meet the
//!    LM head, and their cross-entropy is the loss ([`objective`]).
//! 4. Adam moves Z and Φ ([`optimiser`]); no weight is ever touched.
//! 5. Its targets are drawn by difficulty: at each position the token of a rank near k ([`target::draw`]).
//! 6. The methods that it is compared with are other values of the same things: another estimator of the gradient ([`estimator`]),
//!    another temperature, the model's own output fed in place of the target ([`feeding`]). A row of Table 1 is a
//!    [`method::relaxed::Row`].
//!
//! What the paper leaves open begins here: its prompts are soft, and nobody can type them. [`method::snap`] searches whole tokens
//! instead; [`prompt`] says which may stand in a prompt; [`evaluate`] takes four scores that are never mixed up, and is the only
//! place where anything is called exact: as text, tokenised again, decoded by the plain inference path. [`run`] is the loop around
//! any method.
//!
//! ```no_run
//! use burn::backend::{Autodiff, Flex};
//! use burn::tensor::DType;
//! use dlmi::method::search::{SearchMethod, snap::SNAP};
//! use dlmi::problem::PromptOptions;
//! use dlmi::invert::{Budget, Quiet, Trial};
//! use dlmi::{Judge, Llama, Problem, Subject, Target};
//!
//! # fn main() -> dlmi::Result<()> {
//! let mut checkpoint = dlmi::source::spec::open("bard", true, false)?;
//! let (config, tokenizer) = (checkpoint.config.clone(), checkpoint.tokenizer.clone());
//! let model = Llama::<Flex>::load(&config, &mut checkpoint, &Default::default(), DType::F32)?;
//! let judge = Judge::new(model.clone());
//! let subject = Subject::<Autodiff<Flex>>::new(model, tokenizer.clone());
//!
//! let target = Target::from_text("I'll not be a king, and I am too.", &tokenizer)?;
//! let options = PromptOptions { tokens: 20, ..PromptOptions::default() };
//! let problem = Problem::new(options, target, &tokenizer, config.vocab_size)?;
//! let budget = Budget { steps: None, seconds: Some(60.0), restarts: 0, eval_every: 32, early_stop: true };
//! let trial = Trial { subject: &subject, judge: &judge, problem: &problem, budget, seed: 0 };
//! let outcome = trial.run(&mut SearchMethod::new(SNAP), None, &mut Quiet)?;
//! println!("{:?} {}", outcome.verdict.exact, problem.prompt.text(&outcome.best.free));
//! # Ok(())
//! # }
//! ```

pub mod backend;
pub mod bench;
pub mod cli;
pub mod error;
pub mod estimator;
mod files;
pub mod invert;
pub mod method;
pub mod metrics;
pub mod model;
pub mod noise;
pub mod objective;
pub mod ops;
pub mod optimiser;
pub mod problem;
pub mod setting;
pub mod settings;
pub mod source;
pub mod subject;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod ui;

pub use error::{Error, Result};
pub use invert::Judge;
pub use model::Llama;
pub use problem::{Problem, Target};
pub use subject::Subject;
