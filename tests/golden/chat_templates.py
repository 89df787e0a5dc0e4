"""What transformers makes of chats with each template of chat/ -> chat/expected.json.

needs: transformers tokenizers
  a list of  template: its file · system, user: the turns · tokenizer: `bard`, which has no `<|im_start|>`, or `spm`, that of cases/spm-legacy ·
             tokens: the special ones by name · text, ids: the whole
The date stands as <FORMAT>. The templates are written for this purpose, with the means that those of the models use which they are named after.
"""
import json

from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from common import HERE, ROOT

TURNS = [
    (None, "Who goes there?"),
    (None, "  Two spaces, a tail \n"),
    ("Speak like a king.", "Who goes there?"),
    ("Be brief. /no_think", "{{ user }} {% if %} <b>\"quoted\"</b> é 👩‍💻"),
]
TOKENIZERS = {
    "bard": (ROOT / "models/bard/tokenizer.json", {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "spm": (HERE / "cases/spm-legacy/tokenizer.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
}


class Today:
    """In place of datetime: the date is its format."""

    @staticmethod
    def now():
        return Today()

    @staticmethod
    def strftime(form: str) -> str:
        return f"<{form}>"


def main() -> None:
    chat_template_utils.datetime = Today
    expected = []
    for name, (file, tokens) in TOKENIZERS.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **tokens)
        for path in sorted((HERE / "chat").glob("*.jinja")):
            for system, user in TURNS:
                messages = [{"role": "system", "content": system}] if system else []
                messages.append({"role": "user", "content": user})
                given = dict(chat_template=path.read_text(), add_generation_prompt=True)
                text = tokenizer.apply_chat_template(messages, tokenize=False, **given)
                ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **given)
                expected.append(dict(template=path.name, system=system, user=user, tokenizer=name, tokens=tokens, text=text, ids=ids))
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in expected)
    (HERE / "chat/expected.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
