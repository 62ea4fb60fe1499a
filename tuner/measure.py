"""The measuring worker: loads compiled kernels, checks them against the reference, times them. One process, one GPU.

    python -m dsv4.tuner.measure --out EVENTS < REQUEST.json

It needs the runtime only, no compiler and no search library. It answers in lines (see ``protocol``) and stops at the
first CUDA error, because after one nothing that this process says of the device can be trusted: whoever started it
starts another for the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsv4.generator.verify import Case, cases, run_case, workload
from dsv4.generator.verify.case import PoisonedOutputs
from dsv4.generator.verify.run import bind
from dsv4.runtime.artifact import Contract, Manifest
from dsv4.runtime.cache import Artifact
from dsv4.runtime.loader import load
from dsv4.runtime.tuned import Policy
from dsv4.tuner import timing
from dsv4.tuner.halving import survivors
from dsv4.tuner.protocol import Event, EventKind, Request, score_us

DEVICE = "cuda"
DETERMINISM_CALLS = 3
DEVICE_FAILED = 3
"""Exit code after a CUDA error."""

Kernel = Callable[..., Any]
_cases: dict[str, list[Case]] = {}


class Answer:
    """The file of lines."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", buffering=1)

    def say(self, event: EventKind, artifact: str = "", **data: Any) -> None:
        self._stream.write(Event(event=event, artifact=artifact, data=data).model_dump_json() + "\n")
        self._stream.flush()


def cases_for(manifest: Manifest, seed: int) -> list[Case]:
    """Made once for all kernels whose cases are the same (those whose tile sizes agree)."""
    tiles = {name: value for name, value in manifest.config.items() if name.startswith("tile")}
    known = json.dumps([manifest.op, manifest.dims, manifest.variant, tiles, seed], sort_keys=True)
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


def timed(kernel: Kernel, manifest: Manifest, sizes: dict[str, int], seed: int, policy: Policy) -> timing.Timed:
    contract: Contract = manifest.contract

    def make_arguments() -> list[Any]:
        return bind(contract, workload(manifest.op, manifest.dims, manifest.variant, sizes, seed=seed, device=DEVICE))

    return timing.Timed(kernel, make_arguments, policy)


def serve(request: Request, answer: Answer, load_kernel: Callable[[Artifact], Kernel]) -> None:
    """Answer ``request``; a CUDA error ends it with ``torch.AcceleratorError`` after it was reported."""
    if request.compare:
        compare(request, answer, load_kernel)
        return
    going_on, check_them = list(request.artifacts), request.check
    for number, rounds in enumerate(request.rungs):
        scores_us: dict[str, float] = {}
        for folder in going_on:
            answer.say("begin", folder)
            try:
                artifact = Artifact.read(Path(folder))
                kernel = load_kernel(artifact)
                if check_them and number == 0:
                    outcome = check(kernel, artifact.manifest, request.seed)
                    answer.say("checked", folder, **outcome)
                    if not outcome["ok"]:
                        continue
                timings = []
                for sizes in request.sizes:
                    run = timed(kernel, artifact.manifest, sizes, request.seed, request.policy)
                    timings.append(timing.measure(run, sizes, rounds))
                    answer.say("measured", folder, **timings[-1].model_dump())
                    del run
                scores_us[folder] = score_us(timings) if timings else 0.0
            except Exception as error:
                answer.say("failed", folder, error=one_line(error))
                if not device_is_well():
                    raise
        going_on = survivors(scores_us, request.incumbent_us)


def compare(request: Request, answer: Answer, load_kernel: Callable[[Artifact], Kernel]) -> None:
    """Time two kernels in turn at each of the sizes, and for the record (``modes``) in the other policies."""
    artifacts = [Artifact.read(Path(folder)) for folder in request.artifacts]
    kernels = [load_kernel(artifact) for artifact in artifacts]

    def in_turn(sizes: dict[str, int], policy: Policy, rounds: int) -> dict[str, Any]:
        one, other = (
            timed(kernel, artifact.manifest, sizes, request.seed, policy)
            for kernel, artifact in zip(kernels, artifacts, strict=True)
        )
        return timing.compare(one, other, sizes, rounds)

    answer.say("begin", request.artifacts[1])
    others = [policy for policy in timing.POLICIES if policy != request.policy]
    for sizes in request.sizes:
        found, modes = in_turn(sizes, request.policy, request.rungs[-1]), []
        for policy in others:
            answer.say("begin", request.artifacts[1])  # it is alive: making inputs takes a while
            modes.append(in_turn(sizes, policy, timing.RECORD_ROUNDS))
        answer.say("compared", request.artifacts[1], **found, modes=modes)


def device_is_well() -> bool:
    """Whether the device still computes; false after an illegal access or any other sticky error."""
    try:
        torch.cuda.synchronize()
        return float(torch.ones(4, device=DEVICE).sum()) == 4.0
    except RuntimeError:
        return False


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m dsv4.tuner.measure", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file that the lines are appended to")
    answer = Answer(parser.parse_args(argv).out)
    request = Request.model_validate_json(sys.stdin.read())
    if not torch.cuda.is_available():
        answer.say("failed", error="no CUDA device: torch sees none")
        return 2
    torch.cuda.set_device(request.device_index)
    capability = torch.cuda.get_device_capability()
    if not device_is_well():
        answer.say("failed", error="the device does not compute: an earlier kernel may have left it broken")
        return DEVICE_FAILED
    answer.say("ready", device=torch.cuda.get_device_name(), capability=list(capability))
    try:
        serve(request, answer, lambda artifact: load(artifact, capability))
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        sys.stderr.flush()
        os._exit(DEVICE_FAILED)  # no destructor may touch the broken device
    answer.say("end")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
