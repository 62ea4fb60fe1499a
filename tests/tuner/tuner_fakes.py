"""Fakes that the tuner's tests share: a builder and a measurer that need neither compiler nor GPU."""

from __future__ import annotations

from collections.abc import Callable

from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import digest
from dsv4.runtime.cache import KernelCache
from dsv4.tuner.builders import Built
from dsv4.tuner.protocol import Request, Timing
from dsv4.tuner.worker import Outcome


class FakeBuilder:
    """Makes an empty artifact folder per plan, or fails for those that ``broken`` picks."""

    def __init__(self, cache: KernelCache, broken: Callable[[dict], bool] = lambda config: False) -> None:
        self.cache, self.broken = cache, broken
        self.built: list[KernelPlan] = []
        self.plans: dict[str, KernelPlan] = {}

    def available(self, plans):
        return plans

    def build(self, plans, progress):
        found = []
        for plan in plans:
            self.built.append(plan)
            if self.broken(plan.config):
                found.append(Built(plan, None, "ptxas: it exploded"))
                continue
            folder = self.cache.folder(plan.op, plan.arch, digest(plan.identity)[:32])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").write_text("{}")
            self.plans[str(folder)] = plan
            found.append(Built(plan, folder, None))
        return found


class FakeGpu:
    """Measures by a formula: ``cost(config, sizes)`` in µs; ``wrong`` picks configurations that fail their check."""

    def __init__(self, builder: FakeBuilder, cost, wrong=lambda config: False, again=None) -> None:
        self.builder, self.cost, self.wrong, self.again = builder, cost, wrong, again or cost
        self.requests: list[Request] = []
        self.interrupt_after: int | None = None

    def __call__(self, request: Request, *, limit_s, progress=lambda outcome: None):
        self.requests.append(request)
        if self.interrupt_after is not None and len(self.requests) > self.interrupt_after:
            raise KeyboardInterrupt
        configs = [self.builder.plans[folder].config for folder in request.artifacts]
        if request.compare:
            ratios = [
                {"sizes": s, "ratio": self.again(configs[1], s) / self.again(configs[0], s)} for s in request.sizes
            ]
            return [Outcome(request.artifacts[1], compared=ratios, device="Fake GPU")]
        outcomes = []
        for folder, config in zip(request.artifacts, configs, strict=True):
            bad = self.wrong(config)
            outcome = Outcome(folder, checked={"ok": not bad, "findings": ["T=7: y is off"] if bad else []})
            outcome.device = "Fake GPU"
            for sizes in () if bad else request.sizes:
                us = self.cost(config, sizes)
                figures = {"median_us": us, "low_us": us, "high_us": us, "rounds": 3, "input_copies": 1}
                outcome.timings.append(Timing(sizes=sizes, **figures))
            progress(outcome)
            outcomes.append(outcome)
        return outcomes
