"""The parts of a build on their own: PTX readers, the probe, the support library, evidence, the pool, messages."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from scale_kernel import emitter, scale_plan

from dsv4.generator.build import PoolError, build, build_support_library, pool, ptx
from dsv4.generator.build.arguments import candidates
from dsv4.generator.build.cubin import ToolError, kernel_usage, spill_bytes
from dsv4.generator.build.evidence import add_check, add_measurement, new_check, read_evidence
from dsv4.generator.build.host import needed_features
from dsv4.generator.build.messages import one_line
from dsv4.generator.build.support import build_probe_stub
from dsv4.runtime.artifact import Argument, Contract
from dsv4.runtime.host import missing_features

PTX = """\
.visible .entry first(
)
{
	mov.b32 %r5, 256;
	.loc	1 10 3
	tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], %r5;
	.loc	2 7 1, function_name $L__info_string0, inlined_at 1 12 9
	ret;
}
.visible .entry second(
)
{
	tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1+16], 128;
	tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1+32], 0x40;
	.loc	3 99 0
}
	.file	1 "source.py"
	.file	2 "dsv4/generator/device/softmax.py"
	.file	3 "/elsewhere/my_source.py"
"""


def test_tmem_columns_of_the_kernel_with_the_most() -> None:
    assert list(ptx.entries(PTX)) == ["first", "second"]
    assert ptx.tmem_columns(PTX) == 256
    assert ptx.tmem_columns(PTX.replace("mov.b32 %r5, 256", "mov.b32 %r5, 64")) == 192
    assert ptx.tmem_columns("") == 0


@pytest.mark.parametrize("change", ["mov.b32 %r5, %r6", "add.s32  %r5, %r6, 1", "mov.b32 %r5, 64;\n\tmov.b32 %r5, 32"])
def test_tmem_columns_that_cannot_be_read_are_not_zero(change: str) -> None:
    with pytest.raises(ValueError, match=r"tcgen05\.alloc takes"):
        ptx.tmem_columns(PTX.replace("mov.b32 %r5, 256", change))


def test_source_lines_are_those_of_one_file_with_the_inlining_sites() -> None:
    assert ptx.source_lines(PTX) == {10, 12}
    assert ptx.source_lines(PTX, "softmax.py") == {7}


def test_lines_inside_inline_assembly_are_not_the_sources() -> None:
    call = '\t.file\t1 "source.py"\n\t.loc\t1 20 4\n'
    assembly = "\t// begin inline asm\n\t{\n\t.loc\t1 22 4\n\tbra.uni WAIT;\n\t}\n\t// end inline asm\n"
    assert ptx.source_lines(f"{call}{assembly}\t.loc\t1 30 4\n") == {20, 30}


def test_untaken_lines_decides_what_the_variant_decides() -> None:
    source = textwrap.dedent(
        """\
        TILE = 64
        WIDE = TILE > 32

        def f(x, causal, paged):
            if const_expr(causal and TILE == 64):
                a(x)
            elif cutlass.const_expr(paged):
                b(x)
            else:
                c(x)
            if const_expr(x):
                d(x)
        """
    )
    line_table = '.file 1 "source.py"\n' + "".join(f".loc 1 {line} 4\n" for line in range(1, 13))
    assert ptx.untaken_lines(source, line_table, {"causal": True, "paged": False}) == [7, 8, 9, 10]
    assert ptx.untaken_lines(source, line_table, {"causal": False, "paged": True}) == [6, 10]
    assert ptx.untaken_lines(source, line_table, {"causal": False, "paged": False}) == [6, 8]
    assert ptx.untaken_lines(source, '.file 1 "source.py"\n.loc 1 5 0\n', {"causal": False, "paged": False}) == []


def test_spill_bytes_are_stores_and_loads_of_every_kernel_once() -> None:
    one = (
        "ptxas info    : Function properties for kernel_a\n"
        "ptxas         .     992 bytes stack frame, 1368 bytes spill stores, 400 bytes spill loads\n"
    )
    other = one.replace("kernel_a", "kernel_b").replace("1368", "0")
    assert spill_bytes(one + one + other) == 1368 + 400 + 400
    assert spill_bytes("ptxas info : nothing of the kind") is None


def test_a_cubin_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "kernel.cubin").write_bytes(b"not an ELF file")
    with pytest.raises(ToolError, match=r"reads no kernel from kernel\.cubin"):
        kernel_usage(tmp_path / "kernel.cubin")


def test_probe_arguments_follow_the_contract_and_the_bucket() -> None:
    contract = Contract(
        dims={"T": None, "S": None, "d": 96},
        arguments=(
            Argument(name="x", kind="tensor", dtype="bf16", shape=("T", 2, "d"), strides=("any", "d", 1)),
            Argument(name="table", kind="tensor", dtype="i32", shape=("ceil_div(S, 64)",), strides=(1,), optional=True),
            Argument(name="lse", kind="tensor", dtype="f32", shape=("S", "T"), strides=(1, "S")),
            Argument(name="eps", kind="scalar", dtype="f32"),
            Argument(name="steps", kind="scalar", dtype="i32"),
        ),
    )
    x, table, lse, eps, steps = next(candidates(contract, {"S": (200, None), "T": (1, 5)}))
    assert x == {"dtype": "bf16", "shape": [5, 2, 96], "strides": [192, 96, 1]}
    assert table == {"none": True}
    assert lse == {"dtype": "f32", "shape": [200, 5], "strides": [1, 200]}
    assert (eps, steps) == ({"scalar": 1.0}, {"scalar": 1})


def test_the_support_library_is_built_once_and_again_if_it_was_altered(tmp_path: Path) -> None:
    library = build_support_library(tmp_path)
    note = json.loads(library.with_suffix(".json").read_text())
    assert library.name == "libdsv4_support-1.so" and note["abi"] == 1
    assert ctypes.CDLL(str(library)).dsv4_support_abi() == 1
    first = library.stat().st_mtime_ns
    assert build_support_library(tmp_path).stat().st_mtime_ns == first
    content = library.read_bytes()
    library.unlink()  # it is mapped into this process
    library.write_bytes(content[:-5])
    build_support_library(tmp_path)
    assert library.read_bytes() == content
    assert {path.name for path in library.parent.iterdir()} == {library.name, library.with_suffix(".json").name}


def defined(library: Path) -> set[str]:
    lines = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in lines.stdout.splitlines()}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built artifact folder (sm_90a)."""
    result = build([scale_plan()], cache_root=tmp_path_factory.mktemp("cache"), jobs=1, emit=emitter())[0]
    assert result.artifact is not None, result.error
    return result.artifact


