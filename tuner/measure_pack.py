"""Measure a pack of candidates on the machine that has the GPU, with the runtime alone.

    python -m dsv4.tuner.measure_pack PACK --out RESULTS.json

Every outcome is written the moment its batch is done; the same command goes on from there after an interrupt.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from dsv4.generator.build.evidence import add_check, new_check
from dsv4.runtime.artifact import sha256_file
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.errors import Dsv4Error
from dsv4.runtime.files import write_atomically
from dsv4.runtime.tuned import Device, first_problem
from dsv4.tuner import halving, worker
from dsv4.tuner.choose import fastest, finalist
from dsv4.tuner.job import RESULTS_SCHEMA, Candidate, Job, Results
from dsv4.tuner.packs import PackRefused, unpack
from dsv4.tuner.prefork import Prefork
from dsv4.tuner.protocol import Request, score_us
from dsv4.tuner.tried import Tried, kept_of_check, spelled

Measure = Callable[..., list[worker.Outcome]]
BATCH = 8


class ResultsRefused(Dsv4Error):
    """A file of results is damaged, altered, of another version or of another pack; it was left alone."""


def measure_pack(
    pack: Path,
    out: Path,
    cache: KernelCache,
    device: Device,
    *,
    measure: Measure = worker.run,
    limit_s: float = 60.0,
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Check and time every candidate of ``pack``, compare the best with the default, write the answer to ``out``.

    Raises PackRefused for a pack that cannot be believed or that has nothing to measure, ResultsRefused where ``out``
    is something else, and WorkerError where the device does not work.
    """
    pack_sha256 = sha256_file(pack) if pack.is_file() else ""
    contents = unpack(pack, cache)
    if contents.job is None:
        raise PackRefused(f"{pack}: found a pack of {contents.kind}; valid: one of dsv4-tune pack --candidates")
    job = contents.job
    results = read_results(out) if out.exists() else Results(pack_sha256=pack_sha256, device=device, job=job)
    if (results.pack_sha256, results.device) != (pack_sha256, device):
        raise ResultsRefused(f"{out}: found results of another pack or device; valid: a file of its own")
    run = _Run(cache, job, device, measure, limit_s, say)
    if not results.outcomes:
        results = _written(out, results, run.outcomes([job.default]))
    baseline = Tried(**results.outcomes[0])
    if baseline.failure:
        raise PackRefused(f"{pack}: the default of {job.op} on {job.arch} fails here: {baseline.failure}")
    while left := job.candidates[len(results.outcomes) - 1 :]:
        known = [Tried(**each) for each in results.outcomes]
        results = _written(out, results, run.outcomes(left[:BATCH], known))
        say(f"{len(results.outcomes) - 1}/{len(job.candidates)} candidates measured")
    if not results.is_done:
        results = _written(out, run.compared(results), [])
    return results


def read_results(path: Path) -> Results:
    """Raises ResultsRefused."""
    try:
        raw = json.loads(path.read_bytes())
        schema = raw.get("dsv4_results") if isinstance(raw, dict) else None
        if schema != RESULTS_SCHEMA:
            raise ResultsRefused(f"{path}: dsv4_results: found {schema!r:.40}; valid: {RESULTS_SCHEMA} (measure anew)")
        results = Results.model_validate(raw)
    except ValidationError as error:
        raise ResultsRefused(f"{path}: {first_problem(error)}") from None
    except (OSError, ValueError) as error:
        raise ResultsRefused(f"{path}: found no readable results ({' '.join(str(error).split()):.80})") from None
    if not results.is_whole():
        raise ResultsRefused(f"{path}: sha256: found {results.sha256[:12]}…; valid: that of the results (altered)")
    return results


def _written(out: Path, results: Results, more: Sequence[Tried]) -> Results:
    outcomes = [*results.outcomes, *(asdict(each) for each in more)]
    results = results.model_copy(update={"outcomes": outcomes}).sealed()
    write_atomically(out, (results.model_dump_json(indent=1) + "\n").encode())
    return results


