"""Tiny GGUF files and what transformers computes with their dequantised weights -> tiny_gguf/.

usage: tiny_gguf.py [NAME...]             needs: torch transformers tokenizers safetensors gguf; run tiny_models.py first
                                          (names of tiny models make these alone)
  <model>.<type>.gguf                     weights of tiny/<model>, every matrix stored as <type>
  kquants.gguf                            one layer 256 wide whose matrices are random blocks of all K-quants
  <file>.expected.safetensors             input_ids i64 [1, 12] · logits f32 [1, 12, V] · greedy i64 [1, 16]
  blocks.safetensors                      for each type, <type>.bytes u8 [n] (random valid blocks) and <type>.values f32
Written as llama.cpp's converter does: q and k rows paired for its rotary order, 1-D tensors in f32, vocabulary padded
with unused [PAD..] tokens, Llama-3 scaling as a divisor for each frequency in `rope_freqs.weight`.
"""
import json
import math
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers import logging as transformers_logging

from common import HERE, ROOT, TINY, VOCAB, greedy, logits_of, tiny_tokenizer
from tiny_models import MODELS

sys.path.insert(0, str(ROOT / "scripts"))
from gguf_to_hf import INNER, OUTER, convert  # noqa: E402

OUT = HERE / "tiny_gguf"
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type -> llama.cpp's
VARIANTS = {"gqa3-tied": [Q.F32], "gqa4-untied-llama3": [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1],
            "llama32": [Q.BF16], "tinyllama": [Q.BF16], "mistral": [Q.BF16], "qwen2": [Q.BF16], "qwen3": [Q.BF16]}
KQUANTS = {"token_embd": Q.Q6_K, "attn_q": Q.Q4_K, "attn_k": Q.Q5_K, "attn_v": Q.Q6_K, "attn_output": Q.Q3_K,
           "ffn_gate": Q.Q2_K, "ffn_up": Q.Q4_K, "ffn_down": Q.Q5_K}
