"""What a command measures on: this machine's GPU with the compiler or what the cache holds, or made-up times."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from dsv4.generator.console import UsageError, err
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Device
from dsv4.tuner import builders, fake, worker
from dsv4.tuner.bench import Measurer
from dsv4.tuner.lanes import Lane
from dsv4.tuner.prefork import Prefork
from dsv4.tuner.spread import Spread

MEASURES = ("gpu", "fake")


def require_measure(measure: str) -> None:
    """Raises UsageError for an unknown ``--measure``."""
    if measure not in MEASURES:
        raise UsageError(f"--measure: found '{measure}'; valid: {', '.join(MEASURES)}")


@dataclass(frozen=True)
class Means:
    """``measure`` is all GPUs for one sweep; ``lanes`` has them apart, each for a sweep of its own."""

    device: Device
    builder: builders.Builder
    measure: Measurer
    lanes: list[Lane]

    @property
    def gpus(self) -> int:
        """How many measure at the same time."""
        return len(self.lanes)


def measuring(
    measure: str,
    plan: KernelPlan,
    cache: KernelCache,
    *,
    jobs: int,
    prebuilt: bool,
    by: str,
    ahead: bool = True,
    gpus: str = "1",
    say: Callable[[str], None] = lambda text: err.print(text, markup=False),
) -> Means:
    """The device, the builder and the measurer of ``--measure``. Raises UsageError where this machine's GPUs cannot run
    ``plan``, or are not as many as ``gpus`` asks for, in the name of the command ``by``.

    With ``ahead`` what is measured next is compiled meanwhile, on all cores but one for each GPU: not for calls that
    are launched one by one, which would be slowed down by it.
    """
    from dsv4.tuner.gpu import parse_gpus

    count = parse_gpus(gpus)
    if measure == "fake":
        made_up = fake.FakeBuilder()
        several = [fake.FakeGpu(made_up) for _ in range(count or 1)]
        lanes = [Lane(made_up, each) for each in several]
        return Means(fake.DEVICE, made_up, Spread(several) if len(several) > 1 else several[0], lanes)
    from dsv4.runtime.identity import device_identity
    from dsv4.tuner.gpu import exclusively, gpu_lock, require_gpus

    indices = require_gpus(plan, by, gpus)
    cores = os.cpu_count() or 1
    each = [exclusively(worker.on(index, start=Prefork()), gpu_lock(cache.root, index)) for index in indices]

    def builder(share: int) -> builders.Builder:
        """For all GPUs, or one of ``share`` builders at work at the same time."""
        if prebuilt:
            return builders.Prebuilt(cache)
        free = (cores - len(indices)) // share if ahead else cores // share
        compiler = builders.Compiler(cache, jobs or max(1, free))
        return builders.Ahead(compiler) if ahead else compiler

    lanes = [Lane(builder(len(each)), gpu) for gpu in each]
    return Means(device_identity(indices[0]), builder(1), Spread(each, say) if len(each) > 1 else each[0], lanes)
