"""Loads, stores and atomics: addresses, poison, races in global memory, dependent launches."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.machine import Launch, Region, run_grid
from dsv4.emulator.policy import FIXED, schedules
from tests.emulator.copy_kernel import Kernel, aligned

OWN = "shl.b32 %r0, %thread, 2; cvt.u64.u32 %d0, %r0; add.u64 %d1, %d0, %a_out; "


def _out(words: int = 64) -> dict[str, np.ndarray]:
    return {"out": aligned(np.zeros(words, np.uint32))}


def _messages(kernel: Kernel) -> str:
    return "\n".join(f"{kind}: {message}" for kind, message in kernel.findings())


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (OWN + "st.global.b32 [%d1+252], %r0;", "out_of_bounds: 4 bytes at global address"),
        (OWN + "ld.global.b32 %r1, [%d1+-4];", "byte -4 of argument"),
        (OWN + "add.u64 %d1, %d1, 2; ld.global.b32 %r1, [%d1];", "misaligned"),
        (OWN + "ld.global.v4.b32 {%r1,%r2,%r3,%r4}, [%d1];", "is not a multiple of 16"),
        ("ld.shared.b32 %r1, [%smem+32768];", "offset 32768 of 32768 bytes of shared memory"),
        ("add.u32 %r1, %smem, 16777216; ld.shared.b32 %r1, [%r1];", "names CTA 1 of a cluster of 1"),
        ("mov.u64 %d2, 305419896000; ld.global.b32 %r1, [%d2];", "which belongs to no argument"),
        ("ld.shared.b32 %r1, [%r2];", "undefined_value: the address was never written"),
    ],
)
def test_addresses(body: str, text: str) -> None:
    assert text in _messages(Kernel(body, arrays=_out()))


def test_an_input_may_not_be_written() -> None:
    kernel = Kernel(OWN + "st.global.b32 [%d1], %r0;", arrays=_out(), read_only=("out",))
    assert "read_only: a write to byte 0 of argument" in _messages(kernel)


def test_unset_shared_memory_matters_where_it_is_stored_not_where_it_is_moved() -> None:
    moved = "ld.shared.b32 %r1, [%smem]; add.u32 %r1, %r1, 1; selp.b32 %r2, %r1, 5, %p0;"
    known = "setp.ne.u32 %p0, %thread, %thread;"
    assert not _messages(Kernel(known + moved + OWN + "st.global.b32 [%d1], %thread;", arrays=_out()))
    found = _messages(Kernel(known + moved + OWN + "st.global.b32 [%d1], %r1;", arrays=_out()))
    assert "undefined_value: the value that is stored depends on" in found


def test_a_branch_on_an_unset_predicate() -> None:
    assert "guards this instruction" in _messages(Kernel("@%p3 bra E; mov.u32 %r0, 0; E:"))


def test_unset_arrays_are_poison_until_written() -> None:
    kernel = Kernel(OWN + "ld.global.b32 %r1, [%d1]; st.global.b32 [%d1+128], %r1;", arrays=_out(), unset=("out",))
    result, shadows = kernel.run()
    assert [found.kind for found in result.findings] == ["undefined_value"]
    assert shadows["out"].all()
    kernel = Kernel(OWN + "st.global.b32 [%d1+128], %thread;", arrays=_out(), unset=("out",))
    result, shadows = kernel.run()
    assert not result.findings and not shadows["out"][128:].any() and shadows["out"][:128].all()


def test_lanes_without_the_guard_keep_their_values() -> None:
    body = "mov.u32 %r1, 9; setp.lt.u32 %p0, %thread, 7; @%p0 ld.global.b32 %r1, [%d1+0]; st.global.b32 [%d1+128], %r1;"
    kernel = Kernel(OWN + body, arrays={"out": aligned(np.arange(64, dtype=np.uint32) + 50)})
    assert not kernel.run()[0].findings
    assert np.array_equal(kernel.arrays["out"][32:], np.where(np.arange(32) < 7, np.arange(32) + 50, 9))


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["s", "u"])
def test_narrow_and_wide_elements(width: int, sign: str) -> None:
    values = aligned(np.random.default_rng(width).integers(0, 256, 32 * 8, dtype=np.uint8))
    step = width // 8
    body = f"""mul.lo.u32 %r0, %thread, {step}; cvt.u64.u32 %d0, %r0; add.u64 %d0, %d0, %a_in;
        ld.global.{sign}{width} %{"d5" if width == 64 else "r5"}, [%d0];
        mul.lo.u32 %r1, %thread, 8; cvt.u64.u32 %d1, %r1; add.u64 %d1, %d1, %a_out;
        {"" if width == 64 else f"cvt.{sign}64.{sign}32 %d5, %r5;"} st.global.b64 [%d1], %d5;"""
    kernel = Kernel(body, arrays={"in": values, "out": aligned(np.zeros(32, np.uint64))})
    assert not kernel.run()[0].findings
    kind = np.dtype(f"{'i' if sign == 's' else 'u'}{step}")
    expected = values[: 32 * step].view(kind).astype(np.int64 if sign == "s" else np.uint64).view(np.uint64)
    assert np.array_equal(kernel.arrays["out"], expected)


@pytest.mark.parametrize(
    ("operation", "start", "expected"),
    [
        ("add.u32", 3, 3 + sum(range(64))),
        ("max.u32", 3, 63),
        ("min.u32", 3, 0),
        ("or.b32", 64, 127),
    ],
)
def test_atomics_of_several_ctas(operation: str, start: int, expected: int) -> None:
    body = f"mov.u32 %r1, %ctaid.x; mad.lo.u32 %r1, %r1, 32, %thread; red.global.{operation} [%a_out], %r1;"
    kernel = Kernel(body, arrays=_out(), grid=2)
    kernel.arrays["out"][0] = start
    assert not kernel.run()[0].findings
    assert kernel.arrays["out"][0] == expected


def test_float_atomics_round_once_each() -> None:
    body = (
        "mov.b32 %r1, 0f3F800000; atom.global.add.f32 %r2, [%a_out], %r1; red.global.add.noftz.bf16x2 [%a_out+4], %r1;"
    )
    kernel = Kernel(body, arrays=_out())
    assert not kernel.run()[0].findings
    assert kernel.arrays["out"][:1].view(np.float32)[0] == 32.0
    assert kernel.arrays["out"][1] == 0x42000000  # 32.0 in the high bf16, 0 in the low one


def test_two_ctas_that_write_the_same_place_race() -> None:
    kernel = Kernel(OWN + "st.global.b32 [%d1], %thread;", arrays=_out(), grid=2)
    assert "another cluster of this launch" in _messages(kernel)


def test_two_warps_that_write_the_same_place_race() -> None:
    body = "and.b32 %r5, %thread, 31; st.global.b32 [%a_out], %r5;"
    kinds = {kind for policy in schedules(4) for kind, _ in Kernel(body, arrays=_out(), block=64).findings(policy)}
    assert "race" in kinds


def test_a_flag_with_release_and_acquire_orders_two_warps() -> None:
    body = """setp.ge.u32 %p0, %thread, 32; @%p0 bra READER;
        @%lead st.global.b32 [%a_out+64], 77; @%lead st.release.gpu.global.b32 [%a_out], 1; bra E;
        READER: ld.{order}.gpu.global.b32 %r1, [%a_out]; setp.eq.u32 %p1, %r1, 0; @%p1 bra READER;
        ld.global.b32 %r2, [%a_out+64]; st.global.b32 [%a_out+128], %r2; E:"""
    for policy in schedules(10, warps=2):
        assert not Kernel(body.format(order="acquire"), arrays=_out(), block=64).findings(policy), policy.name


def test_results_do_not_depend_on_threads() -> None:
    body = """mov.u32 %r7, %ctaid.x; mad.lo.u32 %r0, %r7, 32, %thread; mul.wide.u32 %d0, %r0, 4;
        add.u64 %d0, %d0, %a_out; mul.lo.u32 %r1, %r0, %r0; st.global.b32 [%d0], %r1;"""
    kernel = Kernel(body, arrays=_out(32 * 17), grid=17)
    program = kernel.program()
    out = kernel.arrays["out"]
    block = aligned(np.array([out.ctypes.data], np.uint64))
    regions = [
        Region("parameters", block.ctypes.data, 8, writable=False, parameters=True),
        Region("out", out.ctypes.data, out.nbytes),
    ]
    launch = Launch((17, 1, 1), (32, 1, 1), dynamic_smem_bytes=0, param_address=block.ctypes.data, param_bytes=8)
    result = run_grid(program, launch, FIXED[0], regions, threads=2)
    assert result.stats["clusters"] == 17 and not result.findings
    assert np.array_equal(out, np.arange(32 * 17, dtype=np.uint32) ** 2)


@pytest.mark.parametrize("waits", [True, False])
def test_the_previous_launch_may_still_write_until_griddepcontrol_wait(waits: bool) -> None:
    body = f"{'griddepcontrol.wait;' if waits else ''} ld.global.b32 %r1, [%a_out]; griddepcontrol.launch_dependents;"
    kernel = Kernel(body, arrays=_out())
    out = kernel.arrays["out"]
    block = aligned(np.array([out.ctypes.data], np.uint64))
    regions = [
        Region("parameters", block.ctypes.data, 8, writable=False, parameters=True),
        Region("out", out.ctypes.data, out.nbytes, prior=True),
    ]
    launch = Launch((1, 1, 1), (32, 1, 1), dynamic_smem_bytes=0, param_address=block.ctypes.data, param_bytes=8)
    kinds = [found.kind for found in run_grid(kernel.program(), launch, FIXED[0], regions).findings]
    assert kinds == ([] if waits else ["prior_grid"])


def test_the_last_writer_of_each_byte_is_known() -> None:
    kernel = Kernel(OWN + "st.global.b32 [%d1], %thread; st.global.b16 [%a_out], %h0;", arrays=_out())
    program, out = kernel.program(), kernel.arrays["out"]
    block = aligned(np.array([out.ctypes.data], np.uint64))
    writer = np.zeros(out.nbytes, np.int32)
    regions = [
        Region("parameters", block.ctypes.data, 8, writable=False, parameters=True),
        Region("out", out.ctypes.data, out.nbytes, writer=writer),
    ]
    launch = Launch((1, 1, 1), (32, 1, 1), dynamic_smem_bytes=0, param_address=block.ctypes.data, param_bytes=8)
    run_grid(program, launch, FIXED[0], regions)
    opcodes = [program.lines[program.instructions["line"][w - 1]].opcode if w else "" for w in writer[:132:2]]
    assert opcodes[0] == "st.global.b16" and set(opcodes[1:64]) == {"st.global.b32"} and opcodes[64] == ""


def test_local_memory_belongs_to_its_lane() -> None:
    kernel = Kernel("", arrays=_out())
    text = kernel.text().replace(
        "ret;",
        ".local .align 16 .b8 scratch[16];\nmov.b64 %d3, scratch; st.local.b32 [%d3+8], %thread; "
        "ld.local.b32 %r4, [%d3+8]; " + OWN + " st.global.b32 [%d1], %r4; ret;",
    )
    kernel.text = lambda: text  # type: ignore[method-assign]
    assert not kernel.run()[0].findings
    assert np.array_equal(kernel.arrays["out"][:32], np.arange(32))
