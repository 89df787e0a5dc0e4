"""The ids of SmolLM2's own tokenizer for smollm2/texts.txt -> smollm2/ids.json.

usage: tokenizer_ids.py TOKENIZER_JSON    the file of HuggingFaceTB/SmolLM2-135M-Instruct
needs: tokenizers
  smollm2/ids.json          whole: ids of the whole file · lines: ids of each line alone, cut at "\\n" only
No special tokens are added; those written in the text are recognised.
"""
import json
import sys

from tokenizers import Tokenizer

from common import HERE


def main(path: str) -> None:
    tokenizer = Tokenizer.from_file(path)
    text = (HERE / "smollm2/texts.txt").read_bytes().decode()

    def ids(text: str) -> list[int]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text, text
        return ids

    expected = {"whole": ids(text), "lines": [ids(line) for line in text.split("\n")]}
    (HERE / "smollm2/ids.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    print(f"{len(expected['lines'])} lines, {len(expected['whole'])} tokens, {len(set(expected['whole']))} of them different")


if __name__ == "__main__":
    main(sys.argv[1])
