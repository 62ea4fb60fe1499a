"""From counts to microseconds: launches, the chain that nothing hides, and the largest of the chip's limits.

    t = launches · launch + Σ (chain of one CTA + limits)

A CTA's chain is what follows one after another in it (trips to memory, barriers, dependent cycles, and where it loads
all that it needs at once, the instructions of a thread, which the issue slots then have no need of a second time). The
limits are HBM, bytes in flight (Little's law, with the latency of a trip where memory is idle and a longer one where it
is busy), the SMs' ports to the L2, tensor cores, exponentials, issue slots and shared memory, each at its rate times a
calibrated efficiency; those of an SM for the busiest one, so that a wave that is not full, an odd number of tiles and
padding count; of a CTA that loads in a loop what one warp takes for its instructions and what its steps wait for,
however few others there are; and how many CTAs the chip can start. To these belongs what further waves or units of the
same slot take one after another; the fewer CTAs an SM holds, the more of it is in the open. A p-norm joins them: none
hides another one fully.

The coefficients are few and belong to a chip's generation, not to operators. They have priors, so that a fit in which
nothing says anything about one leaves it where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from dsv4.generator.spec import load_arch
from dsv4.tuner.cost.counts import LaunchCounts
from dsv4.tuner.cost.launches import chip_rates, device_rates

JOIN_POWER = 4.0
EXPOSED_POWER = 2
"""Of the chains of further waves and units, 1 / resident^2 is in the open: then all CTAs of an SM wait at once."""
LIMITS = ("hbm", "in_flight", "l2", "mma", "exp2", "issue", "smem", "serial", "ctas")


@dataclass(frozen=True)
class Coefficients:
    """What calibration finds. ``*_us``: microseconds; ``*_share``: of the rate that the chip's figures give.

    The values here are the priors: what one would guess without a measurement.
    """

    launch_us: float = 1.0
    trip_us: float = 0.6
    sync_us: float = 0.05
    cluster_us: float = 0.5
    latency_us: float = 0.9
    hbm_share: float = 0.9
    l2_share: float = 0.7
    mma_share: float = 0.8
    exp2_share: float = 0.8
    issue_share: float = 0.6
    smem_share: float = 0.7
    instruction_cycles: float = 2.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


NAMES = tuple(each.name for each in fields(Coefficients))


@dataclass(frozen=True)
class Rates:
    """One chip's rates in units a microsecond; those of an SM for a single one. ``ctas``: that the chip starts."""

    hbm_bytes: float
    l2_bytes: float
    mma_flop: float
    mma_sync_flop: float
    exp2: float
    instructions: float
    smem_bytes: float
    cycles: float
    ctas: float


def rates(arch: str, device: str = "") -> Rates:
    """From ``specs/archs`` and ``chips.yaml``; ``device`` is a GPU's name, where it has rates of its own. An SM's share
    of a product's rate is the chip's divided by the SMs."""
    chip, more = load_arch(arch), chip_rates(arch)
    own = device_rates(arch, device)
    cycles = more.clock_ghz.value * 1e3
    mma = chip.rates["mma_bf16"].value * 1e6 / chip.sms
    return Rates(
        hbm_bytes=(own.hbm if own else chip.rates["hbm"]).value * 1e6,
        l2_bytes=more.l2_bytes_per_cycle.value * cycles,
        mma_flop=mma,
        mma_sync_flop=mma * more.mma_sync_share.value,
        exp2=more.exp2_per_cycle.value * cycles,
        instructions=more.issue_per_cycle.value * cycles,
        smem_bytes=more.smem_bytes_per_cycle.value * cycles,
        cycles=cycles,
        ctas=more.ctas_per_cycle.value * cycles,
    )


@dataclass(frozen=True)
class Prediction:
    """Microseconds of one call. ``bound`` names what takes the most: a limit, ``chain`` or ``launch``."""

    us: float
    bound: str
    parts: dict[str, float]


