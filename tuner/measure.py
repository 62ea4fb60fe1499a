"""The measuring worker: loads compiled kernels, checks them against the reference, times them. One process, one GPU.

    python -m dsv4.tuner.measure --out EVENTS < REQUEST.json

It needs the runtime only, no compiler and no search library. It answers in lines (see ``protocol``) and stops at the
first CUDA error, because after one nothing that this process says of the device can be trusted: whoever started it
starts another for the rest.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from dsv4.generator.verify import Case, cases, run_case, workload
from dsv4.generator.verify.case import PoisonedOutputs
from dsv4.generator.verify.run import bind
from dsv4.runtime.artifact import Contract, Manifest
from dsv4.runtime.cache import Artifact
from dsv4.runtime.loader import load
from dsv4.runtime.tuned import Policy
from dsv4.tuner import timing, turns
from dsv4.tuner.agreement import Sample, require_agreement
from dsv4.tuner.halving import survivors
from dsv4.tuner.protocol import Event, EventKind, Request, Timing, score_us

DEVICE = "cuda"
DETERMINISM_CALLS = 3
DEVICE_FAILED = 3
"""Exit code after a CUDA error."""

TOGETHER_MAX = 8
"""Kernels that take turns, beside the default and the incumbent: so many are loaded at once, with their graphs."""

THREADS = 4
"""Of the CPU, for references and judges. Their tensors are small; as many threads as a host has cores would wait for
one another, and several workers' threads for the same cores."""

Result = TypeVar("Result")
Kernel = Callable[..., Any]
Shared = dict[str, list[list[Any]]]
_cases: dict[str, list[Case]] = {}


class Answer:
    """The file of lines."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", buffering=1)

    def say(self, event: EventKind, artifact: str = "", **data: Any) -> None:
        self._stream.write(Event(event=event, artifact=artifact, data=data).model_dump_json() + "\n")
        self._stream.flush()


def cases_for(manifest: Manifest, seed: int) -> list[Case]:
    """Made once for all kernels whose cases are the same (those whose tile sizes agree); those of one operator, its
    dimensions and flags are held, as a worker may see many of them."""
    tiles = {name: value for name, value in manifest.config.items() if name.startswith("tile")}
    kind = json.dumps([manifest.op, manifest.dims, manifest.variant, seed], sort_keys=True)
    known = f"{kind} {json.dumps(tiles, sort_keys=True)}"
    if any(not each.startswith(kind) for each in _cases):
        _cases.clear()
    if known not in _cases:
        _cases[known] = cases(manifest.op, manifest.dims, manifest.variant, config=tiles, seed=seed, device=DEVICE)
    return _cases[known]


def check(kernel: Kernel, manifest: Manifest, seed: int) -> dict[str, Any]:
    """Run every case. ``findings`` has the failed ones' first lines, ``cosine`` and the rest are the worst seen."""
    verdicts = [(case, run_case(kernel, manifest.contract, case)) for case in cases_for(manifest, seed)]
    findings = [f"{case.name}: {verdict.findings[0]}" for case, verdict in verdicts if not verdict.ok]
    return {
        "ok": not findings,
        "cases": len(verdicts),
        "cosine": min(verdict.cosine for _, verdict in verdicts),
        "rel_l2": max(verdict.rel_l2 for _, verdict in verdicts),
        "max_abs": max(verdict.max_abs for _, verdict in verdicts),
        "deterministic": not findings and is_deterministic(kernel, manifest.contract, verdicts[-1][0]),
        "findings": findings,
    }


def is_deterministic(kernel: Kernel, contract: Contract, case: Case) -> bool:
    """Whether three calls with the same inputs leave the same bits. That one case does so proves nothing; that it does
    not is certain."""
    seen = []
    for _ in range(DETERMINISM_CALLS):
        outputs = PoisonedOutputs(case.outputs, case.device)
        changed = {name: value.clone() for name, value in case.inouts.items()}
        kernel(*bind(contract, {**case.inputs, **outputs.views, **changed}))
        written = {**outputs.views, **changed}
        flat = {name: tensor.clone(memory_format=torch.contiguous_format).flatten() for name, tensor in written.items()}
        seen.append({name: tensor.view(torch.uint8) for name, tensor in flat.items()})
    return all(torch.equal(first, each[name]) for each in seen[1:] for name, first in seen[0].items())


