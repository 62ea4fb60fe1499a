"""What cannot be run ends in one line that says what to change, and leaves neither processes nor files behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4 import emulator
from dsv4.emulator.arguments import Argument
from dsv4.emulator.client import Client, Object, Text
from dsv4.emulator.errors import (
    ArgumentRefused,
    EmulatorError,
    KernelEndless,
    KernelUnsupported,
    ObjectRefused,
    TargetRefused,
    WorkerFailed,
)
from dsv4.emulator.kernels import Kernel, image_key
from dsv4.emulator.launch_checks import refusals
from dsv4.emulator.objects import from_compiled, from_files
from dsv4.emulator.outcome import LaunchRecord
from dsv4.emulator.program import Assembler
from dsv4.emulator.ptx import parse
from tests.emulator import front_door_kernels


@pytest.fixture(scope="module")
def scale() -> Object:
    return from_compiled(front_door_kernels.compiled("scale"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as made:
        yield made


def edited(made: Object, pattern: str, text: str) -> Object:
    """The object with another PTX text (its cubin stays, so that the two still belong together)."""
    changed, count = re.subn(pattern, text, made.texts[0].ptx, count=1)
    assert count == 1
    return replace(made, texts=(replace(made.texts[0], ptx=changed),))


def run(made: Any, client: Client, **options: Any) -> emulator.Report:
    return emulator.run(made, torch.ones(64), emulator.output(torch.zeros(64)), 2.0, client=client, **options)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_opcode_that_is_not_emulated_is_named_with_its_lines(scale: Object, client: Client) -> None:
    made = edited(scale, r"mul\.f32", "frobnicate.f32")
    with pytest.raises(KernelUnsupported, match=r"^PTX line \d+: frobnicate\.f32: .*front_door_kernels\.py:\d+"):
        run(made, client)


def test_an_endless_kernel_ends_with_its_budget(scale: Object, client: Client) -> None:
    made = edited(scale, r"\tret;", "FOREVER: bra.uni FOREVER;\n\tret;")
    with pytest.raises(KernelEndless, match=r"front_door_kernels\.py"):
        run(made, client, max_instructions=100_000)


def test_a_kernel_that_takes_too_long_is_killed_and_the_next_one_runs(scale: Object) -> None:
    made = edited(scale, r"\tret;", "FOREVER: bra.uni FOREVER;\n\tret;")
    with Client() as client:
        assert run(scale, client).ok
        pid = client.pid
        assert pid
        started = time.monotonic()
        with pytest.raises(WorkerFailed, match=r"killed: no answer within 0\.5 s"):
            run(made, client, max_instructions=1 << 60, seconds=0.5)
        assert time.monotonic() - started < 30 and not alive(pid)
        assert run(scale, client).ok and client.pid != pid
        last = client.pid
    assert last and not alive(last)


@pytest.mark.parametrize("moment", ["between requests", "during one"])
def test_a_process_that_dies_is_replaced(scale: Object, moment: str) -> None:
    with Client() as client:
        assert run(scale, client).ok
        pid = client.pid
        assert pid
        if moment == "between requests":
            os.kill(pid, signal.SIGKILL)
            while alive(pid):
                time.sleep(0.01)
        else:
            made = edited(scale, r"\tret;", "FOREVER: bra.uni FOREVER;\n\tret;")
            killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -SEGV {pid}"])
            with pytest.raises(WorkerFailed, match="the emulating process died: SIGSEGV"):
                run(made, client, max_instructions=1 << 60, seconds=60)
            killer.wait()
        assert run(scale, client).ok and client.pid != pid


def test_a_killed_caller_leaves_no_process(tmp_path: Path) -> None:
    script = (
        "import time, torch\n"
        "from dsv4.emulator.client import shared\n"
        "shared()._start()\n"
        "print(shared().pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert caller.stdout is not None
    pid = int(caller.stdout.readline())
    assert alive(pid)
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


def test_nothing_is_left_in_the_file_system(scale: Object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Client() as client:
        assert run(scale, client).ok
        with pytest.raises(KernelUnsupported):
            run(edited(scale, r"mul\.f32", "frobnicate.f32"), client)
        assert client.pid
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.ones(64), torch.zeros(64, dtype=torch.float16), 2.0), r"Mismatched.*expected dtype=float32"),
        ((torch.ones(64), torch.zeros(8, 8), 2.0), r"Mismatched.*expected ndim=1"),
        ((torch.ones(64), torch.zeros(64)), r"Expects 3 parameters"),
        ((torch.ones(64), None, 2.0), r"#1"),
        ((torch.ones(64), {"y": 1}, 2.0), r"found an argument of type dict; valid: torch.Tensor"),
        ((torch.ones(64), torch.zeros(64, dtype=torch.complex64), 2.0), r"argument #1: dtype: found torch.complex64"),
        ((torch.ones(64), emulator.as_dtype(torch.zeros(64), "e4m3"), 2.0), r"argument #1: dtype e4m3 has 1 bytes"),
        ((torch.ones(64), torch.zeros(64, device="meta"), 2.0), r"argument #1: found a tensor on meta; valid: dense"),
        ((torch.ones(1).expand(64), Argument(torch.zeros(64), role="result"), 2.0), r"#1: role: found 'result'"),
    ],
)
def test_arguments_that_do_not_fit(scale: Object, client: Client, arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ArgumentRefused, match=said) as caught:
        emulator.run(scale, *arguments, client=client)
    assert "\n" not in str(caught.value)


def test_what_was_not_compiled_is_refused(client: Client) -> None:
    for found in (lambda x: x, "kernel", None):
        with pytest.raises(ObjectRefused, match=r"valid: what cute\.compile returns"):
            emulator.run(found, torch.ones(4), client=client)


def test_a_kernel_without_its_ptx_is_refused() -> None:
    class Bare:
        __ptx__ = None

        def export_to_c(self, *_: Any, **__: Any) -> None:
            raise AssertionError

    with pytest.raises(ObjectRefused, match=r"holds no PTX; valid: one compiled with .*--keep-ptx"):
        from_compiled(Bare())


def test_files_that_are_missing_or_foreign(scale: Object, client: Client, tmp_path: Path) -> None:
    library, ptx = tmp_path / "kernel.so", tmp_path / "kernel.ptx"
    with pytest.raises(ObjectRefused, match=r"no PTX file is given"):
        from_files(library)
    with pytest.raises(ObjectRefused, match=r"kernel\.so: cannot be read \(No such file"):
        from_files(library, ptx)
    library.write_bytes(b"no library, " * 20)
    ptx.write_text(scale.texts[0].ptx)
    with pytest.raises(ObjectRefused, match=r"function: found none"):
        from_files(library, ptx)
    with pytest.raises(ObjectRefused, match=rf"{re.escape(str(library))}: cannot be opened: .*invalid ELF header"):
        run(from_files(library, ptx, function="f"), client)
    library.write_bytes(scale.library)
    with pytest.raises(ObjectRefused, match=r"the object has no function 'f'"):
        run(from_files(library, ptx, function="f"), client)
    ptx.write_text("not PTX at all {")
    with pytest.raises(ObjectRefused, match=r"PTX"):
        run(from_files(library, ptx), client)


def test_ptx_of_another_kernel_is_refused(scale: Object, client: Client) -> None:
    other = from_compiled(front_door_kernels.compiled("copy"))
    with pytest.raises(ObjectRefused, match="image is not the cubin given with the PTX"):
        run(replace(other, library=scale.library, function=scale.function), client)
    nameless = (Text(other.texts[0].ptx),)
    with pytest.raises(ObjectRefused, match="the PTX has no kernel"):
        run(replace(scale, library=scale.library + b"\0", texts=nameless), client)


def test_a_target_that_is_not_emulated_is_refused(scale: Object, client: Client) -> None:
    with pytest.raises(TargetRefused, match=r"target: found sm_80; valid: sm_90a, sm_100a"):
        run(edited(scale, r"\.target sm_90a", ".target sm_80"), client)


def test_something_that_is_no_cubin_is_refused(scale: Object) -> None:
    with pytest.raises(ObjectRefused, match="no 64-bit ELF file"):
        image_key(b"\0" * 100)


@pytest.mark.parametrize("schedules", [0, "soon", ["late", "mixed:x"]])
def test_schedules_that_there_are_not(scale: Object, client: Client, schedules: Any) -> None:
    with pytest.raises(ArgumentRefused, match=r"schedules?: found"):
        run(scale, client, schedules=schedules)


def test_a_block_of_the_wrong_size_is_a_finding_not_a_crash(scale: Object, client: Client) -> None:
    report = run(edited(scale, r"\.reqntid 64, 1, 1", ".reqntid 32, 1, 1"), client)
    (finding,) = report.findings
    assert finding.kind == "launch" and finding.message.startswith("block: found (64, 1, 1); valid: (32, 1, 1)")


def kernel(directives: str = "", shared: str = "") -> Kernel:
    text = (
        f".version 8.8\n.target sm_90a\n.address_size 64\n{shared}\n.visible .entry k()\n{directives}\n{{\nret;\n}}\n"
    )
    module = parse(text)
    return Kernel("k", "sm_90a", module, module.entries["k"], Assembler({}).finish("k"))


@pytest.mark.parametrize(
    ("launch", "directives", "said"),
    [
        ({"block": (1025, 1, 1)}, "", "block: found (1025, 1, 1)"),
        ({"block": (512, 4, 1)}, "", "block: found 2048 threads; valid: at most 1024"),
        ({"block": (256, 1, 1)}, ".maxntid 128, 1, 1", "block: found 256 threads; valid: at most 128"),
        ({"grid": (0, 1, 1)}, "", "grid: found (0, 1, 1)"),
        ({"grid": (1, 65536, 1)}, "", "along y"),
        ({"grid": (3, 1, 1), "cluster": (2, 1, 1)}, "", "valid: a multiple of the cluster (2, 1, 1)"),
        ({"grid": (32, 1, 1), "cluster": (32, 1, 1)}, "", "cluster: found 32 CTAs; valid: 1 to 16"),
        ({"dynamic_smem_bytes": 232449}, "", "shared memory: found 232449 bytes; valid: at most 232448"),
        ({"dynamic_smem_bytes": 65536}, "", "valid: at most 49152, which the host opted in to"),
    ],
)
def test_launches_that_the_hardware_refuses(launch: dict[str, Any], directives: str, said: str) -> None:
    plain = LaunchRecord("k", (1, 1, 1), (128, 1, 1), (1, 1, 1), 0, False, 0)
    assert not list(refusals(plain, kernel(), -1))
    found = list(refusals(replace(plain, **launch), kernel(directives), -1))
    assert any(said in line for line in found), found


def test_static_shared_memory_counts() -> None:
    launch = LaunchRecord("k", (1, 1, 1), (128, 1, 1), (1, 1, 1), 232448 - 1000, False, 0)
    static = kernel(shared=".shared .align 16 .b8 tile[1024];")
    assert list(refusals(launch, static, 232448)) == ["shared memory: found 232472 bytes; valid: at most 232448"]
    assert not list(refusals(launch, kernel(), 232448))


def test_every_error_is_of_one_class() -> None:
    for each in (ArgumentRefused, KernelEndless, KernelUnsupported, ObjectRefused, TargetRefused, WorkerFailed):
        assert issubclass(each, EmulatorError)
