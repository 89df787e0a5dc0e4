"""nanoGCG itself on tiny/gqa3-tied, given the draws of rival_steps.py: are its candidates, losses and prompts those of rival_steps.safetensors?

usage: nanogcg_steps.py                   needs: nanogcg==0.3.0 'transformers<4.48' torch safetensors; exit 1 where they differ
What is drawn twice in a step is there once.
"""
import logging
import sys

import torch
from nanogcg import gcg
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, BatchEncoding, PreTrainedTokenizerFast

from common import HERE
from rival_steps import N, STEPS, TOP, WIDTH, Draws, replaced
from table1_steps import MODEL

SAME = 5e-6  # both compute in f64, but transformers rotates by angles in f32
TARGET = "the target"


class Given:
    """torch.rand and torch.randint of a step: what argsort makes the positions, and the ranks."""

    def __init__(self, n_replace):
        self.n_replace, self.step = n_replace, 0

    def rand(self, _shape, device=None):
        draws, order = Draws(self.step), torch.ones(WIDTH, N, dtype=torch.float64)
        self.ranks, self.step = torch.zeros(WIDTH, self.n_replace, 1, dtype=torch.long), self.step + 1
        for candidate in range(WIDTH):
            for number, (position, rank) in enumerate(replaced(draws, self.n_replace)):
                order[candidate, position], self.ranks[candidate, number, 0] = number / N, rank
        return order

    def randint(self, _low, _high, _shape, device=None):
        return self.ranks


class Spelling(PreTrainedTokenizerFast):
    """The model's tokenizer, which has ids of its own for one text: no text gives the target's."""

    def __call__(self, text, **how):
        return BatchEncoding({"input_ids": self.target[None]}) if text == [TARGET] else super().__call__(text, **how)


class Noted(gcg.GCG):
    """nanoGCG, noting what it scores."""

    def _compute_candidates_loss_original(self, search_batch_size, input_embeds):
        loss = super()._compute_candidates_loss_original(search_batch_size, input_embeds)
        self.noted.append(loss)
        return loss


def run(model, tokenizer, start, n_replace, mellowmax):
    given, sampled, filter_ids = Given(n_replace), [], gcg.filter_ids
    torch.rand, rand = given.rand, torch.rand
    torch.randint, randint = given.randint, torch.randint
    gcg.filter_ids = lambda ids, tokenizer: sampled.append(filter_ids(ids, tokenizer)) or sampled[-1]
    try:
        config = gcg.GCGConfig(num_steps=STEPS, optim_str_init=start, search_width=WIDTH, topk=TOP, n_replace=n_replace, use_mellowmax=mellowmax,
                               allow_non_ascii=True, use_prefix_cache=False, verbosity="ERROR")
        search = Noted(model, tokenizer, config)
        search.noted = []
        search.run("{optim_str}", TARGET)
    finally:
        torch.rand, torch.randint, gcg.filter_ids = rand, randint, filter_ids
    # Before the first step it scores its start.
    return sampled, search.noted[-STEPS:]


def differs(name, steps, fixture):
    for step, (candidates, losses) in enumerate(zip(*steps, strict=True)):
        once = dict(zip(map(tuple, candidates.tolist()), losses.tolist()))
        expected = [tuple(row) for row in fixture[f"{name}.{step}.candidates"].tolist()]
        if list(once) != expected:
            return f"step {step}: other candidates"
        furthest = (torch.tensor(list(once.values()), dtype=torch.float64) - fixture[f"{name}.{step}.losses"]).abs().max().item()
        if furthest > SAME:
            return f"step {step}: losses differ by {furthest:.2g}"
        if candidates[losses.argmin()].tolist() != fixture[f"{name}.prompt"][step].tolist():
            return f"step {step}: another prompt"
    return None


def main():
    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    gcg.tqdm = iter
    fixture = load_file(HERE / "rival_steps.safetensors")
    config = AutoConfig.from_pretrained(MODEL)
    config.rope_theta = config.rope_parameters["rope_theta"]  # where newer versions keep it
    model = AutoModelForCausalLM.from_pretrained(MODEL, config=config, torch_dtype=torch.float64).eval().requires_grad_(False)
    tokenizer = Spelling(tokenizer_file=str(MODEL / "tokenizer.json"), clean_up_tokenization_spaces=False)
    tokenizer.target = load_file(HERE / "table1_steps.safetensors")["target"]
    failed = False
    for name, n_replace, mellowmax in (("gcg", 1, False), ("gcg-2", 2, False), ("gcg-mellowmax", 1, True)):
        start = tokenizer.decode(fixture[f"{name}.first"])
        fault = differs(name, run(model, tokenizer, start, n_replace, mellowmax), fixture)
        print(name, fault or f"the same in all {STEPS} steps")
        failed |= fault is not None
    sys.exit(failed)


if __name__ == "__main__":
    main()
