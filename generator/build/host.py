"""The machine that builds: which CPU features and which C library its objects need, and its compiler."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

from dsv4.runtime.host import cpu_flags

# Features that LLVM may use when it compiles for "this machine", as /proc/cpuinfo spells them.
FEATURES = (
    *("pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "movbe", "abm", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2"),
    *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
)
_INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\t\S", re.MULTILINE)
# A family is needed if one of its instructions (or registers) occurs in the disassembly.
_FAMILIES: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (tuple(name for name in FEATURES if name.startswith("avx512")), re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|[23]\d)")),
    (("fma",), re.compile(r"\tvfn?m(add|sub)")),
    (("f16c",), re.compile(r"\tvcvt(ph2ps|ps2ph)")),
    (("avx2",), re.compile(r"%ymm")),
    (("avx",), re.compile(r"\tv(?!err|erw|mcall|mrun)")),
    (("bmi1",), re.compile(r"\t(andn|bextr|bls[ir]|blsmsk|tzcnt)")),
    (("bmi2",), re.compile(r"\t(bzhi|mulx|pdep|pext|rorx|s[ah][rl]x)")),
    (("abm",), re.compile(r"\tlzcnt")),
    (("movbe",), re.compile(r"\tmovbe")),
    (("popcnt",), re.compile(r"\tpopcnt")),
)


def needed_features(path: Path) -> tuple[str, ...]:
    """The CPU features (as /proc/cpuinfo spells them) that the compiled host code at ``path`` needs.

    The compiler takes the build machine as its target and has no option for another one, so an object may hold any
    instruction of this machine. Where binutils is there the instructions are read and the families that do not occur
    are left out; else all that this machine has are recorded. The SSE ones stay: every machine with a GPU has them.
    """
    have = tuple(name for name in FEATURES if name in cpu_flags())
    absent: set[str] = set()
    if objdump := shutil.which("objdump"):
        command = [objdump, "-d", "--no-show-raw-insn", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if _INSTRUCTION.search(text):
            absent = {name for names, pattern in _FAMILIES if not pattern.search(text) for name in names}
    return tuple(name for name in have if name not in absent)


def needed_glibc(*paths: Path) -> str:
    """The newest version of glibc's symbols that the libraries at ``paths`` ask for, else this process's version."""
    asked = {
        tuple(int(part) for part in version.split(b"."))
        for path in paths
        for version in re.findall(rb"GLIBC_(\d+(?:\.\d+)+)\0", path.read_bytes())
    }
    if asked:
        return ".".join(map(str, max(asked)))
    return (os.confstr("CS_GNU_LIBC_VERSION") or "glibc 0").rpartition(" ")[2]


@functools.cache
def c_compiler() -> str:
    """The path of gcc (or cc). Raises :class:`FileNotFoundError` with a line that says what to install."""
    for name in ("gcc", "cc"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no C compiler: install gcc (it links kernels and builds the support library)")


@functools.cache
def c_compiler_version() -> str:
    done = subprocess.run([c_compiler(), "-dumpfullversion"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
