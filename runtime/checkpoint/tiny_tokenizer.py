"""A byte-level tokenizer for checkpoints without a trained one: every text has ids, every id is some text."""

from __future__ import annotations

import itertools
from typing import Any

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
BYTES = 256
VOCABULARY_LEAST = BYTES + 2
_FREQUENT = " etaoinshrdlcumwfgypbvkjxqz"


def tokenizer_json(vocabulary: int) -> dict[str, Any] | None:
    """What a ``tokenizer.json`` (of the ``tokenizers`` library) with ``vocabulary`` ids holds; ``None`` if too few.

    Ids 0 and 1 begin and end a text, 2 to 257 are the bytes, the others pairs of letters and then of any bytes.
    """
    if not VOCABULARY_LEAST <= vocabulary <= VOCABULARY_LEAST + BYTES * BYTES:
        return None
    characters = _byte_characters()
    frequent = [characters[ord(letter)] for letter in _FREQUENT]
    pairs = dict.fromkeys(
        itertools.chain(itertools.product(frequent, frequent), itertools.product(characters, repeat=2))
    )
    merges = list(itertools.islice(pairs, vocabulary - VOCABULARY_LEAST))
    tokens = [*characters, *("".join(pair) for pair in merges)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(0, BEGIN), _special(1, END)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {BEGIN: 0, END: 1, **{token: place for place, token in enumerate(tokens, start=2)}},
            "merges": [list(pair) for pair in merges],
        },
    }


def _special(number: int, content: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **plain, "special": True}


def _byte_characters() -> list[str]:
    """The characters that stand for bytes in byte-level tokenizers: itself where it prints, else one from 256 on."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(BYTES)
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(BYTES)]
