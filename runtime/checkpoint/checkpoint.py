"""A checkpoint held against its configuration: every tensor is there, none more, each of the right shape and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dsv4.runtime.checkpoint.files import CheckpointFiles
from dsv4.runtime.checkpoint.inventory import TensorSpec, groups, inventory
from dsv4.runtime.checkpoint.layouts import Layout, layout_of
from dsv4.runtime.checkpoint.safetensors_file import Entry
from dsv4.runtime.errors import CheckpointError
from dsv4.runtime.model.config import ModelConfig

LISTED = 20
"""Tensors listed by name in an error, of each kind of problem."""


class Checkpoint:
    """An open, checked checkpoint: ``config``, ``layout``, ``specs`` (all tensors by name), ``groups`` and ``files``.

    Close it, or use it as a context; what was loaded from it stays.
    """

    def __init__(self, config: ModelConfig, layout: Layout, specs: Mapping[str, TensorSpec], files: CheckpointFiles):
        self.config, self.layout, self.specs, self.files = config, layout, specs, files
        self.groups: dict[str, list[TensorSpec]] = {group: [] for group in groups(config)}
        for spec in specs.values():
            self.groups[spec.group].append(spec)

    @classmethod
    def open(cls, path: Path | str, *, config: ModelConfig | None = None) -> Checkpoint:
        """Open the checkpoint ``path``, a folder or a safetensors file, and check it without reading any data.

        ``config`` defaults to the configuration files beside the tensors. Raises ``ConfigError`` where these are wrong
        and ``CheckpointError`` where files are broken, or where tensors are missing, unexpected, wrongly shaped or
        wrongly typed: all of them in one message, up to 20 of each kind by name.
        """
        path = Path(path)
        files = CheckpointFiles.open(path)
        try:
            config = config or ModelConfig.load(files.folder)
            entries = {name: found.entry for name, found in files.tensors.items()}
            layout = _layout_of(path, config, entries)
            specs = inventory(config, layout)
            require_match(path, specs, entries, layout)
        except BaseException:
            files.close()
            raise
        return cls(config, layout, specs, files)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.files.nbytes

    def group_bytes(self, group: str) -> int:
        """Bytes of the tensors of ``group``."""
        return sum(self.files.tensors[spec.name].entry.nbytes for spec in self.groups[group])

    def close(self) -> None:
        self.files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _layout_of(path: Path, config: ModelConfig, entries: Mapping[str, Entry]) -> Layout:
    try:
        return layout_of(config, entries)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def require_match(path: Path, specs: Mapping[str, TensorSpec], entries: Mapping[str, Entry], layout: Layout) -> None:
    """Raises ``CheckpointError`` unless ``entries`` are exactly the tensors of ``specs``."""
    kinds: dict[str, list[str]] = {
        "missing": [name for name in specs if name not in entries],
        "unexpected": [name for name in entries if name not in specs],
        "wrongly shaped": [],
        "wrongly typed": [],
    }
    for name, spec in specs.items():
        entry = entries.get(name)
        if entry is None:
            continue
        if entry.shape != spec.shape:
            found = f"{name}: found {list(entry.shape)}"
            kinds["wrongly shaped"].append(f"{found}; valid: {list(spec.shape)}")
        if entry.dtype not in spec.dtypes:
            kinds["wrongly typed"].append(f"{name}: found {entry.dtype}; valid: {' or '.join(spec.dtypes)}")
    if not any(kinds.values()):
        return
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
    lines = [f"{path}: tensors: {counts}; valid: the {len(specs)} of layout {layout.name}"]
    for kind, names in kinds.items():
        lines += [f"  {kind}: {name}" for name in names[:LISTED]]
        if len(names) > LISTED:
            lines.append(f"  {kind}: … and {len(names) - LISTED} more")
    if layout.unverified:
        lines.append(f"  note: {layout.unverified}")
    raise CheckpointError("\n".join(lines))
