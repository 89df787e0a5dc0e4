#!/usr/bin/env python3
"""dlmi and its peers in Python, turn by turn on the same machine, and the ratios of their medians.

usage: bench.py MODEL HF_DIR [--what step,score,generate] [--turns 5] [--rounds 3] [--python PYTHON] [--nanogcg PYTHON] [--dlmi PROGRAM]

MODEL is what `dlmi --model` takes, HF_DIR the same weights as a transformers folder (scripts/gguf_to_hf.py makes one). PYTHON has torch
and transformers, NANOGCG torch, nanogcg 0.3.0 and a transformers below 4.48. Every turn runs ours and the peer's once, each in a process
of its own; a figure is the median over the turns of the medians over the rounds, with the least and the largest of these. A step is only
timed if the first three losses of both sides agree within 1e-4.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("folder", metavar="HF_DIR")
parser.add_argument("--what", default="step,score,generate")
parser.add_argument("--turns", type=int, default=5)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--python", default=sys.executable)
parser.add_argument("--nanogcg", default=sys.executable)
parser.add_argument("--dlmi", default="target/release/dlmi")
a = parser.parse_args()

STEP = ["step", "--method", "dlmi", "--set", "all_tokens=true"]
TASKS = {
    "step": [(f"DLMI step, N = {n}", [*STEP, "--prompt-tokens", str(n)], a.python, ["dlmi_torch.py", "--prompt-tokens", str(n)]) for n in (10, 80)],
    "score": [("64 candidates, N = 20", ["score", "--prompt-tokens", "20"], a.nanogcg, ["nanogcg_score.py", "--batch-size", "32"])],
    "generate": [("20 tokens after 10", ["generate", "--prompt-tokens", "10"], a.python, ["generate_torch.py"])],
}


def last_line(command: list[str]) -> dict:
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: {run.stderr.strip()}")
    return json.loads(run.stdout.splitlines()[-1])


for what in a.what.split(","):
    for title, ours, python, (script, *options) in TASKS[what]:
        turns = []
        for turn in range(a.turns):
            rounds = ["--rounds", str(a.rounds)]
            us = last_line([a.dlmi, "--model", a.model, "--backend", "flex", "--json", "-q", "bench", *ours, *rounds])
            peer = last_line([python, str(HERE / script), a.folder, *options, *rounds])
            for x, y in zip(us.get("losses", []), peer.get("losses", [])):
                if abs(x - y) > 1e-4 * max(1, abs(y)):
                    raise SystemExit(f"{title}: the losses differ: {us['losses']} and {peer['losses']}")
            if "positions" in us and turn == 0:
                print(f"  positions: ours {us['positions']}, peer's {peer['positions']}")
            turns.append((us, peer))
            print(f"  {title}: {us['seconds_median']:.3f} s, peer {peer['seconds_median']:.3f} s", flush=True)
        middle = lambda side, key: statistics.median(turn[side][key] for turn in turns)
        mine, theirs = middle(0, "seconds_median"), middle(1, "seconds_median")
        spread = lambda side: "{:.3f} to {:.3f}".format(*(pick(turn[side]["seconds_median"] for turn in turns) for pick in (min, max)))
        line = f"{title}: ours {mine:.3f} s ({spread(0)}), peer {theirs:.3f} s ({spread(1)}), ratio {mine / theirs:.2f}"
        if "peak_mib" in turns[0][1] and turns[0][0].get("peak_mib"):
            line += f"; memory {middle(0, 'peak_mib'):.0f} MiB, peer {middle(1, 'peak_mib'):.0f} MiB"
        if "achieved_gflops" in turns[0][0]:
            line += f"; {middle(0, 'achieved_gflops'):.0f} of {middle(0, 'ceiling_gflops'):.0f} GFLOP/s"
        print(line, flush=True)
