#!/usr/bin/env python3
"""Greedy generation by transformers with its key/value cache: the peer of `dlmi bench generate`.

usage: generate_torch.py HF_DIR [--prompt-tokens 10] [--target-tokens 20] [--rounds 5] [--threads N]
needs: pip install torch transformers

Prints one JSON line.
"""
import argparse
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM
from transformers import logging as transformers_logging

parser = argparse.ArgumentParser()
parser.add_argument("model", metavar="HF_DIR")
parser.add_argument("--prompt-tokens", type=int, default=10)
parser.add_argument("--target-tokens", type=int, default=20)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int)
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
transformers_logging.disable_progress_bar()
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
v = model.config.vocab_size
prompt = ((torch.arange(args.prompt_tokens) * 37 + 100) % v)[None]
seconds = []
with torch.inference_mode():
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=args.target_tokens,
                       max_new_tokens=args.target_tokens, pad_token_id=0)
        seconds.append(time.perf_counter() - start)
timed = seconds[1:]
print(json.dumps({"backend": "transformers", "threads": torch.get_num_threads(), "seconds_median": statistics.median(timed),
                  "seconds_min": min(timed), "seconds_max": max(timed)}))
