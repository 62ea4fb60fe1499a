"""A PostgreSQL server for one test module, from the binaries of the ``pgserver`` wheel: on a socket of its own, without
network, without syncing to a disk that nobody will lose.

The server refuses to run as root. Root starts it as ``nobody``, from a copy of the binaries in the server's folder:
those of an environment that lies in a folder of root's own could not be read.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = ("listen_addresses=", "fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=16MB")
START_LIMIT_S = 60


class CannotStart(Exception):
    """Why there is no server, in one line."""


@contextmanager
def running() -> Iterator[str]:
    """While open, a server is; its URL. Raises CannotStart."""
    spec = importlib.util.find_spec("pgserver")  # not imported: that makes folders, and its server a system user
    if spec is None or spec.origin is None:
        raise CannotStart("the PostgreSQL server comes with the development extra (pgserver)")
    wheel = Path(spec.origin).parent
    with tempfile.TemporaryDirectory(prefix="dsv4-pg-", dir=_place(), ignore_cleanup_errors=True) as name:
        folder, data = Path(name), Path(name) / "data"
        data.mkdir(mode=0o700)
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            wheel = _copied(wheel, folder)
            user = pwd.getpwnam("nobody")
            os.chown(data, user.pw_uid, user.pw_gid)
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        binaries = wheel / "pginstall" / "bin"

        def call(program: str, *arguments: str) -> None:
            log = folder / f"{program}.log"  # no pipe: the server keeps its end of it open
            with log.open("w") as stream:
                done = subprocess.run(
                    [binaries / program, "-D", data, *arguments],
                    stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, cwd=data, env={"LC_ALL": "C"},
                    timeout=START_LIMIT_S, **identity,
                )  # fmt: skip
            if done.returncode:
                raise CannotStart(f"{program}: {' '.join(log.read_text(errors='replace').split())[-300:]}")

        try:
            call("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=utf8", "--locale=C")
            options = " ".join(f"-c {option}" for option in OPTIONS)
            call("pg_ctl", "--wait", f"--log={data / 'log'}", f"--options=-k {data} {options}", "start")
        except (OSError, subprocess.SubprocessError) as error:
            raise CannotStart(f"{type(error).__name__}: {error}") from None
        try:
            yield f"postgresql://postgres@/postgres?host={data}"
        finally:
            call("pg_ctl", "--wait", "--mode=immediate", "stop")


def _place() -> str:
    """A folder for temporary ones that everybody can reach and whose name leaves room for that of a socket (pytest's
    is for its user alone). Raises CannotStart."""
    tried = dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp"))
    for name in tried:
        path = Path(name).resolve()
        if len(str(path)) < 48 and path.is_dir() and all(each.stat().st_mode & 0o001 for each in (path, *path.parents)):
            return str(path)
    raise CannotStart(f"none of {', '.join(tried)} can be reached by the server's user")


def _copied(wheel: Path, folder: Path) -> Path:
    """The binaries and their libraries below ``folder``, for everybody to read."""
    copy = folder / "wheel" / wheel.name
    for part in ("bin", "lib", "share"):
        shutil.copytree(wheel / "pginstall" / part, copy / "pginstall" / part)
    libraries = wheel.with_name(f"{wheel.name}.libs")  # where the binaries look for libpq, beside the package
    if libraries.is_dir():
        shutil.copytree(libraries, copy.with_name(libraries.name))
    for path in (folder, *(folder / "wheel").rglob("*"), folder / "wheel"):
        path.chmod(0o755)
    return copy
