"""Text to token ids and back, through the checkpoint's ``tokenizer.json`` and the ``tokenizers`` library."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv4.runtime.errors import CheckpointError, ContractError

FILE = "tokenizer.json"
_BROKEN = "\ufffd"
"""What stands in decoded text for bytes that are no whole character."""


class Tokenizer:
    """Of one checkpoint. Nothing is added to a text: the model's tokenizer has no automatic first token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> Tokenizer | None:
        """The tokenizer beside the checkpoint in ``folder``, ``None`` where it has none or the library is missing.

        Raises ``CheckpointError`` for a file that the library cannot read.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            library = importlib.import_module("tokenizers")
        except ImportError:
            return None
        try:
            return cls(library.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path}: found {str(error).splitlines()[0]}; valid: a tokenizers file") from None

    def encode(self, text: str) -> list[int]:
        """Raises ``ContractError`` for text that is no Unicode, such as the bytes of another encoding."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = ascii(text[error.start : error.end])
            raise ContractError(f"prompt: found {found} at character {error.start}; valid: text in UTF-8") from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def why_none(folder: Path) -> str:
    """Why ``load`` gave ``None``, as an error says it."""
    if not (folder / FILE).exists():
        return f"{folder}: found no {FILE}"
    return "found no library for it: the package tokenizers is not installed"


class TextStream:
    """The text of a growing sequence, piece by piece, each piece as soon as its characters are whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._settled = self._shown = 0

    def add(self, token: int) -> str:
        """What ``token`` adds to the text, or nothing yet."""
        self._tokens.append(token)
        piece = self._pending()
        if piece.endswith(_BROKEN):
            return ""
        self._settled, self._shown = self._shown, len(self._tokens)
        return piece

    def end(self) -> str:
        """The rest, with signs for what is left of broken characters."""
        piece = self._pending()
        self._settled = self._shown = len(self._tokens)
        return piece

    def _pending(self) -> str:
        """The text of tokens that were not shown; a few before them are decoded too, because spaces depend on them."""
        before = self._tokenizer.decode(self._tokens[self._settled : self._shown])
        return self._tokenizer.decode(self._tokens[self._settled :])[len(before) :]
