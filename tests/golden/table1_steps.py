"""Loss, gradients and parameters of three steps of every row of Table 1 on tiny/gqa3-tied, by PyTorch in f64 -> table1_steps.safetensors.

usage: table1_steps.py                    needs: torch safetensors; run tiny_models.py first
  target i64 [M] · z0 f32 [N, V] · phi0 f32 [N] · noise f32 [step, S, N, V] · feedback f32 [step, S, M-1, V] (Gumbel), and for every
  name below, as <name>.*: loss [step] · z_grad [step, N, V] · z [step, N, V] (after the step), and where phi is learned phi_grad,
  phi [step, N], all f32.
tau_i = eps + tau0 (1 + tanh phi_i), p = softmax((Z + g) / tau), soft embedding p·W_E; losses are means over samples and positions.
Weights are the stored ones, exact in f64. The forward pass is written out here because transformers computes norms, rotations and
softmax in f32 whatever the dtype. Free-running models are decoded token by token without a cache.
"""
import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from common import HERE, TINY

MODEL = TINY / "gqa3-tied"
N, M, SAMPLES, STEPS = 3, 5, 2, 3
ADAM_EPS, TAU_EPS = 1e-8, 1e-6


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



def forced(model, prompt, target, _noise):
    """Logits [S, M, V] with the target's own tokens fed."""
    fed = model.embedding[target[:-1]].expand(len(prompt), -1, -1)
    return model.logits(torch.cat([prompt, fed], 1))[:, N - 1:]


def free(feedback):
    """The same with the model's own output fed: its distribution, a Gumbel-softmax sample of it, or its argmax."""
    def run(model, prompt, target, noise):
        sequence, rows = prompt, []
        for t in range(len(target)):
            rows.append(model.logits(sequence)[:, -1])
            if t + 1 == len(target):
                break
            if feedback == "hard":
                fed = model.embedding[rows[-1].argmax(-1)]
            else:
                g = noise[:, t] if feedback == "gumbel" else 0
                fed = torch.softmax(rows[-1] + g, -1) @ model.embedding
            sequence = torch.cat([sequence, fed[:, None]], 1)
        return torch.stack(rows, 1)
    return run


def cross_entropy(logits, target):
    """One loss for each sample."""
    losses = F.cross_entropy(logits.flatten(0, 1), target.repeat(len(logits)), reduction="none")
    return losses.view(len(logits), -1).mean(1)


def log_prob_difference(logits, target):
    log_p = logits.log_softmax(-1)
    at_target = log_p.gather(2, target.expand(len(logits), -1)[..., None])[..., 0]
    return (log_p.max(-1).values - at_target).mean(1)


def adam(moments, t, value, gradient, rate=0.1, betas=(0.9, 0.999), corrected=True):
    first, second = moments
    first.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    unbias = [1 - beta**t if corrected else 1 for beta in betas]
    value.sub_(rate / unbias[0] * first / ((second / unbias[1]).sqrt() + ADAM_EPS))


def soft(model, given, feed, tau=None, tau0=None, shared=False, quiet=False, loss_of=cross_entropy, samples=SAMPLES,
         decay=1.0, reset=None, **rule):
    """STEPS steps of a row that differentiates through soft embeddings."""
    kind = model.embedding.dtype
    z = torch.zeros_like(given["z0"]).to(kind) if quiet else given["z0"].to(kind).clone()
    phi = given["phi0"][:1 if shared else None].to(kind).clone()
    values = [z] + ([phi] if tau0 else [])
    moments = [[torch.zeros_like(v), torch.zeros_like(v)] for v in values]
    record = {"loss": [], "z_grad": [], "z": []} | ({"phi_grad": [], "phi": []} if tau0 else {})
    for step in range(STEPS):
        leaves = [v.clone().requires_grad_(True) for v in values]
        heat = TAU_EPS + tau0 * (1 + torch.tanh(leaves[1])) if tau0 else torch.full((N,), tau, dtype=kind)
        noise = 0 if quiet else given["noise"][step].to(kind)
        prompt = (torch.softmax((leaves[0] + noise) / heat.expand(N)[:, None], -1) @ model.embedding).expand(samples, -1, -1)
        loss = loss_of(feed(model, prompt, given["target"], given["feedback"][step].to(kind)), given["target"]).mean()
        loss.backward()
        for value, leaf, moment in zip(values, leaves, moments):
            adam(moment, step + 1, value, leaf.grad, **rule)
            value.mul_(decay)
            if reset and (step + 1) % reset == 0:
                [m.zero_() for m in moment]
        record["loss"].append(loss.detach())
        for name, value, leaf in zip(("z", "phi"), values, leaves):
            record[f"{name}_grad"].append(leaf.grad)
            record[name].append(value.clone())
    return {name: torch.stack(kept) for name, kept in record.items()}


