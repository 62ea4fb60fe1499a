"""Does the emulator find planted mistakes? Every mutation of a kernel, over small cases, under several schedules."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from queue import SimpleQueue
from typing import Any

import torch

from dsv4.emulator.client import Client, Object, Text
from dsv4.emulator.errors import EmulatorError, KernelEndless
from dsv4.emulator.mutations import Mutation, mutations
from dsv4.emulator.objects import from_artifact
from dsv4.emulator.outcome import Finding
from dsv4.emulator.policy import MAX_INSTRUCTIONS
from dsv4.emulator.policy import schedules as policies
from dsv4.emulator.ptx import parse
from dsv4.emulator.sources import Sources
from dsv4.generator.verify import registry
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.early import prior_tensors
from dsv4.generator.verify.emulator import SCHEDULES, WRONG_VALUES, EmulatedObject
from dsv4.generator.verify.kernel_texts import alone, kernel_at
from dsv4.generator.verify.operators import fmha
from dsv4.generator.verify.run import run_case
from dsv4.runtime.artifact import Manifest
from dsv4.runtime.cache import Artifact

FEW_SCHEDULES = 3
"""Races are found whatever the schedule, wrong values in one of the first: the others run over few cases."""
ALL_SCHEDULES_CASES = 3
FEW_CTAS = 9
"""Up to so many there are queries enough for all of them in the cases of decoding attention, and for a second round."""
ENDLESS, ERROR = "endless", "error"
INSTRUCTION_FACTOR = 20
"""A mutated kernel may execute so many times the instructions of the unmutated one before it counts as endless."""
NEAR_LINES = 3
TEXTS_PER_PROCESS = 40
"""The emulating process keeps every text that it has read; after so many it is replaced."""


@dataclass(frozen=True)
class Trial:
    """What became of one mutation.

    ``category`` is the first finding's kind, ``"wrong values"`` where only the judge noticed, ``"endless"``, or
    ``"error"`` where the emulator could not run it (which is no find); empty where it survived. ``place`` says where
    the finding points: ``"line"`` the changed source line, ``"near"`` within three lines of it, ``"function"`` the same
    function, ``"elsewhere"``, or ``""`` for the judge. ``runs`` counts the runs that it took.
    """

    mutation: Mutation
    category: str
    place: str
    case: str
    schedule: str
    message: str
    runs: int
    seconds: float

    @property
    def found(self) -> bool:
        return self.category not in ("", ERROR)

    def as_json(self) -> dict[str, Any]:
        raw = {name: getattr(self.mutation, name) for name in ("id", "family", "description", "ptx_line", "source")}
        rest = asdict(self)
        del rest["mutation"]
        return {**raw, **rest, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Subject:
    """A kernel to be mutated: its object, its text, and the runs (case, schedule) that it is tried in, in order.

    ``launched``: by a case's name, the kernels of the text that it launches; of one that is not there, any may be.
    """

    manifest: Manifest
    made: Object
    text: str
    runs: tuple[tuple[Case, str], ...]
    sources: Sources
    max_instructions: int
    launched: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.manifest.name

    def mutations(self) -> list[Mutation]:
        """Of every kernel in the text that a run launches; where the text holds several, ids begin with its number."""
        names = list(parse(self.text).entries)
        if len(names) == 1:
            return mutations(self.text, kernel=names[0], sources=self.sources)
        made = []
        for number, name in enumerate(names):
            if self.runs_of(name) or not self.runs:
                found = mutations(self.text, kernel=name, sources=self.sources)
                made += [replace(each, id=_numbered(each.id, number)) for each in found]
        return made

    def runs_of(self, kernel: str) -> list[tuple[Case, str]]:
        """The runs that launch this kernel of the text."""
        return [(case, name) for case, name in self.runs if kernel in self.launched.get(case.name, (kernel,))]

    def texts(self, mutation: Mutation) -> tuple[str, tuple[Text, ...]]:
        """The mutated kernel's name, and the texts to run: of several kernels it alone, and the whole as it was, which
        the emulating process reads but once."""
        name, changed = kernel_at(self.text, mutation.start), mutation.apply(self.text)
        only = alone(changed, name)
        return name, (Text(only),) if only == changed else (Text(only), Text(self.text))

    def kernel(self, made: Object, client: Client, *, threads: int) -> EmulatedObject:
        """A compiled form of the kernel, to be called. One with PDL finds its tensors in use by the launch before."""
        contract, prior = self.manifest.contract, prior_tensors(self.manifest)
        return EmulatedObject(
            made, contract, prior=prior, client=client, threads=threads, max_instructions=self.max_instructions
        )


def _numbered(id: str, kernel: int) -> str:
    """``family/place#n`` of the launch ``kernel``: ``family/kernel:place#n``."""
    family, _, place = id.partition("/")
    return f"{family}/{kernel}:{place}"