def timed(
    kernel: Kernel, manifest: Manifest, sizes: dict[str, int], seed: int, policy: Policy, shared: Shared
) -> timing.Timed:
    """``shared`` has the arguments that were made for these sizes already, by contract and state of the L2, and gets
    those that are new."""
    contract: Contract = manifest.contract

    def make_arguments() -> list[Any]:
        return bind(contract, workload(manifest.op, manifest.dims, manifest.variant, sizes, seed=seed, device=DEVICE))

    known = f"{policy.l2} {contract.model_dump_json()}"
    if known not in shared:
        shared[known] = timing.argument_lists(make_arguments, policy)
    return timing.Timed(kernel, shared[known], policy)


def serve(request: Request, answer: Answer, load_kernel: Callable[[Artifact], Kernel]) -> None:
    """Answer ``request``; a CUDA error ends it with ``torch.AcceleratorError`` after it was reported."""
    if request.compare:
        compare(request, answer, load_kernel)
    else:
        _Batch(request, answer, load_kernel).serve()


class _Batch:
    """Artifacts that are checked one by one, and timed in turn with each other and with what they are set beside."""

    def __init__(self, request: Request, answer: Answer, load_kernel: Callable[[Artifact], Kernel]) -> None:
        self.request, self.answer, self.load_kernel = request, answer, load_kernel

    def serve(self) -> None:
        request = self.request
        going_on = [name for name in request.artifacts if name in request.passed or self._attempt(name, self._check)]
        for rounds in request.rungs if request.sizes else ():
            scores_us: dict[str, float] = {}
            for start in range(0, len(going_on), TOGETHER_MAX):
                scores_us |= self._time(going_on[start : start + TOGETHER_MAX], rounds)
            known_us = [scores_us.pop(name) for name in request.beside if name in scores_us]
            going_on = survivors(scores_us, min(known_us, default=None))

    def _attempt(self, name: str, step: Callable[[str], Result]) -> Result | None:
        """``step(name)``; None where it failed and the others can go on. They cannot on a broken device, nor without
        what they are set beside."""
        self.answer.say("begin", name)  # from here on a hang or a fault is its own
        try:
            return step(name)
        except Exception as error:
            self.answer.say("failed", name, error=one_line(error))
            if name in self.request.beside or not device_is_well():
                raise
            return None

    def _load(self, name: str) -> tuple[Kernel, Manifest]:
        artifact = Artifact.read(Path(name))
        return self.load_kernel(artifact), artifact.manifest

    def _check(self, name: str) -> bool:
        outcome = check(*self._load(name), self.request.seed)
        self.answer.say("checked", name, **outcome)
        return bool(outcome["ok"])

    def _time(self, names: Sequence[str], rounds: int) -> dict[str, float]:
        """``rounds`` rounds of ``names`` at each of the sizes; the scores, also of what they are set beside."""
        loaded = {name: self._attempt(name, self._load) for name in (*self.request.beside, *names)}
        kernels = {name: kernel for name, kernel in loaded.items() if kernel is not None}
        timings: dict[str, list[Timing]] = {name: [] for name in kernels}
        for place in range(len(self.request.sizes)):
            here = {name: kernels[name] for name in timings}
            if rounds == self.request.rungs[0]:
                here = self._agreeing(place, here)
            found = self._time_at(place, here, rounds)
            timings = {name: [*timings[name], each] for name, each in found.items()}
        return {name: score_us(each) for name, each in timings.items()}

    def _agreeing(self, place: int, kernels: dict[str, tuple[Kernel, Manifest]]) -> dict[str, tuple[Kernel, Manifest]]:
        """Those that write at one of the sizes what the default writes; all where there is none."""
        request, sizes = self.request, self.request.sizes[place]
        if not request.beside:
            return kernels
        default = request.beside[0]
        kernel, manifest = kernels[default]
        values = workload(manifest.op, manifest.dims, manifest.variant, sizes, seed=request.seed, device=DEVICE)
        sample = Sample(values, manifest.contract)
        wanted = self._attempt(default, lambda name: sample.outcome(kernel, manifest.contract))
        assert wanted is not None  # without a default the worker ends
        where = " ".join(f"{name}={size}" for name, size in sizes.items())

        def agrees(name: str) -> bool:
            kernel, manifest = kernels[name]
            require_agreement(sample.outcome(kernel, manifest.contract), wanted, where)
            return True

        return {name: each for name, each in kernels.items() if name == default or self._attempt(name, agrees)}

    def _time_at(self, place: int, kernels: dict[str, tuple[Kernel, Manifest]], rounds: int) -> dict[str, Timing]:
        """At one of the sizes; arguments and graphs are let go at the end."""
        request, sizes, shared = self.request, self.request.sizes[place], Shared()
        default = request.beside[0] if request.beside else None

        def set_out(name: str) -> timing.Timed:
            return timed(*kernels[name], sizes, request.seed, request.policy, shared)

        made = {name: self._attempt(name, set_out) for name in kernels}
        runs = {name: run for name, run in made.items() if run is not None}
        found = {}
        for name, each in turns.in_turn(
            [name for name in runs if name != default],
            lambda name: self._attempt(name, lambda name: runs[name].round_us()),
            rounds,
            default,
        ).items():
            gpu = self._attempt(name, lambda name: timing.under_load(runs[name]))
            copies, policy = runs[name].copies, request.policy
            beside = turns.beside(each, request.default_us[place]) if default is not None else None
            found[name] = timing.summary(sizes, each.rounds_us, copies, policy, gpu, beside)
            if name not in request.beside:
                self.answer.say("measured", name, **found[name].model_dump())
        return found


