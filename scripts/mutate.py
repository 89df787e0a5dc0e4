#!/usr/bin/env python3
"""Spoil inputs at random and see that the program refuses them in a sentence: no panic, no endless loop, no memory without bound.

usage: mutate.py BINARY [--count N] [--seed S] [--jobs J] [--keep DIR]
needs: nothing; run it from the project's root

Each input is a valid one (a model folder, shards, a GGUF, a tokenizer, a chat template, a target file, settings, a study, a checkpoint, a record) with
one to four changes: bytes flipped, cut, doubled or put in, a piece repeated a thousand to a hundred thousand times, numbers that stand in its
bytes replaced by extremes, values of its JSON replaced by values of another kind, or repeated. A run is bad when it exits with other than 0, 2 or 3 (1 too for `invert`), prints more than one line of error, says
"panicked", takes longer than 10 s or more than 2 GB. Bad inputs are kept in DIR with the command that read them.
Prints the counts by kind and exit code, and exits with 1 when a run was bad.
"""
import argparse
import collections
import concurrent.futures
import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, MEGABYTES = 10, 2000
GOLDEN = Path("tests/golden")
EXTREMES = [0, 1, 2, 7, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
ODD = [None, True, [], {}, "", "x" * 5000, "\x1b[31m\u202e", 0, -1, 1, 1e308, -1e-308, 2**31, 2**63, 2**64, 0.5, [0] * 300, [[[[[]]]]], {"a": {}},
       "../../etc/passwd", "🙂", "\ud7ff"]


def folder(source, names):
    return {name: (GOLDEN / source / name).read_bytes() for name in names}


PLAIN = ["config.json", "tokenizer.json", "model.safetensors"]
SPECIAL = b'{"bos_token": "<s>", "eos_token": {"content": "</s>"}}'
CHAT = b"{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def gguf_with_template(path: Path, template: bytes) -> bytes:
    """A GGUF with one more entry before the others, as long as its alignment."""
    data, key = path.read_bytes(), b"tokenizer.chat_template"
    template += b"\n" * (-(len(key) + 20 + len(template)) % 32)
    count = struct.unpack("<Q", data[16:24])[0]
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(template)) + template
    return data[:16] + struct.pack("<Q", count + 1) + entry + data[24:]


