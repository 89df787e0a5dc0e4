#!/usr/bin/env python3
"""The same DLMI step in PyTorch and transformers, to time beside `dlmi bench step`.

usage: dlmi_torch.py HF_DIR [--prompt-tokens 10] [--target-tokens 20] [--samples 8] [--steps 5] [--full-head] [--device cpu] [--threads N]
needs: pip install torch transformers

Prints one JSON line for each step and a last one with the median. Weights are frozen; gradients flow to Z and Φ only. The LM head
is applied to the M target positions; --full-head applies it to all, as a plain call of the model does. The first step is a warm-up
and is left out of the last line's numbers.
"""
import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers import logging as transformers_logging


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="HF_DIR")
    parser.add_argument("--prompt-tokens", type=int, default=10)
    parser.add_argument("--target-tokens", type=int, default=20)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--tau0", type=float, default=100.0)
    parser.add_argument("--full-head", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


class Inverter:
    """The unknown prompt and one optimiser step on it."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device).eval()
        self.body = model.requires_grad_(False).model
        self.embedding, self.head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        vocab, device = self.embedding.shape[0], args.device
        self.target = torch.randint(vocab, (args.target_tokens,), device=device)
        self.z = torch.randn(args.prompt_tokens, vocab, device=device, requires_grad=True)
        self.phi = torch.randn(args.prompt_tokens, device=device, requires_grad=True)
        self.adam = torch.optim.Adam([self.z, self.phi], lr=args.learning_rate)

    def loss(self) -> torch.Tensor:
        """Cross-entropy of the target after `samples` noisy soft prompts, mean over samples and positions."""
        n, samples = self.args.prompt_tokens, self.args.samples
        uniform = torch.rand(samples, *self.z.shape, device=self.z.device).clamp_(1e-7, 1 - 1e-7)
        tau = 1e-6 + self.args.tau0 * (1 + self.phi.tanh())
        soft = ((self.z - (-uniform.log()).log()) / tau[:, None]).softmax(-1) @ self.embedding
        forced = self.embedding[self.target].expand(samples, -1, -1)
        hidden = self.body(inputs_embeds=torch.cat([soft, forced], 1), use_cache=False).last_hidden_state
        if self.args.full_head:
            logits = (hidden @ self.head.T)[:, n - 1 : -1]
        else:
            logits = hidden[:, n - 1 : -1] @ self.head.T
        return F.cross_entropy(logits.flatten(0, 1), self.target.repeat(samples))

    def step(self) -> float:
        self.adam.zero_grad()
        loss = self.loss()
        loss.backward()
        self.adam.step()
        return loss.item()


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers_logging.disable_progress_bar()
    inverter, seconds, losses = Inverter(args), [], []
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for step in range(args.steps):
        start = time.perf_counter()
        losses.append(inverter.step())
        seconds.append(time.perf_counter() - start)
        print(json.dumps({"step": step, "seconds": round(seconds[-1], 4), "loss": losses[-1], "peak_mib": peak()}), flush=True)
    timed = seconds[1:] or seconds
    print(json.dumps({
        "method": "dlmi", "backend": f"torch-{args.device}", "dtype": "f32", "threads": torch.get_num_threads(),
        "seconds_median": round(statistics.median(timed), 4), "seconds_min": round(min(timed), 4),
        "seconds_max": round(max(timed), 4), "peak_mib": peak(), "losses": losses[:3],
    }))


if __name__ == "__main__":
    main()