def compare(request: Request, answer: Answer, load_kernel: Callable[[Artifact], Kernel]) -> None:
    """Time two kernels in turn at each of the sizes, and for the record (``modes``) in the other policies."""
    artifacts = [Artifact.read(Path(folder)) for folder in request.artifacts]
    kernels = [load_kernel(artifact) for artifact in artifacts]

    def in_turn(sizes: dict[str, int], policy: Policy, rounds: int, shared: Shared) -> dict[str, Any]:
        one, other = (
            timed(kernel, artifact.manifest, sizes, request.seed, policy, shared)
            for kernel, artifact in zip(kernels, artifacts, strict=True)
        )
        return timing.compare(one, other, sizes, rounds)

    answer.say("begin", request.artifacts[1])
    others = [policy for policy in timing.POLICIES if policy != request.policy]
    for sizes in request.sizes:
        shared = Shared()
        found, modes = in_turn(sizes, request.policy, request.rungs[-1], shared), []
        for policy in others:
            answer.say("begin", request.artifacts[1])  # it is alive: making inputs takes a while
            modes.append(in_turn(sizes, policy, timing.RECORD_ROUNDS, shared))
        answer.say("compared", request.artifacts[1], **found, modes=modes)


def device_is_well() -> bool:
    """Whether the device still computes; false after an illegal access or any other sticky error."""
    try:
        torch.cuda.synchronize()
        return float(torch.ones(4, device=DEVICE).sum()) == 4.0
    except RuntimeError:
        return False


def give_back() -> None:
    """Leave the device's memory to whoever measures next, in this process or another: what a request held is free."""
    gc.collect()
    torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def answer(text: str, path: Path) -> int:
    """Answer the request ``text`` in lines that are appended to the file ``path``; an exit code."""
    said = Answer(path)
    request = Request.model_validate_json(text)
    if not torch.cuda.is_available():
        said.say("failed", error="no CUDA device: torch sees none")
        return 2
    torch.set_num_threads(THREADS)
    torch.cuda.set_device(request.device_index)
    capability = torch.cuda.get_device_capability()
    if not device_is_well():
        said.say("failed", error="the device does not compute: an earlier kernel may have left it broken")
        return DEVICE_FAILED
    said.say("ready", device=torch.cuda.get_device_name(), capability=list(capability))
    try:
        serve(request, said, lambda artifact: load(artifact, capability))
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        sys.stderr.flush()
        os._exit(DEVICE_FAILED)  # no destructor may touch the broken device
    give_back()
    said.say("end")
    return 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m dsv4.tuner.measure", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file that the lines are appended to")
    out = parser.parse_args(argv).out
    return answer(sys.stdin.read(), out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
