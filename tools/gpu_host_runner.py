"""The half of gpu_host.py that runs on the GPU machine. Standard library only; Linux only (it reads /proc).

One run at a time per root folder: `start` stops the run before it, unpacks the working tree, and leaves a supervisor
behind that outlives the connection. Every process of a run carries the run's id in its environment, so that all of
them can be found again, whatever process groups or sessions they made, and none is mistaken for a recycled pid.

    ROOT/lock                one `start` at a time
    ROOT/current.json        the newest run: id, supervisor's pid with its start time
    ROOT/tree, ROOT/files    the synced working tree and the list of what was synced
    ROOT/runs/ID/            request.json, log, result.json
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = "DSV4_GPU_HOST_RUN"
TIMED_OUT = 124
HARNESS_FAILED = 125
RUNS_KEPT = 20
CHUNK_BYTES = 1 << 20
UNKILLABLE_AFTER_S = 30.0


class RunnerError(Exception):
    """One line for the person at the other end."""


def identity(pid: int) -> str | None:
    """Boot and start time of a live process: with the pid, unique for ever. ``None`` for a dead one or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def marked(run_id: str) -> list[int]:
    """Live processes of the run, by the mark in their environment."""
    mark = f"{MARK}={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def terminate(run_id: str, grace_s: float) -> None:
    """TERM to every process of the run, KILL to those left after ``grace_s``; returns when none is left."""
    began = time.monotonic()
    for pid in marked(run_id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while left := marked(run_id):
        waited = time.monotonic() - began
        if waited > grace_s + UNKILLABLE_AFTER_S:
            raise RunnerError(f"run {run_id}: processes {left} cannot be killed; the GPU driver may hang")
        if waited > grace_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def run_folder(root: Path, run_id: str) -> Path:
    folder = root / "runs" / run_id
    if "/" in run_id or run_id.startswith(".") or not (folder / "request.json").is_file():
        raise RunnerError(f"no run {run_id!r} on this machine")
    return folder


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def stop_current(root: Path, reason: str, grace_s: float) -> str | None:
    """Stop the newest run if anything of it still lives. Its id, or ``None`` where there was nothing to stop."""
    current = read_json(root / "current.json")
    if not current:
        return None
    run_id, supervisor = current["id"], current["supervisor"]
    supervised = identity(supervisor["pid"]) == supervisor["identity"]
    if not supervised and not marked(run_id):
        return None
    with contextlib.suppress(OSError):
        (root / "runs" / run_id / "stopped").write_text(reason)
    terminate(run_id, grace_s)
    deadline = time.monotonic() + 10
    while identity(supervisor["pid"]) == supervisor["identity"]:  # it writes the result, then ends
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor["pid"], signal.SIGKILL)
        time.sleep(0.05)
    return str(run_id)


def unpack(root: Path) -> Path:
    """The working tree from a tar on standard input. Files of the last sync that are gone are deleted; others stay."""
    tree = root / "tree"
    tree.mkdir(exist_ok=True)
    names = []
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
        for member in archive:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                (tree / member.name).unlink()  # never write through a link that lies there
            archive.extract(member, tree, filter="data")
            names.append(member.name)
    for old in set(read_json(root / "files") or []) - set(names):
        with contextlib.suppress(OSError):
            (tree / old).unlink()
    write_json(root / "files", names)
    return tree


def start(root: Path, request: dict[str, Any]) -> None:
    """Stop the earlier run, unpack the tree if ``request["sync"]``, start the command under a supervisor."""
    own = os.environ.get(MARK)
    if own and (root / "runs" / own).exists():
        raise RunnerError(f"already inside run {own}: a run cannot start another on the same machine")
    with locked(root):
        run_id = request["id"]
        stopped = stop_current(root, f"stopped by run {run_id}", request["grace_s"])
        if request["sync"]:
            request["cwd"] = str(unpack(root))
        old_runs = sorted((root / "runs").glob("*/"), key=lambda p: p.stat().st_mtime)
        for old in old_runs[:-RUNS_KEPT]:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        folder = root / "runs" / run_id
        folder.mkdir(parents=True)
        (folder / "log").touch()
        write_json(folder / "request.json", request)
        with (folder / "supervisor.log").open("wb") as errors:
            supervisor = subprocess.Popen(
                [sys.executable, __file__, "supervise", str(root), run_id],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                cwd="/",
            )
        known = {"pid": supervisor.pid, "identity": identity(supervisor.pid)}
        write_json(root / "current.json", {"id": run_id, "supervisor": known})
    print(json.dumps({"id": run_id, "stopped": stopped}))


