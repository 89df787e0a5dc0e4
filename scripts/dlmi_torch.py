#!/usr/bin/env python3
"""The DLMI step in PyTorch and transformers: the peer of `dlmi bench step --method dlmi --set all_tokens=true`.

usage: dlmi_torch.py HF_DIR [--prompt-tokens 10] [--target-tokens 20] [--samples 8] [--rounds 5] [--seed 0] [--full-head] [--device cpu] [--threads N]
needs: pip install torch transformers

Prints one JSON line. Weights are frozen; gradients flow to Z and Φ only. The LM head is applied to the M target positions; --full-head
applies it to all, as a plain call of the model does. Z, Φ, the target and the noise of the first three steps are dlmi's own draws
(Philox), so the losses of both can be compared; later noise, and the noise of all timed steps, is torch.rand's.
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

# What a draw is for: Z₀, Φ₀, noise of the prompt.
LOGITS, TEMPERATURE, NOISE = range(3)
COMPARED = 3


def philox(seed: int, step: int, purpose: int, sample: int, rows: int, columns: int) -> torch.Tensor:
    """Uniform numbers [rows, columns / 4, 4], the same as dlmi's: key (seed, 0), counter (step, purpose and sample, row, column / 4)."""
    word = 0xFFFFFFFF
    blocks = -(-columns // 4)
    row, block = torch.meshgrid(torch.arange(rows), torch.arange(blocks), indexing="ij")
    counter = [torch.full_like(row, step), torch.full_like(row, purpose << 24 | sample), row, block]
    key = [seed, 0]
    product = lambda x, by: ((x * (by >> 16) + (x * (by & 0xFFFF) >> 16)) >> 16, x * (by & 0xFFFF) + (x * (by >> 16) << 16) & word)
    for _ in range(10):
        (left_high, left_low), (right_high, right_low) = product(counter[0], 0xD2511F53), product(counter[2], 0xCD9E8D57)
        counter = [right_high ^ counter[1] ^ key[0], right_low, left_high ^ counter[3] ^ key[1], left_low]
        key = [key[0] + 0x9E3779B9 & word, key[1] + 0xBB67AE85 & word]
    return (((torch.stack(counter, -1) >> 9).double() + 0.5) / 2**23).float()


def normal(*place: int, rows: int, columns: int) -> torch.Tensor:
    """N(0, 1) by Box and Muller, [rows, columns]."""
    u = philox(*place, rows, columns)
    radius, angle = (-2 * u[..., 0::2].log()).sqrt(), 2 * torch.pi * u[..., 1::2]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1)[:, :columns]


class Inverter:
    """The unknown prompt and one optimiser step on it."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device).eval()
        self.body = model.requires_grad_(False).model
        self.embedding, self.head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        n, (v, _) = args.prompt_tokens, self.embedding.shape
        self.target = ((torch.arange(args.target_tokens) * 37 + 100) % v).to(args.device)
        self.z = normal(args.seed, 0, LOGITS, 0, rows=n, columns=v).to(args.device).requires_grad_()
        self.phi = normal(args.seed, 0, TEMPERATURE, 0, rows=n, columns=1)[:, 0].to(args.device).requires_grad_()
        self.adam = torch.optim.Adam([self.z, self.phi], lr=args.learning_rate)

    def uniform(self, step: int) -> torch.Tensor:
        n, v = self.z.shape
        drawn = [philox(self.args.seed, step, NOISE, sample, n, v).flatten(1)[:, :v] for sample in range(self.args.samples)]
        return torch.stack(drawn).to(self.args.device)

    def loss(self, uniform: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the target after `samples` noisy soft prompts, mean over samples and positions."""
        n, samples = self.args.prompt_tokens, self.args.samples
        tau = 1e-6 + self.args.tau0 * (1 + self.phi.tanh())
        soft = ((self.z - (-uniform.log()).log()) / tau[:, None]).softmax(-1) @ self.embedding
        forced = self.embedding[self.target[:-1]].expand(samples, -1, -1)
        hidden = self.body(inputs_embeds=torch.cat([soft, forced], 1), use_cache=False).last_hidden_state
        if self.args.full_head:
            logits = (hidden @ self.head.T)[:, n - 1 :]
        else:
            logits = hidden[:, n - 1 :] @ self.head.T
        return F.cross_entropy(logits.flatten(0, 1), self.target.repeat(samples))

    def step(self, uniform: torch.Tensor | None = None) -> float:
        if uniform is None:
            uniform = torch.rand(self.args.samples, *self.z.shape, device=self.z.device).clamp_(1e-7, 1 - 1e-7)
        self.adam.zero_grad()
        loss = self.loss(uniform)
        loss.backward()
        self.adam.step()
        return loss.item()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="HF_DIR")
    parser.add_argument("--prompt-tokens", type=int, default=10)
    parser.add_argument("--target-tokens", type=int, default=20)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--tau0", type=float, default=100.0)
    parser.add_argument("--full-head", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    transformers_logging.disable_progress_bar()
    inverter, seconds = Inverter(args), []
    losses = [inverter.step(inverter.uniform(step)) for step in range(COMPARED)]
    for _ in range(args.rounds):
        start = time.perf_counter()
        inverter.step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({
        "method": "dlmi", "backend": f"torch-{args.device}", "dtype": "f32", "threads": torch.get_num_threads(),
        "seconds_median": statistics.median(seconds), "seconds_min": min(seconds), "seconds_max": max(seconds),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "losses": losses,
    }))


if __name__ == "__main__":
    main()
