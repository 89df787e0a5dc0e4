#!/usr/bin/env python3
"""The race's targets on a model other than bard: configs/study/race/smollm2.jsonl, held-out.jsonl and tuning-2.jsonl were made by it.

usage: race_targets.py MODEL.gguf tokenizer.json AUTHORS.json OUT.jsonl [--dlmi PROGRAM] [--held-out OUT.jsonl TUNING.jsonl]

natural20-*   what the model writes greedily after the first twelve sentences of race/sentences.txt, 20 tokens
natural8-*    after the next twelve, 8 tokens; a continuation with a special token, or whose text gives other tokens, is left out of both
everyday-*    the lines of race/everyday.txt
authors-*     the paper's authors' targets, three of each k
random-*      ten random tokens whose text gives the same ones again, six times, seed 0
held-out-*    as natural20-*, after the first twelve sentences of race/held-out.txt; into a file of its own
tuning-2-*    after the others of them; into another one
"""
import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("tokenizer")
parser.add_argument("authors", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--dlmi", default="target/release/dlmi")
parser.add_argument("--held-out", type=Path, nargs=2, default=[])
a = parser.parse_args()
race = Path(__file__).resolve().parent.parent / "configs/study/race"
tokenizer = Tokenizer.from_file(a.tokenizer)
special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}


def encode(text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def decode(ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def sound(ids: list[int]) -> bool:
    return not special & set(ids) and encode(decode(ids)) == ids


def continuations(sentences: Path) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [a.dlmi, "--model", a.model, "targets", "--from", sentences, "--tokens", "20", "--prompts-out", Path(folder) / "prompts.jsonl"]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line)["ids"] for line in made.splitlines()]


def drawn(rng: random.Random) -> list[int]:
    while True:
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(10)]
        if sound(ids):
            return ids


written = [ids for ids in continuations(race / "sentences.txt") if sound(ids) and sound(ids[:8])]
everyday = (race / "everyday.txt").read_text(encoding="utf-8").splitlines()
authors = [sample for sample in json.loads(a.authors.read_text(encoding="utf-8"))["samples"] if int(sample["id"][-1]) < 3]
rng = random.Random(0)
lists = {
    "natural20": written[:12],
    "natural8": [ids[:8] for ids in written[12:24]],
    "everyday": [encode(line) for line in everyday],
    "authors": [encode(sample["text"]) for sample in authors],
    "random": [drawn(rng) for _ in range(6)],
}


def write(out: Path, lists: dict[str, list[list[int]]]) -> None:
    lines = [
        json.dumps({"id": f"{name}-{n:02}", "text": decode(ids), "ids": ids}, ensure_ascii=False)
        for name, targets in lists.items()
        for n, ids in enumerate(targets)
    ]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


write(a.out, lists)
if a.held_out:
    later = [ids for ids in continuations(race / "held-out.txt") if sound(ids)]
    write(a.held_out[0], {"held-out": later[:12]})
    write(a.held_out[1], {"tuning-2": later[12:]})
