"""Run one command on the GPU machine, this one or a remote one, and bring back its log and exit code.

One run at a time on a machine: whatever an earlier run left there is killed first. The command runs detached, under a
time limit, in a folder of its own; a dropped connection loses nothing, the client simply asks again (or later, with
--attach). The log and the exit code lie in build/gpu_host/<run>/ afterwards.

  python tools/gpu_host.py --local -- pytest tests -m gpu
  python tools/gpu_host.py --host me@gpu1 --timeout 900 --fetch 'benchmarks/results/*.json' -- make bench OP=fmha
  python tools/gpu_host.py --host me@gpu1 --attach          # go on reading the newest run
  python tools/gpu_host.py --host me@gpu1 --stop

With --host the working tree travels first (tracked files and untracked ones that git does not ignore, and --carry
paths). Exit code: the command's own; 124 time limit, 125 the harness failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import secrets
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import IO, Any

RUNNER = Path(__file__).with_name("gpu_host_runner.py")
HARNESS_FAILED = 125
CONNECTION_LOST = 255  # ssh's own exit code
ROOT = "~/.cache/dsv4-gpu-host"
RESULTS = Path("build/gpu_host")
POLL_WAIT_S = 20.0


class HarnessError(Exception):
    """One line: what went wrong between here and the GPU machine."""


class Disconnected(HarnessError):
    """The connection dropped; the run goes on."""


class Local:
    """The runner as a process on this machine."""

    name = "this machine"
    syncs = False

    def __init__(self, root: str) -> None:
        self.root = root

    def runner(self, verb: str, *arguments: str, stdin: IO[bytes] | None = None) -> bytes:
        command = [sys.executable, str(RUNNER), verb, self.root, *arguments]
        return _output(command, stdin=stdin)


class Ssh:
    """The runner over ssh: its text is written to the host once, named by its hash, and called by every verb."""

    syncs = True

    def __init__(self, host: str, root: str, python: str, options: list[str]) -> None:
        self.name, self.root, self.python = host, root, python
        keep_alive = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=10"]
        self.ssh = ["ssh", *keep_alive, *options, host]
        text = RUNNER.read_bytes()
        self.remote_runner = f"{root}/runner-{hashlib.sha256(text).hexdigest()[:12]}.py"
        install = (
            "import os,sys;p=os.path.expanduser(sys.argv[1]);os.makedirs(os.path.dirname(p),0o700,True);"
            "t=p+'.%d'%os.getpid();open(t,'wb').write(sys.stdin.buffer.read());os.replace(t,p)"
        )
        self._call([python, "-c", install, self.remote_runner], stdin=io.BytesIO(text))

    def runner(self, verb: str, *arguments: str, stdin: IO[bytes] | None = None) -> bytes:
        main = "import os,runpy,sys;del sys.argv[0];sys.argv[0]=os.path.expanduser(sys.argv[0]);"
        main += "runpy.run_path(sys.argv[0],run_name='__main__')"
        return self._call([self.python, "-c", main, self.remote_runner, verb, self.root, *arguments], stdin=stdin)

    def _call(self, command: list[str], stdin: IO[bytes] | None = None) -> bytes:
        return _output([*self.ssh, shlex.join(command)], stdin=stdin)


def _output(command: list[str], stdin: IO[bytes] | None) -> bytes:
    """Standard output of ``command``. Raises ``Disconnected`` for ssh's 255, ``HarnessError`` for any other failure."""
    try:
        data = None if stdin is None else stdin.read()
        done = subprocess.run(command, input=data, stdin=None if data is not None else subprocess.DEVNULL,
                              capture_output=True, timeout=600)  # fmt: skip
    except FileNotFoundError:
        raise HarnessError(f"{command[0]!r} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise Disconnected("no answer for 600 s") from None
    if done.returncode == 0:
        return done.stdout
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode == CONNECTION_LOST:
        raise Disconnected(lines[-1])
    raise HarnessError(lines[-1].removeprefix("gpu_host: "))


def pack(carry: list[str]) -> IO[bytes]:
    """A tar.gz of the working tree: what git tracks or would track, and the ``carry`` paths (folders whole)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, check=False
    )
    if listed.returncode:
        raise HarnessError("run this in a git checkout: the working tree is what travels")
    names = {name for name in listed.stdout.decode().split("\0") if name and RESULTS not in Path(name).parents}
    for path in map(Path, carry):
        if not path.exists():
            raise HarnessError(f"--carry {path}: no such file or folder")
        names |= {str(p) for p in path.rglob("*") if not p.is_dir()} if path.is_dir() else {str(path)}
    stream = tempfile.TemporaryFile()  # noqa: SIM115  (it is handed on, and vanishes when closed)
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name in sorted(names):
            if os.path.lexists(name) and not os.path.isdir(name):
                archive.add(name)
    stream.seek(0)
    return stream


def start(place: Local | Ssh, options: argparse.Namespace) -> str:
    """Start the command; the id of its run."""
    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    request = {
        "id": run_id,
        "command": options.command,
        "cwd": os.getcwd(),
        "env": dict(pair.split("=", 1) for pair in options.env),
        "timeout_s": options.timeout,
        "grace_s": options.grace,
        "sync": place.syncs,
    }
    stdin = pack(options.carry) if place.syncs else None
    try:
        started = json.loads(place.runner("start", json.dumps(request), stdin=stdin))
    except Disconnected as error:
        note(f"connection lost while starting ({error}); looking whether the run is there")
        return run_id
    if started["stopped"]:
        note(f"an earlier run was still there and was stopped: {started['stopped']}")
    return run_id


def follow(place: Local | Ssh, run_id: str, unreachable_s: float) -> int:
    """Copy the log to standard output and to a file as it grows; the exit code at the end."""
    folder = RESULTS / run_id
    folder.mkdir(parents=True, exist_ok=True)
    offset, last_heard, pause_s = 0, time.monotonic(), 1.0
    with (folder / "log").open("wb") as log:
        while True:
            try:
                head_line, _, chunk = place.runner("poll", run_id, str(offset), str(POLL_WAIT_S)).partition(b"\n")
            except Disconnected as error:
                if time.monotonic() - last_heard > unreachable_s:
                    raise HarnessError(f"{place.name}: {error}; the run goes on: --attach {run_id}") from None
                note(f"connection lost ({error}); asking again")
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 15.0)
                continue
            head: dict[str, Any] = json.loads(head_line)
            last_heard, pause_s = time.monotonic(), 1.0
            offset += len(chunk)
            log.write(chunk)
            log.flush()
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if head["state"] == "lost":
                raise HarnessError(f"run {run_id} ended without a result: its machine restarted or it was killed")
            if head["state"] == "done":
                break
    result = head["result"]
    code = int(result["exit_code"])
    (folder / "exit_code").write_text(f"{code}\n")
    why = "".join(f", {text}" for text in (result.get("stopped"), result.get("unkillable")) if text)
    why += ", time limit reached" if result["timed_out"] else ""
    note(f"run {run_id} on {place.name}: exit code {code} after {result['seconds']:.1f} s{why}; log in {folder}/log")
    return code


def bring_back(place: Local | Ssh, run_id: str, patterns: list[str]) -> None:
    """Files of the run that match ``patterns``, into build/gpu_host/<run>/files."""
    target = RESULTS / run_id / "files"
    with tarfile.open(fileobj=io.BytesIO(place.runner("fetch", run_id, *patterns)), mode="r:gz") as archive:
        count = sum(member.isfile() for member in archive)
        archive.extractall(target, filter="data")
    note(f"{count} files fetched into {target}")


def note(text: str) -> None:
    print(f"gpu_host: {text}", file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_host.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--host", metavar="USER@HOST", help="a machine that ssh reaches without a question")
    where.add_argument("--local", action="store_true", help="this machine, in this working tree")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds the command may take (600)")
    parser.add_argument("--grace", type=float, default=10, metavar="S", help="seconds between TERM and KILL (10)")
    parser.add_argument("--unreachable", type=float, default=600, metavar="S", help="give up asking after this (600)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set for the command")
    parser.add_argument("--carry", action="append", default=[], metavar="PATH", help="an ignored path that travels too")
    parser.add_argument("--fetch", action="append", default=[], metavar="GLOB", help="files to bring back afterwards")
    parser.add_argument("--root", default=ROOT, help=f"the harness's folder on the machine ({ROOT})")
    parser.add_argument("--python", default="python3", help="the remote Python, 3.11.4 or newer (python3)")
    parser.add_argument("--ssh-option", action="append", default=[], metavar="OPTION", help="passed to ssh")
    parser.add_argument("--attach", nargs="?", const="", metavar="RUN", help="follow a run that was started before")
    parser.add_argument("--stop", action="store_true", help="stop whatever run is there")
    split = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:split])
    options.command = argv[split + 1 :]
    if sum((bool(options.command), options.attach is not None, options.stop)) != 1:
        parser.error("give a command after --, or --attach, or --stop")
    if options.timeout <= 0 or options.grace < 0:
        parser.error("--timeout must be above 0 and --grace not below 0")
    for pair in options.env:
        if "=" not in pair:
            parser.error(f"--env {pair}: should be NAME=VALUE")
    return options


def newest_run(place: Local | Ssh) -> str:
    current = json.loads(place.runner("current"))
    if not current:
        raise HarnessError(f"no run on {place.name} yet")
    return str(current["id"])


def main(argv: list[str]) -> int:
    options = parse(argv)
    run_id = ""
    try:
        place: Local | Ssh = Local(options.root)
        if options.host:
            place = Ssh(options.host, options.root, options.python, options.ssh_option)
        if options.stop:
            stopped = json.loads(place.runner("stop", str(options.grace)))["stopped"]
            note(f"stopped {stopped}" if stopped else "nothing was running")
            return 0
        run_id = start(place, options) if options.attach is None else options.attach or newest_run(place)
        note(f"run {run_id} on {place.name}")
        code = follow(place, run_id, options.unreachable)
        if options.fetch:
            bring_back(place, run_id, options.fetch)
        return code
    except HarnessError as error:
        note(str(error))
        return HARNESS_FAILED
    except KeyboardInterrupt:
        note(f"no longer watching; the run goes on: --attach {run_id}, or --stop" if run_id else "interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