def bases(work: Path, binary: str) -> dict:
    """Kind -> (files, which of them are spoilt, commands that read them; `{}` is the folder)."""
    out = work / "run"
    on_tiny = ["--model", str(GOLDEN / "tiny/gqa3-tied"), "--backend", "flex"]
    invert = [*on_tiny, "invert", "he is", "--prompt-tokens", "3", "--method", "dlmi", "--samples", "2"]
    subprocess.run([binary, *invert, "--steps", "3", "--out", str(out)], capture_output=True)
    run = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "lock"}
    study = work / "study"
    subprocess.run([binary, "study", "run", "tests/slurm.toml", "--out", str(study), "--limit", "1"], capture_output=True)
    cell = next((study / "cells").glob("*.json"), None)
    complete = ["--model", "{}", "--backend", "flex", "complete", "he is", "--tokens", "2"]
    show, chat = ["models", "show", "{}"], [*complete, "--chat"]
    search = [*complete[:4], "invert", "he is", "--prompt-tokens", "3", "--steps", "1", "--max-seconds", "2"]
    score = [*complete[:4], "score", "the king", " is"]
    sharded = sorted(path.name for path in (GOLDEN / "tiny/sharded").iterdir() if path.name != "expected.safetensors")
    tiny, spm = folder("tiny/gqa3-tied", PLAIN), folder("cases/spm-legacy", PLAIN)
    gguf = {"m.gguf": (GOLDEN / "tiny_gguf/gqa3-tied.f32.gguf").read_bytes()}
    pieces = {"m.gguf": (GOLDEN / "tiny_gguf/pieces.f16.gguf").read_bytes()}
    quantised = {"m.gguf": (GOLDEN / "tiny_gguf/kquants.gguf").read_bytes()}
    target = ['{"id":"a","text":" the king","ids":[3,4],"k":1,"bos":0}', '{"text":"he is"}']
    kinds = {
        "config": (tiny, ["config.json"], [complete, show]),
        "weights": (tiny, ["model.safetensors"], [complete, show]),
        "tokenizer": (tiny, ["tokenizer.json"], [complete, search, score]),
        "sentencepiece": (spm, ["tokenizer.json"], [complete, search, score]),
        "shards": (folder("tiny/sharded", sharded), sharded, [complete]),
        "gguf": (gguf, ["m.gguf"], [["--model", "{}/m.gguf", *complete[2:]], ["models", "show", "{}/m.gguf"]]),
        "pieces": (pieces, ["m.gguf"], [["--model", "{}/m.gguf", *complete[2:]], ["--model", "{}/m.gguf", *score[2:]]]),
        "k-quants": (quantised, ["m.gguf"], [["--model", "{}/m.gguf", *complete[2:]]]),
        "chat": ({**spm, "chat_template.jinja": CHAT, "tokenizer_config.json": SPECIAL}, ["chat_template.jinja", "tokenizer_config.json"], [chat, [*search, "--chat"]]),
        "special tokens": ({**spm, "chat_template.jinja": CHAT, "special_tokens_map.json": SPECIAL}, ["special_tokens_map.json"], [chat, show]),
        "generation": ({**tiny, "generation_config.json": b'{"eos_token_id": [0, 261], "bos_token_id": 0}'}, ["generation_config.json"],
                       [[*complete, "--stop-at-eos"], show]),
        "gguf chat": ({"m.gguf": gguf_with_template(GOLDEN / "tiny_gguf/gqa3-tied.f32.gguf", (GOLDEN / "chat/smollm2.jinja").read_bytes())},
                      ["m.gguf"], [["--model", "{}/m.gguf", *chat[2:]]]),
        "targets": ({"t.jsonl": "\n".join(target).encode()}, ["t.jsonl"], [[*on_tiny, "targets", "--label", "{}/t.jsonl"]]),
        "settings": ({"s.toml": b'method = "dlmi"\nsteps = 7\nprefix = "a"\n[dlmi]\nsamples = 2\ntau0 = 1.5\n'}, ["s.toml"],
                     [["config", "show", "-c", "{}/s.toml"]]),
        "study": (folder("../../configs/study", ["smoke.toml", "smoke.jsonl"]), ["smoke.toml", "smoke.jsonl"], [["study", "cells", "{}/smoke.toml"]]),
        "checkpoint": (run, ["checkpoint.safetensors", "events.jsonl"], [[*invert, "--steps", "4", "--out", "{}", "--resume"]]),
    }
    for template in sorted((GOLDEN / "chat").glob("*.jinja")):
        files = {**spm, "chat_template.jinja": template.read_bytes(), "tokenizer_config.json": SPECIAL}
        kinds[f"chat {template.stem}"] = (files, ["chat_template.jinja"], [chat])
    if cell:
        kinds["record"] = ({"r.json": cell.read_bytes().replace(b"\n", b"") + b"\n"}, ["r.json"], [["report", "{}/r.json", "-o", "{}/report"]])
    return kinds


def walk(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:400]:
        yield from walk(inner, (*path, key))


def put(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def times(length: int, draw: random.Random) -> int:
    """How often a piece of so many bytes is repeated: a thousand to a hundred thousand times, and no more than 4 MB."""
    return min(int(10 ** draw.uniform(3, 5)), (4 << 20) // max(length, 1))


def repeated(value, draw: random.Random):
    """A piece of a JSON value, many times: a list of it, one in another, or a longer text."""
    place = draw.choice([place for place in walk(value)])
    for key in place:
        value = value[key]
    value = copy.deepcopy(value)
    if isinstance(value, str):
        return value * times(len(value), draw)
    count = times(len(json.dumps(value)), draw)
    if draw.random() < 0.8:
        return [value] * count
    return json.loads("[" * 500 + json.dumps(value) + "]" * 500)


def spoil_json(data: bytes, draw: random.Random) -> bytes:
    value = json.loads(data)
    # Once at most: what is repeated shares its parts, and would multiply.
    repeats = draw.random() < 0.2
    for _ in range(draw.randint(1, 3)):
        places = [place for place in walk(value) if place]
        if not places:
            break
        try:
            put(value, draw.choice(places), repeated(value, draw) if repeats else copy.deepcopy(draw.choice(ODD)))
            repeats = False
        except (KeyError, IndexError, TypeError):
            pass
    return json.dumps(value).encode()


def spoil_bytes(data: bytes, draw: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1) if draw.random() < 0.5 else draw.randrange(min(len(data), 600) + 1)
        kind = draw.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at:at + draw.choice([1, 2, 8, 100, len(data)])]
        elif kind == 2:
            data[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice([1, 4, 64])))
        elif kind == 3:
            data[at:at] = data[at:at + draw.choice([1, 16, 300])]
        elif kind == 4:
            piece = data[at:at + draw.choice([1, 2, 4, 7, 12, 30])]
            data[at:at] = piece * times(len(piece), draw)
        else:
            width = draw.choice([4, 8])
            number = draw.choice(EXTREMES) & ((1 << (8 * width)) - 1)
            data[at:at + width] = struct.pack("<Q", number)[:width]
    return bytes(data)