def predict(launches: Sequence[LaunchCounts], chip: Rates, coefficients: Coefficients) -> Prediction:
    """The time of one call that makes these launches; 0 where there is none."""
    parts: dict[str, float] = dict.fromkeys(("launch", "chain", *LIMITS), 0.0)
    total = 0.0
    for each in launches:
        chain = _chain_us(each, chip, coefficients)
        limits = _limits_us(each, chip, coefficients)
        further = (each.waves - 1) * chain + each.waves * (each.turns - 1) * _turn_us(each, chip, coefficients)
        bare = chain + further / each.resident**EXPOSED_POWER
        total += coefficients.launch_us + bare + _joined(each, limits, further)
        parts["launch"] += coefficients.launch_us
        parts["chain"] += max(bare, further)
        for name, us in limits.items():
            parts[name] += us
    return Prediction(total, max(parts, key=lambda name: parts[name]), parts)


def _chain_us(each: LaunchCounts, chip: Rates, c: Coefficients) -> float:
    waits = each.trips * c.trip_us + each.syncs * c.sync_us + each.cluster_syncs * c.cluster_us
    return waits + each.cycles / chip.cycles + _alone_us(each, chip, c)


def _alone_us(each: LaunchCounts, chip: Rates, c: Coefficients) -> float:
    """What a thread's instructions take where nothing is loaded behind them."""
    return 0.0 if each.in_flight else each.of_a_thread * c.instruction_cycles / chip.cycles


def _turn_us(each: LaunchCounts, chip: Rates, c: Coefficients) -> float:
    waits = each.turn_trips * c.trip_us + each.turn_syncs * c.sync_us + each.turn_cluster_syncs * c.cluster_us
    return waits + each.turn_cycles / chip.cycles


def _limits_us(each: LaunchCounts, chip: Rates, c: Coefficients) -> dict[str, float]:
    hbm_us = each.hbm_bytes / (chip.hbm_bytes * c.hbm_share)
    in_flight_us = 0.0
    if each.in_flight:
        steps = each.l2_bytes / (each.in_flight * min(each.ctas, each.slots))
        load = min(1.0, hbm_us / (steps * c.latency_us))
        in_flight_us = steps * (c.trip_us + load * max(0.0, c.latency_us - c.trip_us))
    mma = each.mma_flop / chip.mma_flop + each.mma_sync_flop / chip.mma_sync_flop
    issue_us = each.instructions * each.share / (chip.instructions * c.issue_share)
    return {
        "hbm": hbm_us,
        "in_flight": in_flight_us,
        "l2": each.l2_bytes * each.share / (chip.l2_bytes * c.l2_share),
        "mma": mma * each.share / c.mma_share,
        "exp2": each.exp2 * each.share / (chip.exp2 * c.exp2_share),
        "issue": max(0.0, issue_us - _alone_us(each, chip, c)),  # the first wave's are in the chain
        "smem": each.smem_bytes * each.share / (chip.smem_bytes * c.smem_share),
        "serial": _serial_us(each, chip, c),
        "ctas": each.ctas / chip.ctas,
    }


def _serial_us(each: LaunchCounts, chip: Rates, c: Coefficients) -> float:
    """Of a CTA that loads in a loop: what its steps take one after another, however early their bytes are there."""
    if not each.in_flight:
        return 0.0
    return (each.of_a_thread * c.instruction_cycles + each.loop_cycles) * each.waves / chip.cycles


def _joined(each: LaunchCounts, limits: dict[str, float], further_us: float) -> float:
    values = list(limits.values())
    if not each.overlap:  # of one SM, products, exponentials and instructions take turns
        hidden = ("hbm", "in_flight", "l2", "smem", "serial", "ctas")
        values = [limits[name] for name in hidden]
        values.append(sum(us for name, us in limits.items() if name not in hidden))
    values.append(further_us)
    largest = max(values)
    if largest <= 0:
        return 0.0
    return largest * sum((value / largest) ** JOIN_POWER for value in values) ** (1 / JOIN_POWER)
