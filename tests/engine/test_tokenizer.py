"""Text and ids: whole characters as they come, and what a checkpoint without a tokenizer says."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dsv4.runtime.checkpoint.tiny_tokenizer import tokenizer_json
from dsv4.runtime.engine.tokenizer import TextStream, Tokenizer, why_none
from dsv4.runtime.errors import CheckpointError, ContractError


class Bytes(Tokenizer):
    """Token b is byte b; a token in the middle of a character decodes to a sign, as in byte-level tokenizers."""

    def __init__(self) -> None:
        super().__init__(None)

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class Words(Tokenizer):
    """A space before every word but the first one, as SentencePiece has it."""

    def __init__(self) -> None:
        super().__init__(None)

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)


def test_characters_come_when_they_are_whole() -> None:
    text = "aé€𝄞z"
    stream = TextStream(Bytes())
    pieces = [stream.add(byte) for byte in text.encode()]
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "𝄞", "z"]
    assert stream.end() == ""


def test_a_broken_end_is_shown_at_the_end() -> None:
    stream = TextStream(Bytes())
    assert [stream.add(byte) for byte in "x€".encode()[:-1]] == ["x", "", ""]
    assert stream.end() == "\ufffd"
    assert stream.end() == ""


def test_spaces_that_depend_on_the_word_before() -> None:
    stream = TextStream(Words())
    assert "".join(stream.add(token) for token in range(5)) == "w0 w1 w2 w3 w4"


def test_texts_go_there_and_back(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="an optional library: the extra `text`")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(1024)))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer is not None
    for text in ("", "the rest", "héllo €uro 𝄞", "\n\t  x"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and all(2 <= token < 1024 for token in ids)
        stream = TextStream(tokenizer)
        assert "".join(stream.add(token) for token in ids) + stream.end() == text


def test_bytes_that_are_no_text() -> None:
    """As a command line in another encoding gives them."""
    with pytest.raises(ContractError, match=r"prompt: found '\\udcff' at character 2; valid: text in UTF-8"):
        Bytes().encode("ab\udcff")


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="an optional library: the extra `text`")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: found .*; valid: a tokenizers file"):
        Tokenizer.load(tmp_path)


def test_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tokenizer.load(tmp_path) is None and "found no tokenizer.json" in why_none(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert Tokenizer.load(tmp_path) is None and "tokenizers is not installed" in why_none(tmp_path)
