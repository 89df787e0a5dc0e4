#!/usr/bin/env python3
"""Inverts every target of a list with several methods and the same budget: how often each was exact, and a table of the four scores.

usage: race.py TARGETS.jsonl OUT_DIR [--model SPEC] [--methods snap,random] [--seconds 60 | --steps 256] [--prompt-tokens 20]
               [--preset NAME] [--backend NAME] [--seed 0] [--dlmi PROGRAM]
The paper's five methods as it runs them:
  race.py TARGETS.jsonl OUT_DIR --methods dlmi,dlmi-tf,gbda,reinforce,soda --preset paper --steps 256 --prompt-tokens 10

Each line of TARGETS.jsonl has "id" and "text" (`dlmi targets` prints such lines). OUT_DIR/<method>/<id>.json holds what
`dlmi invert --json` printed; a result that is already there is not computed again. scripts/confirm.py judges the results with transformers.
"""
import argparse
import json
import subprocess
from pathlib import Path

SCORES = ("relaxed_forced", "relaxed_free", "hard_forced", "hard_free")


def result(target, method, path, a):
    """What `dlmi invert --json` says, from the file at `path` if it is there."""
    if not path.exists():
        budget = ["--steps", str(a.steps)] if a.steps else ["--steps", "none", "--max-seconds", str(a.seconds)]
        presets = [word for name in a.preset for word in ("--preset", name)]
        command = [a.dlmi, "--model", a.model, "--backend", a.backend, *presets, "--json", "-q", "--seed", str(a.seed), "invert", *budget,
                   "--method", method, "--prompt-tokens", str(a.prompt_tokens), "--file", "-"]
        # One newline at the end of standard input is not part of the target.
        run = subprocess.run(command, input=target["text"] + "\n", capture_output=True, text=True)
        if run.returncode not in (0, 1):
            raise SystemExit(f"{target['id']}: {run.stderr.strip()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(run.stdout, encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    settings = found["settings"]
    was = (found["target_text"], found["method"], settings["seed"], settings["prompt_tokens"], settings["steps"], found["model"]["spec"])
    if was != (target["text"], method, a.seed, a.prompt_tokens, a.steps, a.model):
        raise SystemExit(f"{path} holds another experiment (steps {settings['steps']}, N {settings['prompt_tokens']}, seed {settings['seed']}, "
                         f"model {found['model']['spec']}): name another OUT_DIR")
    return found


def row(target, method, found):
    scores = ["-" if found["lcs"][name] is None else f"{found['lcs'][name]:.2f}" for name in SCORES]
    matched = f"{found['best']['matched_prefix']}/{len(found['target_ids'])}"
    return "| " + " | ".join([target["id"], method, *scores, matched, "exact" if found["exact"] else "no", str(found["steps"]),
                              f"{found['seconds']:.1f}", f"{found['cost']['forward_tokens']:,}"]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="bard")
    parser.add_argument("--methods", default="snap,random")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, help="a budget in steps in place of seconds")
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--preset", action="append", default=[])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dlmi", default="target/release/dlmi")
    a = parser.parse_args()
    targets = [json.loads(line) for line in a.targets.read_text(encoding="utf-8").splitlines()]
    for target in [target for target in targets if not target.get("retokenises", True)]:
        print(f"{target['id']} is left out: its text is tokenised to other ids than those drawn")
        targets.remove(target)
    methods = a.methods.split(",")
    print("| target | method | " + " | ".join(SCORES) + " | best matched | | steps | seconds | forward tokens |")
    print("|---" * 11 + "|")
    exact = dict.fromkeys(methods, 0)
    for method in methods:
        for target in targets:
            found = result(target, method, a.out / method / f"{target['id']}.json", a)
            exact[method] += found["exact"]
            print(row(target, method, found), flush=True)
    for method in methods:
        print(f"{method}: {exact[method]}/{len(targets)} exact")


if __name__ == "__main__":
    main()
