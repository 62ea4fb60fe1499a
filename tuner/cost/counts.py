"""What a kernel asks of the chip for one call: bytes, products, instructions, CTAs and how many of them fit at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Budget
from dsv4.generator.spec import SpecError, load_arch, load_op
from dsv4.generator.spec.errors import Words
from dsv4.generator.spec.expression import Expression, Unevaluable, Value
from dsv4.tuner.cost.launches import LaunchRule, chip_rates, launch_rules


@dataclass(frozen=True)
class LaunchCounts:
    """One launch. Totals are over all CTAs: bytes, FLOP, exponentials, ``instructions`` of warps
    (``of_a_thread``: of one thread in its life; where warps have roles, what one of them has beside its loop).

    ``resident`` CTAs fit an SM, ``slots`` the chip; the busiest SM has ``share`` of the work that is bound to an SM.
    ``waves``: rounds of CTAs. ``turns``: units of the busiest CTA. CTAs that leave at once count among ``ctas``, which
    the chip starts, and nowhere else. ``in_flight`` bytes of a CTA that loads in a loop. The rest, of one CTA:
    ``trips`` to memory one after another, barriers of the CTA and of the cluster, dependent ``cycles``, those of its
    loop in ``loop_cycles``; ``turn_*`` the same for each further unit. ``overlap``: the limits of an SM hide one
    another.
    """

    ctas: int
    resident: int
    slots: int
    waves: int
    turns: int
    share: float
    hbm_bytes: float
    l2_bytes: float
    mma_flop: float
    mma_sync_flop: float
    exp2: float
    smem_bytes: float
    instructions: float
    of_a_thread: float
    in_flight: float | None
    trips: float
    syncs: float
    cluster_syncs: float
    cycles: float
    loop_cycles: float
    turn_trips: float
    turn_syncs: float
    turn_cluster_syncs: float
    turn_cycles: float
    overlap: bool


def count(plan: KernelPlan, sizes: Mapping[str, int]) -> list[LaunchCounts]:
    """The counts of every launch of ``plan`` at the dynamic ``sizes``; none where a size leaves nothing to do.

    Raises SpecError for an operator that ``launches.yaml`` does not describe and for a missing size.
    """
    scope = _scope(plan, sizes)
    found = []
    for number, rule in enumerate(launch_rules(plan.op).launches):
        if rule.arch in (None, plan.arch):
            launch = _Launch(plan, rule, scope, f"launches.yaml: {plan.op}[{number}]")
            if launch.number("when") and (counts := launch.counts()) is not None:
                found.append(counts)
    return found


def _scope(plan: KernelPlan, sizes: Mapping[str, int]) -> dict[str, Value]:
    """Every name of the spec with its value, ``work`` included."""
    spec = load_op(plan.op)
    assumed = launch_rules(plan.op).assume
    scope: dict[str, Value] = {**plan.dims, **plan.variant, **plan.config, **sizes, **_of_chip(plan.arch)}
    for name, expression in assumed.items():
        if name not in scope:
            scope[name] = _value(expression, scope, f"launches.yaml: {plan.op}.assume.{name}")
    derived = {name: dim.derived for name, dim in spec.dims.items() if dim.derived is not None}
    for field, expressions in (("dims", derived), ("let", spec.let), ("work", spec.work)):
        for name, expression in expressions.items():
            scope[name] = _value(expression, scope, f"{plan.op}: {field}.{name}")
    return scope


def _of_chip(arch: str) -> dict[str, int]:
    chip = load_arch(arch)
    return {"sms": chip.sms, "hbm_cycle_bytes": round(chip.rates["hbm"].value * 1e3 / chip_rates(arch).clock_ghz.value)}


def _value(expression: Expression, scope: Mapping[str, Value], field: str) -> Value:
    missing = [name for name in expression.names if name not in scope]
    if missing:
        raise SpecError(field, Words("nothing"), f"a size for {', '.join(missing)} (--shape)")
    try:
        return expression(scope)
    except Unevaluable as problem:
        raise SpecError(field, Words(str(problem)), "sizes for which it has a value") from None


class _Launch:
    """One rule, evaluated in its order: let, units, ctas, then the rest."""

    def __init__(self, plan: KernelPlan, rule: LaunchRule, scope: Mapping[str, Value], where: str) -> None:
        self.plan, self.rule, self.where = plan, rule, where
        self.budget = plan.budget.further[rule.kernel] if rule.kernel else plan.budget
        self.scope: dict[str, Value] = {**scope, "threads": self.budget.threads}
        for name, expression in rule.let.items():
            self.scope[name] = _value(expression, self.scope, f"{where}.let.{name}")

    def number(self, name: str) -> float:
        return float(_value(getattr(self.rule, name), self.scope, f"{self.where}.{name}"))

    def _grid(self) -> tuple[int, int, int]:
        """CTAs, units and the units of the busiest CTA; their names from then on."""
        rule = self.rule
        if rule.units is not None:
            self.scope["units"] = int(self.number("units"))
        ctas = int(self.number("ctas"))
        self.scope["ctas"] = ctas
        units = int(self.number("units")) if rule.units is not None else ctas
        workers = max(1, ctas // max(1, int(self.number("unit_ctas"))))
        turns = max(1, -(-units // workers))
        self.scope.update(units=units, turns=turns)
        return ctas, units, turns

    def counts(self) -> LaunchCounts | None:
        """None where there is no CTA. Asked once: the names of the grid may hide those of tunables."""
        ctas, units, turns = self._grid()
        if ctas < 1:
            return None
        resident = resident_ctas(self.plan, self.budget, self._registers())
        slots = self._slots(resident)
        given = {name: self.number(name) for name in _PLAIN}
        work_bytes = float(self.scope.get("bytes", 0)) if self.rule.bytes is None else self.number("bytes")
        of_one = 1 / (units * max(1.0, self.number("unit_ctas")))
        at_work = max(1, ctas - int(self.number("leaving")))
        return LaunchCounts(
            ctas=ctas,
            resident=resident,
            slots=slots,
            waves=-(-at_work // slots),
            turns=turns,
            share=min(1.0, -(-at_work // (slots // resident)) * turns * of_one * ctas / at_work),
            hbm_bytes=work_bytes,
            l2_bytes=work_bytes if self.rule.l2_bytes is None else self.number("l2_bytes"),
            mma_flop=self.number("mma"),
            mma_sync_flop=self.number("mma_sync"),
            instructions=self.number("instructions") * at_work * self.budget.threads / 32,
            of_a_thread=self.number("instructions" if self.rule.longest is None else "longest"),
            in_flight=None if self.rule.in_flight is None else self.number("in_flight"),
            overlap=bool(self.number("overlap")),
            **given,
        )

    def _registers(self) -> int | None:
        return None if self.rule.registers is None else int(self.number("registers"))

    def _slots(self, resident: int) -> int:
        """CTAs that the chip holds at once: of clusters, only so many find SMs that are near to one another."""
        size = prod(self.budget.cluster) if self.rule.cluster is None else int(self.number("cluster"))
        chip = load_arch(self.plan.arch)
        held = dict(chip_rates(self.plan.arch).clusters.value).get(size, chip.sms // size)
        return max(1, held * size * resident)


_PLAIN = (
    "exp2", "smem_bytes", "trips", "syncs", "cluster_syncs", "cycles", "loop_cycles",
    "turn_trips", "turn_syncs", "turn_cluster_syncs", "turn_cycles",
)  # fmt: skip


def resident_ctas(plan: KernelPlan, budget: Budget, registers: int | None) -> int:
    """CTAs of one launch that fit an SM, at least 1 (what does not fit at all is no plan).

    ``registers``: of a thread, as estimated; where roles share registers out (setmaxnreg), the launch says them.
    """
    limits = load_arch(plan.arch).limits
    threads = max(budget.threads, 1)
    bounds = [
        limits.ctas_per_sm,
        limits.threads_per_sm // threads,
        limits.smem_bytes_per_sm // max(budget.smem_bytes + limits.smem_reserved_bytes_per_cta, 1),
    ]
    if budget.tmem_columns:
        bounds.append(limits.tmem_columns // budget.tmem_columns)
    if any(role.registers for role in budget.roles.values()):
        registers = budget.launch_registers
    if registers is not None:
        step = limits.register_granularity
        held = min(-(-registers // step) * step, limits.registers_per_thread + 1)
        bounds.append(limits.registers_per_sm // (held * threads))
    return max(1, min(bounds))
