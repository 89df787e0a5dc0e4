"""The first steps of gcg, arca, autoprompt, pez and adc on tiny/gqa3-tied, by PyTorch in f64 -> rival_steps.safetensors.

usage: rival_steps.py                     needs: torch tokenizers safetensors; run table1_steps.py first
  start i64 [N], where arca, autoprompt and pez begin; for every search below, as <name>.*: first i64 [N] and, for each step s, s.candidates
  i64 [C, N] in the order of their draws or ranks and s.losses f64 [C]; prompt i64 [step, N] and value f64 [step] after the steps
  pez: free i64 [step, N], loss f64 [step], p f32 [step, N, D] after the steps
  adc, of S starts of 6 tokens that stand for text that shows, by themselves: allowed i64 [1, V], first f32 [S*N, V], loss f64 [step], wrong f64
  [step, S] (the moving average), rows f32 [step, S*N, V] and best i64 [step, N] after the steps
nanoGCG 0.3.0 itself, given these draws, goes where gcg goes here, with one token replaced, with two, and by mellowmax: nanogcg_steps.py.
The target is that of table1_steps; seed 3, no restart; all tokens may stand in the prompt if they survive decode -> encode. Draws are those
of philox.py with purpose 5, one after the other: the first of a step of a search is acceptance's and not used here.
"""
import math
import unicodedata

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from common import HERE
from philox import draw
from table1_steps import MODEL, Llama

SEED, N, STEPS, TRIES = 3, 4, 5, 6
WIDTH, TOP = 24, 12  # of gcg: candidates of a step, and the ranks of each position that they are drawn from
PEZ_STEPS = 24
GAP = 1e-6  # scores and losses that decide anything are further apart, relative to the largest


class Draws:
    """The numbers of a step."""

    def __init__(self, step, used=1):
        self.step, self.column = step, used

    def uniform(self):
        self.column += 1
        return draw(SEED, 0, self.step, 5, 0, 0, self.column - 1)["uniform"]

    def below(self, n):
        return min(int(self.uniform() * n), n - 1)


class Objective:
    """Cross-entropy of the target behind prompts, its own tokens fed."""

    def __init__(self):
        self.model = Llama(MODEL, torch.float64)
        self.embedding = self.model.embedding
        self.tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        self.target = load_file(HERE / "table1_steps.safetensors")["target"]

    def of(self, prompts):
        """[S, N, D] -> [S]."""
        logits = self.logits(prompts)
        losses = F.cross_entropy(logits.flatten(0, 1), self.target.repeat(len(prompts)), reduction="none")
        return losses.view(len(prompts), -1).mean(1)

    @torch.no_grad()
    def of_ids(self, prompts):
        return self.of(self.embedding[torch.tensor(prompts)])

    def gradient(self, prompts):
        """Of the mean over prompts of ids, with respect to their one-hot rows: [S, N, V]; no embedding is shared by the rows."""
        one_hot = F.one_hot(torch.tensor(prompts), len(self.embedding)).double().requires_grad_(True)
        self.of(one_hot @ self.embedding).mean().backward()
        return one_hot.grad

    def logits(self, prompts):
        """[S, N, D] -> [S, M, V]."""
        fed = self.embedding[self.target[:-1]].expand(len(prompts), -1, -1)
        return self.model.logits(torch.cat([prompts, fed], 1))[:, prompts.shape[1] - 1:]

    def typed(self, ids):
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def survives(self, ids):
        return self.typed(ids) == ids

    def hidden(self, token):
        """Whether a token's text holds controls but tab and line feed: the tiny vocabulary has no other characters that show nothing."""
        return any(unicodedata.category(c) == "Cc" and c not in "\t\n" for c in self.tokenizer.decode([token]))


class Mellowmax(Objective):
    """Of minus the target's logits, what nanoGCG's `use_mellowmax` minimises with its alpha of 1."""

    def of(self, prompts):
        at_target = self.logits(prompts).gather(2, self.target.repeat(len(prompts), 1)[..., None])[..., 0]
        return (-at_target).logsumexp(1) - math.log(len(self.target))


