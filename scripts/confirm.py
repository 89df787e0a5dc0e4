#!/usr/bin/env python3
"""Judge what `dlmi invert --json` claims, with transformers and nothing of dlmi: does the prompt, typed as text, make the model write the target?

usage: confirm.py HF_DIR RESULTS... [--targets FILE] [--max-tokens N] [--forbid | --allow] [--threads N]
needs: pip install torch transformers tokenizers

RESULTS holds one result as JSON, or one on each line (`dlmi invert --targets FILE --json`), or cells of a study (`dlmi study merge`).

A result is confirmed when `prompt_text`, tokenised again (after one BoS if `bos` is true), makes the model write exactly `target_ids` by
greedy decoding in f32, and
  - these tokens are its `prompt_ids`, and `target_ids` spell `target_text` (or line i of FILE is the target of result i);
  - `prompt_text` is `settings.prefix`, `free_text` and `settings.suffix` in a row, or what the model's chat template makes of them as the
    user's turn, behind `settings.system` (HF_DIR then has a `chat_template`);
  - the free part has at most N tokens (by default the result's own `settings.prompt_tokens`);
  - the free part holds no token of the target and no token of three letters or more that shares a word with it (--forbid; by default when the
    result's own `settings.allow_target_tokens` is false).
Prints a line for each result and "confirmed/total" last. A missing or unreadable result is not confirmed.
Exit 1 when a result claims `exact` and is not confirmed.
"""
import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import logging as transformers_logging


@dataclass
class Verdict:
    fault: str  # empty: confirmed
    margin: float  # smallest gap between best and second-best logit along the path


