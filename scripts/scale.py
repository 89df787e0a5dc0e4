#!/usr/bin/env python3
"""What a DLMI step costs against samples, prompt, target, vocabulary and layers: OUT_DIR/scale.json and OUT_DIR/scale.svg.

usage: scale.py [OUT_DIR] [--turns 3] [--rounds 3] [--dlmi PROGRAM]
needs: pip install matplotlib numpy; 3 GB of temporary space

One number at a time departs from BASE, the shape of SmolLM2-135M. The weights are random (random_model.py): a step costs the same
whatever they are. The whole sweep is run in every turn, so that a slow minute of the machine is spread over all points; a time is the
median over the turns of the medians over the rounds, a memory the largest.
"""
import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

try:
    import matplotlib
    import numpy as np
except ImportError as missing:
    raise SystemExit(f"scale.py needs {missing.name}, which this Python lacks: pip install matplotlib numpy")
import random_model

matplotlib.use("svg")
from matplotlib import pyplot

ROOT = Path(__file__).parent.parent
BASE = {"samples": 8, "prompt_tokens": 10, "target_tokens": 20, "vocabulary": 49152, "layers": 30}
AXES = {
    "samples": [1, 2, 4, 8, 16],
    "prompt_tokens": [5, 10, 20, 40, 80],
    "target_tokens": [5, 10, 20, 40],
    "vocabulary": [1536, 6144, 12288, 24576, 49152],
    "layers": [2, 8, 16, 24, 30],
}
TITLES = {"samples": "samples S", "prompt_tokens": "prompt tokens N", "target_tokens": "target tokens M", "vocabulary": "vocabulary V", "layers": "layers"}


def model(folder: Path, vocabulary: int, layers: int) -> Path:
    """A folder that dlmi loads, written the first time it is asked for."""
    folder = folder / f"{vocabulary}-{layers}"
    if not folder.exists():
        random_model.write(folder, vocabulary, layers)
    return folder


def step(dlmi: str, models: Path, at: dict, rounds: int) -> dict:
    """What `dlmi bench step` says at one point."""
    folder = model(models, at["vocabulary"], at["layers"])
    command = [dlmi, "--model", str(folder), "--backend", "flex", "--json", "-q", "bench", "step", "--method", "dlmi", "--set", "all_tokens=true"]
    for name in ("samples", "prompt_tokens", "target_tokens"):
        command += [f"--{name.replace('_', '-')}", str(at[name])]
    run = subprocess.run([*command, "--rounds", str(rounds)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: {run.stderr.strip()}")
    return json.loads(run.stdout.splitlines()[-1])


def measure(dlmi: str, turns: int, rounds: int) -> dict:
    """Every point of every axis, `turns` times. The base belongs to all axes and is measured once in a turn."""
    points = {tuple((BASE | {axis: x}).items()): [] for axis, values in AXES.items() for x in values}
    with tempfile.TemporaryDirectory() as models:
        for turn in range(turns):
            for point, runs in points.items():
                runs.append(step(dlmi, Path(models), dict(point), rounds))
                print(f"turn {turn + 1}: {dict(point)}: {runs[-1]['seconds_median']:.3f} s, {runs[-1]['peak_mib']} MiB", flush=True)

    def figures(axis: str, x: int) -> dict:
        runs = points[tuple((BASE | {axis: x}).items())]
        seconds = [run["seconds_median"] for run in runs]
        return {
            axis: x, "seconds": round(statistics.median(seconds), 4), "seconds_min": round(min(seconds), 4),
            "seconds_max": round(max(seconds), 4), "peak_mib": max(run["peak_mib"] for run in runs),
        }

    one = next(iter(points.values()))[0]
    return {
        "machine": f"{one['device']}, {one['threads']} threads", "backend": one["backend"], "turns": turns, "rounds": rounds, "base": BASE,
        "axes": {axis: [figures(axis, x) for x in values] for axis, values in AXES.items()},
    }


def line(points: list[dict], axis: str, what: str) -> tuple[float, float]:
    """Slope and intercept of the straight line through the points."""
    return tuple(np.polyfit([point[axis] for point in points], [point[what] for point in points], 1))


def draw(measured: dict, path: Path) -> None:
    """Seconds above, memory below, a column for each axis; the base is the hollow point, the thin line a straight one."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dlmi", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, rows = pyplot.subplots(2, len(AXES), figsize=(12, 4.4), sharey="row", sharex="col")
    for row, what, label in zip(rows, ("seconds", "peak_mib"), ("seconds a step", "peak MiB")):
        row[0].set_ylabel(label)
        for plot, (axis, points) in zip(row, measured["axes"].items()):
            x, y, base = [point[axis] for point in points], [point[what] for point in points], measured["base"][axis]
            slope, start = line(points, axis, what)
            plot.plot([0, max(x)], [start, start + slope * max(x)], color="0.7", linewidth=1)
            if what == "seconds":
                plot.vlines(x, [point["seconds_min"] for point in points], [point["seconds_max"] for point in points], color="tab:blue", linewidth=1)
            plot.plot(x, y, "o", color="tab:blue", markersize=5)
            plot.plot(base, y[x.index(base)], "o", markerfacecolor="white", markeredgecolor="tab:blue", markersize=6)
            plot.set_xlim(0, max(x) * 1.06)
        row[0].set_ylim(bottom=0)
    for plot, axis in zip(rows[1], measured["axes"]):
        plot.set_xlabel(TITLES[axis])
    rows[1][list(AXES).index("vocabulary")].xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k" if value else "0")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT_DIR", type=Path, nargs="?", default=ROOT / "docs")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dlmi", default="target/release/dlmi")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    measured = measure(args.dlmi, args.turns, args.rounds)
    (args.out / "scale.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    draw(measured, args.out / "scale.svg")
    for axis, points in measured["axes"].items():
        (time, start), (memory, least) = line(points, axis, "seconds"), line(points, axis, "peak_mib")
        print(f"{TITLES[axis]}: {start:.3f} s + {time:.3g} s each, {least:.0f} MiB + {memory:.3g} MiB each")


if __name__ == "__main__":
    main()
