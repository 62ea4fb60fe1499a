"""Objects with the plain C interface run too, called as their generated header says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cutlass.cute as cute
import pytest
import torch
from cuda.bindings.driver import CUstream
from cutlass import Float32, Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4 import emulator
from dsv4.emulator.c_interface import parse_header
from dsv4.emulator.errors import ArgumentRefused, ObjectRefused
from dsv4.emulator.objects import from_files

OPTIONS = "--keep-ptx --keep-cubin --generate-line-info --gpu-arch sm_100a"  # what this process is set to


@cute.kernel
def transpose_kernel(x: cute.Tensor, y: cute.Tensor, alpha: Float32, shift: Int32):
    column, _, _ = cute.arch.thread_idx()
    row, _, _ = cute.arch.block_idx()
    if column < x.shape[1]:
        y[column, row] = x[row, column] * alpha + Float32(shift)


@cute.jit
def transpose(x: cute.Tensor, y: cute.Tensor, alpha: Float32, shift: Int32, stream: CUstream):
    """y[j, i] = alpha · x[i, j] + shift"""
    transpose_kernel(x, y, alpha, shift).launch(grid=[x.shape[0], 1, 1], block=[64, 1, 1], stream=stream)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rows, columns = cute.sym_int(), cute.sym_int()
    x = make_fake_tensor(Float32, (rows, columns), (cute.sym_int64(), 1))
    y = make_fake_tensor(Float32, (columns, rows), (cute.sym_int64(), 1))
    folder = tmp_path_factory.mktemp("kept")
    options = f"{OPTIONS} --dump-dir {folder}"
    return cute.compile(transpose, x, y, Float32(1), Int32(1), make_fake_stream(), options=options)


def test_a_compiled_function_without_tvm_ffi(compiled: Any) -> None:
    x, y = torch.randn(5, 37), torch.full((37, 5), torch.nan)
    report = emulator.run(compiled, emulator.reads(x), emulator.output(y), 2.0, 3, 0x1234, schedules=2).check()
    assert (
        torch.equal(y, (x * 2 + 3).T) and report.launches[0].grid == (5, 1, 1) and report.launches[0].stream == 0x1234
    )
    wide = torch.full((37, 9), torch.nan)
    emulator.run(compiled, x, wide[:, 2:7], 1.0, 0, 0).check()
    assert torch.equal(wide[:, 2:7], x.T) and wide[:, 7:].isnan().all()


def test_the_exported_files(compiled: Any, tmp_path: Path) -> None:
    compiled.export_to_c(file_path=str(tmp_path), file_name="made", function_prefix="made")
    (tmp_path / "made.ptx").write_text(compiled.__ptx__)
    (tmp_path / "made.cubin").write_bytes(compiled.__cubin__)
    found = from_files(
        tmp_path / "made.o", tmp_path / "made.ptx", cubin=tmp_path / "made.cubin", header=tmp_path / "made.h"
    )
    x, y = torch.randn(3, 7), torch.empty(7, 3)
    emulator.run(found, x, emulator.output(y), 1.0, -1, 0).check()
    assert torch.equal(y, x.T - 1)
    with pytest.raises(ObjectRefused, match="function=NAME"):
        from_files(tmp_path / "made.o", tmp_path / "made.ptx")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1.0, 0), "4 arguments; valid: 5"),
        ((1.0, 0.5, 0), "argument shift: .* valid: int32_t"),
        (("a", 0, 0), "argument alpha: found"),
    ],
)
def test_wrong_arguments(compiled: Any, arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ArgumentRefused, match=text):
        emulator.run(compiled, torch.zeros(2, 2), torch.zeros(2, 2), *arguments)


def test_which_dimensions_are_taken_must_be_plain_or_said(compiled: Any) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    y = torch.empty(3, 4)
    both = whole[:, ::2]  # no stride is 1, the kernel takes one
    with pytest.raises(ArgumentRefused, match=r"takes 1 strides of a tensor of 2 dimensions; say which: dynamic\("):
        emulator.run(compiled, both, y, 1.0, 0, 0)
    emulator.run(compiled, emulator.dynamic(whole[:, :3], strides=(0,)), emulator.output(y), 1.0, 0, 0).check()
    assert torch.equal(y, whole[:, :3].T)


def test_a_header_of_another_kind() -> None:
    with pytest.raises(ObjectRefused, match="found no cute_dsl_"):
        parse_header("int main(void);")
    odd = "cute_dsl_k_wrapper(k_Kernel_Module_t *module, struct odd x) { _mlir_k_f(args, 2); }"
    with pytest.raises(ObjectRefused, match="parameter 'struct odd x' is not supported"):
        parse_header(odd)