def words_of(text: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[^\W\d_]+", text)}


def shares_word(token: str, words: set[str]) -> bool:
    """Whether a token of three letters or more is part of one of `words`, or holds one of three letters or more."""
    token = token.strip().lower()
    return len(token) >= 3 and any(token in word or (len(word) >= 3 and word in token) for word in words)


class Judge:
    def __init__(self, folder: str, max_tokens: int | None, forbid: bool | None):
        self.folder = folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.special = {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        self.max_tokens, self.forbid = max_tokens, forbid

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @torch.no_grad()
    def greedy(self, ids: list[int], count: int) -> tuple[list[int], float]:
        """The model's own next `count` tokens, the whole text pushed through each time."""
        written, margin = [], float("inf")
        for _ in range(count):
            best = self.model(torch.tensor([ids + written])).logits[0, -1].topk(2)
            margin = min(margin, (best.values[0] - best.values[1]).item())
            written.append(best.indices[0].item())
        return written, margin

    def shared(self, free: list[int], target: list[int]) -> str | None:
        """The first piece of the free part that the target's ban covers."""
        words = words_of(self.decode(target))
        for token in free:
            text = self.decode([token])
            if token in target or shares_word(text, words):
                return text.strip().lower()
        return None

    def turn(self, settings: dict, free_text: str) -> str:
        """`free_text` between the fixed texts."""
        return (settings.get("prefix") or "") + free_text + (settings.get("suffix") or "")

    def whole(self, settings: dict, free_text: str) -> str:
        """The whole prompt in which `free_text` was found."""
        turn = self.turn(settings, free_text)
        if not settings.get("chat"):
            return turn
        system = [{"role": "system", "content": settings["system"]}] if settings.get("system") else []
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return tokenizer.apply_chat_template(system + [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True)

    def free_part(self, settings: dict, free_text: str, prompt_text: str) -> list[int]:
        """The tokens of the whole prompt that hold any of the free part: by itself it may be tokenised otherwise than between the fixed texts."""
        turn = self.turn(settings, free_text)
        # A chat template may trim the turn.
        start = prompt_text.rindex(turn.strip()) - (len(turn) - len(turn.lstrip())) + len(settings.get("prefix") or "")
        encoded = self.tokenizer.encode(prompt_text, add_special_tokens=False)
        return [i for i, (first, end) in zip(encoded.ids, encoded.offsets) if end > start and first < start + len(free_text)]

    def rules(self, result: dict, prompt: list[int], target: list[int]) -> str:
        """What is wrong with the result before the model is asked, `target` being what it shall write; empty when nothing is."""
        settings, free_text = result.get("settings", {}), result.get("free_text", result["prompt_text"])
        limit = settings.get("prompt_tokens") if self.max_tokens is None else self.max_tokens
        banned = settings.get("allow_target_tokens") is False and not settings.get("all_tokens")
        forbid = banned if self.forbid is None else self.forbid
        if result.get("bos") and prompt[0] not in self.special:
            return f"token {prompt[0]} is no BoS"
        if "prompt_ids" in result and result["prompt_ids"] != prompt:
            return "`prompt_ids` are not the tokens of `prompt_text`"
        if self.whole(settings, free_text) != result["prompt_text"]:
            return "`prompt_text` is not what stands around `free_text`"
        free = self.free_part(settings, free_text, result["prompt_text"])
        if limit is not None and len(free) > limit:
            return f"{len(free)} free tokens, {limit} allowed"
        if forbid and (piece := self.shared(free, target)) is not None:
            return f"the prompt holds {piece!r} of the target"
        return ""

    def verdict(self, result: dict, target_text: str | None) -> Verdict:
        """Judges one result against its own target, or against a given text."""
        target = self.encode(target_text) if target_text is not None else result["target_ids"]
        # The token that ends a target (--end) is no part of its text.
        text_ids = target[:-1] if result.get("settings", {}).get("end") else target
        bos = result["prompt_ids"][:1] if result.get("bos") else []
        prompt = bos + self.encode(result["prompt_text"])
        if target_text is None and "target_text" in result and not self.decode(prompt + text_ids).endswith(result["target_text"]):
            return Verdict("`target_ids` do not spell `target_text`", 0.0)
        if not prompt or not target:
            return Verdict("an empty prompt or target", 0.0)
        if fault := self.rules(result, prompt, text_ids):
            return Verdict(fault, 0.0)
        written, margin = self.greedy(prompt, len(target))
        if written == target:
            return Verdict("", margin)
        matched = next(i for i, (a, b) in enumerate(zip(written, target)) if a != b)
        return Verdict(f"the model writes {self.decode(written)!r}, right for {matched} of {len(target)} tokens", margin)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="HF_DIR")
    parser.add_argument("results", metavar="RESULTS", nargs="+")
    parser.add_argument("--targets", metavar="FILE")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    ban = parser.add_mutually_exclusive_group()
    ban.add_argument("--forbid", action="store_true", default=None, dest="forbid")
    ban.add_argument("--allow", action="store_false", default=None, dest="forbid")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def read(path: str) -> list[tuple[str, str]]:
    """(name, JSON) of each result of a file; one that cannot be read is a result too, so that it is not passed over."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return [(path, "")]
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        json.loads(text)
    except ValueError:
        return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)] or [(path, "")]
    return [(path, text)]


def main() -> int:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()
    results = [result for path in args.results for result in read(path)]
    targets = Path(args.targets).read_text(encoding="utf-8").split("\n") if args.targets else [None] * len(results)
    if len(targets) < len(results):
        sys.exit(f"{args.targets} has {len(targets)} lines for {len(results)} results")
    judge = Judge(args.model, args.max_tokens, args.forbid)
    confirmed = wrong = 0
    for (name, text), target in zip(results, targets):
        claim = False
        try:
            result = json.loads(text)
            result = result.get("inversion", result)
            claim = bool(result["exact"])
            verdict = judge.verdict(result, target)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            verdict = Verdict(f"unreadable ({type(error).__name__}: {error})", 0.0)
        confirmed += not verdict.fault
        wrong += claim and bool(verdict.fault)
        outcome = f"not confirmed: {verdict.fault}" if verdict.fault else f"confirmed, margin {verdict.margin:.4f}"
        print(f"{name}: claims exact={claim}; {outcome}{' <-- WRONG CLAIM' if claim and verdict.fault else ''}")
    print(f"{confirmed}/{len(results)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
