"""Dao-AILab's quack: from the installed package, or from objects that build_quack.py compiled ahead of time.

``$DSV4_BENCH_QUACK`` names the shared object; it is opened with our support library, which provides the same symbols.
Of our operators it offers the norm (0.6.5): its quantisers are torch's own operators, its rotation quantises nothing,
its top-k knows no bias, and it has neither the mix of streams nor sampling.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.harness.operator import Call, Case, Unavailable

VARIABLE = "DSV4_BENCH_QUACK"


def function_name(columns: int) -> str:
    """The exported name of rms_norm's forward kernel for rows of ``columns``."""
    return f"quack_rmsnorm_d{columns}"


def rms_norm(case: Case) -> Call:
    """quack's forward rms_norm, writing into ``y``."""
    columns = int(case.sizes["d"])
    if os.environ.get(VARIABLE):
        function = _ahead_of_time(function_name(columns))
        return lambda s: (function(s["x"], s["w"], None, None, s["y"], None, None, None, s["eps"]), s["y"])[1]
    if importlib.util.find_spec("quack") is None:
        raise Unavailable(f"quack is not installed and ${VARIABLE} names no object of it")
    from quack.rmsnorm import _rmsnorm_fwd

    return lambda s: (_rmsnorm_fwd(s["x"], s["w"], s["y"], eps=s["eps"]), s["y"])[1]


def versions() -> dict[str, str]:
    """quack's version, and how its kernels came to be."""
    path = os.environ.get(VARIABLE)
    if path:
        record: dict[str, str] = json.loads(Path(path).with_suffix(".json").read_text())
        return record
    try:
        return {"quack-kernels": importlib.metadata.version("quack-kernels")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def _ahead_of_time(name: str) -> Any:
    try:
        return getattr(_library(os.environ[VARIABLE]), name)
    except (AttributeError, OSError) as error:
        raise Unavailable(f"${VARIABLE}: no {name} ({' '.join(str(error).split())})") from None


@functools.cache
def _library(path: str) -> Any:
    import tvm_ffi

    from dsv4.runtime.cache import default_root
    from dsv4.runtime.loader import cuda_runtime, support_library

    for needed in (cuda_runtime(), support_library(default_root())):
        ctypes.CDLL(str(needed), mode=ctypes.RTLD_GLOBAL)
    return tvm_ffi.load_module(str(Path(path).absolute()))
