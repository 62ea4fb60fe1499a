"""Load a checkpoint: group by group (embedding, each layer, head, MTP layer) straight into the memory of its device.

The official dtypes and bytes are kept; the experts of a layer are stacked, [E, out, in], as they are read. No tensor is
held twice: what an operator's kernel wants arranged otherwise is arranged weight by weight (``arrange.layout_for``).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from dsv4.runtime.checkpoint import assemble
from dsv4.runtime.checkpoint.checkpoint import Checkpoint
from dsv4.runtime.checkpoint.files import Found
from dsv4.runtime.checkpoint.inventory import PACKED, TensorSpec
from dsv4.runtime.checkpoint.progress import Progress, Silent, shown
from dsv4.runtime.checkpoint.safetensors_file import TORCH_DTYPES
from dsv4.runtime.checkpoint.transfer import Target, Transfer
from dsv4.runtime.errors import CheckpointError, say_once
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.schedule import schedule
from dsv4.runtime.model.weights import BlockWeights, ModelWeights, MtpWeights


@dataclass(frozen=True)
class LoadedModel:
    """What a checkpoint holds, on one device."""

    config: ModelConfig
    weights: ModelWeights


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    *,
    mtp: bool = True,
    arch: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load the checkpoint ``path`` (a folder or a safetensors file) onto ``device``.

    ``mtp=False`` leaves the MTP layer out. ``arch``: arrange weights for the kernels of this arch; ``None`` keeps what
    the references read. ``threads`` that read, by default one a core up to 8. ``progress`` defaults to a bar where
    stderr is a terminal.

    The host never holds more than the staging buffers (32 MiB a thread) beside what stays. Raises ``ConfigError`` or
    ``CheckpointError``; then nothing that was loaded is kept, on the device neither.
    """
    place = device_of(device)
    try:
        with Checkpoint.open(path) as checkpoint:
            wanted = [group for group in checkpoint.groups if mtp or not group.startswith("mtp.")]
            total = sum(checkpoint.group_bytes(group) for group in wanted)
            require_room(Path(path), place, total)
            with shown(total) if progress is None else nullcontext(progress) as told:
                return LoadedModel(checkpoint.config, _weights(checkpoint, place, wanted, arch, threads, told))
    except BaseException as error:
        _forget_frames(error)
        if place.type == "cuda":
            torch.cuda.empty_cache()
        raise


def stream(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    *,
    only: list[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The groups of ``checkpoint`` one after another, each with its tensors by their names within the group.

    Experts are stacked: ``ffn.experts.w1.weight`` [E, out, ..]. FP4 codes are u8. ``only`` these groups, in their
    order. The dictionary is emptied when the next group is asked for, so that no more than one lies in memory, unless
    the caller takes tensors out.
    """
    place = device_of(device)
    progress = progress or Silent()
    with Transfer(place, threads) as transfer:
        for group in checkpoint.groups if only is None else only:
            progress.group(group)
            targets = _targets(checkpoint, checkpoint.groups[group], place)
            transfer.fill(list(targets.values()), progress.advance)
            tensors = {key: target.tensor for key, target in targets.items()}
            targets.clear()
            _check_values(checkpoint, group, tensors)
            yield group, tensors
            tensors.clear()


def _targets(checkpoint: Checkpoint, specs: list[TensorSpec], device: torch.device) -> dict[str, Target]:
    experts = checkpoint.config.n_routed_experts
    places: dict[str, list[Found]] = {}
    like: dict[str, tuple[TensorSpec, tuple[int, ...]]] = {}
    for spec in specs:  # experts come in their order
        places.setdefault(spec.key, []).append(checkpoint.files.tensors[spec.name])
        like.setdefault(spec.key, (spec, spec.shape if spec.stack is None else (experts, *spec.shape)))
    targets = {}
    for key, (spec, shape) in like.items():
        dtype = torch.uint8 if spec.dtypes[0] in PACKED else TORCH_DTYPES[spec.dtypes[0]]
        targets[key] = Target(torch.empty(shape, dtype=dtype, device=device), places[key])
    return targets


def _check_values(checkpoint: Checkpoint, group: str, tensors: dict[str, torch.Tensor]) -> None:
    """A hash router's table is an index, which nothing may read past."""
    table = tensors.get("ffn.gate.tid2eid")
    if table is None or table.numel() == 0:
        return
    experts = checkpoint.config.n_routed_experts
    low, high = int(table.min()), int(table.max())
    if low < 0 or high >= experts:
        found = low if low < 0 else high
        raise CheckpointError(f"{group}.ffn.gate.tid2eid: found expert {found}; valid: 0 to {experts - 1}")


def _weights(
    checkpoint: Checkpoint,
    device: torch.device,
    wanted: list[str],
    arch: str | None,
    threads: int | None,
    progress: Progress,
) -> ModelWeights:
    if checkpoint.layout.unverified:
        say_once(f"{checkpoint.files.folder}: {checkpoint.layout.unverified}")
    by_prefix = {layer.prefix: layer for layer in schedule(checkpoint.config)}
    ops = {spec.key: spec.op for spec in checkpoint.specs.values()}
    blocks: list[BlockWeights] = []
    draft: MtpWeights | None = None
    ends: dict[str, torch.Tensor] = {}
    for name, tensors in stream(checkpoint, device, only=wanted, threads=threads, progress=progress):
        layer = by_prefix.get(name)
        group = assemble.Group(tensors, ops, arch)
        if layer is None:
            ends |= tensors
        elif layer.is_mtp:
            draft = assemble.mtp(group, layer, checkpoint.layout)
        else:
            blocks.append(assemble.block(group, layer, checkpoint.layout))
    return assemble.model(assemble.Group(ends, ops, arch), blocks, draft)


def device_of(device: torch.device | str) -> torch.device:
    """``device``, if it is one that can be loaded onto. Raises ``CheckpointError``."""
    try:
        place = torch.device(device)
    except RuntimeError:
        raise CheckpointError(f"device: found {device!r}; valid: 'cpu', 'cuda' or 'cuda:N'") from None
    if place.type not in ("cpu", "cuda"):
        raise CheckpointError(f"device: found {str(device)!r}; valid: 'cpu', 'cuda' or 'cuda:N'")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(f"device: found {str(device)!r}; valid: 'cpu', since torch sees no GPU here")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(f"device: found {str(device)!r}; valid: one of the {torch.cuda.device_count()} GPUs here")
    return place


def require_room(path: Path, device: torch.device, nbytes: int) -> None:
    """Raises ``CheckpointError`` where a GPU has not ``nbytes`` free, before anything is loaded.

    What a host could give is not asked: systems whose memory grows with its use say too little.
    """
    if device.type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if nbytes > free:
        found = f"{nbytes / 1e9:.1f} GB of tensors for {device}, which has {free / 1e9:.1f} GB free"
        raise CheckpointError(f"{path}: found {found}; valid: a device that they fit")


def _forget_frames(error: BaseException | None) -> None:
    """Drop the locals of the frames that ``error`` went through: they hold tensors as long as somebody holds it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
