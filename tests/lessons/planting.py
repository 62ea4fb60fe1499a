"""Kernels with a mistake in their source: an edit of the emitted file or of a device module, compiled like the rest.

Compiles run in two processes of their own, all at once; a test asks for what it needs by name and waits for that.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv4.emulator.client import Client, Object
from dsv4.emulator.mutations import mutations
from dsv4.emulator.outcome import Report
from dsv4.emulator.policy import schedules as policies
from dsv4.emulator.sources import Sources
from dsv4.generator.verify import run_case
from dsv4.generator.verify.blame import WrongElement, wrong_element
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import EmulatedObject
from dsv4.runtime.artifact import Contract, Scalar

OPTIONS = "--enable-tvm-ffi --keep-ptx --keep-cubin --generate-line-info"
DEVICE = "dsv4.generator.device"
SOURCE = "source"
JOBS = 2

Edits = Mapping[str, tuple[str, str]]
"""Text and its replacement, by the name of a device module or ``"source"`` for the emitted file."""


@dataclass(frozen=True)
class Job:
    """A kernel to be compiled: an operator's plan with edits, or ``module.function(*arguments)`` that compiles one.

    A function's kernel is called like the operator ``op``, where that is given.
    """

    op: str = ""
    arch: str = ""
    dims: Mapping[str, int] = field(default_factory=dict)
    variant: Mapping[str, Scalar] = field(default_factory=dict)
    config: Mapping[str, Scalar] = field(default_factory=dict)
    edits: Edits = field(default_factory=dict)
    module: str = ""
    function: str = ""
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel; ``folder`` holds the edited sources that its lines are of, ``source`` is the emitted text."""

    made: Object
    folder: str
    source: str
    contract: Contract | None
    config: dict[str, Scalar]

    @property
    def ptx(self) -> str:
        return self.made.texts[0].ptx

    def edited(self, old: str, new: str) -> Compiled:
        """The same with an edit of the PTX, which must hold ``old`` once."""
        assert self.ptx.count(old) == 1, f"{self.ptx.count(old)} × {old!r}"
        return self.with_ptx(self.ptx.replace(old, new))

    def with_ptx(self, ptx: str) -> Compiled:
        made = Object(self.made.library, self.made.function, (type(self.made.texts[0])(ptx),), self.made.shown)
        return Compiled(made, self.folder, self.source, self.contract, self.config)

    def mutated(self, id_: str) -> Compiled:
        """The same with the mutation of this id (see ``dsv4.emulator.mutations``)."""
        found = {each.id: each for each in mutations(self.ptx, sources=Sources([self.folder]))}
        assert id_ in found, f"{id_} is none of {', '.join(sorted(found))}"
        return self.with_ptx(found[id_].apply(self.ptx))


class Bench:
    """Compiles jobs by name and runs what comes out."""

    def __init__(self, jobs: Mapping[str, Job], folder: Path) -> None:
        self._jobs, self._folder = dict(jobs), folder
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(JOBS, mp_context=context, initializer=_start, initargs=(sys.path,))
        self._made: dict[str, Future[Compiled]] = {}
        self.client = Client()

    def ask(self, names: list[str]) -> None:
        """Begin to compile these."""
        for name in names:
            key = repr(self._jobs[name])
            if key not in self._made:
                folder = self._folder / name.replace(" ", "_")
                self._made[key] = self._pool.submit(compile_job, self._jobs[name], str(folder))

    def compiled(self, name: str) -> Compiled:
        self.ask([name])
        return self._made[repr(self._jobs[name])].result()

    def look(self, kernel: Compiled, case: Case, schedules: int = 1) -> Found:
        """Run a case under so many schedules until something is found."""
        assert kernel.contract is not None
        called = EmulatedObject(kernel.made, kernel.contract, client=self.client, max_instructions=20_000_000)
        for policy in policies(schedules):
            called.schedule = policy.name
            verdict = run_case(called, kernel.contract, case)
            assert called.report is not None
            if called.report.findings:
                return Found(called.report, ())
            if not verdict.ok:
                wrong = wrong_element(called, kernel.contract, case, kernel.config)
                return Found(called.report, verdict.findings, wrong)
        assert called.report is not None
        return Found(called.report, ())

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.client.close()


@dataclass(frozen=True)
class Found:
    """What a run showed: the emulator's report, what the judge says of the values, the first wrong element."""

    report: Report
    verdict: tuple[str, ...]
    wrong: WrongElement | None = None

    @property
    def kinds(self) -> set[str]:
        kinds = {finding.kind for finding in self.report.findings}
        return kinds | {"wrong values"} if self.verdict else kinds

    @property
    def nothing(self) -> bool:
        return not self.kinds


def _start(path: list[str]) -> None:
    sys.path[:] = path
    importlib.import_module("cutlass.cute")


def compile_job(job: Job, folder: str) -> Compiled:
    """Compile a job in this process; ``folder`` is made and holds the sources."""
    Path(folder).mkdir()
    if job.module:
        compiled = getattr(importlib.import_module(job.module), job.function)(*job.arguments, _dump_folder(folder))
        return _result(compiled, folder, "", _called_like(job.op) if job.op else None, dict(job.config))
    return _compile_plan(job, folder)


def _called_like(op: str) -> Contract:
    """The names and the order of an operator's arguments."""
    from dsv4.generator.spec import default_plans

    return default_plans(op, "sm_90a")[0].contract


def _dump_folder(folder: str) -> str:
    made = Path(folder, "compiler")
    made.mkdir()
    return str(made)


def _compile_plan(job: Job, folder: str) -> Compiled:
    import cutlass.cute as cute

    from dsv4.generator.build.loading import forget_device_modules, load_source
    from dsv4.generator.emit import emit
    from dsv4.generator.spec import plan

    made = plan(job.op, job.arch, dims=dict(job.dims), variant=dict(job.variant), config=dict(job.config))
    text = emit(made).text
    forget_device_modules()
    for name, edit in job.edits.items():
        if name == SOURCE:
            text = _edit(text, edit)
        else:
            _load_edited(name, edit, folder)
    (Path(folder) / "source.py").write_text(text)
    module = load_source(text)
    dump = _dump_folder(folder)
    options = f"{OPTIONS} --gpu-arch {job.arch} --opt-level {made.config['opt_level']} --dump-dir {dump}"
    compiled = cute.compile(module.launch, *module.arguments(made.variant), options=options)
    return _result(compiled, folder, text, made.contract, made.config)


def _edit(text: str, edit: tuple[str, str]) -> str:
    old, new = edit
    assert text.count(old) == 1, f"{text.count(old)} × {old!r}"
    return text.replace(old, new)


def _load_edited(name: str, edit: tuple[str, str], folder: str) -> None:
    """Put the edited device module where those that import it will find it."""
    package = importlib.import_module(DEVICE)
    original = Path(next(iter(package.__path__))) / f"{name}.py"
    path = Path(folder) / f"{name}.py"
    path.write_text(_edit(original.read_text(), edit))
    spec = importlib.util.spec_from_file_location(f"{DEVICE}.{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"{DEVICE}.{name}"] = module
    spec.loader.exec_module(module)
    setattr(package, name, module)


def _result(compiled: Any, folder: str, source: str, contract: Contract | None, config: dict[str, Scalar]) -> Compiled:
    from dsv4.emulator.objects import from_compiled

    return Compiled(from_compiled(compiled), folder, source, contract, config)
