"""The GPU's side: run every probe, every descriptor request and every artifact's case, and keep what came out.

Probes run in worker processes, so that one that hangs or faults costs only itself.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import descriptors
from benchmarks.agreement.driver import Driver
from benchmarks.agreement.families import all_probes
from benchmarks.harness.machine import describe_device, versions

SILENCE_SECONDS = 12.0
START_SECONDS = 120.0
VOLUME_BYTES = 15_000_000
META = "meta.json"
WORKER = [sys.executable, "-m", "benchmarks.agreement.worker"]


class _Worker:
    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [*WORKER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if self.answer(START_SECONDS) is None:
            raise RuntimeError("a worker did not start")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next line, or None when the process ended or said nothing for so long."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return None
        return None if line is None else json.loads(line)

    def ask(self, key: str) -> dict[str, Any] | None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(key + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        if self.answer(SILENCE_SECONDS) is None:
            return None
        return self.answer(SILENCE_SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def run_probes(keys: Iterable[str], folder: Path, jobs: int) -> dict[str, dict[str, Any]]:
    """Every probe's answer by key: ``file`` with the array, or ``error``."""
    waiting: queue.Queue[str] = queue.Queue()
    for key in keys:
        waiting.put(key)
    answers: dict[str, dict[str, Any]] = {}

    def work() -> None:
        worker = _Worker(folder)
        while True:
            try:
                key = waiting.get_nowait()
            except queue.Empty:
                worker.close()
                return
            answer = worker.ask(key)
            answers[key] = answer or {"error": f"no answer within {SILENCE_SECONDS:g} s"}
            if "error" in answers[key]:
                print(f"{key}: {answers[key]['error']}", flush=True)
                worker.close()
                worker = _Worker(folder)

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def encode_descriptors() -> dict[str, str]:
    """By request: the driver's 128 bytes in hexadecimal, or ``error N``."""
    driver = Driver()
    found = {}
    for request in descriptors.requests():
        answer = driver.encode_tiled(request.address, **request.asked)
        found[request.name] = answer if isinstance(answer, str) else answer.hex()
    return found


def run_artifacts(cache: Path, store: Volumes, expected: dict[str, str]) -> list[dict[str, Any]]:
    """Every case of every kernel; inputs that hash to something else than ``expected`` are kept beside the outputs."""
    import torch

    from benchmarks.agreement import artifacts as ours

    found = []
    for artifact in ours.artifacts(cache):
        for number, (case, outputs, findings) in enumerate(ours.on_gpu(artifact)):
            key = f"{ours.label(artifact)}/{number}"
            entry: dict[str, Any] = {
                "key": key, "case": case.name, "input": ours.input_hash(case), "findings": findings,
                "kernel": artifact.manifest.key, "outputs": sorted(outputs),
            }  # fmt: skip
            for name, array in outputs.items():
                store.add(f"artifact/{key}/{name}", array)
            if expected and expected.get(key) != entry["input"]:
                entry["inputs_kept"] = True
                for name, value in case.inputs.items():
                    if isinstance(value, torch.Tensor):
                        store.add(f"input/{key}/{name}", ours.bits(value))
            found.append(entry)
    return found


class Volumes:
    """Arrays in numbered files of bounded size, each compressed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._bytes, self._number = folder, 0, 0
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        if self._bytes + array.nbytes > VOLUME_BYTES:
            self.flush()
        self._arrays[name] = array
        self._bytes += array.nbytes

    def flush(self) -> None:
        if self._arrays:
            names = sorted(self._arrays)
            packed: dict[str, Any] = {f"a{n}": self._arrays[name] for n, name in enumerate(names)}
            np.savez_compressed(self._folder / f"arrays-{self._number}.npz", names=np.array(names), **packed)
        self._arrays, self._bytes, self._number = {}, 0, self._number + 1


def read_volumes(folder: Path) -> dict[str, np.ndarray]:
    """Every array by its name."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("arrays-*.npz")):
        with np.load(path) as volume:
            found.update({str(name): volume[f"a{n}"] for n, name in enumerate(volume["names"])})
    return found


def collect(out: Path, cache: Path | None, expect: Path | None, *, only: str = "", jobs: int = 8) -> Path:
    """Runs everything and writes ``out``/meta.json and the arrays. ``only`` restricts the probes to keys so begun."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    store = Volumes(out)
    meta: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": describe_device(),
        "versions": versions(),
        "descriptors": encode_descriptors(),
    }
    keys = [probe.key for probe in all_probes(only)]
    with tempfile.TemporaryDirectory() as scratch:
        answers: dict[str, dict[str, Any]] = {}
        running = threading.Thread(target=lambda: answers.update(run_probes(keys, Path(scratch), jobs)))
        running.start()
        if cache is not None:
            expected = json.loads(expect.read_text()) if expect else {}
            try:
                meta["artifacts"] = run_artifacts(cache, store, expected)
            except Exception as error:
                meta["artifacts_error"] = f"{type(error).__name__}: {error}"
            print(f"artifacts after {time.monotonic() - began:.0f} s", flush=True)
        running.join()
        for key in keys:
            answer = answers.get(key, {"error": "not run"})
            if "file" in answer:
                store.add(f"probe/{key}", np.load(Path(scratch) / answer.pop("file")))
            meta.setdefault("probes", {})[key] = {name: answer[name] for name in ("input", "error") if name in answer}
    store.flush()
    meta["seconds"] = round(time.monotonic() - began, 1)
    (out / META).write_text(json.dumps(meta, indent=1) + "\n")
    failed = [key for key, answer in meta.get("probes", {}).items() if "error" in answer]
    print(f"{len(keys)} probes, {len(failed)} failed; {meta['seconds']} s", flush=True)
    return out / META
