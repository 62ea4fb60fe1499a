"""What a command measures on: this machine's GPU with the compiler or what the cache holds, or made-up times."""

from __future__ import annotations

import os

from dsv4.generator.console import UsageError
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Device
from dsv4.tuner import builders, fake, worker
from dsv4.tuner.bench import Measurer

MEASURES = ("gpu", "fake")


def require_measure(measure: str) -> None:
    """Raises UsageError for an unknown ``--measure``."""
    if measure not in MEASURES:
        raise UsageError(f"--measure: found '{measure}'; valid: {', '.join(MEASURES)}")


def measuring(
    measure: str, plan: KernelPlan, cache: KernelCache, *, jobs: int, prebuilt: bool, by: str, ahead: bool = True
) -> tuple[Device, builders.Builder, Measurer]:
    """The device, the builder and the measurer of ``--measure``. Raises UsageError where this machine's GPU cannot run
    ``plan``, or has none, in the name of the command ``by``.

    With ``ahead`` what is measured next is compiled meanwhile, on all cores but one: not for calls that are launched
    one by one, which would be slowed down by it.
    """
    if measure == "fake":
        made_up = fake.FakeBuilder()
        return fake.DEVICE, made_up, fake.FakeGpu(made_up)
    from dsv4.runtime.identity import device_identity
    from dsv4.tuner.gpu import exclusively, gpu_lock, require_gpu

    index = require_gpu(plan, by)
    cores = os.cpu_count() or 1
    builder: builders.Builder = builders.Prebuilt(cache)
    if not prebuilt and ahead:
        builder = builders.Ahead(builders.Compiler(cache, jobs or max(1, cores - 1)))
    elif not prebuilt:
        builder = builders.Compiler(cache, jobs or cores)
    return device_identity(index), builder, exclusively(worker.run, gpu_lock(cache.root, index))
