#!/usr/bin/env python3
"""How long after SIGTERM an inversion ends, for every method: exit code 143, and a result that says so.

usage: signals.py BINARY MODEL [--prompt-tokens 80] [--seed 0] [METHOD...]

Each method runs without a limit of steps and gets its signal after 6 to 16 seconds. Prints a line for each: what it ended with, in how many
seconds, and the steps it had made; exits with 1 when one ended otherwise.
"""
import argparse
import json
import random
import signal
import subprocess
import sys
import time

SEARCHES = ["snap", "gcg", "arca", "autoprompt", "pez", "adc", "random"]
TARGET = " of a nation and its people, and the way in which they live their lives every single day"


def ended(a, method: str, wait: float) -> tuple[bool, str]:
    command = [a.binary, "--model", a.model, "invert", "--method", method, "--prompt-tokens", str(a.prompt_tokens), "--steps", "none", "--json", TARGET]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    run.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, err = run.communicate()
    seconds = time.monotonic() - began
    if run.returncode == 128 + signal.SIGTERM and "interrupted at its start" in err:
        return True, f"{seconds:.2f} s after {wait:.0f} s, at its start"
    if run.returncode != 128 + signal.SIGTERM or not out:
        return False, f"exit {run.returncode}: {err.strip()[-200:]}"
    found = json.loads(out)
    return found["stopped"] == "signal", f"{seconds:.2f} s after {wait:.0f} s and {found['steps']} steps"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--prompt-tokens", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    listed = json.loads(subprocess.run([a.binary, "methods", "--json"], capture_output=True, text=True, check=True).stdout)
    methods = a.methods or [*(method["method"] for method in listed), *SEARCHES]
    draw, sound = random.Random(a.seed), True
    for method in methods:
        good, said = ended(a, method, draw.uniform(6, 16))
        sound &= good
        print(f"{method:12} {said}", flush=True)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
