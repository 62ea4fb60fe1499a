"""The compile process: takes requests one after the other, compiles each for one arch, answers through files.

Started by :mod:`dsv4.generator.build.pool` as a group of its own. A request is a folder with ``request.json`` and
``source.py``; the answer is ``kernel.ptx``, ``kernel.cubin``, ``kernel.so`` and ``result.json`` in the same folder.
Lines on standard input name folders; a line on standard output says that one is done. Whatever the compiler prints
goes to ``log.txt`` in the folder.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from dsv4.generator.build import probe
from dsv4.generator.build.cubin import kernel_usage, spill_bytes
from dsv4.generator.build.host import c_compiler, needed_features, needed_glibc
from dsv4.generator.build.loading import (
    changed_device_module,
    forget_device_modules,
    load_source,
    use_relative_file_names,
)
from dsv4.generator.build.messages import CompileFailed, one_line
from dsv4.generator.build.ptx import SOURCE_NAME, entries, tmem_columns
from dsv4.generator.build.tracing import forget_places, remember_places

ADDRESS_SPACE_BYTES = 32 << 30
READY = "ready"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve requests until standard input ends. The first argument is the arch of all of them."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed parent leaves no compiler behind
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > ADDRESS_SPACE_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, most))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    use_relative_file_names()
    # tvm-ffi imports torch where it finds it: 1.5 s and 250 MB for nothing, since a compile sees no tensor.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    for module in ("cutlass.cute", "tvm_ffi"):  # now, so that a request's time limit is its compile's alone
        importlib.import_module(module)
    remember_places()

    answers.write(f"{READY}\n")
    for line in sys.stdin:
        folder = Path(line.strip())
        serve(folder)
        answers.write(f"{folder}\n")


def serve(folder: Path) -> None:
    """Compile the request in ``folder``; never raises: what went wrong is ``error`` in its result.json."""
    started = time.monotonic()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    result: dict[str, Any]
    try:
        result = compile_request(folder, json.loads((folder / "request.json").read_text()))
    except Exception as error:  # the request is somebody's template: anything can come out of it
        traceback.print_exc()
        result = {"error": one_line(error)}
    sys.stdout.flush()
    sys.stderr.flush()
    result.setdefault("seconds", {})["total"] = time.monotonic() - started
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps(result))
    os.replace(temporary, folder / "result.json")


def compile_request(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Everything that the manifest says about the compiled kernel, after writing its files into ``folder``."""
    started = time.monotonic()
    forget_device_modules()
    forget_places()
    module = load_source((folder / SOURCE_NAME).read_text())
    target, compiled = compile_for_targets(module, folder, request)
    if changed := changed_device_module(request["devices"]):
        raise CompileFailed(f"{changed} was changed during the build; build again")
    built = time.monotonic()
    ptx, cubin = compiled.__ptx__, compiled.__cubin__
    (folder / "kernel.ptx").write_text(ptx)
    (folder / "kernel.cubin").write_bytes(cubin)
    compiled.export_to_c(str(folder / "kernel.o"), function_name=request["function"], export_only_tvm_ffi_symbols=True)
    link(folder / "kernel.o", folder / "kernel.so")
    linked = time.monotonic()
    launches = probe.run(folder, request, Path(request["stub"]))
    usage = kernel_usage(folder / "kernel.cubin")
    remarks = folder / "remarks.yaml"
    return {
        "target": target,
        "entries": list(entries(ptx)),
        "registers": max(item.registers for item in usage.values()),
        "local_bytes": max(max(item.stack_bytes, item.local_bytes) for item in usage.values()),
        "spill_bytes": spill_bytes(remarks.read_text() if remarks.exists() else ""),
        "tmem_columns": tmem_columns(ptx),
        "launches": launches,
        "host_isa": needed_features(folder / "kernel.so"),
        "glibc": needed_glibc(folder / "kernel.so", Path(request["support"])),
        "seconds": {"compile": built - started, "link": linked - built, "probe": time.monotonic() - linked},
    }


def compile_for_targets(module: Any, folder: Path, request: dict[str, Any]) -> tuple[str, Any]:
    """The kernel compiled for the first of the request's targets that takes it (a family first, then one chip)."""
    import cutlass.cute as cute

    failure: Exception | None = None
    for target in request["targets"]:
        positional, keywords = split_arguments(module, request["variant"])
        try:
            compiled = cute.compile(
                module.launch, *positional, **keywords, options=options(target, request["opt_level"], folder)
            )
        except Exception as error:  # what a template or ptxas does not like; the next target may take it
            print(f"target {target}:", file=sys.stderr)
            traceback.print_exc()
            failure = error
            continue
        if compiled.__ptx__ and compiled.__cubin__:
            return target, compiled
        failure = CompileFailed(f"the compiler gave no PTX for {target}")
    assert failure is not None
    raise failure


def options(target: str, opt_level: int, folder: Path) -> str:
    """The compiler's option string. The build key holds what of it changes the kernel: see :mod:`.key`."""
    return (
        f"--gpu-arch {target} --enable-tvm-ffi --opt-level {opt_level} --generate-line-info "
        f"--keep-ptx --keep-cubin --dump-dir {folder} remarks{{ptx}} --remark-output {folder}/remarks.yaml"
    )


def split_arguments(module: Any, variant: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """``module.arguments(variant)``, in launch's order, as positional and keyword arguments of launch."""
    values = module.arguments(variant)
    names = list(inspect.signature(inspect.unwrap(module.launch)).parameters.values())
    if len(values) != len(names):
        raise CompileFailed(f"arguments() gives {len(values)} values and launch() takes {len(names)}")
    pairs = list(zip(names, values, strict=True))
    positional = [value for name, value in pairs if name.kind is not name.KEYWORD_ONLY]
    return positional, {name.name: value for name, value in pairs if name.kind is name.KEYWORD_ONLY}


def link(object_file: Path, library: Path) -> None:
    """Make a shared library that needs no other one: the loader finds its symbols in what is already open."""
    command = [c_compiler(), "-shared", "-nostdlib", "-Wl,--build-id=none", "-o", str(library), str(object_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileFailed(f"gcc cannot link the kernel: {' '.join(done.stderr.split())[:300]}")


if __name__ == "__main__":
    main()
