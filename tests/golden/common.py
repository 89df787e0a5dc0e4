"""What the fixture scripts share: places, one thread, the tiny tokenizer, logits and greedy decoding by transformers."""
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

torch.set_num_threads(1)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TINY = HERE / "tiny"

VOCAB = 288  # rows of every tiny embedding; the tokenizer names fewer, as padded checkpoints do
MERGES = """Ġ t|h e|i n|Ġ a|e r|o n|Ġt he|Ġ s|r e|a t|n d|i t|o r|e n|in g|e s|o u|l l|Ġa nd|Ġ w|v er|s t|1 2|Ġ Ġ|ĠĠ ĠĠ"""


# How the tokenizer.json of Llama 3 and of Qwen 2 cut text, by the name llama.cpp gives it.
WORDS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in byte order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(b if b in plain else next(shifted)) for b in range(256)]


def tiny_tokenizer(split: str = "smollm") -> Tokenizer:
    """`<|endoftext|>`, 256 bytes and 25 merges: 282 ids, split like SmolLM2 (single digits, then GPT-2's pattern), Llama 3 or Qwen 2.

    The merge `1 2` can never fire where digits are split before merging.
    """
    merges = [tuple(pair.split(" ")) for pair in MERGES.split("|")]
    tokens = ["<|endoftext|>", *byte_alphabet(), *("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=split == "llama-bpe"))
    if split == "smollm":
        cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        cut = [pre_tokenizers.Split(Regex(WORDS[split]), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return tokenizer


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    """[B, T] ids -> [B, T, V] logits, no cache."""
    return model(ids, use_cache=False).logits


def greedy(model, ids: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """`count` greedy tokens after each row of [B, T], and the smallest gap between best and second-best logit met."""
    start, gap = ids.shape[1], float("inf")
    for _ in range(count):
        best = logits_of(model, ids)[:, -1].topk(2)
        gap = min(gap, (best.values[:, 0] - best.values[:, 1]).min().item())
        ids = torch.cat([ids, best.indices[:, :1]], 1)
    return ids[:, start:].contiguous(), gap
