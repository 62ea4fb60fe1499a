"""Have kernels verified by a GPU worker: one process for many kernels, replaced when a kernel hangs or kills it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dsv4.runtime.lines import LineReader

START_SECONDS = 120.0
"""What importing torch and making a CUDA context may take before the first kernel begins."""
WORKER = (sys.executable, "-m", "dsv4.generator.verify.gpu_worker")


class GpuFailure(Exception):
    """The worker gave no outcome for a kernel; the text says why, in one line."""


class GpuClient:
    """Use as a context manager: on leaving it the worker's whole process group is gone."""

    def __init__(self, *, seed: int, timeout: float, command: Sequence[str] = WORKER) -> None:
        self._command = [*command, "--seed", str(seed)]
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._lines: LineReader | None = None

    def __enter__(self) -> GpuClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._kill()

    def verify(self, folder: Path) -> dict[str, Any]:
        """The outcome for one artifact, as ``gpu_worker.verify_on_gpu`` describes it.

        Raises:
            GpuFailure: the kernel was silent for longer than the time limit, or its process died. The worker has then
                been killed, and the next call starts another.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(f"{folder}\n".encode())
            process.stdin.flush()
            self._line(START_SECONDS)
            return self._line(self._timeout)
        except (TimeoutError, EOFError, BrokenPipeError) as problem:
            said = self._last_words()
            self._kill()
            if isinstance(problem, TimeoutError):
                raise GpuFailure(f"killed: {problem}; the kernel hangs or is far too slow") from None
            raise GpuFailure(f"the kernel's process died: {said}") from None

    def _start(self) -> subprocess.Popen[bytes]:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the worker
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._lines = LineReader(self._process.stdout)
        return self._process

    def _line(self, seconds: float) -> dict[str, Any]:
        """The worker's next line. Raises TimeoutError after ``seconds`` without one, EOFError where it ended."""
        assert self._lines is not None
        answer: dict[str, Any] = json.loads(self._lines.line(seconds))
        return answer

    def _last_words(self) -> str:
        if self._log is None:
            return "nothing said"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing said"

    def _kill(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()
        self._process, self._log, self._lines = None, None, None
