"""How likely the real SmolLM2-135M-Instruct (dequantised Q4_1 GGUF) finds the first of the paper's targets, by transformers, in f32.

usage: target_ranks.py HF_DIR             HF_DIR: what scripts/gguf_to_hf.py made of the fetched GGUF
needs: torch transformers tokenizers
  smollm2/target_ranks.json  the target's id, its tokens, rank (from 1) and probability of each after `<|endoftext|>` and those before it,
    perplexity, bits, and the smallest gap between the logit of a target token and any other, so how far ranks are from changing
"""
import json
import math
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from common import HERE, ROOT, logits_of

if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    target = json.loads((ROOT / "configs/study/targets/smollm2-135m.json").read_text())["samples"][0]
    ids = tokenizer.encode(target["text"], add_special_tokens=False).ids
    bos = tokenizer.token_to_id("<|endoftext|>")
    logits = logits_of(model, torch.tensor([[bos, *ids[:-1]]]))[0].double()  # [M, V]
    tokens = torch.tensor(ids)[:, None]
    own = logits.gather(1, tokens)
    gap = (logits - own).abs().scatter(1, tokens, math.inf).min().item()
    log_p = logits.log_softmax(1).gather(1, tokens)[:, 0]
    out = {"id": target["id"], "bos": bos, "ids": ids, "ranks": ((logits > own).sum(1) + 1).tolist(), "probabilities": log_p.exp().tolist(),
           "perplexity": (-log_p.mean()).exp().item(), "bits": -log_p.sum().item() / math.log(2), "smallest_gap": gap}
    assert gap > 2e-3, "too close to a tie for the ranks to be compared"
    (HERE / "smollm2/target_ranks.json").write_text(json.dumps(out) + "\n")
    print(out)
