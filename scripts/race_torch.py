#!/usr/bin/env python3
"""The race outside the program: nanoGCG itself, or SODA in PyTorch, on a list of targets, one result a line for `confirm.py`.

usage: race_torch.py HF_DIR TARGETS.jsonl nanogcg|soda [--prompt-tokens 20] [--max-seconds 600 | --against RESULTS.jsonl --times 10] [--bos TEXT]
                     [--seed 0] [--set KEY=VALUE]... [--only ID,...] [--threads T]
needs: pip install nanogcg==0.3.0 'transformers<4.48' torch (an environment of its own)

nanogcg  0.3.0 as it is installed, from N tokens of `x x x …`, even where one of them is banned and has to go, 512 candidates a step of which 32
         are computed at once, with its early stop, over and over with the next seed until the time is up; the prefix cache is on behind a BoS,
         without one it fails. --set changes fields of its GCGConfig. By default it leaves out all that is not printable ASCII, such as newlines:
         `--set allow_non_ascii=true` leaves them in. Its early stop may return another prompt than the one that it stopped for; here the one
         that it stopped for counts.
soda     z [N, V] from zeros, softmax(z / t) without noise, max log p - log p_y averaged over the target, Adam without bias correction whose
         state is dropped every `reset` steps, z decayed after each, drawn anew from N(0, 0.1²) every `restart`. Its argmax is looked at in every
         step. --set changes lr, decay, t, beta1, beta2, reset, restart.

With --against each target has so many times the seconds that `dlmi invert --targets --json` took for it. The step in which they end is finished
and counts. Both keep the ban that confirm.py checks, no token of the target and none of three letters or more that shares a word with it, which is
less than dlmi's own. A prompt counts when its text, tokenised again to at most N tokens, keeps it and makes the model write the target greedily.
Loading, the ban and nanoGCG's import are not in the seconds. A target whose text gives other tokens is left out, with a word.
"""
import argparse
import json
import logging
import sys
import time
from pathlib import Path

import torch
from confirm import shares_word, words_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import logging as transformers_logging

SODA = {"lr": 0.03, "decay": 0.98, "t": 0.05, "beta1": 0.9, "beta2": 0.995, "reset": 50, "restart": 1500}


class Task:
    """One target on one model: what may stand in a prompt, and what counts."""

    def __init__(self, model, tokenizer, target: dict, max_seconds: float, args: argparse.Namespace):
        self.model, self.tokenizer, self.args, self.max_seconds = model, tokenizer, args, max_seconds
        self.id, self.text, self.ids = target.get("id"), target["text"], target["ids"]
        self.settings = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in args.set)}
        self.bos = self.encode(args.bos)
        self.banned = self.ban()
        self.started = time.perf_counter()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def over(self) -> bool:
        return self.seconds() > self.max_seconds

    def ban(self) -> set[int]:
        """The target's tokens, those that share a word with it, special ones, parts of characters, and rows of no token."""
        words, tokens, rows = words_of(self.text), len(self.tokenizer), self.model.get_input_embeddings().num_embeddings
        texts = [self.decode([i]) for i in range(tokens)]
        bad = {i for i, text in enumerate(texts) if shares_word(text, words) or "\ufffd" in text}
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return bad | special | set(self.ids) | set(range(tokens, rows))

    @torch.no_grad()
    def leads(self, free: list[int]) -> bool:
        """Whether every target token is the likeliest behind the prompt and the target so far."""
        ids = torch.tensor([self.bos + free + self.ids[:-1]])
        logits = self.model(input_ids=ids, use_cache=False, num_logits_to_keep=len(self.ids)).logits[0]
        return logits.argmax(-1).tolist() == self.ids

    def solved(self, free: list[int]) -> bool:
        """Whether its text is what is looked for. Greedy decoding writes the target exactly when every token of it leads."""
        typed = self.encode(self.decode(free))
        return len(typed) <= self.args.prompt_tokens and not self.banned & set(typed) and self.leads(typed)

    def result(self, free: list[int], steps: int, exact: bool) -> dict:
        seconds, text = round(self.seconds(), 3), self.decode(free)
        settings = {
            "prompt_tokens": self.args.prompt_tokens, "allow_target_tokens": False, "prefix": self.args.bos, "suffix": "", "chat": False,
            "max_seconds": self.max_seconds, "seed": self.args.seed, "threads": torch.get_num_threads(), **self.settings,
        }  # fmt: skip
        return {
            "target": self.id, "method": self.args.method, "exact": exact, "seconds_to_exact": seconds if exact else None, "seconds": seconds,
            "steps": steps, "prompt_text": self.args.bos + text, "prompt_ids": self.bos + self.encode(text), "free_text": text, "bos": False,
            "target_text": self.text, "target_ids": self.ids, "settings": settings,
        }  # fmt: skip


