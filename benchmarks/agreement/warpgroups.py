"""Kernels of one warpgroup that execute one wgmma, or several, on operands given as matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.agreement.products import Operands
from benchmarks.agreement.values import WIDTHS
from benchmarks.agreement.warps import warp_kernel
from dsv4.emulator.oracle import matrix
from dsv4.emulator.oracle.matrix import Tile
from dsv4.emulator.text_kernel import SHARED_BASE, Kernel

WARPS, THREADS, ROWS = 4, 128, 64
K_OF = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}
PATTERN_BYTES = 1024


def tile_of(mn: int, k: int, type_name: str, *, mn_major: bool, swizzle_bytes: int, gap: int = 0) -> Tile:
    """A tile packed densely but for ``gap`` swizzle patterns between its parts."""
    bits = WIDTHS[type_name]
    pattern = max(swizzle_bytes, 16) * 8  # 8 rows
    if mn_major and swizzle_bytes:
        stride = pattern * (1 + gap)
        leading = stride * -(-k // 8) + pattern * gap
    elif mn_major:
        stride = 128 * (1 + gap)
        leading = stride * (mn * bits // 128) + 128 * gap
    elif swizzle_bytes:
        stride, leading = pattern * (1 + gap), 16
    else:
        leading = 128 * (1 + gap)
        stride = k * bits // 128 * leading + 128 * gap
    return Tile(mn, k, bits, mn_major, swizzle_bytes, leading, stride)


def tile_bytes(tile: Tile) -> int:
    """Bytes from the tile's start to behind its last element, in whole patterns."""
    end = int(tile.addresses(0).max()) + tile.bits // 8
    return -(-end // PATTERN_BYTES) * PATTERN_BYTES


def accumulator_places(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of accumulator element i of thread t: two arrays [elements of a thread, 128]."""
    row, column = matrix.d_fragment(n)
    return np.concatenate([row + 16 * w for w in range(WARPS)], axis=1), np.concatenate([column] * WARPS, axis=1)


def operand_registers(codes: np.ndarray, bits: int) -> np.ndarray:
    """Registers of operand A, uint32 [4, 128], of codes [64, K]."""
    row, k = matrix.a_fragment(codes.shape[1], bits)
    return np.concatenate([matrix.pack(codes[row + 16 * w, k], bits) for w in range(WARPS)], axis=1)


@dataclass(frozen=True)
class Wgmma:
    """What a wgmma is told besides its operands. ``a_tile`` None: A in registers.

    ``steps`` > 1: the tiles hold so many times the instruction's K, and a chain of wgmmas works through them;
    ``a_step_bytes`` and ``b_step_bytes`` are added to the start addresses for each.
    """

    types: tuple[str, str, str]  # D, A, B
    n: int
    a_tile: Tile | None
    b_tile: Tile
    accumulate: bool = True
    scale_a: int = 1
    scale_b: int = 1
    satfinite: bool = False
    steps: int = 1
    a_step_bytes: int = 0
    b_step_bytes: int = 0
    a_start_bytes: int = 0
    b_start_bytes: int = 0

    @property
    def d_bits(self) -> int:
        return 16 if self.types[0] == "f16" else 32

    @property
    def registers(self) -> int:
        return self.n * self.d_bits // 64

    def instruction(self, accumulators: str, a: str, b: str) -> str:
        d_type, a_type, b_type = self.types
        suffix = ".satfinite" if self.satfinite else ""
        immediates = ""
        if d_type != "s32":
            immediates = f", {self.scale_a}, {self.scale_b}"
            if a_type in ("f16", "bf16"):
                transposes = ([int(self.a_tile.mn_major)] if self.a_tile else []) + [int(self.b_tile.mn_major)]
                immediates += "".join(f", {one}" for one in transposes)
        shape = f"m64n{self.n}k{K_OF[a_type]}"
        return (
            f"wgmma.mma_async.sync.aligned.{shape}.{d_type}.{a_type}.{b_type}{suffix} {accumulators}, {a}, {b}, "
            f"accumulate{immediates};\n"
        )

    def kernel(self, sets: list[Operands]) -> Kernel:
        """A CTA for each set; ``out`` holds the accumulator registers [sets, registers, 128]."""
        a_room = self.a_start_bytes + tile_bytes(self.a_tile) if self.a_tile else 0
        a_room = -(-a_room // PATTERN_BYTES) * PATTERN_BYTES
        b_at = a_room + self.b_start_bytes
        size = a_room + -(-(self.b_start_bytes + tile_bytes(self.b_tile)) // PATTERN_BYTES) * PATTERN_BYTES
        shared = np.random.default_rng(size).integers(0, 256, (len(sets), size), dtype=np.uint8)  # must not matter
        inputs = []
        for n, each in enumerate(sets):
            registers = [matrix.pack(each.c[accumulator_places(self.n)], self.d_bits)]
            if self.a_tile:
                self.a_tile.scatter(each.a, SHARED_BASE + self.a_start_bytes, shared[n], SHARED_BASE)
            else:
                registers.append(operand_registers(each.a, WIDTHS[self.types[1]]))
            self.b_tile.scatter(each.b.T, SHARED_BASE + b_at, shared[n], SHARED_BASE)
            inputs.append(np.concatenate(registers))
        return warp_kernel(
            self._body(b_at), outputs=self.registers, inputs=np.stack(inputs), shared=shared, threads=THREADS
        )

    def _body(self, b_at: int) -> str:
        accumulators = "{" + ", ".join(f"o{n}" for n in range(self.registers)) + "}"
        body = ".reg .pred accumulate; .reg .b64 a_desc, b_desc, wide; .reg .b32 near;\n"
        body += _descriptor("b_desc", self.b_tile, b_at)
        a = "a_desc"
        if self.a_tile:
            body += _descriptor("a_desc", self.a_tile, self.a_start_bytes)
        else:
            a = "{" + ", ".join(f"i{self.registers + n}" for n in range(4)) + "}"
        body += f"setp.ne.u32 accumulate, {int(self.accumulate)}, 0;\n"
        body += "".join(f"mov.b32 o{n}, i{n};\n" for n in range(self.registers))
        body += "wgmma.fence.sync.aligned;\n"
        for step in range(self.steps):
            if step:
                body += f"add.u64 b_desc, b_desc, {self.b_step_bytes // 16};\n"
                body += f"add.u64 a_desc, a_desc, {self.a_step_bytes // 16};\n" if self.a_tile else ""
            body += self.instruction(accumulators, a, "b_desc")
        return body + "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\n"

    def matrices(self, out: np.ndarray) -> np.ndarray:
        """Codes [sets, 64, N] of the accumulator registers in ``out``."""
        found = np.zeros((len(out), ROWS, self.n), np.uint32)
        rows, columns = accumulator_places(self.n)
        for n, registers in enumerate(out):
            found[n][rows, columns] = matrix.unpack(registers, self.d_bits)
        return found


def _descriptor(name: str, tile: Tile, at: int) -> str:
    """The descriptor of a tile at byte ``at`` of shared memory, wherever that begins."""
    return f"""add.u32 near, %smem, {at}; and.b32 near, near, 0x3FFFF; shr.u32 near, near, 4;
    cvt.u64.u32 wide, near; or.b64 {name}, wide, {replace(tile).descriptor(0):#x};
    """
