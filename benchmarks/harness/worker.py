"""One peer in a process of its own, for peers that do not install together: the session at the other end of a pipe.

Requests and answers are JSON, one a line. The worker's standard output carries answers only; whatever a package prints
goes to standard error. ``python -m benchmarks.harness.worker benchmarks.rms_norm 'torch.compile'``
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.harness.controls import Controls
from benchmarks.harness.operator import OperatorBenchmark
from benchmarks.harness.session import LocalSession, Opened, Session


class WorkerFailed(RuntimeError):
    """The worker answered with an error or ended."""


class WorkerSession:
    """A :class:`Session` whose peers live in another process, possibly under another Python."""

    def __init__(
        self, module: str, peer: str, *, python: str = sys.executable, command: list[str] | None = None
    ) -> None:
        self.peer = peer
        self.process = subprocess.Popen(
            command or [python, "-m", "benchmarks.harness.worker", module, peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for the parent, which asks its workers to close
        )

    def open_case(self, label: str, seed: int) -> dict[str, Opened]:
        answer = self._ask("open_case", label, seed)
        return {name: Opened(**opened) for name, opened in answer.items()}

    def sample(self, peer: str, mode: str) -> float:
        return float(self._ask("sample", peer, mode))

    def close_case(self) -> None:
        self._ask("close_case")

    def controls(self) -> Controls:
        return Controls(**self._ask("controls"))

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("describe")
        return found

    def close(self) -> None:
        """Ends the worker: asked first, killed if it does not go within 10 s."""
        if self.process.poll() is None:
            assert self.process.stdin
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _ask(self, method: str, *arguments: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self.process.stdin.flush()
            line = self._answer()
        except OSError:
            line = ""
        if not line:
            raise WorkerFailed(f"{self.peer}: the worker ended with exit code {self.process.wait()} at {method}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{self.peer}: {method}: {answer['error']}")
        return answer["value"]

    def _answer(self) -> str:
        """The next line. Interrupted, the answer is awaited all the same: or else the next question would get it."""
        assert self.process.stdout
        try:
            return self.process.stdout.readline()
        except KeyboardInterrupt:
            self.process.stdout.readline()
            raise


def serve(session: Session, requests: Any, answers: Any) -> None:
    """Answer requests until there are no more; an exception becomes an answer and the worker lives on."""
    for line in requests:
        method, *arguments = json.loads(line)
        try:
            value = getattr(session, method)(*arguments)
            answer = {"value": plain(value)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def plain(value: Any) -> Any:
    """``value`` as JSON can say it: dataclasses as objects."""
    if isinstance(value, Controls | Opened):
        return asdict(value)
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


def main() -> None:
    module, peer = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench: OperatorBenchmark = importlib.import_module(module).BENCHMARK
    serve(LocalSession(bench, [each for each in bench.peers() if each.name == peer]), sys.stdin, answers)


if __name__ == "__main__":
    main()
