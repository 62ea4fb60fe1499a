"""Where measured times stand beside what the chip could do: memory, tensor cores, exponentials.

The least time of a call by one limit is its count (the spec's ``work``) over the chip's rate; the roofline's is the
largest of these, and a limit's share is its least time over the measured one. Rates are those of ``specs/archs``
(datasheet); of exponentials what an SM does in a cycle at an assumed clock (``tuner/cost/chips.yaml``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.generator.resources import Refused
from dsv4.generator.spec import SpecError, load_op
from dsv4.generator.spec.load import load_arch
from dsv4.generator.spec.plan import plan, work
from dsv4.generator.verify.registry import workload_sizes
from dsv4.runtime.artifact import Scalar
from dsv4.tuner.cost.launches import chip_rates, device_rates


@dataclass(frozen=True)
class Limit:
    """``count`` is the work's name in the spec, ``per_us`` the chip's rate in that count a microsecond."""

    name: str
    count: str
    per_us: float
    words: str


@dataclass(frozen=True)
class Placement:
    """One configuration at one shape. ``counts``: the operator's work; ``shares``: of each limit, from 0 to 1 (above
    it, the count or the rate is wrong); ``least_us`` and ``bound``: by the limit that allows the least. A rate is None
    where the spec has no such count."""

    sizes: dict[str, int]
    us: float
    counts: dict[str, float]
    shares: dict[str, float]
    least_us: float | None
    bound: str | None
    gigabytes_per_s: float | None
    teraflops: float | None


def limits(arch: str, device: str) -> list[Limit]:
    """The limits of ``arch``; ``device`` is a GPU's name, whose own memory rate is taken where it is known."""
    chip, more, own = load_arch(arch), chip_rates(arch), device_rates(arch, device)
    hbm, mma = (own.hbm if own else chip.rates["hbm"]), chip.rates["mma_bf16"]
    exp2, clock = more.exp2_per_cycle, more.clock_ghz
    return [
        Limit("HBM", "bytes", hbm.value * 1e6, f"{hbm.value:g} TB/s ({hbm.origin})"),
        Limit("MMA", "mma", mma.value * 1e6, f"{mma.value:g} TFLOP/s, bf16 ({mma.origin})"),
        Limit(
            "exp2",
            "exp2",
            chip.sms * exp2.value * clock.value * 1e3,
            f"{exp2.value:g} a cycle and SM ({exp2.origin}), {chip.sms} SMs at {clock.value:g} GHz ({clock.origin})",
        ),
    ]


def place(about: Mapping[str, Any], config: Mapping[str, Scalar], shapes_us: Sequence[float]) -> list[Placement]:
    """The configuration's placement at each shape of the study; empty where the spec has changed since, so that the
    configuration is none any more."""
    try:
        spec = load_op(about["op"])
        kernel = plan(spec, about["arch"], dims=about["dims"], variant=about["variant"], config=dict(config))
        known = limits(about["arch"], str(about.get("device", {}).get("name", "")))
        found = []
        for sizes, us in zip(about["sizes"], shapes_us, strict=True):
            counts = work(spec, kernel, {**workload_sizes(spec.op), **sizes})
            found.append(placed(sizes, us, counts, known))
        return found
    except (SpecError, Refused, ValueError):  # an old study: what it was asked about is not there any more
        return []


def placed(sizes: dict[str, int], us: float, counts: Mapping[str, float], known: Sequence[Limit]) -> Placement:
    """The placement of one time."""
    least = {limit.name: counts[limit.count] / limit.per_us for limit in known if counts.get(limit.count)}
    bound = max(least, key=lambda name: least[name], default=None)
    shares = {name: each / us for name, each in least.items()}
    return Placement(
        sizes=sizes,
        us=us,
        counts=dict(counts),
        shares=shares,
        least_us=None if bound is None else least[bound],
        bound=bound,
        gigabytes_per_s=counts["bytes"] / us / 1e3 if counts.get("bytes") else None,
        teraflops=counts["mma"] / us / 1e6 if counts.get("mma") else None,
    )
