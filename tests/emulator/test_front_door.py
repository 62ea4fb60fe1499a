"""The front door: any compiled CuTeDSL function runs on CPU tensors through its real host code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm_ffi

from dsv4 import emulator
from dsv4.emulator.errors import ArgumentRefused, FindingsError
from dsv4.emulator.objects import from_compiled, from_files
from dsv4.runtime.dlpack import DeviceTensor
from tests.emulator import front_door_kernels

Compiled = Callable[..., Any]


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """Compiles each kernel once a module."""
    made: dict[tuple[str, str], Any] = {}

    def get(name: str, arch: str = "sm_90a") -> Any:
        if (name, arch) not in made:
            made[name, arch] = front_door_kernels.compiled(name, arch)
        return made[name, arch]

    return get


def kinds(report: emulator.Report) -> list[str]:
    return [finding.kind for finding in report.findings]


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_results_land_in_the_callers_tensors(compiled: Compiled, arch: str) -> None:
    x, y = torch.randn(150), torch.full((150,), torch.nan)
    before = x.clone()
    report = emulator.run(compiled("scale", arch), emulator.reads(x), emulator.output(y), 1.5, schedules=3)
    assert report.ok and report.check() is report and report.differs == ()
    assert torch.equal(y, x * 1.5) and torch.equal(x, before)
    (launch,) = report.launches
    assert launch.grid == (3, 1, 1) and launch.block == (64, 1, 1) and launch.cluster == (1, 1, 1) and not launch.pdl
    assert [each.name for each in report.schedules] == ["late", "early", "late-mma"]
    assert report.stats["instructions"] == 3 * report.schedules[0].stats["instructions"] > 0


def test_tensors_without_marks_may_be_the_same_memory(compiled: Compiled) -> None:
    x = torch.arange(70.0)
    assert emulator.run(compiled("scale"), x, x, 3.0).ok
    assert torch.equal(x, torch.arange(70.0) * 3)
    whole = torch.ones(100)
    report = emulator.run(compiled("scale"), whole[:60], whole[40:], 2.0)
    assert kinds(report) == ["race"]  # one warp writes what another reads


def test_every_schedule_starts_from_the_same_memory_and_the_first_ones_results_stay(compiled: Compiled) -> None:
    x = torch.ones(64)
    report = emulator.run(compiled("scale"), x, x, 2.0, schedules=5)
    assert report.ok and len(report.schedules) == 5 and report.differs == ()
    assert torch.equal(x, torch.full((64,), 2.0))


def test_an_element_that_was_never_written_is_a_finding(compiled: Compiled) -> None:
    report = emulator.run(compiled("scale"), torch.ones(100), emulator.output(torch.zeros(128), name="y"), 2.0)
    assert kinds(report) == ["unwritten_output"]
    assert "y: 28 of 128 elements were never written, the first is [100]" in report.findings[0].message
    with pytest.raises(FindingsError, match="unwritten_output"):
        report.check()


def test_a_write_outside_is_a_finding_with_its_source_line(compiled: Compiled) -> None:
    y = torch.zeros(200)
    report = emulator.run(compiled("scale"), torch.ones(100), emulator.output(y[:90], name="y"), 2.0)
    assert kinds(report) == ["out_of_bounds"]
    finding = report.findings[0]
    assert "argument y" in finding.message and finding.cta == (1, 0, 0) and finding.warp == 1
    file, _, line = finding.source.rpartition(":")
    text = Path(front_door_kernels.__file__).read_text().splitlines()[int(line) - 1]
    assert file.endswith("front_door_kernels.py") and "y[index] = x[index] * alpha" in text
    assert finding.opcode.startswith("st.global") and finding.ptx_line > 0
    assert f"front_door_kernels.py:{line}" in str(report) and "schedule late" in finding.line()
    assert torch.equal(y[90:], torch.zeros(110))


def test_reading_what_was_never_written_is_a_finding(compiled: Compiled) -> None:
    report = emulator.run(compiled("scale"), emulator.workspace(torch.ones(64)), torch.zeros(64), 2.0)
    assert "undefined_value" in kinds(report) and "front_door_kernels.py" in report.findings[0].source


def test_writing_an_input_is_a_finding(compiled: Compiled) -> None:
    y = torch.zeros(64)
    report = emulator.run(compiled("scale"), torch.ones(64), emulator.reads(y, name="y"), 2.0)
    assert kinds(report) == ["read_only"] and "argument y" in report.findings[0].message
    assert torch.equal(y, torch.zeros(64))


def test_a_pointer_and_an_explicit_stream(compiled: Compiled) -> None:
    t = torch.zeros(20)
    report = emulator.run(compiled("fill"), emulator.pointer(t), 18, 0x1234)
    assert report.ok and report.launches[0].stream == 0x1234
    assert torch.equal(t, torch.tensor([7.0] * 18 + [0.0] * 2))


def test_writing_between_a_tensors_elements_is_a_finding(compiled: Compiled) -> None:
    t = torch.zeros(40)
    report = emulator.run(compiled("fill"), emulator.pointer(t[::2]), 20, 0)
    assert kinds(report) == ["between_elements"] and "40 bytes" in report.findings[0].message


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_narrow_dtypes_and_bytes_that_stand_for_them(compiled: Compiled, dtype: torch.dtype) -> None:
    x = torch.arange(50, dtype=torch.uint8)
    y = torch.zeros(50, dtype=torch.uint8)
    report = emulator.run(
        compiled("copy"), emulator.as_dtype(x.view(dtype), "e4m3"), emulator.output(y.view(dtype), dtype="e4m3")
    )
    assert report.ok and torch.equal(x, y)


def test_a_dependent_launch_must_wait_before_it_reads(compiled: Compiled) -> None:
    x, y, z = torch.arange(64.0), torch.zeros(64), torch.zeros(64)
    tensors = emulator.reads(x), emulator.output(y), emulator.output(z)
    report = emulator.run(compiled("chain"), *tensors, 2.0)
    assert report.ok and [launch.pdl for launch in report.launches] == [False, True]
    assert torch.equal(z, x * 4)
    report = emulator.run(compiled("hasty"), *tensors, 2.0)
    assert kinds(report) == ["prior_grid"] and report.findings[0].launch == 1
    assert "griddepcontrol.wait" in report.findings[0].message


@pytest.mark.parametrize(
    ("order", "is_right"), [("WL", True), ("W", True), ("LW", False), ("L", False), ("", False), ("wL", False)]
)
def test_a_launch_relies_on_the_one_before_the_last_where_that_between_had_waited(
    compiled: Compiled, order: str, is_right: bool
) -> None:
    x, y, z, w = torch.arange(64.0), torch.zeros(64), torch.zeros(128), torch.zeros(64)
    tensors = emulator.reads(x), emulator.output(y), emulator.output(z), emulator.output(w)
    report = emulator.run(compiled(f"relay:{order}"), *tensors, 2.0)
    assert kinds(report) == ([] if is_right else ["prior_grid"]) and torch.equal(w, x * 4)
    assert is_right or report.findings[0].launch == 2


def test_a_sequence_of_calls_is_one_stream(compiled: Compiled) -> None:
    x, y, z = torch.arange(64.0), torch.zeros(64), torch.zeros(64)
    scale = compiled("scale")
    report = emulator.sequence((scale, x, emulator.workspace(y), 2.0), (scale, y, emulator.output(z), 3.0), schedules=2)
    assert len(report.launches) == 2 and torch.equal(z, x * 6)
    assert report.ok


def test_what_a_caller_says_the_launch_before_wrote_counts_only_with_programmatic_launches(compiled: Compiled) -> None:
    x = emulator.reads(torch.arange(64.0), prior=True)
    assert emulator.run(compiled("scale"), x, torch.zeros(64), 2.0).ok


def test_misalignment_is_that_of_the_torch_storage(compiled: Compiled) -> None:
    """A GPU allocation is aligned; a view that starts one element into it is not, wherever the CPU put it."""
    x = torch.arange(80, dtype=torch.uint8).view(torch.float8_e4m3fn)
    copy = compiled("copy")  # asks for 16 bytes
    assert emulator.run(copy, x[16:], torch.zeros_like(x)).ok
    with pytest.raises(ArgumentRefused, match="host code refuses its arguments: Misaligned"):
        emulator.run(copy, x[8:], torch.zeros_like(x))


def test_empty_tensors_are_passed(compiled: Compiled) -> None:
    report = emulator.run(compiled("copy"), *(torch.zeros(0, dtype=torch.float8_e4m3fn) for _ in range(2)))
    assert report.ok and len(report.launches) == 1


def test_objects_and_ptx_from_files(compiled: Compiled, tmp_path: Path) -> None:
    made = from_compiled(compiled("scale"))
    library, ptx, cubin = tmp_path / "kernel.so", tmp_path / "kernel.ptx", tmp_path / "kernel.cubin"
    library.write_bytes(made.library)
    ptx.write_text(made.texts[0].ptx)
    assert made.texts[0].cubin is not None
    cubin.write_bytes(made.texts[0].cubin)
    for known in ({"cubin": cubin}, {}):
        y = torch.zeros(64)
        report = emulator.run(from_files(library, ptx, **known), torch.ones(64), emulator.output(y), 4.0)
        assert report.ok and torch.equal(y, torch.full((64,), 4.0))


def test_an_object_file_is_linked(compiled: Compiled, tmp_path: Path) -> None:
    kernel = compiled("scale")
    kernel.export_to_c(str(tmp_path / "k.o"), function_name="named", export_only_tvm_ffi_symbols=True)
    (tmp_path / "k.ptx").write_text(kernel.__ptx__)
    y = torch.zeros(64)
    assert emulator.run(from_files(tmp_path / "k.o", tmp_path / "k.ptx"), torch.ones(64), emulator.output(y), 5.0).ok
    assert torch.equal(y, torch.full((64,), 5.0))


def test_the_report_is_plain_data(compiled: Compiled) -> None:
    raw = emulator.run(compiled("scale"), torch.ones(100), emulator.output(torch.zeros(128)), 2.0).as_json()
    assert raw["ok"] is False and raw["findings"][0]["kind"] == "unwritten_output" and raw["launches"][0]["grid"]


def test_the_emulating_process_holds_neither_torch_nor_the_compiler(compiled: Compiled) -> None:
    client = emulator.Client()
    with client:
        assert emulator.run(compiled("scale"), torch.ones(64), torch.zeros(64), 2.0, client=client).ok
        mapped = Path(f"/proc/{client.pid}/maps").read_text()
    assert "libtvm_ffi" in mapped and "libtorch" not in mapped and "cutlass" not in mapped and "libcuda" not in mapped


def test_each_launch_can_be_drawn(compiled: Compiled, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert emulator.run(compiled("chain"), *(torch.ones(64) for _ in range(3)), 2.0, schedules=2, timeline=path).ok
    assert sorted(each.name for each in tmp_path.iterdir()) == ["trace.1.json", "trace.json"]


@pytest.mark.parametrize(
    ("dtype", "spelled"), [("e2m1x2", "float4_e2m1fnx2"), ("e8m0", "float8_e8m0fnu"), ("i16", "int16")]
)
def test_tensors_keep_their_dtype_on_the_way(dtype: str, spelled: str) -> None:
    memory = torch.zeros(64, dtype=torch.uint8)
    owner = DeviceTensor(memory.data_ptr(), dtype, (4, 3), (8, 1))
    tensor = tvm_ffi.from_dlpack(owner)
    assert str(tensor.dtype) == spelled and tuple(tensor.shape) == (4, 3) and tuple(tensor.strides) == (8, 1)
    assert str(tensor.device) == "cuda:0"
    del tensor
