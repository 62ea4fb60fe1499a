"""Set up the development environment in `.venv`, with nothing but a Python ≥ 3.11 (standard library only).

A torch that the calling Python already has and that is new enough is used as it is (the environment then sees the
system's packages), because GPU machines come with one that fits their driver; otherwise the constraints pin one.
Run again it does nothing unless the constraints, the extras or the list of package files changed: the editable
install is a strict one (type checkers can follow it), which links each file by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV = ROOT / ".venv"
PYTHON = ENV / "bin" / "python"
MINIMUM_TORCH = (2, 11)
ROOMS = ("dsv4", "runtime", "emulator", "generator", "tuner", "specs", "generated")
EXTRA = "dev"


def system_torch() -> str | None:
    """Version of the torch that this Python has, if it is new enough to be used as it is."""
    if sys.prefix != sys.base_prefix and Path(sys.prefix) == ENV:
        return None
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    return version if numbers >= MINIMUM_TORCH else None


def fingerprint(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def package_files() -> bytes:
    files = sorted(
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    return "\n".join(files).encode()


def run(*command: str) -> None:
    """Run quietly; on failure show what the command printed, and stop."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-4000:])
        raise SystemExit(f"setup: '{' '.join(command[:6])} …' failed with exit code {done.returncode}")


def step(stamp: Path, wanted: str, label: str, *commands: tuple[str, ...]) -> None:
    if stamp.exists() and stamp.read_text() == wanted:
        return
    started = time.monotonic()
    print(f"setup: {label} …", file=sys.stderr, flush=True)
    for command in commands:
        run(*command)
    stamp.write_text(wanted)
    print(f"setup: {label}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 — this file is what an older Python is told so by
        raise SystemExit(f"setup: Python {sys.version.split()[0]} is too old; valid: 3.11 or newer")
    present = system_torch()
    if not PYTHON.exists():
        torch = f"torch {present} of this system" if present else "a torch of its own"
        print(f"setup: environment in {ENV.name} with {torch}", file=sys.stderr)
        venv.create(ENV, with_pip=True, system_site_packages=present is not None, symlinks=os.name != "nt")
    constraints = (ROOT / "constraints.txt").read_text()
    used = ENV / "constraints.txt"
    if present:  # the system's torch stays, and with it everything that torch itself is particular about
        constraints = "".join(line for line in constraints.splitlines(True) if not line.startswith("torch=="))
    used.write_text(constraints)
    strict = ("--no-build-isolation", "--config-settings", "editable_mode=strict")
    pip = (str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-q")
    project = (ROOT / "pyproject.toml").read_bytes()
    step(
        ENV / "dependencies.stamp",
        fingerprint(constraints.encode(), project),
        "packages",
        (*pip, "-c", str(used), "setuptools>=77", "wheel"),
        (*pip, "-c", str(used), "-e", f".[{EXTRA}]", *strict),
    )
    step(
        ENV / "links.stamp",
        fingerprint(package_files(), project),
        "links to the package's files",
        (*pip, "--no-deps", "-e", ".", *strict),
    )


if __name__ == "__main__":
    main()
