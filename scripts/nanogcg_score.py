#!/usr/bin/env python3
"""Candidate scoring as nanoGCG 0.3 does it: the peer of `dlmi bench score`.

usage: nanogcg_score.py HF_DIR [--prompt-tokens 20] [--target-tokens 20] [--candidates 64] [--rounds 5] [--seed 0] [--threads N] [--batch-size B]
needs: pip install nanogcg==0.3.0 'transformers<4.48' torch (an environment of its own)

Prompts that differ from one at a random position each are scored by nanoGCG's own function, prompt and target in one pass, B at a time
(all at once unless told, as nanoGCG does). There is no text around them, so there is nothing for nanoGCG's prefix cache to hold, and it
is off: 0.3.0 fails on an empty prefix. Prints one JSON line.
"""
import argparse
import json
import resource
import statistics
import time

import torch
from nanogcg.gcg import GCG, GCGConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import logging as transformers_logging

parser = argparse.ArgumentParser()
parser.add_argument("model", metavar="HF_DIR")
parser.add_argument("--prompt-tokens", type=int, default=20)
parser.add_argument("--target-tokens", type=int, default=20)
parser.add_argument("--candidates", type=int, default=64)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int)
parser.add_argument("--batch-size", type=int)
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
torch.manual_seed(args.seed)
transformers_logging.disable_progress_bar()

model = AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=torch.float32).eval().requires_grad_(False)
tokenizer = AutoTokenizer.from_pretrained(args.model)
tokenizer.chat_template = "{{ messages[0]['content'] }}"
embed = model.get_input_embeddings()
v = embed.weight.shape[0]

batch_size = args.batch_size or args.candidates
gcg = GCG(model, tokenizer, GCGConfig(batch_size=batch_size, use_prefix_cache=False, allow_non_ascii=True))
gcg.target_ids = ((torch.arange(args.target_tokens) * 37 + 100) % v)[None]
target = embed(gcg.target_ids)
prompt = torch.randint(v, (args.prompt_tokens,))
nothing = target[:, :0]

seconds, positions = [], []
with torch.no_grad():
    for _ in range(args.rounds + 1):
        batch = prompt.repeat(args.candidates, 1)
        positions = torch.randint(args.prompt_tokens, (args.candidates,)).tolist()
        batch[torch.arange(args.candidates), positions] = torch.randint(v, (args.candidates,))
        start = time.perf_counter()
        # As nanoGCG lays its input out: optimised tokens, what follows them in the message, the target.
        parts = [embed(batch), nothing.repeat(args.candidates, 1, 1), target.repeat(args.candidates, 1, 1)]
        losses = gcg._compute_candidates_loss_original(batch_size, torch.cat(parts, dim=1))
        seconds.append(time.perf_counter() - start)
        assert losses.shape == (args.candidates,)
timed = seconds[1:]
print(json.dumps({
    "backend": "nanogcg", "threads": torch.get_num_threads(), "batch_size": batch_size,
    "seconds_median": statistics.median(timed), "seconds_min": min(timed), "seconds_max": max(timed),
    "candidates_per_second": args.candidates / statistics.median(timed),
    "positions": positions, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
