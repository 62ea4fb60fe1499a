"""A configuration with its outcome: what a study keeps and everything after it looks at. Needs no search library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.tuner.protocol import Timing


@dataclass(frozen=True)
class Tried:
    """One configuration with its outcome: microseconds, or why it is out.

    ``is_slow``: given up after fewer timing rounds than others, so that ``score_us`` is rough. ``detail`` holds the
    artifact, timings by shape and the errors of the check.
    """

    config: dict[str, Scalar]
    score_us: float | None
    failure: str | None = None
    is_slow: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return canonical_json(self.config)

    @property
    def timings(self) -> list[Timing]:
        """Those in ``detail``, one a shape."""
        return [Timing.model_validate(timing) for timing in self.detail.get("timings", [])]

    @property
    def spread(self) -> float:
        """The width between the quartiles as a share of the median, the largest over the shapes."""
        return max((timing.spread for timing in self.timings), default=0.0)


KEPT_OF_A_CHECK = ("cases", "cosine", "rel_l2", "max_abs", "deterministic")


def kept_of_check(checked: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a study keeps of a check's data; the rest lies beside the artifact."""
    return {name: checked[name] for name in KEPT_OF_A_CHECK if name in checked} if checked else {}


def changed(config: Mapping[str, Scalar], default: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The tunables in which ``config`` differs from ``default``."""
    return {name: value for name, value in config.items() if default.get(name) != value}


def spelled(config: Mapping[str, Scalar]) -> str:
    """``tile_m=128 causal=true`` for a person."""
    return " ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in config.items())
