"""A checkpoint's files: one, or the shards of an index; never pickle, never outside the folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.runtime.checkpoint.files import INDEX_NAME, SINGLE_NAME, CheckpointFiles
from dsv4.runtime.checkpoint.writer import write_file, write_index
from dsv4.runtime.errors import CheckpointError


def shard(path: Path, *names: str) -> None:
    write_file(path, {name: ("F32", torch.full((2,), float(len(name)))) for name in names})


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards, with tensors a, b and c."""
    shard(tmp_path / "one.safetensors", "a", "b")
    shard(tmp_path / "two.safetensors", "c")
    index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return tmp_path


def index(folder: Path, weight_map: dict[str, Any]) -> None:
    write_index(folder, weight_map, 24)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        CheckpointFiles.open(path)
    return str(caught.value)


def test_shards_are_opened_as_one(sharded: Path) -> None:
    with CheckpointFiles.open(sharded) as files:
        assert sorted(files.tensors) == ["a", "b", "c"]
        assert files.nbytes == 24
        assert files.mapped("c").tolist() == [1.0, 1.0]


def test_a_single_file_by_its_folder_or_itself(tmp_path: Path) -> None:
    shard(tmp_path / SINGLE_NAME, "a")
    for path in (tmp_path, tmp_path / SINGLE_NAME, str(tmp_path)):
        with CheckpointFiles.open(path) as files:
            assert list(files.tensors) == ["a"]
            assert files.folder == tmp_path


def test_a_single_file_may_have_any_name(tmp_path: Path) -> None:
    shard(tmp_path / "flash.safetensors", "a")
    CheckpointFiles.open(tmp_path).close()


def test_shards_may_be_links(sharded: Path, tmp_path: Path) -> None:
    """As in the folders that download tools make."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    shutil.move(sharded / "one.safetensors", blobs / "0123")
    os.symlink(blobs / "0123", sharded / "one.safetensors")
    CheckpointFiles.open(sharded).close()


@pytest.mark.parametrize(
    "name",
    ["../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..\\one.safetensors", "C:one.safetensors"],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(sharded: Path, name: str) -> None:
    index(sharded, {"a": name, "b": "one.safetensors", "c": "two.safetensors"})
    assert f"weight_map: found the file {name!r}; valid: a .safetensors file's name in this folder" in refused(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "..", "", 3, ["one.safetensors"], {"x": 1}, None])
def test_an_index_that_names_something_else_is_refused(sharded: Path, name: Any) -> None:
    index(sharded, {"a": name, "b": "one.safetensors", "c": "two.safetensors"})
    assert "valid: a .safetensors file's name in this folder" in refused(sharded)


def test_disagreements_of_index_and_shards_are_all_listed(sharded: Path) -> None:
    shard(sharded / "two.safetensors", "c", "a", "stray")
    index(sharded, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors", "d": "one.safetensors"})
    message = refused(sharded)
    assert "a: found in one.safetensors and in two.safetensors; valid: one file" in message
    assert f"stray: found in two.safetensors, not named in {INDEX_NAME}" in message
    assert f"b: not found in two.safetensors, where {INDEX_NAME} says that it is" in message
    assert f"d: not found in one.safetensors, where {INDEX_NAME} says that it is" in message


def test_missing_and_broken_shards_are_all_listed(sharded: Path) -> None:
    (sharded / "one.safetensors").unlink()
    os.truncate(sharded / "two.safetensors", 40)
    message = refused(sharded)
    assert "one.safetensors: cannot be opened" in message
    assert "two.safetensors: truncated" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "found list"),
        ("{}", "weight_map: valid: an object"),
        ('{"weight_map": {}}', "weight_map: valid: an object"),
        ('{"weight_map": ["a"]}', "weight_map: valid: an object"),
        ('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "the key 'a' twice"),
    ],
)
def test_an_index_that_cannot_be_read_is_refused(sharded: Path, text: str, said: str) -> None:
    (sharded / INDEX_NAME).write_text(text)
    message = refused(sharded)
    assert said in message
    assert INDEX_NAME in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_pickled_files_are_never_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    assert "which are never loaded, since they can run code" in refused(tmp_path)
    assert "a pickled file is never loaded" in refused(tmp_path / name)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "found no safetensors file" in refused(tmp_path)
    assert "found no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "found a file that is not .safetensors" in refused(tmp_path / "model.gguf")


def test_files_split_over_gpus_are_not_a_checkpoint(tmp_path: Path) -> None:
    for rank in range(2):
        shard(tmp_path / f"model{rank}-mp2.safetensors", "a")
    message = refused(tmp_path)
    assert (
        f"found 2 safetensors files (model0-mp2.safetensors, model1-mp2.safetensors …) and no {INDEX_NAME}" in message
    )


def test_no_file_stays_open_after_a_refusal(sharded: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    (sharded / "two.safetensors").write_bytes(json.dumps({}).encode())
    refused(sharded)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
