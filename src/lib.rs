//! Which prompt makes this language model say exactly that?
//!
//! Given a frozen model and a target text y of M tokens, find a prompt x of N tokens such that the model, decoding greedily from x,
//! writes y.
//!
//! ```
//! use dlmi::{Model, Options};
//!
//! let found = Model::open("bard")?.invert("I'll not be a king, and I am too.", &Options::default())?;
//! println!("{:?} {}", found.prompt_text, found.exact);
//! # assert!(found.exact);
//! # Ok::<(), dlmi::Error>(())
//! ```
//!
//! The paper (*Language Model Inversion through End-to-End Differentiation*, arXiv 2602.11044), in a page:
//!
//! 1. A prompt is relaxed to logits Z `[N, V]` with a temperature τ for each position, learned through Φ `[N]`
//!    ([`method::relaxed`], [`method::relaxed::dlmi`]).
//! 2. Each step draws Gumbel noise g ([`noise`]) and forms soft embeddings softmax((Z + g)/τ)·W_E ([`ops`]).
//! 3. `[x; y₁ … y_{M−1}]` goes through the model from embeddings ([`model`], [`subject`]); the M positions that predict y meet the
//!    LM head, and their cross-entropy is the loss ([`objective`]).
//! 4. An [`estimator`] gives the gradient of Z and Φ; Adam moves them ([`optimiser`]); no weight is ever touched.
//! 5. Its targets are drawn by difficulty: at each position the token of a rank near k ([`problem::targets::draw`]).
//! 6. The methods that it is compared with are other values of the same things: another estimator, another temperature, the model's own
//!    output fed in place of the target ([`subject::feeding`]). A row of Table 1 is a [`method::relaxed::TableRow`].
//!
//! What the paper leaves open begins here: its prompts are soft, and nobody can type them. [`method::search`] searches whole tokens
//! instead; [`problem`] says what may stand in a prompt and what it must lead to; [`invert`] is the loop around any method, takes four
//! scores that are never mixed up ([`invert::scores`]), and has the only place where anything is called exact: as text, tokenised again,
//! decoded by the plain inference path ([`invert::judge`]).
//!
//! On a GPU (`options.backend`), a program calls [`backend::on_start`] first in `main`: a GPU has to prove itself in a child process.

#![warn(missing_docs)]

pub mod backend;
pub mod bench;
pub mod budget;
#[cfg(feature = "cli")]
pub mod cli;
pub mod distribution;
pub mod error;
pub mod estimator;
mod files;
pub mod gpu_memory;
pub mod gradients;
pub mod interrupt;
pub mod invert;
pub mod method;
pub mod metrics;
pub mod model;
pub mod noise;
pub mod objective;
pub mod ops;
pub mod optimiser;
pub mod problem;
#[cfg(feature = "cli")]
pub mod report;
pub mod setting;
pub mod settings;
pub mod source;
pub mod state;
pub mod study;
pub mod subject;
pub mod tensor;
mod terminal;
#[cfg(test)]
mod testing;
#[cfg(feature = "cli")]
pub mod ui;

pub use error::{Error, Result};
pub use invert::{Inversion, Model, Observer, Task};
pub use problem::{Problem, Target};
pub use settings::Options;
