#!/usr/bin/env python3
"""Let every write of a run fail or kill it, and see that nothing is lost: the same command with --resume ends as if nothing had happened.

usage: faults.py BINARY [--kills N] [--seed S]
needs: strace (which lets the n-th system call fail); run it from the project's root

Two runs on the tiny model are looked at: `invert --out` and `study run`. For each of them, each call of write, fsync, fdatasync, rename, ftruncate,
mkdir and symlink or link fails once with ENOSPC and once with EIO, and the program is killed at each once; then N times it is killed at a random moment. A
failure may end the program with exit code 3 and one sentence, or be passed over; what it leaves must be good to go on from, and the
records at the end must be those of an undisturbed run, but for times. Prints what was not so, and the counts; exits with 1 when something was
lost.
"""
import argparse
import collections
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CALLS = ["write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "ftruncate", "mkdir", "mkdirat", "link", "linkat", "symlinkat"]
FAULTS = {"ENOSPC": "error=ENOSPC", "EIO": "error=EIO", "kill": "signal=SIGKILL"}
TIMES = ["seconds", "load_seconds", "seconds_to_exact"]
MODEL = ["--model", "tests/golden/tiny/gqa3-tied", "--backend", "flex"]
STUDY = """models = ["tests/golden/tiny/gqa3-tied"]
methods = ["dlmi", "snap"]
prompt_tokens = [4]
steps = [6]
seeds = [10]
targets = { texts = ["the quick brown fox"] }
[settings]
eval_every = 2
backend = "flex"
"""


class Invert:
    name = "invert"

    def command(self, folder: Path) -> list[str]:
        flags = ["--steps", "6", "--prompt-tokens", "4", "--method", "dlmi", "--samples", "2", "--set", "eval_every=2"]
        return [*MODEL, "invert", "the quick brown fox", *flags, "--out", str(folder / "out")]

    def again(self, folder: Path) -> list[str]:
        return [*self.command(folder), "--resume"]

    def left(self, folder: Path):
        result = json.loads((folder / "out/result.json").read_text())
        events = [json.loads(line) for line in (folder / "out/events.jsonl").read_text().splitlines()]
        return [{key: value for key, value in record.items() if key not in TIMES} for record in [result, *events]]


class Study:
    name = "study"

    def command(self, folder: Path) -> list[str]:
        (folder / "s.toml").write_text(STUDY.replace('"tests/', f'"{Path.cwd()}/tests/'))
        return ["study", "run", str(folder / "s.toml"), "--out", str(folder / "out")]

    def again(self, folder: Path) -> list[str]:
        return [*self.command(folder), "--retry"]

    def left(self, folder: Path):
        merged = subprocess.run([BINARY, "study", "merge", str(folder / "s.toml"), "--out", str(folder / "out"), "--science"], capture_output=True)
        return [merged.returncode, merged.stdout.decode()]


def quiet(command: list[str], prefix: list[str] = []) -> subprocess.CompletedProcess:
    return subprocess.run([*prefix, BINARY, "-q", *command], capture_output=True, stdin=subprocess.DEVNULL, timeout=300)


def traced(command: list[str], call: str, extra: list[str]) -> tuple[subprocess.CompletedProcess, str]:
    with tempfile.NamedTemporaryFile("r") as log:
        ran = quiet(command, ["strace", "-f", "-qq", "-o", log.name, "-e", f"trace={call}", *extra])
        return ran, log.read()


class Trials:
    def __init__(self):
        self.counts, self.lost = collections.Counter(), 0

    def check(self, what: str, job, folder: Path, wanted, code: int, said: str):
        """Goes on from what a disturbed run left."""
        self.counts[f"{job.name}, {what.split(' ')[0]}"] += 1
        fault = ""
        if code not in (0, 1, 3, 4, -signal.SIGKILL, 128 + signal.SIGKILL) or "panicked" in said:
            fault = f"exit code {code}: {said[:300]}"
        ran = quiet(job.again(folder))
        if ran.returncode not in (0, 1):
            fault = fault or f"it does not go on: {ran.stderr.decode()[:300]}"
        elif job.left(folder) != wanted:
            fault = fault or "it does not end as undisturbed"
        if fault:
            self.lost += 1
            print(f"{job.name}, {what}: {fault}", flush=True)

    def every_call(self, job, wanted):
        for call in CALLS:
            with tempfile.TemporaryDirectory() as folder:
                ran, log = traced(job.command(Path(folder)), call, [])
                if ran.returncode not in (0, 1):
                    continue  # not a call of this machine's
                count = len(re.findall(rf"^\d+ +{call}\(", log, re.M))
            for name, fault in FAULTS.items():
                for number in range(1, count + 1):
                    with tempfile.TemporaryDirectory() as folder:
                        folder = Path(folder)
                        ran, _ = traced(job.command(folder), call, ["-e", f"inject={call}:{fault}:when={number}"])
                        self.check(f"{name} at {call} {number}", job, folder, wanted, ran.returncode, ran.stderr.decode(errors="replace"))

    def random_kills(self, job, wanted, kills: int, draw: random.Random):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            quiet(job.command(Path(folder)))
            whole = time.monotonic() - began
        for number in range(kills):
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                child = subprocess.Popen([BINARY, "-q", *job.command(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                time.sleep(draw.random() * whole)
                child.kill()
                said = child.communicate()[1].decode(errors="replace")
                self.check(f"random kill {number}", job, folder, wanted, child.returncode, said)


def main() -> int:
    global BINARY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--kills", type=int, default=100, help="of each of the two runs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    BINARY = str(Path(args.binary).resolve())
    trials, draw = Trials(), random.Random(args.seed)
    for job in (Invert(), Study()):
        with tempfile.TemporaryDirectory() as folder:
            quiet(job.command(Path(folder)))
            wanted = job.left(Path(folder))
        trials.every_call(job, wanted)
        trials.random_kills(job, wanted, args.kills, draw)
    for what, count in sorted(trials.counts.items()):
        print(f"{what:24} {count}")
    print(f"{sum(trials.counts.values())} disturbances, {trials.lost} with a loss")
    return 1 if trials.lost else 0


if __name__ == "__main__":
    sys.exit(main())