def supervise(root: Path, run_id: str) -> None:
    """Run the command to its end or to its time limit, then end all that it left behind, then write the result."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    folder = run_folder(root, run_id)
    request = read_json(folder / "request.json")
    began = time.monotonic()
    result: dict[str, Any] = {"timed_out": False}
    with (folder / "log").open("ab") as log:
        try:
            child = subprocess.Popen(
                request["command"],
                cwd=request["cwd"],
                env={**os.environ, **request["env"], MARK: run_id, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"cannot start {request['command'][0]!r}: {error.strerror}\n".encode())
            result["exit_code"] = 127
        else:
            try:
                child.wait(request["timeout_s"])
            except subprocess.TimeoutExpired:
                result["timed_out"] = True
                log.write(f"\ntime limit of {request['timeout_s']:g} s reached: every process killed\n".encode())
                log.flush()
            try:
                terminate(run_id, request["grace_s"])
                child.wait(5)
            except (RunnerError, subprocess.TimeoutExpired) as error:
                result["unkillable"] = str(error)
            code = child.returncode if child.returncode is not None else HARNESS_FAILED
            result["exit_code"] = TIMED_OUT if result["timed_out"] else code if code >= 0 else 128 - code
    stopped = folder / "stopped"
    result["stopped"] = stopped.read_text() if stopped.exists() else None
    result["seconds"] = round(time.monotonic() - began, 3)
    write_json(folder / "result.json", result)


def poll(root: Path, run_id: str, offset: int, wait_s: float) -> None:
    """One line of JSON (state, result, size of what follows), then the log from ``offset``; waits for news."""
    folder = run_folder(root, run_id)
    deadline = time.monotonic() + wait_s
    while True:
        result = read_json(folder / "result.json")  # before the log: nothing is written to the log after the result
        size = (folder / "log").stat().st_size
        current = read_json(root / "current.json") or {}
        known = current.get("supervisor", {}) if current.get("id") == run_id else {}
        alive = bool(known) and identity(known["pid"]) == known["identity"]
        if result or size > offset or not alive or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if not result and not alive:
        result = read_json(folder / "result.json")  # it may have ended between the two looks
    with (folder / "log").open("rb") as log:
        log.seek(offset)
        chunk = log.read(CHUNK_BYTES)
    more = offset + len(chunk) < (folder / "log").stat().st_size
    state = "running" if more or (alive and not result) else "done" if result else "lost"
    head = {"state": state, "result": result, "bytes": len(chunk)}
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + chunk)


def fetch(root: Path, run_id: str, patterns: list[str]) -> None:
    """A tar of the files that ``patterns`` (relative to the run's folder of work) match, to standard output."""
    cwd = Path(read_json(run_folder(root, run_id) / "request.json")["cwd"])
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|gz") as archive:
        for pattern in patterns:
            for path in sorted(cwd.glob(pattern)):
                archive.add(path, arcname=str(path.relative_to(cwd)))


def main(argv: list[str]) -> int:
    verb, root, rest = argv[0], Path(argv[1]).expanduser().absolute(), argv[2:]
    try:
        if verb == "start":
            start(root, json.loads(rest[0]))
        elif verb == "supervise":
            supervise(root, rest[0])
        elif verb == "poll":
            poll(root, rest[0], int(rest[1]), float(rest[2]))
        elif verb == "fetch":
            fetch(root, rest[0], rest[1:])
        elif verb == "current":
            print(json.dumps(read_json(root / "current.json")))
        elif verb == "stop":
            with locked(root):
                print(json.dumps({"stopped": stop_current(root, "stopped by hand", float(rest[0]))}))
        else:
            raise RunnerError(f"unknown verb {verb!r}")
    except (RunnerError, OSError, tarfile.TarError) as error:
        print(f"gpu_host: {error}", file=sys.stderr)
        return HARNESS_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
