"""Schedules: when asynchronous operations take effect and which warp runs, within what the rules allow.

A right kernel gives the same result under every schedule. Two extremes per engine, each warp starved in turn, and
seeded mixes find what a single schedule hides.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace

ENGINES = ("tma_load", "tma_store", "cp_async", "wgmma", "mma", "tmem_load", "tmem_store", "arrive")  # enum Engine
EARLY, LATE, MIXED = 0, 1, 2
MAX_INSTRUCTIONS = 200_000_000


class PolicyC(ctypes.Structure):
    """struct Policy of core/emu.h."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("delay", ctypes.c_int32 * len(ENGINES)),
        ("starved_warp", ctypes.c_int32),
        ("reverse", ctypes.c_int32),
        ("shuffle", ctypes.c_int32),
        ("pick", ctypes.c_int32),
        ("elect_last", ctypes.c_int32),
        ("spurious", ctypes.c_int32),
        ("split_read", ctypes.c_int32),
        ("races", ctypes.c_int32),
        ("max_instructions", ctypes.c_int64),
        ("trace", ctypes.c_int32),
        ("max_findings", ctypes.c_int32),
        ("spare", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Policy:
    """One schedule. `delay` gives EARLY, LATE or MIXED by engine; engines that are not named are EARLY.

    `starved_warp` is the index in the CTA of the warp that runs only when nothing else can (-1: none), `order` is
    "first" (the lowest warp that can run), "last", "random" or "turns", `pick` is which waiting operation lands first
    ("oldest", "newest", "random"), `elect` which lane elect.sync chooses ("first", "last", "random").
    """

    name: str
    seed: int = 0
    delay: dict[str, int] = field(default_factory=dict)
    starved_warp: int = -1
    order: str = "turns"
    pick: str = "oldest"
    elect: str = "first"
    spurious: bool = False
    early_reads: bool = False
    races: bool = True
    trace: bool = False
    max_instructions: int = MAX_INSTRUCTIONS
    max_findings: int = 64

    def to_c(self) -> PolicyC:
        """The same for the core."""
        unknown = set(self.delay) - set(ENGINES)
        if unknown:
            raise ValueError(f"delay: found {sorted(unknown)[0]!r}; valid: {', '.join(ENGINES)}")
        return PolicyC(
            self.seed,
            (ctypes.c_int32 * len(ENGINES))(*(self.delay.get(engine, EARLY) for engine in ENGINES)),
            self.starved_warp,
            int(self.order == "last"),
            {"random": 1, "turns": 2}.get(self.order, 0),
            ("oldest", "newest", "random").index(self.pick),
            ("first", "last", "random").index(self.elect),
            int(self.spurious),
            1 if self.early_reads else 0 if MIXED in self.delay.values() else -1,
            int(self.races),
            self.max_instructions,
            int(self.trace),
            self.max_findings,
            0,
        )


def _all(delay: int) -> dict[str, int]:
    return dict.fromkeys(ENGINES, delay)


_COPIES = ("tma_load", "cp_async")
FIXED = (
    Policy("late", delay=_all(LATE)),
    Policy("early", delay=_all(EARLY), order="first"),
    Policy("late-mma", delay={**_all(LATE), **dict.fromkeys(_COPIES, EARLY)}, order="last"),
    Policy("late-copies", delay={**_all(EARLY), **dict.fromkeys(_COPIES, LATE)}, order="first"),
    Policy("late-stores", delay={"tma_store": LATE, "tmem_store": LATE, "arrive": LATE}, order="last"),
    Policy("newest-first", delay=_all(LATE), pick="newest", order="first"),
    Policy("early-reads", delay=_all(LATE), early_reads=True, order="last"),
)
"""The schedules without chance, in the order in which they find most."""

OPTIONAL = (Policy("last-leader", delay=_all(LATE), elect="last"),)
"""By name only. PTX leaves open which lane elect.sync chooses; published kernels that are right on the chips count on
the lowest one, so all other schedules choose that."""


def mixed(seed: int) -> Policy:
    """A seeded schedule: every choice is drawn."""
    return Policy(f"mixed:{seed}", seed, _all(MIXED), order="random", pick="random", spurious=True)


def starving(warp: int, seed: int = 0) -> Policy:
    """The warp with this index runs only when nothing else can; operations land early or late as `seed` says."""
    delay = _all(LATE if seed % 2 else EARLY)
    return Policy(f"starve:{warp}:{seed}", seed, delay, starved_warp=warp, order="first" if seed % 2 else "turns")


def schedules(count: int, seed: int = 0, warps: int = 0) -> list[Policy]:
    """`count` schedules, the fixed ones first, then the starving of each of `warps` warps in turn and seeded mixes."""
    chosen = list(FIXED[:count])
    turn = 0
    while len(chosen) < count:
        if warps and turn % 2 == 0:
            chosen.append(starving(turn // 2 % warps, turn // 2 // warps))
        else:
            chosen.append(mixed(seed * 1000 + turn))
        turn += 1
    return chosen


def by_name(name: str, *, trace: bool = False) -> Policy:
    """The schedule of this name, as findings print it. Raises ValueError for a name that there is not."""
    kind, _, rest = name.partition(":")
    found = {policy.name: policy for policy in (*FIXED, *OPTIONAL)}.get(name)
    try:
        if kind == "mixed":
            found = mixed(int(rest))
        elif kind == "starve":
            warp, _, seed = rest.partition(":")
            found = starving(int(warp), int(seed or 0))
    except ValueError:
        found = None
    if found is None:
        names = ", ".join(policy.name for policy in (*FIXED, *OPTIONAL))
        raise ValueError(f"schedule: found {name!r}; valid: {names}, mixed:SEED, starve:WARP:SEED")
    return replace(found, trace=trace)
