"""Loss, gradients and parameters of three DLMI steps on tiny/gqa3-tied, by PyTorch autograd in f64 -> dlmi_step.safetensors.

usage: dlmi_step.py                       needs: torch safetensors; run tiny_models.py first
  target i64 [M] · z0 f32 [N, V] · phi0 f32 [N] · noise f32 [step, S, N, V] (Gumbel), and for tau0 in (100, 1), named tau<tau0>.*:
  loss [step] · z_grad [step, N, V] · phi_grad [step, N] · z [step, N, V] · phi [step, N] (z and phi after the step), all f32.
tau_i = eps + tau0 (1 + tanh phi_i), p = softmax((Z + g) / tau), soft embedding p·W_E, teacher forcing,
cross-entropy averaged over samples and positions, Adam with bias correction. Weights are the stored ones, exact in f64.
The forward pass is written out here because transformers computes norms, rotations and softmax in f32 whatever the dtype.
"""
import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from common import HERE, TINY

MODEL = TINY / "gqa3-tied"
N, M, SAMPLES, STEPS = 3, 5, 2, 3
LEARNING_RATE, BETAS, ADAM_EPS, TAU_EPS = 0.1, (0.9, 0.999), 1e-8, 1e-6


class Llama:
    """A tied, bias-free Llama from embeddings, in any dtype."""

    def __init__(self, folder, dtype):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {name: w.to(dtype) for name, w in load_file(folder / "model.safetensors").items()}
        self.embedding = self.weights["model.embed_tokens.weight"]
        self.head_dim = self.config["hidden_size"] // self.config["num_attention_heads"]

    def norm(self, x, name):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.weights[f"{name}.weight"]

    def rotate(self, x):
        """[B, H, T, head_dim], rotated by position in half-split pairs."""
        half = self.head_dim // 2
        theta = self.config["rope_parameters"]["rope_theta"]
        frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.outer(torch.arange(x.shape[2], dtype=torch.float64), frequency)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, x, name):
        batch, length, _ = x.shape
        linear = lambda x, part: x @ self.weights[f"{name}.{part}_proj.weight"].T
        q, k, v = (linear(x, part).view(batch, length, -1, self.head_dim).transpose(1, 2) for part in "qkv")
        group = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        q, k, v = self.rotate(q), self.rotate(k).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return linear(mixed.transpose(1, 2).reshape(batch, length, -1), "o")

    def mlp(self, x, name):
        gate, up, down = (self.weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def logits(self, x):
        """[B, T, D] embeddings -> [B, T, V]."""
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self.attention(self.norm(x, f"{name}.input_layernorm"), f"{name}.self_attn")
            x = x + self.mlp(self.norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        return self.norm(x, "model.norm") @ self.embedding.T


def dlmi(model, given, tau0):
    """STEPS steps of Algorithm 1 from the given start and noise; what each step computed, stacked."""
    kind, target = model.embedding.dtype, given["target"]
    z, phi = (given[name].to(kind).clone().requires_grad_(True) for name in ("z0", "phi0"))
    adam = torch.optim.Adam([z, phi], lr=LEARNING_RATE, betas=BETAS, eps=ADAM_EPS)
    record = {name: [] for name in ("loss", "z_grad", "phi_grad", "z", "phi")}
    for noise in given["noise"].to(kind):
        tau = TAU_EPS + tau0 * (1 + torch.tanh(phi))
        soft = torch.softmax((z + noise) / tau[:, None], -1) @ model.embedding
        forced = model.embedding[target[:-1]].expand(SAMPLES, -1, -1)
        logits = model.logits(torch.cat([soft, forced], 1))[:, N - 1:]
        loss = F.cross_entropy(logits.reshape(SAMPLES * M, -1), target.repeat(SAMPLES))
        adam.zero_grad()
        loss.backward()
        adam.step()
        for name, value in zip(record, (loss, z.grad, phi.grad, z, phi)):
            record[name].append(value.detach().clone())
    return {name: torch.stack(values) for name, values in record.items()}


def start(vocab: int):
    draw = torch.Generator().manual_seed(11)
    uniform = torch.rand(STEPS, SAMPLES, N, vocab, generator=draw, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return {"target": torch.randint(0, vocab, (M,), generator=draw), "z0": torch.randn(N, vocab, generator=draw),
            "phi0": torch.randn(N, generator=draw), "noise": (-(-uniform.log()).log()).float()}


if __name__ == "__main__":
    exact, single = Llama(MODEL, torch.float64), Llama(MODEL, torch.float32)
    known = load_file(MODEL / "expected.safetensors")
    distance = (exact.logits(exact.embedding[known["input_ids"]]) - known["logits"]).abs().max().item()
    assert distance < 1e-4, "the forward pass here is not that of transformers"
    print(f"logits here (f64) against transformers (f32): {distance:.1e}")
    out = start(len(exact.embedding))
    for tau0 in (100, 1):
        run, again = dlmi(exact, out, tau0), dlmi(single, out, tau0)
        print(f"tau0 {tau0}: losses {[round(v, 6) for v in run['loss'].tolist()]}")
        for name, value in run.items():
            print(f"  {name}: largest {value.abs().max():.3e}, f32 is off by {(value - again[name]).abs().max():.1e}")
            out[f"tau{tau0}.{name}"] = value.float()
    save_file(out, HERE / "dlmi_step.safetensors")