class _Run:
    """Measures candidates of one job."""

    def __init__(
        self,
        cache: KernelCache,
        job: Job,
        device: Device,
        measure: Measure,
        limit_s: float,
        say: Callable[[str], None],
    ) -> None:
        self.cache, self.job, self.device = cache, job, device
        self.measure, self.limit_s, self.say = measure, limit_s, say
        self.failed: set[str] = set()
        """What hung or faulted; a candidate that had passed may do so when it is timed again."""

    def outcomes(self, candidates: Sequence[Candidate], known: Sequence[Tried] = ()) -> list[Tried]:
        """What became of each: timed in turn with each other, with the default (``known[0]``) and the best known."""
        job = self.job
        folders = {self._folder(each.key): each for each in candidates}
        best = fastest([each for each in known if self._folder(each.detail["artifact"]) not in self.failed])
        beside = {self._folder(each.detail["artifact"]): each for each in (*known[:1], *([best] if best else []))}
        request = Request(
            artifacts=tuple(folders),
            sizes=job.sizes,
            beside=tuple(beside),
            default_us=tuple(timing.us for timing in known[0].timings) if known else (),
            seed=job.seed,
            rungs=halving.rungs(job.rounds) if known else (job.rounds,),
            policy=job.policy,
        )
        found = self.measure(request, limit_s=self.limit_s, progress=self._record)
        return [self._tried(folders[outcome.artifact], outcome) for outcome in found]

    def _folder(self, key: str) -> str:
        return str(self.cache.folder(self.job.op, self.job.arch, key))

    def _record(self, outcome: worker.Outcome) -> None:
        """Evidence beside the artifact: what is wrong, hangs or faults is not run again by anybody."""
        folder = Path(outcome.artifact)
        name = outcome.device or self.device.name
        if outcome.checked:
            detail = {**outcome.checked, "findings": outcome.checked["findings"][:8], "seed": self.job.seed}
            add_check(folder, new_check("gpu", bool(detail.pop("ok")), device=name, **detail))
        if outcome.error:
            self.failed.add(outcome.artifact)
        if outcome.error and not outcome.error.startswith("OutOfMemoryError"):
            add_check(folder, new_check("gpu", False, device=name, findings=[outcome.error]))

    def _tried(self, candidate: Candidate, outcome: worker.Outcome) -> Tried:
        failure = outcome.failure
        if failure is None and len(outcome.timings) != len(self.job.sizes):
            failure = f"measured at {len(outcome.timings)} of {len(self.job.sizes)} shapes"
        detail = {
            "artifact": candidate.key,
            "timings": [timing.model_dump() for timing in outcome.timings],
            "numeric_class": candidate.numeric_class,
            "checked": kept_of_check(outcome.checked),
        }
        is_slow = failure is None and min(timing.rounds for timing in outcome.timings) < self.job.rounds
        score = None if failure else score_us(outcome.timings)
        self.say(f"{spelled(candidate.config)}: {failure or f'{score:.2f} µs'}")
        return Tried(candidate.config, score, failure, is_slow, detail)

    def compared(self, results: Results) -> Results:
        """The results with the comparison of the best candidate with the default, if there is a better one."""
        default = Tried(**results.outcomes[0])
        best = finalist([Tried(**each) for each in results.outcomes], default.config)
        if best is None or best.config == default.config:
            return results.model_copy(update={"is_done": True})
        keys = (default.detail["artifact"], best.detail["artifact"])
        request = Request(
            artifacts=tuple(self._folder(key) for key in keys),
            sizes=self.job.sizes,
            compare=True,
            seed=self.job.seed + 1,
            rungs=(self.job.compare_rounds,),
            policy=self.job.policy,
        )
        (outcome,) = self.measure(request, limit_s=self.limit_s)
        whole = outcome.error is None and len(outcome.compared) == len(self.job.sizes)
        compared = outcome.compared if whole else []
        return results.model_copy(update={"is_done": True, "winner": keys[1], "compared": compared})


def main(argv: list[str]) -> int:
    import torch

    from dsv4.runtime.identity import device_identity

    parser = argparse.ArgumentParser(prog="python -m dsv4.tuner.measure_pack", description=__doc__.split("\n")[0])
    parser.add_argument("pack", type=Path, help="a file of dsv4-tune pack --candidates")
    parser.add_argument("--out", type=Path, required=True, help="the results, for dsv4-tune import")
    parser.add_argument("--limit-s", type=float, default=60.0, help="seconds a kernel may be silent")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("measure_pack: it measures on a GPU; this machine has none", file=sys.stderr)
        return 2

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        device = device_identity(torch.cuda.current_device())
        results = measure_pack(
            options.pack, options.out, KernelCache(), device,
            measure=partial(worker.run, start=Prefork()), limit_s=options.limit_s, say=say,
        )  # fmt: skip
    except (Dsv4Error, worker.WorkerError, OSError) as error:
        say(f"measure_pack: {error}")
        return 1
    except KeyboardInterrupt:
        say("measure_pack: interrupted; what was finished is kept, the same command goes on")
        return 130
    say(f"{len(results.outcomes)} configurations in {options.out}; next: dsv4-tune import {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
