"""Small kernels from PTX statements, with tensor maps and arrays: for tests, and for comparisons with real chips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from dsv4.emulator import library
from dsv4.emulator.lower import lower
from dsv4.emulator.machine import Launch, Region, Result, run_grid
from dsv4.emulator.policy import FIXED, Policy, mixed
from dsv4.emulator.program import Program
from dsv4.emulator.ptx import parse
from dsv4.emulator.tma_descriptor import TensorMap

SHARED_BASE = 1024
LATE, EARLY = FIXED[0], FIXED[1]
POLICIES = (LATE, EARLY, mixed(3))
MAP_BYTES = 128


def aligned(values: np.ndarray, alignment: int = 1024) -> np.ndarray:
    """A copy of an array at an address that is a multiple of `alignment`."""
    room = np.zeros(values.nbytes + alignment, np.uint8)
    start = -room.ctypes.data % alignment
    copy = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def wait(barrier: str, parity: int = 0) -> str:
    """Waits until the phase of this parity has completed; `barrier` is an address expression."""
    return (
        "{ .reg .pred P; "
        f"W: mbarrier.try_wait.parity.shared.b64 P, [{barrier}], {parity}, 10000000; @P bra D; bra W; D: }}\n"
    )


def copy_words(count: int, *, load: str, store: str) -> str:
    """All threads of the CTA copy `count` words; %at is 4 · index, added to the bases named in `load` and `store`."""
    return f"""{{ .reg .pred P; .reg .b32 i, x, n; .reg .b64 wide, from, to;
        mov.u32 i, %thread; mov.u32 n, %ntid.x;
        L: setp.ge.u32 P, i, {count}; @P bra E;
        shl.b32 %at, i, 2; cvt.u64.u32 wide, %at;
        {load}
        {store}
        add.u32 i, i, n; bra L;
        E: }}
    """


def dump(array: str, words: int, offset: int = 0) -> str:
    """Shared memory from `offset` on, into a global array."""
    return copy_words(
        words,
        load=f"add.u32 %at, %at, %smem; ld.shared.b32 x, [%at+{offset}];",
        store=f"add.u64 to, %a_{array}, wide; st.global.b32 [to], x;",
    )


def fill(array: str, words: int, offset: int = 0) -> str:
    """Shared memory from `offset` on, from a global array, with ordinary stores."""
    return copy_words(
        words,
        load=f"add.u64 from, %a_{array}, wide; ld.global.b32 x, [from];",
        store=f"add.u32 %at, %at, %smem; st.shared.b32 [%at+{offset}], x;",
    )


BARRIER = 0  # byte offset of the one mbarrier that `barrier_init` makes


def barrier_init(arrivals: int = 1) -> str:
    """Thread 0 initialises the mbarrier at shared byte 0; the CTA (of a cluster: the cluster) waits for it."""
    return f"""@%lead mbarrier.init.shared.b64 [%smem+{BARRIER}], {arrivals};
        @%lead fence.mbarrier_init.release.cluster;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    """


def expect(byte_count: int) -> str:
    """Thread 0 arrives and expects bytes."""
    return f"@%lead mbarrier.arrive.expect_tx.shared.b64 _, [%smem+{BARRIER}], {byte_count};\n"


@dataclass
class Kernel:
    """One kernel: statements, tensor maps by name ({name: map or bytes}), arrays by name.

    Statements may use %thread, %rank (in the cluster), %lead (thread 0 of a CTA), %smem (shared address of byte 0 of
    the dynamic shared memory), %m_<name> (generic address of a tensor map parameter), %a_<name> (address of an array),
    and the registers %r0..63 (b32), %d0..31 (b64), %p0..7, %h0..7 (b16).
    """

    body: str
    maps: dict[str, TensorMap | bytes] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    block: int = 32
    cluster: int = 1
    grid: int = 1
    smem_bytes: int = 32768
    unset: tuple[str, ...] = ()  # arrays whose bytes count as never written
    read_only: tuple[str, ...] = ()
    target: str = "sm_100a"
    source: str = ""  # the file that `.loc 1 …` in the body speaks of
    max_instructions: int = 200_000

    def text(self) -> str:
        """The PTX."""
        parameters = [f".param .align 64 .b8 map_{name}[{MAP_BYTES}]" for name in self.maps]
        parameters += [f".param .b64 pointer_{name}" for name in self.arrays]
        registers = "".join(f".reg .b64 %m_{name};\n" for name in self.maps)
        registers += "".join(f".reg .b64 %a_{name};\n" for name in self.arrays)
        setup = "".join(f"mov.b64 %m_{name}, map_{name}; cvta.param.u64 %m_{name}, %m_{name};\n" for name in self.maps)
        setup += "".join(
            f"ld.param.b64 %a_{name}, [pointer_{name}]; cvta.to.global.u64 %a_{name}, %a_{name};\n"
            for name in self.arrays
        )
        return f""".version 8.8
.target {self.target}
.extern .shared .align 1024 .b8 dynamic[];
.visible .entry kernel({", ".join(parameters)})
{{
.reg .pred %p<8>, %lead; .reg .b16 %h<8>; .reg .b32 %r<64>, %thread, %rank, %smem, %at; .reg .b64 %d<32>;
{registers}
{setup}
mov.u32 %thread, %tid.x; mov.u32 %rank, %cluster_ctarank; mov.u32 %smem, dynamic;
setp.eq.u32 %lead, %thread, 0;
{self.body}
ret;
}}
""" + (f'.file 1 "{self.source}"\n' if self.source else "")

    def parameters(self, placed: Callable[[int], int] = int) -> list[bytes]:
        """The bytes of each parameter; `placed` turns an array's address here into the one that the kernel gets."""
        maps = [
            (replace(m, address=placed(m.address)).encode() if isinstance(m, TensorMap) else m)
            for m in self.maps.values()
        ]
        return maps + [placed(array.ctypes.data).to_bytes(8, "little") for array in self.arrays.values()]

    def program(self) -> Program:
        """The bytecode."""
        module = parse(self.text())
        return lower(module, module.entries["kernel"], library.load().handlers)

    def run(self, policy: Policy = LATE) -> tuple[Result, dict[str, np.ndarray]]:
        """Runs it; arrays are written in place. Returns the result and the shadow bytes of the arrays by name."""
        block = aligned(np.frombuffer(b"".join(self.parameters()) or bytes(8), np.uint8))
        regions = [Region("parameters", block.ctypes.data, block.nbytes, writable=False, parameters=True)]
        shadows = {}
        for name, array in self.arrays.items():
            shadows[name] = np.full(array.nbytes, int(name in self.unset), np.uint8)
            writable = name not in self.read_only
            regions.append(Region(name, array.ctypes.data, array.nbytes, writable=writable, shadow=shadows[name]))
        launch = Launch(
            (self.grid * self.cluster, 1, 1),
            (self.block, 1, 1),
            (self.cluster, 1, 1),
            dynamic_smem_bytes=self.smem_bytes,
            param_address=block.ctypes.data,
            param_bytes=block.nbytes,
        )
        result = run_grid(self.program(), launch, replace(policy, max_instructions=self.max_instructions), regions)
        return result, shadows

    def findings(self, policy: Policy = LATE) -> list[tuple[str, str]]:
        """Runs it and returns kind and message of each finding."""
        return [(found.kind, found.message) for found in self.run(policy)[0].findings]
