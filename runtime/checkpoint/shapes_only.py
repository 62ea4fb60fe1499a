"""The weights of a model as shapes and dtypes only: what a step would ask for is known without a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from dsv4.runtime.checkpoint import assemble
from dsv4.runtime.checkpoint.inventory import PACKED, TensorSpec, inventory
from dsv4.runtime.checkpoint.layouts import LAYOUTS
from dsv4.runtime.checkpoint.safetensors_file import TORCH_DTYPES
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.schedule import LayerSchedule, schedule
from dsv4.runtime.model.weights import BlockWeights, ModelWeights, MtpWeights

DEVICE = "meta"


def shapes_only(config: ModelConfig) -> ModelWeights:
    """Weights on the device ``meta`` in the layout that ``config`` names, put together as the loader does it.

    Layers of one kind share theirs. They take no memory and hold no numbers.
    """
    layout = LAYOUTS[config.weight_scheme]
    by_group: dict[str, list[TensorSpec]] = {}
    for spec in inventory(config, layout).values():
        by_group.setdefault(spec.group, []).append(spec)
    blocks: list[BlockWeights] = []
    known: dict[LayerSchedule, BlockWeights] = {}
    draft: MtpWeights | None = None
    for layer in schedule(config):
        kind = replace(layer, index=0, prefix="")
        if layer.is_mtp:
            draft = assemble.mtp(_group(by_group[layer.prefix], config), layer, layout)
            continue
        if kind not in known:
            known[kind] = assemble.block(_group(by_group[layer.prefix], config), layer, layout)
        blocks.append(known[kind])
    ends = _group([*by_group["embed"], *by_group["head"]], config)
    return assemble.model(ends, blocks, draft)


def _group(specs: Iterable[TensorSpec], config: ModelConfig) -> assemble.Group:
    """The tensors of a group by key; those of the routed experts stacked, [E, ..]."""
    like = {spec.key: spec for spec in specs}
    tensors = {}
    for key, spec in like.items():
        shape = spec.shape if spec.stack is None else (config.n_routed_experts, *spec.shape)
        dtype = torch.uint8 if spec.dtypes[0] in PACKED else TORCH_DTYPES[spec.dtypes[0]]
        tensors[key] = torch.empty(shape, dtype=dtype, device=DEVICE)
    return assemble.Group(tensors, {key: spec.op for key, spec in like.items()}, None)
