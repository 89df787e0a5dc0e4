"""What transformers makes of the models of cases/ -> cases/expected.json.

usage: cases.py                           needs: torch transformers tokenizers safetensors
Each case is put together with the weights that they share. By case: the prompt, its ids without added tokens, and what `generate` writes
greedily: with the stop tokens of the model's own generation config, and without any. `yi-bos` begins with its BoS.
"""
import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers import logging as transformers_logging

from common import HERE

CASES = HERE / "cases"
PROMPTS = {"generation-eos": "one", "pad-token-past-embeddings": "the king", "yi-bos": "the king"}


@torch.no_grad()
def expected(name: str, prompt: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(CASES / name, folder, dirs_exist_ok=True)
        shutil.copy(CASES / "model.safetensors", folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"))
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if name == "yi-bos":
        ids = [model.config.bos_token_id, *ids]

    def written() -> list[int]:
        return model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, pad_token_id=0)[0, len(ids):].tolist()

    stopped = written()
    model.generation_config.eos_token_id = None
    return {"prompt": prompt, "prompt_ids": ids, "stopped": stopped, "whole": written()}


if __name__ == "__main__":
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    lines = [f"{json.dumps(name)}: {json.dumps(expected(name, prompt))}" for name, prompt in PROMPTS.items()]
    (CASES / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
