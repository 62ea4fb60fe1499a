"""Small kernels for tests of tensor memory and tcgen05: four warps to a CTA, one tensor memory allocation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from dsv4.emulator import library
from dsv4.emulator.lower import lower
from dsv4.emulator.machine import Launch, RawFinding, Region, run_grid
from dsv4.emulator.policy import FIXED, Policy, mixed
from dsv4.emulator.program import Program
from dsv4.emulator.ptx import parse

LATE, EARLY = FIXED[0], FIXED[1]
POLICIES = (LATE, EARLY, mixed(3))
LANES = 128  # of tensor memory, and threads of a CTA here
ADDRESS = 8  # shared byte where tcgen05.alloc writes; the mbarrier is at byte 0
IMAGE = 1024  # shared byte where the operands begin
IMAGE_ADDRESS = 1024 + IMAGE


def aligned(values: np.ndarray, alignment: int = 1024) -> np.ndarray:
    """A copy of an array at an address that is a multiple of `alignment`."""
    room = np.zeros(values.nbytes + alignment, np.uint8)
    start = -room.ctypes.data % alignment
    copy: np.ndarray = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def wait(barrier: str = "%smem", parity: int = 0) -> str:
    """Waits until the phase of this parity has completed; `barrier` is an address expression."""
    return (
        "{ .reg .pred P; "
        f"W: mbarrier.try_wait.parity.shared.b64 P, [{barrier}], {parity}, 10000000; @P bra D; bra W; D: }}\n"
    )


CLUSTER_SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
BARRIER_INIT = f"""@%lead mbarrier.init.shared.b64 [%smem], 1;
    @%lead fence.mbarrier_init.release.cluster;
    {CLUSTER_SYNC}"""


def alloc(columns: int, group: int = 1) -> str:
    """Warp 0 (of each CTA) allocates; %tmem is the tensor memory address, %own the same at the warp's first lane."""
    return f"""
        @%warp0 tcgen05.alloc.cta_group::{group}.sync.aligned.shared::cta.b32 [%smem+{ADDRESS}], {columns};
        bar.sync 0;
        ld.shared.b32 %tmem, [%smem+{ADDRESS}];
        shr.u32 %own, %thread, 5; and.b32 %own, %own, 3; shl.b32 %own, %own, 21; add.u32 %own, %own, %tmem;
    """


def dealloc(columns: int, group: int = 1) -> str:
    """Everybody is done, then warp 0 frees what `alloc` has allocated."""
    together = "bar.sync 0;\n" if group == 1 else CLUSTER_SYNC
    return f"{together} @%warp0 tcgen05.dealloc.cta_group::{group}.sync.aligned.b32 %tmem, {columns};\n"


def vector(count: int, name: str = "v") -> str:
    """The registers of a vector operand."""
    return "{" + ", ".join(f"{name}{n}" for n in range(count)) + "}"


def row_address(array: str, row_bytes: int) -> str:
    """`row` becomes the address of this thread's row of an array [rank][thread][row_bytes]."""
    return f"""shl.b32 n, %rank, 7; add.u32 n, n, %thread; mul.wide.u32 row, n, {row_bytes};
        add.u64 row, row, %a_{array};
    """


def tmem_from(array: str, columns: int, chunk: int = 8) -> str:
    """Fills the first columns of tensor memory from a global array [rank][128 lanes][columns]."""
    text = [f"{{ .reg .b32 v<{chunk}>, n; .reg .b64 row;", row_address(array, 4 * columns)]
    for first in range(0, columns, chunk):
        text += [f"ld.global.b32 v{n}, [row+{4 * (first + n)}];" for n in range(chunk)]
        text.append(f"tcgen05.st.sync.aligned.32x32b.x{chunk}.b32 [%own+{first}], {vector(chunk)};")
    return "\n".join([*text, "tcgen05.wait::st.sync.aligned; }", "bar.sync 0;\n"])


def tmem_to(array: str, columns: int, chunk: int = 8) -> str:
    """Writes the first columns of tensor memory to a global array [rank][128 lanes][columns]."""
    text = [f"{{ .reg .b32 v<{chunk}>, n; .reg .b64 row;", row_address(array, 4 * columns)]
    for first in range(0, columns, chunk):
        text.append(f"tcgen05.ld.sync.aligned.32x32b.x{chunk}.b32 {vector(chunk)}, [%own+{first}];")
        text += [f"st.global.b32 [row+{4 * (first + n)}], v{n};" for n in range(chunk)]
    return "\n".join([*text, "}\n"])


def image_from(array: str, byte_count: int) -> str:
    """Fills shared memory from byte IMAGE on from a global array [rank][bytes], and makes it visible to the MMA."""
    return f"""{{ .reg .pred P; .reg .b32 i, x, to, n; .reg .b64 from, wide;
        mul.lo.u32 n, %rank, {byte_count}; cvt.u64.u32 wide, n; add.u64 from, %a_{array}, wide;
        shl.b32 i, %thread, 2; cvt.u64.u32 wide, i; add.u64 from, from, wide; add.u32 to, %smem, i;
        L: setp.ge.u32 P, i, {byte_count}; @P bra E;
        ld.global.b32 x, [from]; st.shared.b32 [to+{IMAGE}], x;
        add.u32 i, i, {4 * LANES}; add.u32 to, to, {4 * LANES}; add.u64 from, from, {4 * LANES}; bra L;
        E: }}
        fence.proxy.async.shared::cta; bar.sync 0;
    """


