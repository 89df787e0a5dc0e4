//! The program as its users meet it: the real binary, driven through its command line.

mod backends;
mod bench;
mod board;
mod cluster;
mod corpus;
mod events;
mod exact;
mod flags;
mod fluency;
mod gradients;
mod hub;
mod invert;
mod licences;
mod list;
mod methods;
mod models;
mod output;
mod refusals;
mod report;
mod resume;
mod robust;
mod rules;
mod settings;
mod shortest;
mod study;
mod support;
mod targets;
mod text;
mod verbs;
#[cfg(feature = "wgpu")]
mod vulkan;
