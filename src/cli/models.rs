//! `dlmi models`: what is here, fetch one, describe one.

use std::slice;

use serde_json::{Value, json};

use super::answer;
use super::args::{Cli, Models};
use super::session::Session;
use crate::Result;
use crate::files::utf8;
use crate::source::BUNDLED;
use crate::source::hub::{self, HubConfig};
use crate::ui::table::pairs;
use crate::ui::{Policy, transfer_bar, visible};

pub(super) fn run(cli: &Cli, verb: &Models, policy: Policy) -> Result<()> {
    match verb {
        Models::List => list(cli),
        Models::Pull { spec } => pull(cli, &utf8(spec.as_encoded_bytes().to_vec(), "the model's name")?, policy),
        Models::Show { .. } => show(cli, policy),
    }
}

fn list(cli: &Cli) -> Result<()> {
    let cached = hub::cached(&HubConfig::from_env(true)?);
    let names: Vec<&str> = BUNDLED.iter().map(|model| model.name).collect();
    let bundled = names.iter().map(|name| format!("{name}   (bundled)\n"));
    let fetched = cached.iter().map(|model| {
        let (spec, path) = (visible(&model.spec), visible(&model.path.display().to_string()));
        format!("{spec}   ({:.1} MiB in {path})\n", model.bytes as f64 / 1048576.0)
    });
    answer(cli, &json!({ "bundled": names, "cached": cached }), || bundled.chain(fetched).collect())
}

fn pull(cli: &Cli, spec: &str, policy: Policy) -> Result<()> {
    let folder = hub::pull(&HubConfig::from_env(cli.global.offline)?, spec, &transfer_bar(policy))?;
    answer(cli, &json!({ "model": spec, "folder": folder }), || visible(&folder.display().to_string()))
}

fn show(cli: &Cli, policy: Policy) -> Result<()> {
    let session = Session::open(cli, policy)?;
    let config = session.model.config();
    let parameters = config.parameters();
    let shown = |id: u32| json!({ "id": id, "text": session.model.tokenizer().decode(&[id]) });
    let rows = json!({
        "spec": session.settings().model,
        "architecture": config.architecture,
        "parameters": parameters,
        "vocab_size": config.vocab_size,
        "tokenizer_size": session.model.tokenizer().vocab_size(),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "context": config.max_position_embeddings,
        "sliding_window": config.sliding_window,
        "tied_embeddings": config.tie_word_embeddings,
        "layers_without_rope": config.rope_layers.iter().filter(|used| !**used).count(),
        "chat_template": session.model.has_chat_template().ok(),
        "start_token": session.model.start_token().map(shown),
        "stop_tokens": config.eos_token_ids.iter().map(|id| shown(*id)).collect::<Vec<_>>(),
        "preset": session.resolved.presets,
        "digest": session.model.identity().digest,
    });
    answer(cli, &rows, || readable(rows.clone()))
}

fn readable(mut rows: Value) -> String {
    let rows = rows.as_object_mut().expect("an object");
    let named = |token: &Value| format!("{} ({})", token["text"].as_str().unwrap_or_default(), token["id"]);
    for key in ["start_token", "stop_tokens"] {
        let tokens = rows[key].as_array().map_or(slice::from_ref(&rows[key]), Vec::as_slice);
        rows[key] = tokens.iter().filter(|token| !token.is_null()).map(named).collect::<Vec<_>>().join(", ").into();
    }
    rows.retain(|_, value| !value.is_null() && value != "");
    pairs(rows)
}