def commit(group: int = 1, mask: int = 0) -> str:
    """The leader commits; everybody waits, with a mask in all CTAs of it."""
    form = f"@%leader tcgen05.commit.cta_group::{group}.mbarrier::arrive::one.shared::cluster"
    if mask:
        return f"mov.u16 %mask, {mask}; {form}.multicast::cluster.b64 [%smem], %mask;\n" + wait()
    return f"{form}.b64 [%smem];\n" + wait()


@dataclass
class Outcome:
    """What a run leaves: tensor memory and its poison [cta, lane, column], global arrays and their poison by name."""

    findings: list[RawFinding]
    tmem: np.ndarray
    poison: np.ndarray
    arrays: dict[str, np.ndarray]
    shadows: dict[str, np.ndarray]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the findings, in order."""
        return [found.kind for found in self.findings]


@dataclass
class Kernel:
    """A kernel of 128 threads to a CTA around the statements of `body`.

    Statements may use %thread, %rank, %smem (shared address of byte 0), the predicates %lead (thread 0 of a CTA),
    %leader (thread 0 of CTA 0) and %warp0, %tmem and %own (see `alloc`), %a_<name> of each array, and %r0..15, %d0..7,
    %p0..3.

    `columns` of tensor memory are allocated, unless 0. `image` goes to shared memory from byte IMAGE on, `before` into
    the first columns of tensor memory (each for every CTA), and `Outcome.tmem` is what the columns hold at the end.
    """

    body: str
    columns: int = 32
    ctas: int = 1
    image: np.ndarray | None = None  # uint8 [ctas, bytes]
    before: np.ndarray | None = None  # uint32 [ctas, 128, columns]
    dump: bool = True
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    unset: dict[str, np.ndarray] = field(default_factory=dict)  # by array: uint8, 1 where bytes count as never written
    smem_bytes: int = 2048

    def parts(self) -> tuple[str, dict[str, np.ndarray]]:
        """The statements, and all arrays."""
        arrays = {name: aligned(array) for name, array in self.arrays.items()}
        text = [BARRIER_INIT]
        if self.columns:
            text.append(alloc(self.columns, self.ctas))
        if self.image is not None:
            arrays["image"] = aligned(self.image)
            text.append(image_from("image", self.image.shape[1]))
        if self.before is not None:
            arrays["before"] = aligned(self.before.astype(np.uint32))
            text.append(tmem_from("before", self.before.shape[2]))
        if self.ctas > 1:
            text.append(CLUSTER_SYNC)
        text.append(self.body)
        if self.columns and self.dump:
            arrays["after"] = aligned(np.zeros((self.ctas, LANES, self.columns), np.uint32))
            text.append(tmem_to("after", self.columns))
        if self.columns:
            text.append(dealloc(self.columns, self.ctas))
        return "".join(text), arrays

    def program(self) -> tuple[Program, dict[str, np.ndarray]]:
        """The bytecode, and all arrays."""
        body, arrays = self.parts()
        registers = "".join(f".reg .b64 %a_{name};\n" for name in arrays)
        setup = "".join(
            f"ld.param.b64 %a_{name}, [pointer_{name}]; cvta.to.global.u64 %a_{name}, %a_{name};\n" for name in arrays
        )
        text = f""".version 8.8
.target sm_100a
.extern .shared .align 1024 .b8 dynamic[];
.visible .entry kernel({", ".join(f".param .b64 pointer_{name}" for name in arrays)})
{{
.reg .pred %p<4>, %lead, %leader, %warp0; .reg .b16 %mask; .reg .b32 %r<16>, %thread, %rank, %smem, %tmem, %own;
.reg .b64 %d<8>;
{registers}
{setup}
mov.u32 %thread, %tid.x; mov.u32 %rank, %cluster_ctarank; mov.u32 %smem, dynamic;
setp.eq.u32 %lead, %thread, 0; setp.eq.and.u32 %leader, %rank, 0, %lead; setp.lt.u32 %warp0, %thread, 32;
{body}
ret;
}}
"""
        module = parse(text)
        return lower(module, module.entries["kernel"], library.load().handlers), arrays

    def run(self, policy: Policy = LATE) -> Outcome:
        """Runs it."""
        program, arrays = self.program()
        block = aligned(np.array([array.ctypes.data for array in arrays.values()] or [0], np.uint64))
        regions = [Region("parameters", block.ctypes.data, block.nbytes, writable=False, parameters=True)]
        shadows = {name: np.zeros(array.nbytes, np.uint8) for name, array in arrays.items()}
        for name, unset in self.unset.items():
            shadows[name][:] = unset.reshape(-1)
        regions += [
            Region(name, array.ctypes.data, array.nbytes, shadow=shadows[name]) for name, array in arrays.items()
        ]
        image_bytes = 0 if self.image is None else self.image.shape[1]
        launch = Launch(
            (self.ctas, 1, 1),
            (LANES, 1, 1),
            (self.ctas, 1, 1),
            dynamic_smem_bytes=max(self.smem_bytes, IMAGE + image_bytes),
            param_address=block.ctypes.data,
            param_bytes=block.nbytes,
        )
        result = run_grid(program, launch, replace(policy, max_instructions=2_000_000), regions)
        after = arrays.get("after", np.zeros((0, LANES, 0), np.uint32))
        poison = shadows["after"].reshape(*after.shape, 4).any(axis=3) if "after" in arrays else after.astype(bool)
        return Outcome(result.findings, after, poison, arrays, shadows)
