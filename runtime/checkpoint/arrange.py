"""How the weights of an operator are arranged in memory: once, at load, into what its kernel on this arch reads.

The references read what the checkpoint holds, so without an entry for an operator and an arch nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable

from dsv4.runtime.weight import Weight

Arrange = Callable[[Weight], Weight]

_arrangements: dict[tuple[str, str], Arrange] = {}


def layout_for(op: str, arch: str | None) -> Arrange:
    """What turns a loaded weight of operator ``op`` into what serves it on ``arch`` (``None``: the references).

    The loader calls it once a weight, as soon as that is there, and keeps only what it returns.
    """
    return _arrangements.get((op, arch or ""), _as_it_is)


def arranges(op: str, arch: str) -> Callable[[Arrange], Arrange]:
    """Decorator: the function is the arrangement of ``op``'s weights on ``arch``."""

    def register(arrange: Arrange) -> Arrange:
        _arrangements[op, arch] = arrange
        return arrange

    return register


def _as_it_is(weight: Weight) -> Weight:
    return weight
