"""The files of a checkpoint: one safetensors file or the shards of an index, opened and held against one another.

Pickled checkpoints are never read. Names in an index are plain file names in the same folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsv4.runtime.checkpoint.safetensors_file import Entry, SafetensorsFile, listed
from dsv4.runtime.errors import CheckpointError, ConfigError
from dsv4.runtime.model.config_spelling import read_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor of the checkpoint: in which file, and where there."""

    file: SafetensorsFile
    entry: Entry


class CheckpointFiles:
    """The open files of a checkpoint and ``tensors``, all of them by name. Close it, or use it as a context."""

    def __init__(self, folder: Path, files: Mapping[str, SafetensorsFile]) -> None:
        self.folder = folder
        self.files = dict(files)
        self.tensors = {name: Found(file, entry) for file in files.values() for name, entry in file.entries.items()}

    @classmethod
    def open(cls, path: Path | str) -> CheckpointFiles:
        """Open the checkpoint ``path``: a folder with an index or with one safetensors file, or such a file.

        Every header is read and checked, no data. Raises ``CheckpointError`` with all that is wrong.
        """
        path = Path(path)
        if path.is_file():
            _require_safetensors(path)
            return cls(path.parent, {path.name: SafetensorsFile(path)})
        if not path.is_dir():
            raise CheckpointError(f"{path}: found no such folder; valid: a folder with {INDEX_NAME} or {SINGLE_NAME}")
        if (path / INDEX_NAME).is_file():
            return _open_shards(path)
        single = _only_file(path)
        return cls(path, {single.name: SafetensorsFile(single)})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(file.nbytes for file in self.files.values())

    def mapped(self, name: str) -> torch.Tensor:
        """The tensor ``name`` as a view of its mapped file."""
        return self.tensors[name].file.mapped(name)

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def __enter__(self) -> CheckpointFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_safetensors(path: Path) -> None:
    if path.suffix in PICKLED:
        raise CheckpointError(f"{path}: a pickled file is never loaded, since it can run code; valid: .safetensors")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: found a file that is not .safetensors; valid: a folder or a .safetensors file")


def _only_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:3])
        raise CheckpointError(
            f"{folder}: found {len(found)} safetensors files ({names} …) and no {INDEX_NAME}; valid: one file, or "
            "shards with their index (files that the official convert.py split over GPUs are not a checkpoint)"
        )
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise CheckpointError(
            f"{folder}: found only pickled files ({pickled[0]}), which are never loaded, since they can run code; "
            "valid: safetensors"
        )
    raise CheckpointError(f"{folder}: found no safetensors file; valid: {INDEX_NAME} and its shards, or {SINGLE_NAME}")


def _open_shards(folder: Path) -> CheckpointFiles:
    weight_map = _weight_map(folder / INDEX_NAME)
    problems: list[str] = []
    files: dict[str, SafetensorsFile] = {}
    for name in dict.fromkeys(weight_map.values()):
        try:
            files[name] = SafetensorsFile(folder / name)
        except CheckpointError as error:
            problems.append(str(error))
    problems += _disagreements(weight_map, files)
    if problems:
        for file in files.values():
            file.close()
        raise CheckpointError(f"{folder}: {listed(problems)}")
    return CheckpointFiles(folder, files)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        index: dict[str, Any] = read_object(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map: valid: an object that names each tensor's file")
    problems = []
    for name in dict.fromkeys(map(_hashable, weight_map.values())):
        if not isinstance(name, str) or not _is_plain(name):
            problems.append(f"weight_map: found the file {name!r}; valid: a .safetensors file's name in this folder")
    if problems:
        raise CheckpointError(f"{path}: {listed(problems)}")
    return weight_map


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str) else repr(value)


def _is_plain(name: str) -> bool:
    """Whether ``name`` is a file's name that cannot lead out of its folder."""
    return name.endswith(".safetensors") and not any(mark in name for mark in ("/", "\\", ":", "\0"))


def _disagreements(weight_map: Mapping[str, str], files: Mapping[str, SafetensorsFile]) -> Iterator[str]:
    homes: dict[str, str] = {}
    for file_name, file in files.items():
        for tensor in file.entries:
            if tensor in homes:
                yield f"{tensor}: found in {homes[tensor]} and in {file_name}; valid: one file"
            homes[tensor] = file_name
            if tensor not in weight_map:
                yield f"{tensor}: found in {file_name}, not named in {INDEX_NAME}; valid: an index that names it"
    for tensor, file_name in weight_map.items():
        if file_name in files and tensor not in files[file_name].entries:
            yield f"{tensor}: not found in {file_name}, where {INDEX_NAME} says that it is"
