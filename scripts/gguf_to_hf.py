#!/usr/bin/env python3
"""Turn a GGUF of a Llama or a Qwen into a Hugging Face folder with f32 weights, so that transformers can judge our results.

usage: gguf_to_hf.py MODEL.gguf OUT_DIR [--tokenizer tokenizer.json] [--config config.json]
needs: pip install numpy gguf safetensors tokenizers

Without the two options, tokenizer and config are rebuilt from the GGUF's own metadata. Frequency factors (`rope_freqs.weight`,
Llama-3 scaling) cannot be told back into a config, so such a file needs --config.
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type


class Metadata:
    """The key-value part of a GGUF, read as plain Python values."""

    def __init__(self, reader: GGUFReader):
        self.fields = reader.fields

    def get(self, key: str, default=None):
        return self.fields[key].contents() if key in self.fields else default

    def need(self, key: str):
        value = self.get(key)
        if value is None:
            sys.exit(f"the GGUF has no `{key}`")
        return value

    @property
    def architecture(self) -> str:
        return self.need("general.architecture")


def shortest(value: float) -> float:
    """The decimal that a stored f32 was written from (1e-05, not 9.999999747378752e-06)."""
    return float(str(np.float32(value)))


def config_of(meta: Metadata, weights: dict[str, np.ndarray]) -> dict:
    """config.json from the metadata, and from which tensors there are."""
    name = meta.architecture
    heads, width = meta.need(f"{name}.attention.head_count"), meta.need(f"{name}.embedding_length")
    return {
        "architectures": [CLASSES[name]], "model_type": name, "hidden_act": "silu", "torch_dtype": "float32",
        "vocab_size": len(weights["model.embed_tokens.weight"]), "hidden_size": width,
        "intermediate_size": meta.need(f"{name}.feed_forward_length"),
        "num_hidden_layers": meta.need(f"{name}.block_count"), "num_attention_heads": heads,
        "num_key_value_heads": meta.get(f"{name}.attention.head_count_kv", heads),
        "head_dim": meta.get(f"{name}.attention.key_length", width // heads),
        "max_position_embeddings": meta.need(f"{name}.context_length"),
        "rms_norm_eps": shortest(meta.need(f"{name}.attention.layer_norm_rms_epsilon")),
        "rope_theta": shortest(meta.get(f"{name}.rope.freq_base", 10000.0)), "rope_scaling": None,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in weights,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in weights,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"), "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
    }


def tokenizer_of(meta: Metadata):
    """A byte-level BPE tokenizer from the metadata; only the SmolLM splitting rule is known here."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    model, split = meta.need("tokenizer.ggml.model"), meta.need("tokenizer.ggml.pre")
    if (model, split) != ("gpt2", "smollm"):
        sys.exit(f"tokenizer `{model}` with pre-tokeniser `{split}` is not known here; give --tokenizer tokenizer.json")
    tokens, kinds = meta.need("tokenizer.ggml.tokens"), meta.need("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in meta.need("tokenizer.ggml.merges")]
    named = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind in (NORMAL, CONTROL, USER_DEFINED)}
    tokenizer = Tokenizer(models.BPE(vocab=named, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, kinds) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in added if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in added if kind == USER_DEFINED])
    return tokenizer


def tokenizer_config_of(meta: Metadata) -> dict:
    """Special tokens by name, and the chat template where there is one."""
    tokens, config = meta.need("tokenizer.ggml.tokens"), {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, key in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]:
        if (token := meta.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[name] = tokens[token]
    if template := meta.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order: it pairs rotary rows as (0, 1), (2, 3), …; transformers pairs row i with row i + half."""
    pairs = weight.reshape(heads, len(weight) // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def weights_of(reader: GGUFReader, meta: Metadata) -> dict[str, np.ndarray]:
    """Every tensor in f32 under its transformers name."""
    name = meta.architecture
    heads = meta.need(f"{name}.attention.head_count")
    # Of the architectures known here, only a Llama's rows are reordered.
    rotary = {"attn_q": heads, "attn_k": meta.get(f"{name}.attention.head_count_kv", heads)} if name == "llama" else {}
    weights = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        *block, part, suffix = tensor.name.split(".")
        name = f"model.layers.{block[1]}.{INNER[part]}" if block else OUTER[part]
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if part in rotary:
            weight = half_split(weight, rotary[part])
        weights[f"{name}.{suffix}"] = np.ascontiguousarray(weight)
    return weights


def convert(gguf: Path, out: Path, tokenizer: Path | None = None, config: Path | None = None) -> int:
    """Writes config.json, tokenizer.json, tokenizer_config.json and model.safetensors into `out`; returns the number of tensors."""
    reader = GGUFReader(str(gguf))
    meta = Metadata(reader)
    if meta.architecture not in CLASSES:
        sys.exit(f"{gguf}: architecture `{meta.architecture}`; {', '.join(CLASSES)} are known here")
    if not config and any(t.name == "rope_freqs.weight" for t in reader.tensors):
        sys.exit(f"{gguf} carries frequency factors that a config cannot be rebuilt from; give --config config.json")
    weights = weights_of(reader, meta)
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    if config:
        shutil.copyfile(config, out / "config.json")
    else:
        (out / "config.json").write_text(json.dumps(config_of(meta, weights), indent=2) + "\n")
    if tokenizer:
        shutil.copyfile(tokenizer, out / "tokenizer.json")
    else:
        tokenizer_of(meta).save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config_of(meta), indent=2) + "\n")
    return len(weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--config", type=Path)
    args = parser.parse_args()
    print(f"{convert(args.gguf, args.out, args.tokenizer, args.config)} tensors -> {args.out}")
