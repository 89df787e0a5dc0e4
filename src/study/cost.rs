//! What a cell costs, from its settings alone.

use super::Cell;
use crate::model::LlamaConfig;

pub fn work(cell: &Cell, config: &LlamaConfig) -> f64 {
    (cell.options.prompt_tokens * config.vocab_size) as f64
}