TYPES = [Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K]
# Where a block keeps its f16 scale and minimum (byte offsets), and the minimum that centres random blocks, in scales.
SCALES = {Q.Q4_0: (0, None, 0), Q.Q4_1: (0, 2, -7.5), Q.Q5_0: (0, None, 0), Q.Q5_1: (0, 2, -15.5), Q.Q8_0: (0, None, 0),
          Q.Q2_K: (80, 82, 1.5), Q.Q3_K: (108, None, 0), Q.Q4_K: (0, 2, 7.5), Q.Q5_K: (0, 2, 15.5), Q.Q6_K: (208, None, 0)}


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order of q and k: rows i and i + half of a head become neighbours."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def frequency_factors(config: dict) -> np.ndarray:
    """Llama-3 scaling as a divisor of each rotary frequency, [head_dim / 2]."""
    rope, width = config["rope_parameters"], config["head_dim"]
    shortest = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    longest = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    divisors = []
    for i in range(width // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * i / width)
        blend = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"])
        divisors.append(1.0 if wavelength < shortest else rope["factor"] if wavelength > longest
                        else 1 / ((1 - blend) / rope["factor"] + blend))
    return np.array(divisors, dtype=np.float32)


def random_blocks(kind: Q, count: int, draw: np.random.Generator, deviation: float) -> np.ndarray:
    """[count, bytes] random blocks, every bit pattern allowed except in the scales, which give about this deviation."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = draw.integers(0, 256, (count, size), dtype=np.uint8)
    at, at_minimum, centre = SCALES[kind]

    def set_scale(scale: np.ndarray) -> None:
        blocks[:, at:at + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
        if at_minimum is not None:
            blocks[:, at_minimum:at_minimum + 2] = (centre * scale).astype(np.float16)[:, None].view(np.uint8)

    set_scale(np.ones(count))
    unit = gguf.dequantize(blocks, kind).std()
    set_scale(deviation / unit * draw.uniform(0.5, 1.5, count) * draw.choice([-1, 1], count))
    return blocks


def new_form(config: dict) -> dict:
    """`rope_theta` and `rope_scaling` of an old config as `rope_parameters`."""
    if "rope_parameters" not in config:
        config["rope_parameters"] = (config["rope_scaling"] or {"rope_type": "default"}) | {"rope_theta": config["rope_theta"]}
    return config


def header(path: Path, config: dict, split: str = "smollm") -> gguf.GGUFWriter:
    """A writer holding the metadata and the tokenizer."""
    writer = metadata(path, config)
    add_tokenizer(writer, split)
    return writer


def metadata(path: Path, config: dict) -> gguf.GGUFWriter:
    """A writer holding what the config says."""
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(str(path), architecture)
    rope = config["rope_parameters"]
    width = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer.add_name(path.stem)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        writer.add_key_length(width)
        writer.add_value_length(width)
    if architecture == "llama":
        writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    return writer


def add_tokenizer(writer: gguf.GGUFWriter, split: str) -> None:
    """The tiny tokenizer, padded to the embedding with unused tokens."""
    model = json.loads(tiny_tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1)
    padding = [f"[PAD{i}]" for i in range(len(tokens), VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens + padding)
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * len(padding))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, kind: Q) -> None:
    """One tensor; only matrices are quantised."""
    if weight.ndim == 1 or kind == Q.F32:
        writer.add_tensor(name, weight.astype(np.float32))
    elif kind == Q.F16:
        writer.add_tensor(name, weight.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)


def rows_in_f32(folder: Path) -> dict[str, np.ndarray]:
    """GGUF name -> f32 weight of a tiny model, a Llama's q and k rows in llama.cpp's order."""
    config, stored = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    names = {f"{hf}.weight": f"{name}.weight" for name, hf in OUTER.items()}
    for layer in range(config["num_hidden_layers"]):
        names |= {f"model.layers.{layer}.{hf}.{part}": f"blk.{layer}.{name}.{part}" for name, hf in INNER.items()
                  for part in ("weight", "bias")}
    weights = {names[name]: weight.float().numpy() for name, weight in stored.items()}
    for name in weights:
        if ARCHITECTURES[config["model_type"]] == "llama" and ("attn_q." in name or "attn_k." in name):
            weights[name] = paired(weights[name], config["num_attention_heads" if "_q." in name else "num_key_value_heads"])
    return weights


def variant(model: str, kind: Q) -> Path:
    """tiny/<model> stored as `kind`."""
    config = new_form(json.loads((TINY / model / "config.json").read_text()))
    path = OUT / f"{model}.{kind.name.lower()}.gguf"
    writer = header(path, config, MODELS[model].split)
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(kind.name, f"MOSTLY_{kind.name}")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, weight in rows_in_f32(TINY / model).items():
        add(writer, name, weight, kind)
    if config["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", frequency_factors(config))
    finish(writer)
    return path


WIDE = {"model_type": "llama", "vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


def kquants(seed: int) -> Path:
    """A tied model, 256 wide, of random blocks."""
    draw, path = np.random.default_rng(seed), OUT / "kquants.gguf"
    writer = header(path, WIDE)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    rows = {"token_embd": VOCAB, "attn_k": 64, "attn_v": 64}
    for part, kind in KQUANTS.items():
        count = rows.get(part, 256)
        blocks = random_blocks(kind, count, draw, 0.12 if part == "token_embd" else 0.08)
        writer.add_tensor(f"{part}.weight" if part in OUTER else f"blk.0.{part}.weight", blocks, raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", draw.uniform(0.5, 1.5, 256).astype(np.float32))
    finish(writer)
    return path


def load(path: Path, config: Path | None):
    """The GGUF as transformers sees it after dequantisation to f32."""
    with tempfile.TemporaryDirectory() as folder:
        convert(path, Path(folder), tokenizer=config and config.with_name("tokenizer.json"), config=config)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def expect(path: Path, config: Path | None, ids: torch.Tensor, unquantised: torch.Tensor | None = None) -> float:
    """Writes what transformers makes of `path`; returns the smallest gap of its greedy path."""
    model = load(path, config)
    logits, (tokens, gap) = logits_of(model, ids), greedy(model, ids, 16)
    values = {"input_ids": ids, "logits": logits, "greedy": tokens}
    save_file({name: value.numpy() for name, value in values.items()}, path.with_suffix(".expected.safetensors"))
    off = "" if unquantised is None else f", {(logits - unquantised).abs().max():.2e} from the unquantised logits"
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, |logit| <= {logits.abs().max():.2f}, greedy gap {gap:.3f}{off}")
    return gap


def of_tiny(model: str, kinds: list[Q]) -> None:
    """Variants of one tiny model, each with its expectation on the first row of that model's input."""
    known = load_file(TINY / model / "expected.safetensors")
    ids, logits = known["input_ids"][:1].contiguous(), known["logits"][:1].contiguous()
    for kind in kinds:
        expect(variant(model, kind), TINY / model / "config.json", ids, logits)


def blocks() -> None:
    """Every stored type alone: bytes and values, four blocks each."""
    draw, out = np.random.default_rng(7), {}
    for kind in TYPES:
        if kind in SCALES:
            raw = random_blocks(kind, 4, draw, 0.1)
        else:
            raw = np.ascontiguousarray(gguf.quantize(draw.normal(0, 0.1, (4, 32)).astype(np.float32), kind)).view(np.uint8)
        shaped = raw.view(np.float16) if kind == Q.F16 else raw
        out[f"{kind.name}.bytes"] = raw.reshape(-1)
        out[f"{kind.name}.values"] = gguf.dequantize(shaped, kind).astype(np.float32).reshape(-1)
        assert np.isfinite(out[f"{kind.name}.values"]).all()
    save_file(out, OUT / "blocks.safetensors")


if __name__ == "__main__":
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    OUT.mkdir(exist_ok=True)
    for model, kinds in VARIANTS.items():
        if model in (sys.argv[1:] or VARIANTS):
            of_tiny(model, kinds)
    if sys.argv[1:]:
        sys.exit()
    ids = torch.randint(0, VOCAB, (1, 12), generator=torch.Generator().manual_seed(3))
    seed = 0
    while expect(kquants(seed), None, ids) < 0.01:
        seed += 1
    blocks()
