"""Fake artifacts: a manifest that holds, and a kernel.so of a few lines of C with tvm-ffi's calling convention."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv4.runtime import dispatch, host
from dsv4.runtime.artifact import Argument, Contract, Manifest, Resources, sha256_file
from dsv4.runtime.cache import Artifact

# Takes four arguments, as rms_norm does, and counts the calls; complains in a compiled kernel's words about one;
# without any it returns the count × 100 + the support library's ABI.
_KERNEL_C = """
#include <stdint.h>
extern void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
extern int dsv4_support_abi(void);
static int64_t calls;
typedef struct { int32_t type_index; uint32_t padding; int64_t value; } any;
int __tvm_ffi_FUNCTION(void *self, const any *arguments, int32_t count, any *result) {
    if (count == 0) {
        *result = (any){.type_index = 1, .value = calls * 100 + dsv4_support_abi()};
        return 0;
    }
    if (count != 4) {
        TVMFFIErrorSetRaisedFromCStr("ValueError", "Mismatched Tensor on argument #1 when calling: `f(x: Tensor([n0], "
                                     "bfloat16), w)`, expected ndim=1");
        return -1;
    }
    calls++;
    return 0;
}
"""
_SUPPORT_C = "int dsv4_support_abi(void) { return 1; }\n"

Make = Callable[..., Artifact]


@pytest.fixture(autouse=True)
def fresh_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache of the test's own, and a runtime that has seen nothing; gives the cache's root."""
    for variable in ("DSV4_MISSING", "DSV4_DEBUG", "DSV4_PDL"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / "cache"
    monkeypatch.setenv("DSV4_CACHE", str(root))
    dispatch.reset()
    yield root
    dispatch.reset()


def rms_norm_contract() -> Contract:
    rows = {"dtype": "bf16", "shape": ("T", "d"), "strides": ("any", 1), "stride_multiple": 8}
    return Contract(
        dims={"T": None, "d": 64},
        arguments=(
            Argument(name="x", kind="tensor", **rows),
            Argument(name="w", kind="tensor", dtype="bf16", shape=("d",), strides=(1,)),
            Argument(name="y", kind="tensor", role="output", **rows),
            Argument(name="eps", kind="scalar", dtype="f32"),
        ),
    )


def write_artifact(root: Path, key: str, *, so: bytes = b"not a library", **changes: Any) -> Artifact:
    """An artifact of rms_norm for sm_90a whose manifest says ``changes``; what is no field stays in it."""
    folder = root / "kernels" / "rms_norm" / str(changes.get("arch", "sm_90a")) / key
    folder.mkdir(parents=True, mode=0o700)
    for parent in (root, *folder.parents[:3]):
        parent.chmod(0o700)
    (folder / "kernel.so").write_bytes(so)
    (folder / "kernel.ptx").write_text(".version 8.8\n")
    resources = Resources(smem_bytes=0, tmem_columns=0, threads=128)
    manifest = Manifest(
        key=key,
        name=f"rms_norm_sm90a_d64_{key[:8]}",
        function=f"dsv4_rms_norm_{key[:12]}",
        op="rms_norm",
        arch="sm_90a",
        compute_capabilities=((9, 0),),
        model=None,
        dims={"d": 64},
        variant={"pdl": False},
        config={"threads_per_row": 8},
        is_default=True,
        numeric_class="f32_row_tree",
        contract=rms_norm_contract(),
        launches=(),
        predicted=resources,
        used=resources,
        spec_sha256="0" * 64,
        source_sha256="0" * 64,
        ptx_sha256="0" * 64,
        files={name: sha256_file(folder / name) for name in ("kernel.so", "kernel.ptx")},
        toolchain={},
        host_isa=(),
        glibc="2.17",
        seconds={},
    )
    raw = {**manifest.model_dump(mode="json"), **changes}
    (folder / "manifest.json").write_text(json.dumps(raw))
    return Artifact(folder, manifest.model_copy(update=changes))


@pytest.fixture
def make(fresh_runtime: Path) -> Make:
    """``make(key, **changes)`` writes an artifact into the test's cache, newer than those before it."""
    count = 0

    def made(key: str = "a" * 32, **changes: Any) -> Artifact:
        nonlocal count
        count += 1
        artifact = write_artifact(fresh_runtime, key, **changes)
        os.utime(artifact.folder / "manifest.json", ns=(count * 10**9, count * 10**9))
        return artifact

    return made


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Bytes of a loadable ``kernel.so`` (of key ``a…``) and of a support library."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("compiled")
    sources = {"kernel": _KERNEL_C.replace("FUNCTION", "dsv4_rms_norm_" + "a" * 12), "support": _SUPPORT_C}
    for name, text in sources.items():
        command = [gcc, "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / f"{name}.so")]
        subprocess.run(command, input=text, text=True, check=True)
    return {name: (folder / f"{name}.so").read_bytes() for name in sources}


@pytest.fixture
def support(fresh_runtime: Path, compiled: dict[str, bytes]) -> Path:
    """The support library in the test's cache, with the record of its sha256."""
    folder = fresh_runtime / "support"
    folder.mkdir(parents=True, mode=0o700)
    path = folder / "libdsv4_support-1.so"
    path.write_bytes(compiled["support"])
    path.with_suffix(".json").write_text(json.dumps({"sha256": sha256_file(path)}))
    return path


@pytest.fixture
def without_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AVX2 and no AVX-512, and glibc 2.31."""
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset({"pni", "avx", "avx2", "bmi1"}))
    monkeypatch.setattr(host, "glibc_version", lambda: (2, 31))