def nanogcg(task: Task) -> dict:
    from nanogcg import gcg

    steps, sampled = 0, []
    filter_ids, tqdm = gcg.filter_ids, gcg.tqdm

    def until_over(steps_of_run):
        nonlocal steps
        for step in steps_of_run:
            if step > 0 and task.over():
                return
            steps += 1
            yield step

    def remembering(ids, tokenizer):
        nonlocal sampled
        kept = filter_ids(ids, tokenizer)
        sampled = kept.tolist()
        return kept

    class Noted(gcg.GCG):
        """nanoGCG, noting the candidate that it stops for: one that counts, if any of its batch does."""

        match: list[int] | None = None

        def _compute_candidates_loss_original(self, search_batch_size, input_embeds):
            loss = super()._compute_candidates_loss_original(search_batch_size, input_embeds)
            if self.stop_flag:
                self.match = next((sampled[i] for i in loss.argsort().tolist() if task.solved(sampled[i])), None)
            return loss

    start = task.decode(task.encode(" ".join("x" * task.args.prompt_tokens))[: task.args.prompt_tokens])
    defaults = {"num_steps": sys.maxsize, "optim_str_init": start, "early_stop": True, "batch_size": 32, "use_prefix_cache": bool(task.bos)}
    gcg.tqdm, gcg.filter_ids = until_over, remembering
    try:
        for seed in range(task.args.seed, sys.maxsize):
            torch.manual_seed(seed)
            search = Noted(task.model, task.tokenizer, gcg.GCGConfig(**defaults | task.settings))
            others = set() if search.not_allowed_ids is None else set(search.not_allowed_ids.tolist())
            search.not_allowed_ids = torch.tensor(sorted(others | task.banned))
            try:
                best = task.encode(search.run(task.args.bos + "{optim_str}", task.text).best_string)
            except RuntimeError as error:
                if "after decoding and re-encoding" not in str(error):
                    raise
                best = task.encode(start)  # No candidate survived, at which it gives up.
            best = search.match or best
            exact = task.solved(best)
            if exact or task.over():
                return task.result(best, steps, exact)
    finally:
        gcg.filter_ids, gcg.tqdm = filter_ids, tqdm


def soda(task: Task) -> dict:
    if unknown := task.settings.keys() - SODA.keys():
        sys.exit(f"soda has no {', '.join(sorted(unknown))}; it has {', '.join(SODA)}")
    settings = SODA | task.settings
    embedding = task.model.get_input_embeddings().weight
    rows = torch.tensor([i for i in range(embedding.shape[0]) if i not in task.banned])
    of_prompt, target = embedding[rows], torch.tensor(task.ids)
    before, behind = embedding[torch.tensor(task.bos, dtype=torch.long)], embedding[target[:-1]]
    torch.manual_seed(task.args.seed)
    z = torch.zeros(task.args.prompt_tokens, len(rows))
    steps, free, exact = 0, None, False
    while True:
        last, free = free, rows[z.argmax(-1)].tolist()
        exact = exact if free == last else task.solved(free)
        if exact or task.over():
            return task.result(free, steps, exact)
        if steps and steps % settings["restart"] == 0:
            z = 0.1 * torch.randn_like(z)
        if steps % settings["reset"] == 0:
            mean, square = torch.zeros_like(z), torch.zeros_like(z)
        leaf = z.clone().requires_grad_()
        prompt = torch.softmax(leaf / settings["t"], -1) @ of_prompt
        inputs = torch.cat([before, prompt, behind])[None]
        logits = task.model(inputs_embeds=inputs, use_cache=False, num_logits_to_keep=len(target)).logits[0]
        log_p = logits.log_softmax(-1)
        loss = (log_p.max(-1).values - log_p.gather(1, target[:, None])[:, 0]).mean()
        (g,) = torch.autograd.grad(loss, leaf)
        mean.lerp_(g, 1 - settings["beta1"])
        square.lerp_(g * g, 1 - settings["beta2"])
        z = settings["decay"] * (z - settings["lr"] * mean / (square.sqrt() + 1e-8))
        steps += 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="HF_DIR")
    parser.add_argument("targets", metavar="TARGETS.jsonl", type=Path)
    parser.add_argument("method", choices=["nanogcg", "soda"])
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--max-seconds", type=float, default=600)
    parser.add_argument("--against", metavar="RESULTS.jsonl", type=Path)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--bos", default="", help="what stands before the prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", metavar="ID,...")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def seconds_taken(path: Path) -> dict[str, float]:
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {result["target"]: result["seconds"] for result in results}


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    if args.method == "nanogcg":
        import nanogcg as _  # noqa: F401, before anything is timed

        logging.getLogger("nanogcg").setLevel(logging.ERROR)
    model = AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    # What stands before the optimised text is the message's own. nanoGCG would take the BoS off it, for a tokenizer to add it again.
    tokenizer.chat_template, tokenizer.bos_token = "{{ messages[0]['content'] }}", None
    if tokenizer("")["input_ids"]:
        sys.exit("this tokenizer adds special tokens by itself; nanoGCG would have them twice")
    only = args.only.split(",") if args.only else None
    against = seconds_taken(args.against) if args.against else None
    for target in map(json.loads, args.targets.read_text(encoding="utf-8").splitlines()):
        if only and target.get("id") not in only:
            continue
        if tokenizer(target["text"], add_special_tokens=False)["input_ids"] != target["ids"]:
            print(f"{target.get('id')}: its text gives other tokens; left out", file=sys.stderr)
            continue
        if against is not None and target["id"] not in against:
            sys.exit(f"{args.against} has no result of {target['id']}")
        max_seconds = args.max_seconds if against is None else args.times * against[target["id"]]
        run = nanogcg if args.method == "nanogcg" else soda
        print(json.dumps(run(Task(model, tokenizer, target, max_seconds, args))), flush=True)


if __name__ == "__main__":
    main()