def spoil(name: str, data: bytes, draw: random.Random) -> bytes:
    if name.endswith(".json") and draw.random() < 0.7:
        return spoil_json(data, draw)
    if name.endswith(".safetensors") and draw.random() < 0.5:
        length = struct.unpack("<Q", data[:8])[0]
        header = spoil_json(data[8:8 + length], draw)
        return struct.pack("<Q", len(header)) + header + data[8 + length:]
    return spoil_bytes(data, draw)


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def one(job) -> tuple:
    """Runs one spoilt input; (number, kind, exit code, what is wrong, command)."""
    number, kind, files, spoilt, command, binary, seed, keep = job
    draw = random.Random(f"{seed}/{number}")
    work = Path(tempfile.mkdtemp(prefix="dlmi-mutate-"))
    try:
        for name, data in files.items():
            (work / name).write_bytes(data)
        name = draw.choice(spoilt)
        (work / name).write_bytes(spoil(name, files[name], draw))
        command = [part.replace("{}", str(work)) for part in command]
        environment = {**os.environ, "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(work / "cache")}
        began = time.monotonic()
        errors = tempfile.TemporaryFile()
        child = subprocess.Popen([binary, "-q", *command], stdout=subprocess.DEVNULL, stderr=errors, stdin=subprocess.DEVNULL, env=environment,
                                 preexec_fn=limit, start_new_session=True)
        wrong, usage = "", None
        while usage is None:
            pid, status, found = os.wait4(child.pid, os.WNOHANG)
            if pid:
                usage, code = found, os.waitstatus_to_exitcode(status)
            elif time.monotonic() - began > SECONDS and not wrong:
                wrong = f"longer than {SECONDS} s"
                os.killpg(child.pid, signal.SIGKILL)
            else:
                time.sleep(0.002)
        child.returncode = code
        errors.seek(0)
        said = errors.read().decode(errors="replace")
        allowed = (0, 1, 2, 3) if "invert" in command else (0, 2, 3)
        if not wrong and code not in allowed:
            wrong = f"exit code {code}"
        if "panicked" in said or "RUST_BACKTRACE" in said:
            wrong = wrong or "a panic"
        if code in (2, 3) and sum(line.startswith("error: ") for line in said.splitlines()) != 1:
            wrong = wrong or "not one error"
        if usage.ru_maxrss > MEGABYTES * 1000:
            wrong = wrong or f"{usage.ru_maxrss // 1000} MB"
        if wrong and keep:
            shutil.copytree(work, Path(keep) / str(number), dirs_exist_ok=True)
            (Path(keep) / str(number) / "command.txt").write_text(f"{' '.join(command)}\n{wrong}\n{said}")
        return number, kind, code, wrong, said.strip()[:300]
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--count", type=int, default=15_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--keep", metavar="DIR")
    args = parser.parse_args()
    binary = os.path.realpath(args.binary)
    with tempfile.TemporaryDirectory() as work:
        kinds = bases(Path(work), binary)
    names = list(kinds)

    def jobs():
        for number in range(args.count):
            kind = names[number % len(names)]
            files, spoilt, commands = kinds[kind]
            yield number, kind, files, spoilt, commands[number // len(names) % len(commands)], binary, args.seed, args.keep

    codes, bad, began = collections.defaultdict(collections.Counter), [], time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for number, kind, code, wrong, said in pool.map(one, jobs()):
            codes[kind][code] += 1
            if wrong:
                bad.append(number)
                print(f"input {number} ({kind}): {wrong}: {said}", flush=True)
    for kind in names:
        print(f"{kind:14}", ", ".join(f"{count} × exit {code}" for code, count in sorted(codes[kind].items())))
    print(f"{args.count} inputs in {time.monotonic() - began:.0f} s, {len(bad)} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
