#!/usr/bin/env python3
"""Targets that a model would write by itself: its own greedy continuation of each line of a file: a file for `dlmi invert --targets`.

usage: continuations.py SENTENCES.txt OUT.jsonl [--model SPEC] [--tokens 20] [--dlmi PROGRAM]

A continuation whose text does not give the same tokens again is left out, and said so. The sentence is not part of the target.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("sentences", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--model", default="bard")
parser.add_argument("--tokens", type=int, default=20)
parser.add_argument("--dlmi", default="target/release/dlmi")
a = parser.parse_args()


def dlmi(*arguments: str) -> dict:
    return json.loads(subprocess.run([a.dlmi, "--model", a.model, "--json", *arguments], capture_output=True, text=True, check=True).stdout)


lines = []
for n, sentence in enumerate(a.sentences.read_text(encoding="utf-8").splitlines()):
    written = dlmi("complete", sentence, "--tokens", str(a.tokens))
    again = dlmi("complete", written["completion_text"], "--tokens", "1")["prompt_ids"]
    if again != written["completion_ids"]:
        print(f"left out, its text gives other tokens: {sentence!r}", file=sys.stderr)
        continue
    lines.append(json.dumps({"id": f"{n:02}", "text": written["completion_text"], "ids": written["completion_ids"]}, ensure_ascii=False))
a.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
