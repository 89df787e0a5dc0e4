//! What a run is made of: general settings, and a section for each method.
//!
//! Every setting is a [`Key`](crate::setting::Key) beside the struct that it belongs to: a general one in [`KEYS`], one of a method where
//! that method is. Files, the environment, `--set`, flags, `config show` and help texts all go through it.

mod access;
mod assignment;
mod document;
mod general;
mod layers;
mod names;
mod presets;
mod resolved;

pub(crate) use access::{drop_what_is_off, is_off};
pub use assignment::{Origin, written};
pub(crate) use document::Document;
pub use general::{KEYS, Options};
pub use layers::{Layers, Sources, environment};
pub use names::Setting;
pub(crate) use names::nearest;
pub use presets::{ModelShape, bos_token, preset_names};
pub use resolved::Resolved;
