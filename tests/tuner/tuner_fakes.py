"""Fakes that the tuner's tests share: a builder and a measurer that need neither compiler nor GPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import Manifest, Resources, digest
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Device
from dsv4.tuner.builders import Built
from dsv4.tuner.halving import survivors
from dsv4.tuner.protocol import Beside, Request, Timing, score_us
from dsv4.tuner.worker import Outcome

GPU = Device(name="Fake GPU", memory_bytes=80 << 30, sms=132, driver="580.1", cuda="13.0")


def object_of(plan: KernelPlan) -> bytes:
    """What stands for the compiled object."""
    return f"object of {plan.name}".encode()


def manifest_of(plan: KernelPlan) -> Manifest:
    """A manifest as the builder would write it."""
    files = {"kernel.so": hashlib.sha256(object_of(plan)).hexdigest()}
    resources = Resources(smem_bytes=0, tmem_columns=0, threads=128)
    key = digest(plan.identity)[:32]
    return Manifest(
        key=key, name=plan.name, function=f"dsv4_{plan.op}_{key[:12]}", op=plan.op, arch=plan.arch,
        compute_capabilities=plan.compute_capabilities, model=plan.model, dims=plan.dims, variant=plan.variant,
        config=plan.config, is_default=plan.is_default, numeric_class=plan.numeric_class, contract=plan.contract,
        launches=(), predicted=resources, used=resources, spec_sha256=plan.spec_sha256, source_sha256="0" * 64,
        ptx_sha256="0" * 64, files=files, toolchain={"cutlass": "4.8.1"}, host_isa=(), glibc="2.17", seconds={},
    )  # fmt: skip


class FakeBuilder:
    """Makes an artifact folder without an object per plan, or fails for those that ``broken`` picks."""

    def __init__(self, cache: KernelCache, broken: Callable[[dict], bool] = lambda config: False) -> None:
        self.cache, self.broken = cache, broken
        self.built: list[KernelPlan] = []
        self.plans: dict[str, KernelPlan] = {}

    def only(self, space):
        return None

    def build(self, plans, progress):
        found = []
        for plan in plans:
            self.built.append(plan)
            if self.broken(plan.config):
                found.append(Built(plan, None, "ptxas: it exploded"))
                continue
            manifest = manifest_of(plan)
            folder = self.cache.folder(plan.op, plan.arch, manifest.key)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "kernel.so").write_bytes(object_of(plan))
            (folder / "manifest.json").write_text(json.dumps(manifest.model_dump(mode="json")))
            self.plans[str(folder)] = plan
            found.append(Built(plan, folder, None))
        return found


class FakeGpu:
    """Measures by a formula: ``cost(config, sizes)`` in µs; ``wrong`` picks configurations that fail their check, and
    ``hangs`` those that are killed for their silence. In its n-th request the GPU is ``drift(n)`` times as slow."""

    def __init__(
        self,
        builder: FakeBuilder,
        cost,
        wrong=lambda config: False,
        again=None,
        hangs=lambda config: False,
        width: float = 0.0,
        drift: Callable[[int], float] = lambda request: 1.0,
    ) -> None:
        self.builder, self.cost, self.wrong, self.again = builder, cost, wrong, again or cost
        self.hangs, self.width, self.drift = hangs, width, drift
        self.requests: list[Request] = []
        self.interrupt_after: int | None = None

    def measured(self) -> list[dict]:
        """The configurations that ran, in their order, each time that they did."""
        return [
            self.builder.plans[folder].config
            for request in self.requests
            if not request.compare
            for folder in request.artifacts
        ]

    def __call__(self, request: Request, *, limit_s, progress=lambda outcome: None):
        if self.interrupt_after is not None and len(self.requests) == self.interrupt_after:
            raise KeyboardInterrupt
        self.requests.append(request)
        configs = {folder: self.builder.plans[folder].config for folder in request.artifacts}
        if request.compare:
            first, second = configs.values()
            ratios = [{"sizes": s, "ratio": self.again(second, s) / self.again(first, s)} for s in request.sizes]
            return [Outcome(request.artifacts[1], compared=ratios, device="Fake GPU")]
        outcomes = {}
        for folder, config in configs.items():
            bad = self.wrong(config)
            outcomes[folder] = Outcome(folder, device="Fake GPU")
            if self.hangs(config):
                outcomes[folder].error = f"no answer within {limit_s:g} s: killed"
                continue
            outcomes[folder].checked = {"ok": not bad, "cases": 3, "findings": ["T=7: y is off"] if bad else []}
        going_on = [folder for folder, outcome in outcomes.items() if outcome.failure is None]
        for rounds in request.rungs:
            scores = {}
            for folder in (*request.beside, *going_on):
                timings = [self._timing(request, folder, place, rounds) for place in range(len(request.sizes))]
                scores[folder] = score_us(timings)
                for timing in timings if folder in outcomes else ():
                    outcomes[folder].measured(timing)
            known = [scores.pop(folder) for folder in request.beside]
            going_on = survivors(scores, min(known, default=None))
        for outcome in outcomes.values():
            progress(outcome)
        return list(outcomes.values())

    def _timing(self, request: Request, folder: str, place: int, rounds: int) -> Timing:
        sizes, slower = request.sizes[place], self.drift(len(self.requests))
        us = self.cost(self.builder.plans[folder].config, sizes)
        low, high = 1 - self.width / 2, 1 + self.width / 2
        beside = None
        if request.beside:
            default_us = self.cost(self.builder.plans[request.beside[0]].config, sizes)
            ratio, anchor_us = us / default_us, request.default_us[place]
            beside = Beside(
                ratio=ratio, low=low * ratio, high=high * ratio, default_us=slower * default_us, anchor_us=anchor_us
            )
        return Timing(
            sizes=sizes, median_us=slower * us, low_us=slower * low * us, high_us=slower * high * us, rounds=rounds,
            input_copies=1, beside=beside,
        )  # fmt: skip
