"""Effects of single tunables that the notes record from tuning runs on a GPU, beside what the cost model says of them.

The notes' figures are single runs of then, kept in no result file: they say whether the model knows an effect at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsv4.runtime.artifact import Scalar
from dsv4.tuner.cost.model import Coefficients, rates
from dsv4.tuner.cost.rank import Predictor
from dsv4.tuner.target import Target

NOTED_MIN = 0.02
"""Smaller effects are within what such runs vary by."""


@dataclass(frozen=True)
class Pair:
    """``changes`` against the default, or against the default with ``base``: time with over time without."""

    op: str
    dims: dict[str, int]
    sizes: tuple[dict[str, int], ...]
    changes: dict[str, Scalar]
    noted: float
    note: str
    base: dict[str, Scalar] = field(default_factory=dict)
    variant: dict[str, Scalar] = field(default_factory=dict)


_FMHA, _NORM, _MHC = "fmha_sm90.md", "rms_norm.md", "operators_hopper.md"
_SQUARE = ({"B": 4, "Hq": 32, "Hkv": 32, "Sq": 4096, "Sk": 4096},)
_FEW = ({"T": 1}, {"T": 16}, {"T": 64})
_ALIKE: dict[str, Scalar] = {"mixers": 0, "stages": 3}
"""All warps of mhc_pre do the same, as they did when its effects were noted."""
PAIRS = (
    Pair("fmha", {"D": 128}, _SQUARE, {"persistent_ctas": 0}, 1.01, _FMHA),
    Pair("fmha", {"D": 128}, _SQUARE, {"persistent_ctas": 0}, 1.07, _FMHA, variant={"causal": True}),
    Pair("fmha", {"D": 128}, _SQUARE, {"ping_pong": False}, 1.045, _FMHA),
    Pair("fmha", {"D": 64}, _SQUARE, {"ping_pong": False}, 1.10, _FMHA),
    Pair("fmha", {"D": 128}, _SQUARE, {"kv_stage": 3}, 1.0, _FMHA, base={"tile_n": 96}),
    Pair("fmha", {"D": 128}, _SQUARE, {"rescale_under_qk": False}, 1.015, _FMHA),
    Pair("fmha", {"D": 64}, _SQUARE, {"rescale_under_qk": True}, 1.03, _FMHA),
    Pair("fmha", {"D": 128}, _SQUARE, {"opt_level": 2}, 1.02, _FMHA),
    Pair("rms_norm", {"d": 7168}, ({"T": 9376},), {"threads_per_row": 896}, 1.12, _NORM),
    Pair("rms_norm", {"d": 4096}, ({"T": 1},), {"threads_per_row": 256}, 1.036, _NORM),
    Pair("rms_norm", {"d": 4096}, _FEW, {"rows_in_flight": 2}, 1.075, _NORM),
    Pair("rms_norm", {"d": 4096}, _FEW, {"shuffle_lanes": 16}, 1.020, _NORM),
    Pair("rms_norm", {"d": 4096}, _FEW, {"shuffle_lanes": 4}, 1.035, _NORM),
    Pair("rms_norm", {"d": 7168}, _FEW, {"shuffle_lanes": 16}, 1.025, _NORM),
    Pair("mhc_pre", {"d": 4096}, ({"T": 8192},), {"clusters": 8}, 1.72, _MHC, base={**_ALIKE, "ahead": 1}),
    Pair("mhc_pre", {"d": 4096}, ({"T": 8192},), {"ahead": 1}, 1.22, _MHC, base={**_ALIKE, "ahead": 2}),
)


def noted_pairs(arch: str, without: Mapping[str, Coefficients]) -> list[dict[str, Any]]:
    """Every pair with the model's figure, coefficients found without the operator. ``told``: the same direction and at
    least a quarter of the effect, of those that are large enough to have been seen."""
    rows = []
    for pair in PAIRS:
        target = Target(pair.op, arch, dims=pair.dims, variant=pair.variant)
        predictor = Predictor(pair.op, pair.sizes, rates(arch), without[pair.op])
        base = {**target.default().config, **pair.base}
        first, second = (target.planner().plan({**base, **more}) for more in ({}, pair.changes))
        ratio = predictor.predict(second).us / predictor.predict(first).us
        counts = abs(pair.noted - 1) >= NOTED_MIN
        told = (ratio - 1) / (pair.noted - 1) >= 0.25 if counts else abs(ratio - 1) < NOTED_MIN
        rows.append(
            {
                "op": pair.op, "dims": pair.dims, "variant": pair.variant, "changes": pair.changes, "base": pair.base,
                "noted": pair.noted, "predicted": round(ratio, 4), "told": told, "note": f"docs/notes/{pair.note}",
            }
        )  # fmt: skip
    return rows
