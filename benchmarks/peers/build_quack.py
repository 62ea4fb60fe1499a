"""Compile quack's rms_norm kernels on a machine without a GPU, to be measured on one without a compiler.

Needs quack-kernels and triton beside the generator's packages, for example in a virtual environment of its own.
``python -m benchmarks.peers.build_quack build/quack.so --arch sm_90a`` writes the object and a .json of versions.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers.quack import function_name

COLUMNS = (512, 1024, 1536, 4096, 7168)
CAPABILITY = {"sm_90a": (9, 0), "sm_100a": (10, 0)}


def compile_objects(arch: str, folder: Path) -> list[Path]:
    """One object for each size in :data:`COLUMNS`, with the configuration that quack itself chooses for it."""
    os.environ["CUTE_DSL_ARCH"] = arch
    import cutlass
    import torch

    torch.cuda.get_device_capability = lambda *_: CAPABILITY[arch]  # quack asks on import

    module, bf16 = importlib.import_module("quack.rmsnorm"), cutlass.BFloat16
    compile_kernel = module._compile_rmsnorm_fwd.__wrapped__
    objects = []
    for columns in COLUMNS:
        config = module.RmsNormFwdConfig.from_analytical_heuristic(columns, 16, arch_major=CAPABILITY[arch][0])
        options = (False, False, False, False, 0.0)  # rstd, mean, layer norm, weight per head, weight offset
        kernel = compile_kernel(bf16, bf16, None, bf16, None, None, columns, *options, config=config)
        objects.append(folder / f"{columns}.o")
        kernel.export_to_c(str(objects[-1]), function_name=function_name(columns), export_only_tvm_ffi_symbols=True)
        print(f"{function_name(columns)}: {config}")
    return objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--arch", choices=tuple(CAPABILITY), default="sm_90a")
    options = parser.parse_args()
    options.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        objects = compile_objects(options.arch, Path(folder))
        subprocess.run(["gcc", "-shared", "-o", str(options.target), *map(str, objects)], check=True)
    quack, compiler = (importlib.metadata.version(name) for name in ("quack-kernels", "nvidia-cutlass-dsl"))
    record = {"quack-kernels": f"{quack}, compiled ahead of time for {options.arch} with nvidia-cutlass-dsl {compiler}"}
    options.target.with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
