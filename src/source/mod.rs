//! Where models come from: a name, a path or the hub → the fields of a config, a tokenizer and named tensors.

pub mod bundled;
pub mod chat;
pub mod checkpoint;
pub mod digests;
pub mod hub;
pub mod spec;
pub mod tokenizer;

pub use bundled::{BUNDLED, Bundled, bundled};
pub use chat::{ChatFiles, ChatTemplate, Message};
pub use digests::Digests;
pub use spec::open;
pub use tokenizer::Tokenizer;