def apart(values):
    values = torch.as_tensor(values).sort().values
    assert len(values) < 2 or values.diff().min() > GAP * values.abs().max(), values


def lowest(row, count):
    """Ids of the lowest entries of a row, lowest first."""
    found = (-row).topk(min(count + 1, len(row)))
    apart(found.values)
    return found.indices[:count].tolist()


def replaced(draws, n_replace):
    """The positions at which a candidate of gcg has another token, and the rank of each."""
    positions, drawn = list(range(N)), []
    for _ in range(n_replace):
        place = draws.below(len(positions))
        position, positions[place] = positions[place], positions[-1]
        positions.pop()
        drawn.append((position, draws.below(TOP)))
    return drawn


def gcg(objective, prompt, step, n_replace):
    rows = objective.gradient([prompt])[0]
    heads, draws, candidates = [lowest(row, TOP) for row in rows], Draws(step), []
    for _ in range(WIDTH):
        candidate = list(prompt)
        for position, rank in replaced(draws, n_replace):
            candidate[position] = heads[position][rank]
        if objective.survives(candidate) and candidate not in candidates:
            candidates.append(candidate)
    return candidates


def swapped(prompt, position, token):
    return prompt[:position] + [token] + prompt[position + 1:]


def in_order(objective, prompt, position, row, size):
    candidates = (swapped(prompt, position, token) for token in lowest(row, size * TRIES))
    return [candidate for candidate in candidates if objective.survives(candidate)][:size]


def arca(objective, prompt, step, size):
    draws, position = Draws(step), step % N
    prompts = [swapped(prompt, position, draws.below(len(objective.embedding))) for _ in range(size)]
    return in_order(objective, prompt, position, objective.gradient(prompts)[:, position].sum(0), size)


def autoprompt(objective, prompt, step, size):
    position = Draws(step).below(N)
    return in_order(objective, prompt, position, objective.gradient([prompt])[0, position], size)


def search(objective, first, propose, only_better):
    prompt, value = first, objective.of_ids([first])[0]
    record = {"first": torch.tensor(first), "prompt": [], "value": []}
    for step in range(STEPS):
        candidates = propose(objective, prompt, step)
        losses = objective.of_ids(candidates)
        apart(losses)
        record |= {f"{step}.candidates": torch.tensor(candidates), f"{step}.losses": losses}
        if not only_better or losses.min() < value:
            prompt, value = candidates[losses.argmin()], losses.min()
        record["prompt"].append(torch.tensor(prompt))
        record["value"].append(value)
    return record


def pez(objective, first, rate=0.1, decay=0.1):
    p = objective.embedding[torch.tensor(first)].clone().requires_grad_(True)
    optimiser = torch.optim.AdamW([p], lr=rate, weight_decay=decay)
    record = {"free": [], "loss": [], "p": []}
    for _ in range(PEZ_STEPS):
        cosines = F.normalize(p.detach(), dim=1) @ F.normalize(objective.embedding, dim=1).T
        assert (cosines.topk(2).values.diff().abs() > GAP).all()
        free = cosines.argmax(1)
        leaf = objective.embedding[free].clone().requires_grad_(True)
        loss = objective.of(leaf[None])[0]
        p.grad, = torch.autograd.grad(loss, [leaf])
        optimiser.step()
        for name, value in zip(record, (free, loss.detach(), p.detach().float().clone())):
            record[name].append(value)
    return record


def unseen(objective, row_pair, known):
    """The tokens that typing gives of the first of a start's prompts that is new: its argmax, or that with one second best token."""
    first, second = row_pair
    for prompt in [first] + [swapped(first, position, token) for position, token in enumerate(second)]:
        typed = tuple(objective.typed(prompt))
        if len(typed) == len(first) and objective.survives(list(typed)) and typed not in known:
            return typed
    return None


