"""Tiny random models in Hugging Face layout, and what transformers computes with them -> tiny/<name>/.

usage: tiny_models.py [NAME...]           needs: torch transformers tokenizers safetensors; without names it makes all
Each folder: config.json, tokenizer.json, model*.safetensors, expected.safetensors with
  input_ids i64 [2, 12] · logits f32 [2, 12, V] · greedy i64 [2, 16], the greedy continuation of each row of input_ids.
Everything expected is computed in f32 from the folder as written, so it covers the config's spelling and the stored dtype.
"""
import json
import shutil
import sys
from dataclasses import dataclass, field
from itertools import count

import torch
from safetensors.torch import save_file
from transformers import logging as transformers_logging
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, SmolLM3Config, SmolLM3ForCausalLM)

from common import TINY, VOCAB, greedy, logits_of, tiny_tokenizer

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}  # head width 8: one frequency kept, one blended, two divided; 16: two, one, five
SHARED = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "rms_norm_eps": 1e-5,
          "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


@dataclass
class Recipe:
    config: dict
    family: tuple = (LlamaConfig, LlamaForCausalLM)
    dtype: torch.dtype = torch.float32
    old_form: bool = False  # config.json as transformers 4 wrote it
    drop: tuple = ()  # config keys left to their defaults
    claims: dict = field(default_factory=dict)  # what config.json says, though the model was made otherwise
    shard: str = "1GB"
    split: str = "smollm"  # how its tokenizer cuts text
    seeds: count = field(default_factory=count)


SMOLLM3 = (SmolLM3Config, SmolLM3ForCausalLM)
MISTRAL = (MistralConfig, MistralForCausalLM)
QWEN2 = (Qwen2Config, Qwen2ForCausalLM)
QWEN3 = (Qwen3Config, Qwen3ForCausalLM)
MODELS = {
    "gqa1-tied": Recipe(
        dict(num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
             rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
        old_form=True),
    "gqa3-tied": Recipe(
        dict(num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True, hidden_size=48, intermediate_size=64,
             rope_parameters={"rope_type": "default", "rope_theta": 100000.0}),
        dtype=torch.float16, drop=("head_dim",)),
    "gqa4-untied-llama3": Recipe(
        dict(num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=False, head_dim=8,
             max_position_embeddings=1024, rope_parameters=LLAMA3),
        dtype=torch.float16),
    "biases": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "head-dim-llama3": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=True, head_dim=16, rms_norm_eps=1e-2,
             max_position_embeddings=1024, rope_parameters=LLAMA3),
        dtype=torch.bfloat16, old_form=True),
    "smollm3-list": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, num_hidden_layers=3,
             no_rope_layers=[0, 1, 0], rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
        SMOLLM3, dtype=torch.bfloat16),
    "smollm3-interval": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=False, num_hidden_layers=3,
             no_rope_layer_interval=2, rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
        SMOLLM3, dtype=torch.bfloat16, old_form=True, drop=("no_rope_layers", "layer_types")),
    "sharded": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False, num_hidden_layers=1),
        dtype=torch.float16, shard="32KB"),
    "llama32": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=True, head_dim=8, max_position_embeddings=4096,
             rope_parameters=LLAMA3 | {"rope_theta": 500000.0, "factor": 32.0}),
        dtype=torch.bfloat16, split="llama-bpe"),
    "tinyllama": Recipe(
        dict(num_attention_heads=8, num_key_value_heads=1, tie_word_embeddings=False,
             rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        dtype=torch.bfloat16, old_form=True, drop=("head_dim", "attention_bias", "mlp_bias")),
    "mistral": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, head_dim=16, sliding_window=32,
             rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        MISTRAL, dtype=torch.bfloat16),
    "qwen2": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, sliding_window=16, use_sliding_window=False,
             rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        QWEN2, dtype=torch.bfloat16, split="qwen2"),
    "qwen3": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, head_dim=16, rms_norm_eps=1e-4,
             rope_parameters={"rope_type": "default", "rope_theta": 1000.0}),
        QWEN3, dtype=torch.bfloat16, old_form=True, split="qwen2"),
    "tied-other-head": Recipe(
        dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, num_hidden_layers=1),
        dtype=torch.bfloat16, claims={"tie_word_embeddings": True}),
}


@torch.no_grad()
def randomise(model, seed: int) -> None:
    """Weights wide enough that logits differ, norms away from 1, biases away from 0."""
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.uniform_(0.5, 1.5, generator=draw)
        else:
            weight.normal_(0.0, 0.3 if "embed" in name or "lm_head" in name else 0.2, generator=draw)


def old_form(config: dict) -> dict:
    """`rope_parameters`/`dtype` respelled as `rope_theta`, `rope_scaling`, `torch_dtype`."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    return config


def write(name: str, recipe: Recipe, seed: int):
    """Writes the folder; returns it as transformers loads it, in f32."""
    folder = TINY / name
    shutil.rmtree(folder, ignore_errors=True)
    make_config, make_model = recipe.family
    model = make_model(make_config(**SHARED | recipe.config))
    randomise(model, seed)
    model.to(recipe.dtype).save_pretrained(folder, max_shard_size=recipe.shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= recipe.claims
    for key in recipe.drop:
        config.pop(key, None)
    config = old_form(config) if recipe.old_form else config
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "tokenizer.json").write_text(tiny_tokenizer(recipe.split).to_str() + "\n")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def make(name: str, recipe: Recipe, index: int) -> None:
    """Takes the first seed whose greedy path is varied and free of near-ties, so that no rounding can change it."""
    for attempt in recipe.seeds:
        seed = 1000 * index + attempt
        model = write(name, recipe, seed)
        ids = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(seed))
        tokens, gap = greedy(model, ids, 16)
        if gap > 0.01 and all(len(set(row.tolist())) >= 6 for row in tokens):
            break
    logits = logits_of(model, ids)
    save_file({"input_ids": ids, "logits": logits, "greedy": tokens}, TINY / name / "expected.safetensors")
    size = sum(f.stat().st_size for f in (TINY / name).iterdir())
    print(f"{name}: seed {seed}, {size / 1000:.0f} kB, |logit| <= {logits.abs().max():.2f}, greedy gap {gap:.3f}, {tokens[0].tolist()}")


CASES = ["", "the and then", " in the  window\n\n    indented\ttab", "12 o'clock, 1984: don't 12,345.67",
         "naïve café — 東京 🙂👩‍👩‍👧 مرحبا", "<|endoftext|>", "a<|endoftext|>the<|endoftext", "\u0000\u001b[31m\u007f", "<|im_start|>user"]


CUT = ["I'LL we've 12345678,90", "... the\r\n\r\n  and\n in!?\n\nend  ", "x\t 12the12 ​the", "e\u0301t \u00e9t"]


def tokenizer_cases() -> None:
    """Texts and their ids by the tiny tokenizer, however it cuts, no special tokens added."""
    for split in ("smollm", "llama-bpe", "qwen2"):
        tokenizer = tiny_tokenizer(split)
        texts = CASES if split == "smollm" else CASES + CUT
        cases = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in texts]
        assert all(tokenizer.decode(c["ids"], skip_special_tokens=False) == c["text"] for c in cases[:len(CASES)])
        name = "tokenizer_cases.json" if split == "smollm" else f"tokenizer_cases.{split}.json"
        (TINY / name).write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    TINY.mkdir(exist_ok=True)
    for index, (name, recipe) in enumerate(MODELS.items()):
        if name in (sys.argv[1:] or MODELS):
            make(name, recipe, index)
    tokenizer_cases()
