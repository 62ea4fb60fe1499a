"""The caller's side of the emulating process: one process for many requests, replaced when a kernel kills it.

The process leads a group of its own. It is killed with that group when it is silent for longer than a request may
take, when the caller is interrupted, and at the end; nothing that it used has a name in the file system.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dsv4.emulator.arguments import Packed
from dsv4.emulator.errors import EmulatorError, WorkerFailed, rebuilt
from dsv4.emulator.kernels import image_key
from dsv4.emulator.memory import Arena
from dsv4.emulator.outcome import Report
from dsv4.emulator.policy import MAX_INSTRUCTIONS
from dsv4.runtime.lines import LineReader

START_SECONDS = 330.0
"""What the first start may take: it builds the core."""
REQUEST_SECONDS = 300.0
WORKER = (sys.executable, "-P", "-m", "dsv4.emulator.worker")


@dataclass(frozen=True, eq=False)
class Text:
    """One PTX file, with the cubin of the same compilation where it is known."""

    ptx: str
    cubin: bytes | None = None

    def described(self) -> tuple[str, dict[str, str]]:
        """Its key, and what the emulating process is told of it. Raises ObjectRefused for a file that is no cubin."""
        image = image_key(self.cubin) if self.cubin is not None else ""
        return hashlib.sha256((image + self.ptx).encode()).hexdigest(), {"ptx": self.ptx, "image": image}


@dataclass(frozen=True, eq=False)
class Object:
    """A compiled kernel: the shared library's bytes, its host function, the PTX. ``shown`` names it in messages.

    ``registers`` (a thread's, as the compiler allotted them) holds setmaxnreg to its budget; 0 where it is not known.
    ``header`` is the generated one of an object with the plain C interface, empty for tvm-ffi.
    """

    library: bytes
    function: str
    texts: tuple[Text, ...]
    shown: str = "the object"
    registers: int = 0
    header: str = ""

    @property
    def key(self) -> str:
        return hashlib.sha256(self.library).hexdigest()


class Client:
    """Runs requests one after the other; usable from several threads, in which they then wait for each other."""

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self._command = list(command)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._arena: Arena | None = None
        self._lines: LineReader | None = None
        self._known_objects: set[str] = set()
        self._known_texts: set[str] = set()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The emulating process's number while there is one."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End the process and give the memory back. In a forked child, which has neither, nothing happens."""
        if self._owner != os.getpid():
            return
        with self._lock:
            self._kill()
            if self._arena:
                self._arena.close()
                self._arena = None

    def request(
        self,
        calls: Sequence[tuple[Object, Sequence[Any]]],
        *,
        schedules: Sequence[str],
        threads: int = 1,
        max_instructions: int = MAX_INSTRUCTIONS,
        seconds: float = REQUEST_SECONDS,
        timeline: Path | str | None = None,
        probes: Sequence[tuple[str, Sequence[int]]] = (),
    ) -> Report:
        """Run the host functions of ``calls`` one after the other, the whole again for each schedule.

        Tensors among the arguments hold the first schedule's results afterwards. ``max_instructions`` bounds a cluster
        of CTAs, ``seconds`` the whole request. ``timeline`` names a file that the first schedule is drawn to
        (:mod:`dsv4.emulator.timeline`); later launches get their number in its name. ``probes`` are elements (a
        tensor's name and an index) of which the report says what wrote them under the last schedule. Raises
        EmulatorError; WorkerFailed means that the process was killed.
        """
        started = time.monotonic()
        with self._lock, contextlib.ExitStack() as files:
            if self._process is not None and self._process.poll() is not None:
                self._kill()  # it died between requests; its group may have more members
            process = self._process or self._start()
            assert self._arena is not None
            packed = Packed([arguments for _, arguments in calls], self._arena)
            message = {
                **self._described([each for each, _ in calls], files),
                "blocks": [block.as_json() for block in packed.blocks],
                "calls": [
                    {"object": each.key, "function": each.function, "arguments": arguments}
                    for (each, _), arguments in zip(calls, packed.calls, strict=True)
                ],
                "schedules": list(schedules),
                "threads": threads,
                "max_instructions": max_instructions,
                "probes": [[name, list(index)] for name, index in probes],
                "timeline": None if timeline is None else _drawn(Path(timeline), [each for each, _ in calls]),
            }
            answer = self._ask(process, message, seconds)
            if "error" in answer:
                raise rebuilt(answer["error"])
            self._known_objects |= set(message["objects"])
            self._known_texts |= set(message["texts"])
            packed.results()
        return Report.from_json(answer, time.monotonic() - started)

    def _described(self, objects: Sequence[Object], files: contextlib.ExitStack) -> dict[str, Any]:
        """The objects and PTX files of a request; what the process has already is not sent again.

        A library is opened from a copy of its own, which goes with ``files``: a path that was opened before gives what
        was opened then.
        """
        new = {each.key: each for each in objects if each.key not in self._known_objects}
        folder = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="dsv4-emulator-")) if new else "")
        for key, each in new.items():
            (folder / f"{key[:16]}.so").write_bytes(each.library)
        texts: dict[str, dict[str, str]] = {}
        known: dict[str, dict[str, Any]] = {}
        for each in objects:
            described = [text.described() for text in each.texts]
            texts.update({key: raw for key, raw in described if key not in self._known_texts})
            known[each.key] = {
                "path": str(folder / f"{each.key[:16]}.so"),
                "shown": each.shown,
                "registers": each.registers,
                "header": each.header,
                "texts": [key for key, _ in described],
            }
        return {"texts": texts, "objects": known}

    def _ask(self, process: subprocess.Popen[bytes], message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            return self._line(seconds)
        except TimeoutError:
            self._kill()
            raise WorkerFailed(
                f"killed: no answer within {seconds:g} s; the kernel is endless or too slow for the limit seconds="
            ) from None
        except (EOFError, BrokenPipeError):
            ended = self._ended()
            self._kill()
            raise WorkerFailed(f"the emulating process died: {ended}") from None
        except BaseException:  # an interrupt: its answer would be taken for that of the next request
            self._kill()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        if self._arena is None:
            self._arena = Arena()
        descriptor = self._arena.descriptor
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the process
        self._process = subprocess.Popen(
            [*self._command, str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            pass_fds=(descriptor,),
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        assert self._process.stdout is not None
        self._lines = LineReader(self._process.stdout)
        try:
            ready = self._line(START_SECONDS)
        except (TimeoutError, EOFError) as error:
            ended = f"no sign of life within {START_SECONDS:g} s" if isinstance(error, TimeoutError) else self._ended()
            self._kill()
            raise WorkerFailed(f"the emulating process does not start: {ended}") from None
        except BaseException:
            self._kill()
            raise
        if "error" in ready:
            self._kill()
            raise rebuilt(ready["error"])
        return self._process

    def _line(self, seconds: float) -> dict[str, Any]:
        """The next line. Raises TimeoutError after ``seconds`` without one, EOFError where the process ended."""
        assert self._lines is not None
        answer: dict[str, Any] = json.loads(self._lines.line(seconds))
        return answer

    def _ended(self) -> str:
        """How the process ended, and the last that it said."""
        assert self._process is not None and self._log is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.poll()
        how = "it closed its output"
        if code is not None:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"{how} ({lines[-1].strip()[:200]})" if lines else how

    def _kill(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process, self._log, self._lines = None, None, None
        self._known_objects.clear()
        self._known_texts.clear()


def _drawn(path: Path, objects: Sequence[Object]) -> dict[str, Any]:
    folders = [str(Path(each.shown).parent.absolute()) for each in objects if Path(each.shown).is_file()]
    return {"path": str(path.absolute()), "roots": folders}


_shared: tuple[int, Client] | None = None
_shared_lock = threading.Lock()


def shared() -> Client:
    """The client of this Python process, made on first use and closed at its end. A forked child gets its own."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared[0] != os.getpid():
            _shared = (os.getpid(), Client())
            atexit.register(_shared[1].close)
        return _shared[1]


__all__ = ["Client", "EmulatorError", "Object", "Text", "shared"]
