"""Philox4x32-10 and the draws made from it, in plain Python -> philox.json.

usage: philox.py                          needs: nothing but Python
  known_answers: counter, key -> output (Random123's published vectors, which the code here is checked against)
  draws: key = (seed, restart), counter = (step, purpose << 24 | sample, row, column / 4); lane column % 4 of the output is `bits`,
         uniform = ((bits >> 9) + 0.5) / 2^23 (exact in f32), gumbel = -ln(-ln uniform) (f64)
Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""
import json
import math
from itertools import product
from pathlib import Path

WORD = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85

KNOWN_ANSWERS = [  # counter, key, output: Random123 kat_vectors, philox4x32 10
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Ten rounds; four u32 for a counter of four and a key of two."""
    for _ in range(10):
        left, right = MULTIPLIERS[0] * counter[0], MULTIPLIERS[1] * counter[2]
        counter = (right >> 32 ^ counter[1] ^ key[0], right & WORD, left >> 32 ^ counter[3] ^ key[1], left & WORD)
        key = (key[0] + WEYL[0] & WORD, key[1] + WEYL[1] & WORD)
    return counter


def draw(seed: int, restart: int, step: int, purpose: int, sample: int, row: int, column: int) -> dict:
    """One number of the noise."""
    bits = philox((step, purpose << 24 | sample, row, column // 4), (seed, restart))[column % 4]
    uniform = ((bits >> 9) + 0.5) / 2**23
    place = {"seed": seed, "restart": restart, "step": step, "purpose": purpose, "sample": sample, "row": row, "column": column}
    return place | {"bits": bits, "uniform": uniform, "gumbel": -math.log(-math.log(uniform))}


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def places():
    """A run of neighbours (all four lanes, a change of block, row, sample and step), then the corners."""
    yield from ((0, 0, 0, 0, 0, 0, column) for column in range(9))
    yield from ((7, 1, step, purpose, sample, row, 49151)
                for step, purpose, sample, row in product((0, 255), (1, 5), (0, 7), (0, 79)))
    yield (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    yield (1, 0, 2048, 2, 3, 4, 128255)
    yield (0x80000000, 3, 1, 0, 0, 0, 6)


if __name__ == "__main__":
    answers = [tuple(map(words, line)) for line in KNOWN_ANSWERS]
    for counter, key, output in answers:
        assert philox(counter, key) == output, f"counter {counter}"
    known = [{"counter": counter, "key": key, "output": output} for counter, key, output in answers]
    lines = lambda rows: ",\n".join("  " + json.dumps(row) for row in rows)
    text = f'{{\n"known_answers": [\n{lines(known)}\n],\n"draws": [\n{lines(draw(*place) for place in places())}\n]\n}}\n'
    (Path(__file__).parent / "philox.json").write_text(text)
    print(f"{len(known)} known answers hold; {len(json.loads(text)['draws'])} draws")
