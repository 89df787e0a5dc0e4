#!/usr/bin/env python3
"""Chats as dlmi renders them beside what transformers makes of them: the same text and the same ids, wherever transformers makes any.

usage: chat_templates.py BINARY TEMPLATE...
needs: transformers; run it from the project's root

A TEMPLATE is a model's folder, or a `.jinja` file, which both sides then read in a tiny model's folder. Six chats each. Prints a line for each
template and where the first chat differs; exits with 1 when one does.
"""
import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

TINY = Path("tests/golden/cases/spm-legacy")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHATS = [
    (None, "Who goes there?"),
    (None, "  Two spaces, a tail \n"),
    ("Speak like a king.", "Who goes there?"),
    ("", "An empty system's turn"),
    ("Be brief. /no_think", "{{ user }} {% if %} <b>\"quoted\"</b> & é 👩‍💻"),
    ("A list:\n- one\n- two\n", "A question\n\nof two lines </think> it's"),
]


def with_template(template: Path, folder: Path) -> Path:
    """The tiny model's folder with this template, and room for long ones."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    shutil.copy(template, folder / "chat_template.jinja")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 15}))
    return folder


def by_transformers(tokenizer, system: str | None, user: str):
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": user})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # whatever a template makes of a chat that it does not want
        return None
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def by_dlmi(binary: str, folder: Path, system: str | None, user: str):
    command = [binary, "-q", "--model", str(folder), "score", "--chat", "--json", user, "x"]
    command += ["--system", system] if system is not None else []
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode == 2:
        return None
    said = json.loads(ran.stdout)
    return said["prompt_text"], said["prompt_ids"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("templates", nargs="+", type=Path, metavar="TEMPLATE")
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    different = 0
    for template in args.templates:
        with tempfile.TemporaryDirectory() as made:
            folder = template if template.is_dir() else with_template(template, Path(made))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            pairs = [(by_transformers(tokenizer, *chat), by_dlmi(args.binary, folder, *chat)) for chat in CHATS]
        wrong = next(((wanted, got) for wanted, got in pairs if wanted and wanted != got), None)
        alone = sum(wanted is None and got is not None for wanted, got in pairs)
        print(f"{template.name:60} {'DIFFERENT' if wrong else 'alike'}{f', {alone} refused by transformers alone' if alone else ''}", flush=True)
        if wrong:
            different += 1
            print(f"  transformers {wrong[0] and wrong[0][0]!r}\n  dlmi         {wrong[1] and wrong[1][0]!r}")
    print(f"{len(args.templates)} templates, {different} different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