def reinforce(model, given, feed, baseline, beta=0.9):
    """STEPS steps of REINFORCE: the gradient is that of the weighted log-probability, by autograd."""
    kind, target = model.embedding.dtype, given["target"]
    z, average = given["z0"].to(kind).clone(), None
    moments = [torch.zeros_like(z), torch.zeros_like(z)]
    record = {name: [] for name in ("loss", "z_grad", "z")}
    for step in range(STEPS):
        leaf = z.clone().requires_grad_(True)
        tokens = (z + given["noise"][step].to(kind)).argmax(-1)
        with torch.no_grad():
            losses = cross_entropy(feed(model, model.embedding[tokens], target, given["feedback"][step].to(kind)), target)
        mean = losses.mean()
        if baseline == "ema":
            average = mean if average is None else average
            advantages, average = losses - average, beta * average + (1 - beta) * mean
        elif baseline == "leave-one-out":
            advantages = torch.stack([losses[b] - torch.cat([losses[:b], losses[b + 1:]]).mean() for b in range(len(losses))])
        else:
            average = mean if average is None else (1 - beta) * average + beta * mean
            advantages = (mean - average).expand(len(losses))
        log_p = leaf.log_softmax(-1).expand(len(tokens), -1, -1).gather(2, tokens[..., None])[..., 0].sum(1)
        (advantages * log_p).mean().backward()
        adam(moments, step + 1, z, leaf.grad)
        for name, value in zip(record, (mean, leaf.grad, z.clone())):
            record[name].append(value)
    return {name: torch.stack(kept) for name, kept in record.items()}


ROWS = {
    "dlmi": lambda m, g: soft(m, g, forced, tau0=100),
    "dlmi-shared": lambda m, g: soft(m, g, forced, tau0=1, shared=True),
    "dlmi-tf-soft": lambda m, g: soft(m, g, free("soft"), tau0=1),
    "dlmi-tf-gumbel": lambda m, g: soft(m, g, free("gumbel"), tau0=1),
    "dlmi-tf-hard": lambda m, g: soft(m, g, free("hard"), tau0=1),
    "gbda": lambda m, g: soft(m, g, free("soft"), tau=1),
    "gbda-100": lambda m, g: soft(m, g, free("soft"), tau=100),
    "reinforce": lambda m, g: reinforce(m, g, free("hard"), "ema"),
    "reinforce-leave-one-out": lambda m, g: reinforce(m, g, free("soft"), "leave-one-out"),
    "reinforce-shared": lambda m, g: reinforce(m, g, free("hard"), "shared"),
    "soda": lambda m, g: soft(m, g, forced, tau=0.05, quiet=True, loss_of=log_prob_difference, samples=1, decay=0.98, reset=50,
                              rate=0.03, betas=(0.9, 0.995), corrected=False),
    # The moments forgotten after the second step, which no test of three steps would see otherwise.
    "soda-reset": lambda m, g: soft(m, g, forced, tau=0.05, quiet=True, loss_of=log_prob_difference, samples=1, decay=0.98, reset=2,
                                    rate=0.03, betas=(0.9, 0.995), corrected=False),
}


def gumbel(uniform):
    return (-(-uniform.log()).log()).float()


def start(vocab: int):
    draw = torch.Generator().manual_seed(11)
    uniform = torch.rand(STEPS, SAMPLES, N, vocab, generator=draw, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return {"target": torch.randint(0, vocab, (M,), generator=draw), "z0": torch.randn(N, vocab, generator=draw),
            "phi0": torch.randn(N, generator=draw), "noise": gumbel(uniform)}


if __name__ == "__main__":
    exact, single = Llama(MODEL, torch.float64), Llama(MODEL, torch.float32)
    known = load_file(MODEL / "expected.safetensors")
    distance = (exact.logits(exact.embedding[known["input_ids"]]) - known["logits"]).abs().max().item()
    assert distance < 1e-4, "the forward pass here is not that of transformers"
    print(f"logits here (f64) against transformers (f32): {distance:.1e}")
    out = start(len(exact.embedding))
    draw = torch.Generator().manual_seed(12)
    uniform = torch.rand(STEPS, SAMPLES, M - 1, len(exact.embedding), generator=draw, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    out["feedback"] = gumbel(uniform)
    for name, steps in ROWS.items():
        run, again = steps(exact, out), steps(single, out)
        print(f"{name}: losses {[round(v, 6) for v in run['loss'].tolist()]}")
        for what, value in run.items():
            print(f"  {what}: largest {value.abs().max():.3e}, f32 is off by {(value - again[what]).abs().max():.1e}")
            out[f"{name}.{what}"] = value.float()
    save_file(out, HERE / "table1_steps.safetensors")
