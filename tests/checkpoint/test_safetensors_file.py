"""One safetensors file: a wrong header is refused before any data is touched; bytes come as they were written."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dsv4.runtime.checkpoint.safetensors_file import BUFFERS_MAX, SafetensorsFile
from dsv4.runtime.checkpoint.writer import write_file
from dsv4.runtime.errors import CheckpointError


def tensors() -> dict[str, tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (6, 5), dtype=torch.uint8, generator=generator)
    return {
        "odd": ("U8", raw.flatten()[:3].clone()),  # what follows is not aligned
        "wide": ("F32", torch.randn(4, 3, generator=generator)),
        "codes": ("F8_E4M3", raw.view(torch.float8_e4m3fn)),
        "scale": ("F8_E8M0", raw[:2].clone().view(torch.float8_e8m0fnu)),
        "half": ("BF16", torch.randn(7, generator=generator).to(torch.bfloat16)),
        "scalar": ("F32", torch.tensor(0.25)),
        "ids": ("I64", torch.arange(6).view(2, 3)),
        "none": ("F32", torch.empty(0, 4)),
    }


def write(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_what_is_written_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_file(path, tensors())
    with SafetensorsFile(path) as file:
        assert list(file.entries) == list(tensors())
        assert file.metadata == {"format": "pt"}
        assert file.nbytes == sum(tensor.nbytes for _, tensor in tensors().values())
        for name, (dtype, tensor) in tensors().items():
            entry, seen = file.entries[name], file.mapped(name)
            assert (entry.dtype, entry.shape, seen.dtype) == (dtype, tuple(tensor.shape), tensor.dtype)
            assert torch.equal(raw(seen), raw(tensor))
            copy = torch.empty_like(tensor)
            file.read_into(entry.start, [(copy.data_ptr(), copy.nbytes)])
            assert torch.equal(raw(copy), raw(tensor))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_the_safetensors_library_reads_the_same(tmp_path: Path) -> None:
    """Independent of our reader and our writer."""
    path = tmp_path / "a.safetensors"
    write_file(path, tensors())
    theirs = safetensors.torch.load_file(path)
    for name, (_, tensor) in tensors().items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(raw(theirs[name]), raw(tensor))
    again = tmp_path / "b.safetensors"
    safetensors.torch.save_file({name: tensor for name, (_, tensor) in tensors().items()}, again)
    with SafetensorsFile(again) as file:
        assert all(torch.equal(raw(file.mapped(name)), raw(tensor)) for name, (_, tensor) in tensors().items())


def test_one_read_may_go_to_many_places(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {}, b"")
    data = bytes(range(256)) * 8
    path.write_bytes(path.read_bytes() + data)
    # the header says nothing of these bytes, so read them through a file that does
    count = BUFFERS_MAX + 100
    header = {"x": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    with SafetensorsFile(write(path, header, data)) as file:
        parts = [torch.zeros(1 + place % 3, dtype=torch.uint8) for place in range(count)]
        file.read_into(file.entries["x"].start, [(part.data_ptr(), part.nbytes) for part in parts])
    together = torch.cat(parts)
    assert bytes(together.tolist()) == data[: together.numel()]


def test_a_file_that_was_shortened_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_file(path, tensors())
    with SafetensorsFile(path) as file:
        os.truncate(path, file.entries["ids"].start + 4)
        target = torch.empty(6, dtype=torch.int64)
        with pytest.raises(CheckpointError, match="it was shortened after it was opened"):
            file.read_into(file.entries["ids"].start, [(target.data_ptr(), target.nbytes)])


def one(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


def two(first: list[int], second: list[int]) -> dict[str, Any]:
    entry: Callable[[list[int]], dict[str, Any]] = lambda at: {  # noqa: E731
        "dtype": "U8",
        "shape": [at[1] - at[0]],
        "data_offsets": at,
    }
    return {"a": entry(first), "b": entry(second)}


BROKEN: list[tuple[str, Any, int, str]] = [
    ("shape and bytes disagree", one(shape=[2, 3]), 16, "data_offsets: found 16 bytes; valid: 24"),
    ("offsets reversed", one(data_offsets=[16, 0]), 16, "valid: [begin, end] with begin ≤ end"),
    ("three offsets", one(data_offsets=[0, 8, 16]), 16, "valid: [begin, end]"),
    ("negative offset", one(data_offsets=[-16, 0]), 16, "valid: [begin, end]"),
    ("negative size", one(shape=[-2, -2]), 16, "shape: found [-2, -2]"),
    ("fractional size", one(shape=[2.0, 2]), 16, "shape: found [2.0, 2]"),
    ("huge size", one(shape=[2**62, 2**62]), 16, "data_offsets: found 16 bytes"),
    ("true as a size", one(shape=[True, 4]), 16, "shape: found [True, 4]"),
    ("unknown dtype", one(dtype="Q4_K"), 16, "dtype: found 'Q4_K'; valid: BOOL, U8, I8"),
    ("dtype of less than a byte", one(dtype="F4"), 16, "dtype: found 'F4'"),
    ("dtype is a list", one(dtype=["F32"]), 16, "dtype: found ['F32']"),
    (
        "missing key",
        {"x": {"dtype": "F32", "shape": [2, 2]}},
        16,
        "valid: an object with dtype, shape and data_offsets",
    ),
    ("extra key", one(name="x"), 16, "valid: an object with dtype, shape and data_offsets"),
    ("entry is a number", {"x": 3}, 16, "valid: an object with dtype, shape and data_offsets"),
    ("overlap", two([0, 8], [4, 12]), 12, "b: begins at byte"),
    ("overlap said so", two([0, 8], [4, 12]), 12, "overlaps a"),
    ("same bytes twice", two([0, 8], [0, 8]), 8, "overlaps a"),
    ("gap", two([0, 4], [8, 12]), 12, "leaves a gap after a"),
    ("gap at the beginning", one(data_offsets=[4, 20]), 20, "leaves a gap after the header"),
    ("truncated data", one(), 10, "truncated: its tensors end at byte"),
    ("bytes after the end", one(), 20, "4 bytes after the last tensor"),
    ("not JSON", b"{]", 0, "its header is not valid JSON"),
    ("not text", b"\xff\xff", 0, "its header is not valid JSON"),
    ("a list", b"[]", 0, "header: found list; valid: an object"),
    ("a tensor twice", b'{"x": 1, "x": 2}', 0, "'x' twice"),
    ("metadata is a list", b'{"__metadata__": [1]}', 0, "__metadata__: valid: an object of strings"),
    ("deeply nested", b"[" * 200_000, 0, "its header is not valid JSON"),
]


@pytest.mark.parametrize(("header", "nbytes", "said"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_header_is_refused(tmp_path: Path, header: Any, nbytes: int, said: str) -> None:
    path = write(tmp_path / "a.safetensors", header, b"\0" * nbytes)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_all_problems_of_a_header_are_in_one_error_which_stays_short(tmp_path: Path) -> None:
    header = {f"t{place}": {"dtype": "nonsense", "shape": [], "data_offsets": [0, 0]} for place in range(50)}
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(write(tmp_path / "a.safetensors", header, b""))
    message = str(caught.value)
    assert "50 problems" in message
    assert "t19: dtype" in message and "t20: dtype" not in message
    assert "and 30 more" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found 0 bytes"),
        (b"\0" * 7, "found 7 bytes"),
        (struct.pack("<Q", 1000) + b"{}", "truncated: its header ends at byte 1008, the file at 10"),
        (b"PK\x03\x04" + b"\x7f" * 100, "is it a safetensors file?"),
        (struct.pack("<Q", 2**63), "is it a safetensors file?"),
    ],
    ids=["empty", "seven bytes", "cut header", "zip", "huge header"],
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert said in str(caught.value)


def test_what_is_not_a_readable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened: No such file"):
        SafetensorsFile(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="found no regular file"):
        SafetensorsFile(tmp_path)


def test_a_mapped_tensor_outlives_the_file_and_writes_stay_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_file(path, tensors())
    before = path.read_bytes()
    with SafetensorsFile(path) as file:
        seen = file.mapped("ids")
    seen += 1
    assert torch.equal(seen, tensors()["ids"][1] + 1)
    assert path.read_bytes() == before


def test_a_tensor_is_not_written_under_a_dtype_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x: found torch\.float32; valid: elements of 2 bytes for BF16"):
        write_file(tmp_path / "a.safetensors", {"x": ("BF16", torch.zeros(2))})
    assert not list(tmp_path.iterdir())
