"""Logits of the real SmolLM2-135M-Instruct (dequantised Q4_1 GGUF) by transformers, in f32 -> smollm2/.

usage: smollm2_logits.py HF_DIR           HF_DIR: what scripts/gguf_to_hf.py made of the fetched GGUF
needs: torch transformers tokenizers safetensors
  smollm2/greedy.json       prompts, their ids, 24 greedy tokens (EOS is an ordinary token), smallest logit gap; checked, not made, here
  smollm2/logits.safetensors for prompt p in (0, 1): p.input_ids i64 [T] · p.logits f32 [T, 2048], at the ids in
    vocabulary i64 [2048] (the same random subset for all) · and over the whole vocabulary, f64 [T]:
    p.max · p.log_sum_exp · p.mean · p.square_sum · and p.argmax i64 [T]
"""
import json
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from common import HERE, greedy, logits_of

PROMPTS = ["The capital of France is the city of", "def add(a, b):\n    "]
SUBSET = 2048


def check_greedy(model, tokenizer) -> None:
    """The committed continuations are what transformers writes here and now."""
    for case in json.loads((HERE / "smollm2/greedy.json").read_text()):
        ids = tokenizer.encode(case["prompt"], add_special_tokens=False).ids
        assert ids == case["prompt_ids"], case["prompt"]
        tokens, gap = greedy(model, torch.tensor([ids]), len(case["completion_ids"]))
        assert tokens[0].tolist() == case["completion_ids"], case["prompt"]
        assert tokenizer.decode(tokens[0].tolist(), skip_special_tokens=False) == case["completion_text"], case["prompt"]
        print(f"greedy: {case['prompt']!r:.40} agrees, gap {gap:.4f} (file: {case['min_gap']:.4f})")


def summarise(model, ids: torch.Tensor, vocabulary: torch.Tensor) -> dict[str, torch.Tensor]:
    """[T] ids -> the subset of the logits, and the whole vocabulary in five numbers."""
    logits = logits_of(model, ids[None])[0]
    whole = logits.double()
    return {"input_ids": ids, "logits": logits[:, vocabulary].contiguous(), "argmax": whole.argmax(1), "max": whole.amax(1),
            "log_sum_exp": whole.logsumexp(1), "mean": whole.mean(1), "square_sum": whole.square().sum(1)}


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    check_greedy(model, tokenizer)
    subset = torch.randperm(model.config.vocab_size, generator=torch.Generator().manual_seed(0))[:SUBSET].sort().values
    out = {"vocabulary": subset}
    for p, prompt in enumerate(PROMPTS):
        ids = torch.tensor(tokenizer.encode(prompt, add_special_tokens=False).ids)
        values = summarise(model, ids, subset)
        out |= {f"{p}.{name}": value for name, value in values.items()}
        print(f"{prompt!r}: {len(ids)} tokens, argmax {values['argmax'].tolist()}, |logit| <= {values['logits'].abs().max():.2f}")
    save_file(out, HERE / "smollm2/logits.safetensors")
