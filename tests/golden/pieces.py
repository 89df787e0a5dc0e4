"""A GGUF whose tokenizer is SentencePiece's BPE, as Llama 2 and TinyLlama have it, and the ids that SentencePiece gives.

usage: pieces.py                          needs: sentencepiece gguf numpy torch
  tiny_gguf/pieces.f16.gguf               a random layer, 16 wide; 1,000 pieces learned from smollm2/texts.txt, byte fallback
  tiny/tokenizer_cases.pieces.json        texts and their ids; what stands between special tokens is tokenised apart, each with its dummy
                                          prefix, as llama.cpp does
"""
import io
import json
import re

import gguf
import numpy as np
import sentencepiece
from gguf import TokenType

from common import HERE, TINY
from tiny_gguf import OUT, finish, metadata

PIECES = 1000
CONFIG = {"model_type": "llama", "vocab_size": PIECES, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
          "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
SHAPES = {"token_embd": (PIECES, 16), "output": (PIECES, 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,),
          "blk.0.attn_q": (16, 16), "blk.0.attn_k": (8, 16), "blk.0.attn_v": (8, 16), "blk.0.attn_output": (16, 16),
          "blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24)}
TEXTS = ["", " ", "the and then", " in the  window\n\n    indented\ttab", "12 o'clock, 1984: don't 12,345.67", "naïve café — 東京 🙂👩‍👩‍👧 مرحبا",
         "\x00\x1b[31m\x7f", "</s>", "a</s>the king</", "<s> <s>x", "<0x41>", "▁", "aaaa aaaaa", "llll", "<unk>"]


def trained() -> sentencepiece.SentencePieceProcessor:
    """Learned as Llama's was: BPE, bytes for what has no piece, no digit beside another, no text changed."""
    model = io.BytesIO()
    lines = (HERE / "smollm2/texts.txt").read_bytes().decode().split("\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=PIECES, byte_fallback=True, split_digits=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def ids(pieces: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Special tokens that are written in the text, and the pieces of what is between them."""
    special = {pieces.id_to_piece(i): i for i in range(3)}
    parts = [part for part in re.split("(<s>|</s>|<unk>)", text) if part]
    return [i for part in parts for i in ([special[part]] if part in special else pieces.encode(part))]


def kind(pieces: sentencepiece.SentencePieceProcessor, i: int) -> TokenType:
    if pieces.is_unknown(i):
        return TokenType.UNKNOWN
    if pieces.is_control(i):
        return TokenType.CONTROL
    return TokenType.BYTE if pieces.is_byte(i) else TokenType.NORMAL


def write(pieces: sentencepiece.SentencePieceProcessor) -> None:
    writer = metadata(OUT / "pieces.f16.gguf", CONFIG)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(i) for i in range(PIECES)])
    writer.add_token_scores([pieces.get_score(i) for i in range(PIECES)])
    writer.add_token_types([kind(pieces, i) for i in range(PIECES)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    draw = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = draw.uniform(0.5, 1.5, shape).astype(np.float32) if len(shape) == 1 else draw.normal(0, 0.3, shape).astype(np.float16)
        writer.add_tensor(f"{name}.weight", values)
    finish(writer)


if __name__ == "__main__":
    pieces = trained()
    write(pieces)
    texts = TEXTS + (HERE / "smollm2/texts.txt").read_bytes().decode().split("\n")[:290]
    cases = [{"text": text, "ids": ids(pieces, text)} for text in dict.fromkeys(texts)]
    (TINY / "tokenizer_cases.pieces.json").write_text(json.dumps(cases, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(cases)} texts, {sum(len(case['ids']) for case in cases)} ids, {len({i for case in cases for i in case['ids']})} different")