def small_cases(manifest: Manifest, seed: int = 0) -> list[Case]:
    """Small cases of 1 to 5 tiles; cheap ones first."""
    found = registry.cases(manifest.op, manifest.dims, manifest.variant, config=manifest.config, seed=seed)
    chosen = [found[index] for index in registry.thorough(manifest.op)]
    if manifest.op == "fmha":
        tile_m, tile_n = int(manifest.config["tile_m"]), int(manifest.config["tile_n"])
        five_tiles = fmha.Shape(1, tile_m + 37, 5 * tile_n - 31, 1, 1, "mixed")
        chosen += [_fmha_case(manifest, five_tiles, seed), found[5]]  # the last one has tensors with gaps
        if manifest.variant["causal"]:
            chosen.append(_fmha_case(manifest, fmha.Shape(1, 2 * tile_m + 43, 31, 1, 1), seed))  # tiles without keys
    return chosen


def other_cases(manifest: Manifest, seed: int = 0) -> list[Case]:
    """The operator's other verification cases, but for attention, whose small ones are chosen with care."""
    if manifest.op == "fmha":
        return []
    found = registry.cases(manifest.op, manifest.dims, manifest.variant, config=manifest.config, seed=seed)
    return [case for index, case in enumerate(found) if index not in registry.thorough(manifest.op)]


def wide_cases(manifest: Manifest, seed: int = 0) -> list[Case]:
    """Cases with more work than CTAs, for CTAs that take one piece after another; else none.

    For fmha two query tiles more, over no, 2 and 3 key tiles; for attention over gathered rows its own cases with more
    queries, in decoding where there are so few CTAs.
    """
    by_turns = manifest.config.get("splits") == 0 and int(manifest.config.get("split_ctas", 132)) < FEW_CTAS
    if manifest.op == "sparse_attention_prefill" or (manifest.op == "sparse_attention_decode" and by_turns):
        found = registry.cases(manifest.op, manifest.dims, manifest.variant, config=manifest.config, seed=seed)
        most = int(manifest.config.get("persistent_ctas", manifest.config.get("split_ctas", 0)))
        return [case for case in found if case.expected["out"].shape[0] > most]
    ctas = int(manifest.config.get("persistent_ctas", 0)) if manifest.op == "fmha" else 0
    if not ctas:
        return []
    keys = [0, *(tiles * int(manifest.config["tile_n"]) + 5 for tiles in (1, 2))]
    return [_fmha_case(manifest, fmha.Shape(1, 67, each, ctas + 2, ctas + 2), seed) for each in keys]


