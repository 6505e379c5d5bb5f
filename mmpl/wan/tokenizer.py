"""Prompts to token ids: Wan's cleaning, then the model's own tokenizer.

The tokenizer is given as the text of a `tokenizer.json`; this module knows no files. Source:
Wan2.1 wan/modules/tokenizers.py.
"""

from __future__ import annotations

import re

from mmpl.errors import ArgumentError, CheckpointError

PAD = "<pad>"
EOS = "</s>"
PAD_ID = 0  # the id that fills a row of ids up to its length


def clean_prompt(text: str) -> str:
    """The prompt as Wan cleans it before tokenising.

    Repairs mis-decoded text and drops control characters (ftfy), resolves HTML entities twice over,
    and makes every run of whitespace one space. Case and punctuation stay.
    """
    repaired = text
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else nothing to repair
        import html  # noqa: PLC0415  tables, which few prompts need

        import ftfy  # noqa: PLC0415  a fifth of a second of them

        repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", repaired).strip()


class Tokenizer:
    """Token ids of the umT5 family: every text ends in one EOS token, pads have id 0."""

    def __init__(self, json: str | bytes, *, where: str = "tokenizer.json") -> None:
        """Reads the content of a `tokenizer.json`; CheckpointError if it is not one of this family.

        `where` names it in errors.
        """
        import tokenizers  # noqa: PLC0415  a large library, which a program may do without

        try:
            text = json.decode("utf-8") if isinstance(json, bytes) else json
            model = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001  the library raises nothing narrower
            raise CheckpointError("not a tokenizer", where=where, got=str(error)[:200]) from error
        pad, eos = model.token_to_id(PAD), model.token_to_id(EOS)
        if pad != PAD_ID or eos is None:
            raise CheckpointError(
                "not a tokenizer of the umT5 family",
                where=where,
                got=f"{PAD} as {pad}, {EOS} as {eos}",
                wanted=f"{PAD} as {PAD_ID} and a token {EOS}",
            )
        model.no_truncation()
        model.no_padding()
        self._model = model
        self.eos_id: int = eos

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._model.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, text_len: int) -> list[int]:
        """1 to `text_len` ids of `text`, not padded. What is too long is cut; the EOS stays.

        `text` is taken as it is: clean a prompt first. Half of a surrogate pair, which no text
        encoding allows, counts as the replacement character.
        """
        if text_len < 1:
            raise ArgumentError("text_len", got=text_len, wanted="at least 1, for the EOS token")
        return [*self._ids(text)[: text_len - 1], self.eos_id]

    def tokens_cut(self, text: str, text_len: int) -> int:
        """How many tokens `encode` leaves out because `text` is too long; 0 if it fits."""
        return max(0, len(self._ids(text)) + 1 - text_len)

    def _ids(self, text: str) -> list[int]:
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return self._model.encode(whole, add_special_tokens=False).ids
