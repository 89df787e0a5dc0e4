#!/usr/bin/env python3
"""Inverts every target of a list with several methods and the same seconds, and prints how often each was exact.

usage: race.py TARGETS.jsonl OUT_DIR [--model SPEC] [--methods snap,random] [--seconds 60] [--prompt-tokens 20] [--seed 0] [--dlmi PROGRAM]

Each line of TARGETS.jsonl has "id" and "text". OUT_DIR/<method>/<id>.json holds what `dlmi invert --json` printed; a result that is
already there is not computed again. scripts/confirm.py judges the results with transformers.
"""
import argparse
import json
import subprocess
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("targets", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--model", default="bard")
parser.add_argument("--methods", default="snap,random")
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--prompt-tokens", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--dlmi", default="target/release/dlmi")
a = parser.parse_args()

for method in a.methods.split(","):
    folder = a.out / method
    folder.mkdir(parents=True, exist_ok=True)
    exact = total = 0
    for line in a.targets.read_text(encoding="utf-8").splitlines():
        target = json.loads(line)
        path = folder / f"{target['id']}.json"
        if not path.exists():
            command = [a.dlmi, "--model", a.model, "--json", "-q", "--seed", str(a.seed), "invert", "--method", method, "--steps", "none",
                       "--max-seconds", str(a.seconds), "--prompt-tokens", str(a.prompt_tokens), "--file", "-"]
            # One newline at the end of standard input is not part of the target.
            run = subprocess.run(command, input=target["text"] + "\n", capture_output=True, text=True)
            if run.returncode not in (0, 1):
                raise SystemExit(f"{target['id']}: {run.stderr.strip()}")
            path.write_text(run.stdout, encoding="utf-8")
        result = json.loads(path.read_text(encoding="utf-8"))
        exact += result["exact"]
        total += 1
        print(f"{method:8} {target['id']}: {'exact' if result['exact'] else 'no   '} {result['best']['matched_prefix']:2}/{len(result['target_ids'])} tokens, "
              f"{result['seconds']:6.1f} s, {result['steps']} steps, {result['cost']['forward_tokens']} forward tokens", flush=True)
    print(f"{method}: {exact}/{total} exact", flush=True)