def _fmha_case(manifest: Manifest, shape: fmha.Shape, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    return fmha.case_of(shape, manifest.dims, manifest.variant, generator, torch.device("cpu"))


def subject(
    artifact: Artifact,
    *,
    schedules: int = SCHEDULES,
    wide: bool = True,
    more: Sequence[int] = (),
    more_schedules: int = 2,
) -> Subject:
    """The kernel of an artifact with its small cases: the first three run under all schedules, the others, and where
    ``wide`` the wide ones, under three; ``wide`` adds the operator's other cases, each under the first schedule. Those
    with the numbers ``more`` are run under ``more_schedules`` in any case.

    Raises ValueError where it has findings as it is: mutations would prove nothing then.
    """
    manifest = artifact.manifest
    warps = max(-(-math.prod(launch.block) // 32) for launch in manifest.launches)
    names = [policy.name for policy in policies(schedules, 0, warps)]
    few, small = names[:FEW_SCHEDULES], small_cases(manifest)
    runs = [(case, name) for name in few for case in small]
    runs += [(case, name) for name in names[len(few) :] for case in small[:ALL_SCHEDULES_CASES]]
    if wide:
        runs += [(case, name) for case in wide_cases(manifest) for name in few]
        runs += [(case, names[0]) for case in other_cases(manifest)]
    if more:
        every = registry.cases(manifest.op, manifest.dims, manifest.variant, config=manifest.config)
        runs += [(every[number], name) for number in more for name in names[:more_schedules]]
    made = from_artifact(artifact)
    whole = Subject(manifest, made, made.texts[0].ptx, tuple(runs), Sources([artifact.folder]), MAX_INSTRUCTIONS)
    most, launched = 1, {}
    with Client() as client:
        kernel = whole.kernel(made, client, threads=0)
        for case, name in runs:
            found = _look(whole, kernel, case, name)
            if found is not None:
                raise ValueError(f"{manifest.name}: the unmutated kernel has a finding: {found[1]}")
            assert kernel.report is not None
            most = max(most, kernel.report.stats["instructions"])
            launched[case.name] = frozenset(launch.kernel for launch in kernel.report.launches)
    return replace(whole, max_instructions=most * INSTRUCTION_FACTOR, launched=launched)


def _look(
    whole: Subject, kernel: EmulatedObject, case: Case, schedule: str
) -> tuple[str, str, tuple[Finding, ...]] | None:
    """One run: category, message and findings of what it showed, or None."""
    kernel.schedule, kernel.report = schedule, None
    try:
        verdict = run_case(kernel, whole.manifest.contract, case)
    except KernelEndless as error:
        return ENDLESS, str(error), ()
    except EmulatorError as error:
        return ERROR, str(error), ()
    report = kernel.report
    assert report is not None
    if report.findings:
        return report.findings[0].kind, report.findings[0].line(), report.findings
    return None if verdict.ok else (WRONG_VALUES, verdict.findings[0], ())


def attempt(whole: Subject, mutation: Mutation, client: Client, *, threads: int = 0) -> Trial:
    """Run the mutated kernel in the subject's runs until something is found."""
    name, texts = whole.texts(mutation)  # without the cubin, which is the unmutated kernel's
    kernel = whole.kernel(replace(whole.made, texts=texts), client, threads=threads)
    began, runs = time.monotonic(), 0
    for case, schedule in whole.runs_of(name):
        runs += 1
        found = _look(whole, kernel, case, schedule)
        if found is not None:
            category, message, findings = found
            place = _place(mutation, findings, whole.sources)
            return Trial(mutation, category, place, case.name, schedule, message, runs, time.monotonic() - began)
    return Trial(mutation, "", "", "", "", "", runs, time.monotonic() - began)


def _place(mutation: Mutation, findings: Iterable[Finding], sources: Sources) -> str:
    """How close to the changed line the findings point; the closest counts."""
    lines = [line for finding in findings for line in (finding.source, finding.other_source) if line]
    if not lines:
        return ""
    if mutation.source in lines:
        return "line"
    file, _, number = mutation.source.rpartition(":")
    places = [(other, int(line)) for other, _, line in (each.rpartition(":") for each in lines)]
    if any(other == file and abs(line - int(number)) <= NEAR_LINES for other, line in places):
        return "near"
    own = sources.function(file, int(number)) if number else ""
    if own and any(other == file and sources.function(other, line) == own for other, line in places):
        return "function"
    return "elsewhere"


def attempt_all(
    whole: Subject, chosen: Sequence[Mutation], *, jobs: int = 1, told: Callable[[Trial], None] = lambda trial: None
) -> Iterator[Trial]:
    """All mutations, ``jobs`` at a time, each in an emulating process of its own; in their order."""
    if jobs < 1:
        raise ValueError(f"jobs: found {jobs}; valid: 1 or more")
    clients: SimpleQueue[Client] = SimpleQueue()
    made = [Client() for _ in range(jobs)]
    for client in made:
        clients.put(client)
    uses = dict.fromkeys(map(id, made), 0)

    def one(mutation: Mutation) -> Trial:
        client = clients.get()
        try:
            uses[id(client)] += 1
            if uses[id(client)] % TEXTS_PER_PROCESS == 0:
                client.close()
            trial = attempt(whole, mutation, client, threads=1 if jobs > 1 else 0)
        finally:
            clients.put(client)
        told(trial)
        return trial

    try:
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(one, chosen)
    finally:
        for client in made:
            client.close()
