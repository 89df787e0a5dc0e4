#!/usr/bin/env python3
"""What prompts that nobody searched for are worth: the hard scores of random readable prompts, the floor of every table of scores.

usage: floor.py TARGETS [--model SPEC] [--tokenizer FILE] [--prompt-tokens 20] [--count 32] [--seed 0] [--dlmi PROGRAM]

TARGETS is a file of JSON Lines with "id" and "text" (`dlmi targets` prints such lines), or the text of one target. A prompt is N tokens drawn
with equal chances from those tokens of FILE (a tokenizer.json with byte-level BPE) that are a space and a word of at least three ASCII
letters; prompts that are tokenised to anything but these tokens are drawn again. The target's own words are not left out.
Prints for each target the mean of `hard_forced` and `hard_free` over COUNT prompts of its own, with a 95 % bootstrap interval of the mean, the best
prompt's score, and how many prompts were exact; for several targets also the mean over all of them (resampled by target, then by prompt).
"""
import argparse
import json
import random
import re
import subprocess
from pathlib import Path

SCORES = ("hard_forced", "hard_free")
RESAMPLES = 10_000


def targets(given):
    """(id, text) of each target of a file, or of the text itself."""
    path = Path(given)
    if not path.is_file():
        return [("target", given)]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["id"], line["text"]) for line in lines if line.get("retokenises", True)]


def readable(path):
    """The (id, text) of every token that is a space and a word, by id."""
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted((i, " " + token[1:]) for token, i in vocabulary.items() if re.fullmatch("Ġ[A-Za-z]{3,}", token))


def score(prompt, target, a):
    command = [a.dlmi, "--model", a.model, "-q", "--json", "score", "--", prompt, target]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr.strip())
    return json.loads(run.stdout)


def floor(target, tokens, draws, a):
    """(hard_forced, hard_free, exact) of each of COUNT random prompts."""
    scores = []
    while len(scores) < a.count:
        drawn = [draws.choice(tokens) for _ in range(a.prompt_tokens)]
        found = score("".join(text for _, text in drawn), target, a)
        if found["prompt_ids"] == [i for i, _ in drawn]:
            scores.append(tuple(found[name] for name in (*SCORES, "exact")))
    return scores


def mean(numbers):
    return sum(numbers) / len(numbers)


def interval(groups, draws):
    """95 % of the means of resampled groups, of resampled numbers within each."""
    def resampled():
        chosen = draws.choices(groups, k=len(groups)) if len(groups) > 1 else groups
        return mean([mean(draws.choices(group, k=len(group))) for group in chosen])
    means = sorted(resampled() for _ in range(RESAMPLES))
    return means[RESAMPLES * 25 // 1000], means[RESAMPLES * 975 // 1000 - 1]


def row(name, scored, draws):
    """One line of the table: `scored` holds the prompts' scores of each target."""
    cells = [name]
    for i in range(len(SCORES)):
        groups = [[prompt[i] for prompt in prompts] for prompts in scored]
        low, high = interval(groups, draws)
        best = max(max(group) for group in groups)
        cells.append(f"{mean([mean(group) for group in groups]):.2f} [{low:.2f}, {high:.2f}], best {best:.2f}")
    exact = [prompt[-1] for prompts in scored for prompt in prompts]
    return "| " + " | ".join([*cells, f"{sum(exact)} of {len(exact)}"]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets")
    parser.add_argument("--model", default="bard")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/bard/tokenizer.json"))
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dlmi", default="target/release/dlmi")
    a = parser.parse_args()
    tokens, draws = readable(a.tokenizer), random.Random(a.seed)
    print(f"{len(tokens)} readable tokens, {a.count} prompts of {a.prompt_tokens} for each target, seed {a.seed}")
    print("| target | " + " | ".join(SCORES) + " | exact |")
    print("|---" * (len(SCORES) + 2) + "|")
    scored = []
    for name, text in targets(a.targets):
        scored.append(floor(text, tokens, draws, a))
        print(row(name, scored[-1:], draws), flush=True)
    if len(scored) > 1:
        print(row("all", scored, draws))


if __name__ == "__main__":
    main()
