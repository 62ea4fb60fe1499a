"""The layout of a cache as a table for people: ``python -m dsv4.runtime.kv --model flash --budget 40GiB``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dsv4.runtime.errors import ContractError
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.model.schedule import LayerSchedule
from dsv4.runtime.pool import PoolFormat

_COLUMNS = ("layers", "count", "B/token", "window/seq", "state/seq", "allocated")


def table(layout: CacheLayout, budget_bytes: int | None = None) -> str:
    """The bytes of each kind of layer: for a token of history and for a sequence without padding, and allocated.

    ``window/seq`` is the ring with its room for drafts. Below it what the cache holds.
    """
    kinds: dict[str, list[LayerSchedule]] = {}
    for layer in layout.layers:
        kinds.setdefault("MTP" if layer.is_mtp else layer.kind.upper(), []).append(layer)
    lines = [_COLUMNS, *(_row(layout, name, layers) for name, layers in kinds.items())]
    if len(kinds) > 1:
        lines.append(_row(layout, "all", layout.layers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(_placed(cell, widths, place) for place, cell in enumerate(line)).rstrip() for line in lines]
    return "\n".join((_title(layout, budget_bytes), *text, *_summary(layout)))


def size(count: float) -> str:
    """``count`` bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def parse_size(text: str) -> int:
    """The bytes that ``text`` says: a number, with KiB, MiB or GiB (or K, M, G) after it. Raises ``ContractError``."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B?\s*", text, re.IGNORECASE)
    if found is None:
        raise ContractError(f"size: found {text!r}; valid: bytes, such as 800000000, 512MiB or 40GiB")
    return int(float(found[1]) * 1024 ** " KMGT".index((found[2] or " ").upper()))


def _title(layout: CacheLayout, budget_bytes: int | None) -> str:
    settings = layout.settings
    numbers = str(layout.precision.activation).removeprefix("torch.")
    kv, index = (numbers if format is PoolFormat.PLAIN else format.value for format in (settings.kv, settings.index))
    budget = "" if budget_bytes is None else f"{size(budget_bytes)} budget, "
    return f"KV cache: {budget}blocks of {settings.block} tokens, rows {kv}, indexer {index}, {settings.drafts} drafts"


def _row(layout: CacheLayout, name: str, layers: Sequence[LayerSchedule]) -> tuple[str, ...]:
    each = [layout.layer_bytes(layer) for layer in layers]
    return (
        name,
        str(len(layers)),
        f"{float(sum(layer.per_token for layer in each)):.2f}",
        size(sum(layer.ring for layer in each)),
        size(sum(layer.state for layer in each)),
        size(sum(map(layout.allocated_bytes, layers))),
    )


def _placed(cell: str, widths: Sequence[int], place: int) -> str:
    return cell.ljust(widths[place]) if place == 0 else cell.rjust(widths[place])


def _summary(layout: CacheLayout) -> tuple[str, ...]:
    settings = layout.settings
    return (
        f"allocated {size(layout.total_bytes)}, with tables and a stage of {settings.step_tokens} rows in every layer",
        f"holds {settings.sequences} sequences, {layout.tokens:,} tokens in {layout.blocks:,} blocks; "
        f"one sequence up to {layout.positions_max:,} tokens",
    )