def adc(objective, starts=2, n=6, rate=10.0, momentum=0.99):
    vocab = len(objective.embedding)
    allowed = torch.tensor([token != 0 and objective.survives([token]) and not objective.hidden(token) for token in range(vocab)])
    normal = torch.randn(starts, n, vocab, generator=torch.Generator().manual_seed(21))
    rows = normal.masked_fill(~allowed, -torch.inf).softmax(-1)
    record = {"allowed": allowed.long()[None], "first": rows.flatten(0, 1), "loss": [], "wrong": [], "rows": [], "best": []}
    leaf = rows.double().requires_grad_(True)
    optimiser = torch.optim.SGD([leaf], lr=rate * starts, momentum=momentum)
    known, average, best = set(), None, None
    for step in range(STEPS):
        optimiser.zero_grad()
        prompts = leaf @ objective.embedding
        loss = objective.of(prompts).mean()
        loss.backward()
        with torch.no_grad():
            wrong = (objective.logits(prompts).argmax(-1) != objective.target).double().sum(1)
        average = wrong if average is None else average + 0.01 * (wrong - average)
        optimiser.step()
        leaf.data[..., ~allowed] = -1000
        found = []
        for start in leaf.detach():
            prompt = unseen(objective, start.topk(2).indices.T.tolist(), known)
            if prompt:
                known.add(prompt)
                found.append(list(prompt))
        if found:
            losses = objective.of_ids(found)
            apart(losses)
            best = found[losses.argmin()]
        draws, order = Draws(step, used=0), list(range(n))
        for last in range(n - 1, 0, -1):
            other = draws.below(last + 1)
            order[last], order[other] = order[other], order[last]
        sparse = torch.zeros_like(leaf.data)
        for start in range(starts):
            size = min(2 ** average[start].item(), vocab / 2)
            more = max(int(size % 1 * n), 5)
            for position in range(n):
                row = leaf.data[start, position]
                kept = row.topk(int(size) + (order[position] < more)).indices
                sparse[start, position, kept] = row[kept].clamp(min=0) + 1e-6
        leaf.data = sparse / sparse.sum(-1, keepdim=True)
        for name, value in (("loss", loss.detach()), ("wrong", average.clone()), ("rows", leaf.detach().flatten(0, 1).float())):
            record[name].append(value)
        record["best"].append(torch.tensor(best))
    return record


def main():
    objective = Objective()
    letters = objective.tokenizer.encode("x x x x").ids[:N]
    start = objective.tokenizer.encode(" the and").ids + objective.tokenizer.encode("er in").ids
    start = start[:N]
    assert objective.survives(start) and objective.survives(letters), start
    records = {
        "gcg": search(objective, letters, lambda *at: gcg(*at, n_replace=1), False),
        "gcg-2": search(objective, letters, lambda *at: gcg(*at, n_replace=2), False),
        "gcg-mellowmax": search(Mellowmax(), letters, lambda *at: gcg(*at, n_replace=1), False),
        "arca": search(objective, start, lambda *at: arca(*at, size=6), False),
        "autoprompt": search(objective, start, lambda *at: autoprompt(*at, size=6), True),
        "pez": pez(objective, start),
        "adc": adc(objective),
    }
    tensors = {"start": torch.tensor(start)}
    for name, record in records.items():
        for part, value in record.items():
            tensors[f"{name}.{part}"] = (torch.stack(value) if isinstance(value, list) else value).contiguous()
        print(name, [round(float(x), 4) for x in record.get("value", record.get("loss"))])
        print("  candidates", [len(value) for part, value in record.items() if part.endswith("candidates")])
        print("  prompts", [row.tolist() for row in record.get("prompt", record.get("free", record.get("best")))])
        print("  entries", [(rows > 0).sum(1).tolist() for rows in record.get("rows", [])])
    save_file(tensors, HERE / "rival_steps.safetensors")


if __name__ == "__main__":
    main()