def test_a_kernel_needs_no_library_and_only_what_support_and_tvm_ffi_define(kernel: Path, tmp_path: Path) -> None:
    dynamic = subprocess.run(["readelf", "-dW", str(kernel / "kernel.so")], capture_output=True, text=True, check=True)
    assert "NEEDED" not in dynamic.stdout
    lines = subprocess.run(
        ["nm", "-D", "--undefined-only", str(kernel / "kernel.so")], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    undefined = {line.split()[-1] for line in lines}
    support, stub = defined(build_support_library(tmp_path)), defined(build_probe_stub(tmp_path))
    assert {name for name in undefined - support if not name.startswith("TVMFFI")} == set()
    assert support - stub == {"dsv4_support_abi"} and stub <= support


def test_the_object_asks_for_no_more_than_this_machine_has(kernel: Path) -> None:
    features = needed_features(kernel / "kernel.so")
    assert missing_features(features) == ()
    # The compiler's target is the build machine: where that has AVX-512 even small host code may move data with it, and
    # then the object has to say so.
    code = subprocess.run(
        ["objdump", "-d", str(kernel / "kernel.so")], capture_output=True, text=True, check=True
    ).stdout
    assert any(name.startswith("avx512") for name in features) or "%zmm" not in code


CALL = """
    import ctypes, sys
    from pathlib import Path
    from dsv4.runtime.dlpack import DeviceTensor
    sys.modules["torch"] = None
    import tvm_ffi
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
    function = tvm_ffi.load_module(sys.argv[2]).get_function(sys.argv[3])
    memory = ctypes.create_string_buffer(1 << 12)
    address = (ctypes.addressof(memory) + 127) // 128 * 128
    x = tvm_ffi.from_dlpack(DeviceTensor(address, "f32", [16], [1]))
    for count in (2, 2, 1):  # twice: a failed start is tried again, and fails the same way
        try:
            function(*[x] * count, 1.0)
        except Exception as error:
            print(type(error).__name__, str(error).splitlines()[0])
"""


def test_without_a_driver_a_call_ends_in_a_readable_error(kernel: Path, tmp_path: Path) -> None:
    """The real support library under the real host code, on a machine that has no CUDA or hides its device."""
    library = build_support_library(tmp_path)
    function = json.loads((kernel / "manifest.json").read_text())["function"]
    command = [sys.executable, "-c", textwrap.dedent(CALL), str(library), str(kernel / "kernel.so"), function]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[0] == lines[1] and lines[0].startswith("RuntimeError loading the kernel: CUDA error ")
    assert "libcudart" in lines[0] or "cudaError" in lines[0]
    assert lines[2].startswith("TypeError") and "Expects 3 parameters" in lines[2]


def test_evidence_is_appended_by_many_at_once(tmp_path: Path) -> None:
    assert read_evidence(tmp_path).checks == ()

    def climb(number: int) -> None:
        for step in range(10):
            add_check(tmp_path, new_check("gpu", ok=step % 2 == 0, device=f"H100-{number}", step=step))
            add_measurement(tmp_path, {"us": 1.5, "by": number})

    threads = [threading.Thread(target=climb, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    evidence = read_evidence(tmp_path)
    assert len(evidence.checks) == 40 and len(evidence.measurements) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["evidence.json"]


def test_a_rung_counts_by_its_newest_check(tmp_path: Path) -> None:
    add_check(tmp_path, new_check("compiled", True))
    add_check(tmp_path, new_check("gpu", True, device="H100"))
    assert add_check(tmp_path, new_check("gpu", False, device="H100")).rungs() == ("compiled",)


def test_a_worker_that_dies_is_an_outcome_and_another_takes_over(tmp_path: Path, kernel: Path) -> None:
    requests = []
    for name, text in (("dies", "import ctypes\nctypes.string_at(0)\n"), ("fails", "def launch(): pass\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "source.py").write_text(text)
        (folder / "request.json").write_text(json.dumps({"targets": ["sm_90a"], "variant": {}, "opt_level": 2}))
        requests.append(pool.Request(name, folder, "sm_90a", 30.0))
    dies, fails = pool.run(requests, jobs=1, log=tmp_path / "workers.log")
    assert dies.result is None and dies.error == "the compile process ended: signal SIGSEGV"
    assert fails.error is not None and fails.error.startswith("AttributeError") and "arguments" in fails.error


def test_a_compile_that_waits_has_more_time_than_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sleeps a while, one sleeps for ever, one works for ever: the limit is of processor time."""
    requests = []
    for name, text in (
        ("sleeps", "import time\ntime.sleep(1.5)\n"),
        ("waits", "import time\ntime.sleep(60)\n"),
        ("works", "while True:\n    pass\n"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "source.py").write_text(text)
        (folder / "request.json").write_text(json.dumps({"targets": ["sm_90a"], "variant": {}, "opt_level": 2}))
        requests.append(pool.Request(name, folder, "sm_90a", 0.5))
    monkeypatch.setattr(pool, "PATIENCE", 8)
    sleeps, waits, works = pool.run(requests, jobs=1, log=tmp_path / "workers.log")
    assert sleeps.error is not None and sleeps.error.startswith("AttributeError") and sleeps.seconds > 1.5
    assert waits.error == "compiling did not end in 4 s and was stopped (8 × compile_seconds_limit)"
    assert 4 <= waits.seconds < 60
    assert works.error == "compiling took longer than 0.5 s of processor time and was stopped (compile_seconds_limit)"


def test_a_machine_where_the_compiler_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tvm_ffi").mkdir()
    (tmp_path / "tvm_ffi" / "__init__.py").write_text("raise ImportError('no compiler here')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(PoolError, match=r"ended at its start \(exit code 1\); its output: .*workers\.log"):
        build([scale_plan()], cache_root=tmp_path / "cache", jobs=2, emit=emitter())
    assert "no compiler here" in (tmp_path / "cache" / "logs" / "workers.log").read_text()
    assert not (tmp_path / "cache" / "building").exists()


def test_the_compilers_blocks_become_one_line() -> None:
    block = (
        "\n\x1b[91m\x1b[1merror[INTERNAL]:\x1b[0m The compiler could not build valid IR for this code.\n\n"
        f"  --> {os.getcwd()}/source.py:33:8\n      in function `kernel(...)`:\n   |\n> 33 |  y[i, i] = v\n"
        "  \x1b[91merror:\x1b[0m IR verification failed: 'op' expects coordinate to be weakly congruent to\n"
        "         the layout\n  \x1b[92msuggestion:\x1b[0m Check the source.\n"
    )
    assert one_line(RuntimeError(block)) == (
        "error[INTERNAL]: The compiler could not build valid IR for this code: IR verification failed: 'op' expects "
        "coordinate to be weakly congruent to the layout (source.py:33)"
    )
    assert one_line(KeyError("tile_m")) == "KeyError: 'tile_m'"
    assert len(one_line(ValueError("x" * 5000))) == 400
