#!/usr/bin/env python3
"""A folder that dlmi and transformers load: random f16 weights of SmolLM2-135M's shape. A step costs the same whatever they are.

usage: random_model.py OUT_DIR [--vocabulary 49152] [--layers 30]
needs: nothing but Python

Matrices are N(0, 0.02²) as in a fresh model; the head is the embedding. The tokenizer knows the 256 bytes and dummy words.
"""
import argparse
import json
import math
import random
import struct
from pathlib import Path
from statistics import NormalDist

WIDTH, MLP, HEADS, KV_HEADS, HEAD = 576, 1536, 9, 3, 64
# The upper byte of an f16 is its sign, exponent and first two digits. Drawn from 256 quantiles, with a random lower byte, it is normal.
UPPER = bytes(struct.pack("<e", NormalDist(0, 0.02).inv_cdf((i + 0.5) / 256))[1] for i in range(256))


def shapes(vocabulary: int, layers: int) -> dict[str, list[int]]:
    """The tensors by their transformers names."""
    all, kv = {"model.embed_tokens.weight": [vocabulary, WIDTH], "model.norm.weight": [WIDTH]}, KV_HEADS * HEAD
    for i in range(layers):
        layer = {
            "self_attn.q_proj": [HEADS * HEAD, WIDTH], "self_attn.k_proj": [kv, WIDTH], "self_attn.v_proj": [kv, WIDTH],
            "self_attn.o_proj": [WIDTH, HEADS * HEAD], "mlp.gate_proj": [MLP, WIDTH], "mlp.up_proj": [MLP, WIDTH],
            "mlp.down_proj": [WIDTH, MLP], "input_layernorm": [WIDTH], "post_attention_layernorm": [WIDTH],
        }
        all |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return all


def values(shape: list[int], draws: random.Random) -> bytes:
    """f16, little-endian: a norm's weights are 1, a matrix is random."""
    if len(shape) == 1:
        return struct.pack("<e", 1) * shape[0]
    count = math.prod(shape)
    both = bytearray(2 * count)
    both[0::2], both[1::2] = draws.randbytes(count), draws.randbytes(count).translate(UPPER)
    return bytes(both)


def save(tensors: dict[str, list[int]], path: Path) -> None:
    """As safetensors: the header's length, the header, the values in its order."""
    header, end, draws = {"__metadata__": {"format": "pt"}}, 0, random.Random(0)
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in tensors.values():
            file.write(values(shape, draws))


def byte_characters() -> list[str]:
    """The characters that byte-level BPE writes for the bytes 0 to 255."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def tokenizer(vocabulary: int) -> dict:
    """tokenizer.json: a start token, the bytes, dummy words."""
    words = ["<|endoftext|>", *byte_characters(), *(f"w{i}" for i in range(257, vocabulary))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"id": 0, "content": words[0], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None, "pre_tokenizer": level,
        "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": {word: id for id, word in enumerate(words[:vocabulary])}, "merges": []},
    }


def write(folder: Path, vocabulary: int = 49152, layers: int = 30) -> None:
    """The whole folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": WIDTH, "intermediate_size": MLP,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "hidden_act": "silu",
        "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(vocabulary)))
    save(shapes(vocabulary, layers), folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT_DIR", type=Path)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--layers", type=int, default=30)
    args = parser.parse_args()
    write(args.out, args.vocabulary, args.layers)
    print(args.out)


if __name__ == "__main__":
    main()
