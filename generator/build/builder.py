"""From plans to artifacts: emit, look into the cache, compile what is missing, judge, write."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4.generator.build import pool
from dsv4.generator.build.arguments import candidates
from dsv4.generator.build.evidence import add_check, new_check, read_evidence
from dsv4.generator.build.key import BuildKey, build_key, toolchain
from dsv4.generator.build.store import artifact_folder, make_private, publish, read_whole, workspace
from dsv4.generator.build.support import build_probe_stub, build_support_library
from dsv4.generator.emit import emit
from dsv4.generator.kernel import EmittedSource, KernelPlan
from dsv4.runtime.artifact import MANIFEST_NAME, Launch, Manifest, Resources, sha256_file

Progress = Callable[["BuildResult"], None]
Emit = Callable[[KernelPlan], EmittedSource]


@dataclass(frozen=True)
class BuildResult:
    """What became of one plan: an ``artifact`` folder, or an ``error`` of one line (and a ``log`` where one was kept).

    ``used`` is what the compiled kernel takes (None if it was not compiled), ``seconds`` the wall time of its compile,
    or of the look-up where it was ``cached``.
    """

    plan: KernelPlan
    artifact: Path | None
    error: str | None
    cached: bool
    seconds: float
    used: Resources | None = None
    log: Path | None = None

    @property
    def registers(self) -> int | None:
        return self.used.registers if self.used else None

    @property
    def spill_bytes(self) -> int | None:
        return self.used.spill_bytes if self.used else None

    @property
    def local_bytes(self) -> int | None:
        return self.used.local_bytes if self.used else None


@dataclass(frozen=True)
class _Job:
    source: EmittedSource
    key: BuildKey
    folder: Path
    positions: list[int]
    candidates: list[list[dict[str, Any]]]


def build(
    plans: Sequence[KernelPlan],
    *,
    cache_root: Path,
    jobs: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    emit: Emit = emit,
) -> list[BuildResult]:
    """Have an artifact in the cache for every plan, and say for each what came of it, in the plans' order.

    At most ``jobs`` compile processes (default: one per core) run at once; each compile has its plan's
    ``compile_seconds_limit``. ``progress`` is called once for each plan, as it is done. ``force`` compiles even what
    the cache holds. Nothing is raised for a plan that fails: its result has the ``error``. A compiled kernel that takes
    other resources than predicted, or that spills where the spec forbids it, is an error and is not written.

    Raises :class:`FileNotFoundError` without a C compiler, ``SupportError`` where it cannot build our C, ``PoolError``
    where compile processes do not start, and :class:`OSError` where the cache cannot be written.
    """
    cache_root = cache_root.absolute()
    make_private(cache_root)
    results: list[BuildResult | None] = [None] * len(plans)

    def settle(position: int, result: BuildResult) -> None:
        results[position] = result
        if progress:
            progress(result)

    with workspace(cache_root) as scratch:
        work: dict[str, _Job] = {}
        for position, plan in enumerate(plans):
            started = time.monotonic()
            try:
                source = emit(plan)
                arguments = list(candidates(plan.contract, plan.bucket))
            except ValueError as error:  # EmitError, or a contract whose sizes cannot be worked out
                settle(position, BuildResult(plan, None, str(error), False, time.monotonic() - started))
                continue
            key = build_key(source)
            if key.key in work:
                work[key.key].positions.append(position)
                continue
            target = artifact_folder(cache_root, plan.op, plan.arch, key.key)
            manifest = None if force else read_whole(target, key.key)
            if manifest is not None:
                os.utime(target / MANIFEST_NAME)  # of two defaults the runtime takes the one that was built last
                error_text = _judge(plan, manifest.used)
                seconds = time.monotonic() - started
                settle(position, BuildResult(plan, target, error_text, True, seconds, manifest.used))
            else:
                work[key.key] = _Job(source, key, scratch / key.key, [position], arguments)
        if work:
            _compile(work, plans, settle, cache_root=cache_root, jobs=jobs or os.cpu_count() or 1)
    return [result for result in results if result is not None]


def _compile(
    work: dict[str, _Job],
    plans: Sequence[KernelPlan],
    settle: Callable[[int, BuildResult], None],
    *,
    cache_root: Path,
    jobs: int,
) -> None:
    support, stub = build_support_library(cache_root), build_probe_stub(cache_root)
    logs = cache_root / "logs"
    make_private(logs)
    requests, by_folder = [], {}
    for job in work.values():
        requests.append(_request(job, support, stub))
        by_folder[job.folder] = job

    def done(outcome: pool.Outcome) -> None:
        job = by_folder[outcome.request.folder]
        artifact, used, error, log = None, None, outcome.error, None
        plan = job.source.plan
        if outcome.result is not None:
            used = _used(outcome.result)
            error = _judge(plan, used)
            if error is None:
                artifact = _write(job, outcome.result, used, cache_root)
        if error is not None:
            log = _keep_log(job, outcome, logs)
        for position in job.positions:
            settle(position, BuildResult(plans[position], artifact, error, False, outcome.seconds, used, log))

    pool.run(requests, jobs=min(jobs, len(requests)), done=done, log=logs / "workers.log")


def _request(job: _Job, support: Path, stub: Path) -> pool.Request:
    """Write the folder that a worker compiles."""
    plan, key = job.source.plan, job.key
    job.folder.mkdir(mode=0o700)
    (job.folder / "source.py").write_text(job.source.text)
    request = {
        "function": key.function,
        "variant": plan.variant,
        "targets": key.targets,
        "opt_level": key.opt_level,
        "devices": key.devices,
        "candidates": job.candidates,
        "support": str(support),
        "stub": str(stub),
    }
    (job.folder / "request.json").write_text(json.dumps(request))
    return pool.Request(plan.name, job.folder, plan.arch, plan.compile_seconds_limit)


def _used(result: dict[str, Any]) -> Resources:
    """What the compiled kernel takes; of several launches the most of each."""
    launches = result["launches"]
    return Resources(
        smem_bytes=max(launch["smem_bytes"] for launch in launches),
        tmem_columns=result["tmem_columns"],
        threads=max(x * y * z for x, y, z in (launch["block"] for launch in launches)),
        registers=result["registers"],
        spill_bytes=result["spill_bytes"],
        local_bytes=result["local_bytes"],
    )


def _judge(plan: KernelPlan, used: Resources) -> str | None:
    """Why the compiled kernel may not serve, in one line, or None."""
    reasons = []
    for name in ("smem_bytes", "tmem_columns", "threads"):
        predicted, found = getattr(plan.predicted, name), getattr(used, name)
        if predicted != found:
            reasons.append(f"{name}: predicted {predicted}, the compiled kernel asks for {found}")
    if plan.forbid_spills and (used.spill_bytes or used.local_bytes):
        reasons.append(
            f"spills {used.spill_bytes} B and {used.local_bytes} B of local memory a thread with {used.registers} "
            "registers; the spec forbids both"
        )
    return "; ".join(reasons) or None


def _write(job: _Job, result: dict[str, Any], used: Resources, cache_root: Path) -> Path:
    plan, key = job.source.plan, job.key
    files = {name: sha256_file(job.folder / name) for name in ("source.py", "kernel.ptx", "kernel.cubin", "kernel.so")}
    capabilities = plan.compute_capabilities
    if result["target"] != plan.build_target:
        capabilities = (_own_capability(plan.arch),)  # not the family's code: it runs on its own chip alone
    manifest = Manifest(
        key=key.key,
        name=plan.name,
        function=key.function,
        op=plan.op,
        arch=plan.arch,
        compute_capabilities=capabilities,
        model=plan.model,
        dims=plan.dims,
        variant=plan.variant,
        config=plan.config,
        is_default=plan.is_default,
        bucket=plan.bucket,
        numeric_class=plan.numeric_class,
        contract=plan.contract,
        launches=tuple(
            Launch(**{name: launch[name] for name in ("kernel", "block", "cluster", "smem_bytes", "pdl")})
            for launch in result["launches"]
        ),
        workspace_bytes=0,
        predicted=plan.predicted,
        used=used,
        spec_sha256=plan.spec_sha256,
        source_sha256=job.source.sha256,
        ptx_sha256=files["kernel.ptx"],
        files=files,
        toolchain={**toolchain(), "target": result["target"]},
        host_isa=tuple(result["host_isa"]),
        glibc=result["glibc"],
        seconds={name: round(value, 3) for name, value in result["seconds"].items()},
    )
    target = publish(job.folder, manifest, artifact_folder(cache_root, plan.op, plan.arch, key.key))
    climbed = read_evidence(target).rungs()
    if "spec" not in climbed:
        add_check(target, new_check("spec", True, spec_sha256=plan.spec_sha256))
    if "compiled" not in climbed:
        add_check(target, new_check("compiled", True, target=result["target"], registers=used.registers))
    return target


def _own_capability(arch: str) -> tuple[int, int]:
    """``sm_100a`` → (10, 0)."""
    number = int("".join(character for character in arch if character.isdigit()))
    return number // 10, number % 10


def _keep_log(job: _Job, outcome: pool.Outcome, logs: Path) -> Path | None:
    """The compiler's output of a failed kernel, out of the workspace; None if there was none."""
    log = job.folder / "log.txt"
    if not log.exists():
        return None
    kept = logs / f"{job.source.plan.name}.log"
    shutil.copyfile(log, kept)
    with kept.open("a") as stream:
        stream.write(f"\n{outcome.error or 'compiled, but refused'}\n")
    return kept
