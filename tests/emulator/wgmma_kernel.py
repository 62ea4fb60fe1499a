"""One wgmma, or a chain, on a warpgroup: operands as matrices in, accumulators as a matrix out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsv4.emulator.oracle import matrix
from dsv4.emulator.oracle.matrix import Tile
from dsv4.emulator.policy import Policy
from tests.emulator.matrix_machine import LATE, SHARED_BASE, Matrices, Outcome

WARPS = 4
K_OF = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}
PATTERN_BYTES = 1024


def rounded_up(value: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-value // step) * step


def tile_of(mn: int, type_name: str, *, mn_major: bool, swizzle_bytes: int, gap: int = 0) -> Tile:
    """A tile of mn × one instruction's K, packed densely but for `gap` swizzle patterns between its parts."""
    bits, k = matrix.WIDTHS[type_name], K_OF[type_name]
    pattern = max(swizzle_bytes, 16) * 8  # 8 rows
    if mn_major and swizzle_bytes:
        stride = pattern * (1 + gap)
        leading = stride * (k // 8) + pattern * gap
    elif mn_major:
        stride = 128 * (1 + gap)
        leading = stride * (mn * bits // 128) + 128 * gap
    elif swizzle_bytes:
        stride, leading = pattern * (1 + gap), 16  # the leading offset is not used
    else:
        leading = 128 * (1 + gap)
        stride = 2 * leading + 128 * gap
    return Tile(mn, k, bits, mn_major, swizzle_bytes, leading, stride)


def tile_bytes(tile: Tile) -> int:
    """Bytes from the tile's start to behind its last element, up to a whole pattern."""
    return rounded_up(int(tile.addresses(0).max()) + tile.bits // 8, PATTERN_BYTES)


def accumulator_places(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of accumulator element i of thread t: two arrays (elements of a thread, 128)."""
    row, column = matrix.d_fragment(n)
    rows = np.concatenate([row + 16 * warp for warp in range(WARPS)], axis=1)
    return rows, np.concatenate([column] * WARPS, axis=1)


def operand_registers(codes: np.ndarray, bits: int) -> np.ndarray:
    """Registers of operand A, uint32 [4, 128], of codes [64, K]."""
    row, k = matrix.a_fragment(codes.shape[1], bits)
    fragments = [matrix.pack(codes[row + 16 * warp, k], bits) for warp in range(WARPS)]
    return np.concatenate(fragments, axis=1)


def names(letter: str, count: int, first: int = 0) -> str:
    """{%x0, %x1, …}"""
    return "{" + ", ".join(f"%{letter}{first + n}" for n in range(count)) + "}"


@dataclass
class Product:
    """D = ±A·±B (+ C) by one wgmma of a warpgroup. Codes: a [64, K], b [K, N], c [64, N]."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    types: tuple[str, str, str]  # D, A, B
    a_tile: Tile | None = None  # None: A in registers
    b_tile: Tile | None = None
    accumulate: bool = True
    scale_a: int = 1
    scale_b: int = 1
    satfinite: bool = False
    placed: tuple[np.ndarray, int, int] | None = None  # shared memory and offsets of A and B in it; None: packed

    @property
    def n(self) -> int:
        """Columns."""
        return self.b.shape[1]

    @property
    def d_bits(self) -> int:
        """Width of an accumulator element."""
        return 16 if self.types[0] == "f16" else 32

    @property
    def registers(self) -> int:
        """Accumulator registers of a thread."""
        return self.n * self.d_bits // 64

    def memory(self) -> tuple[np.ndarray, int, int]:
        """Shared memory with the tiles in it, and the offsets of A and B."""
        if self.placed:
            return self.placed
        assert self.b_tile is not None
        b_at = tile_bytes(self.a_tile) if self.a_tile else 0
        shared = np.full(b_at + tile_bytes(self.b_tile), 0xA5, np.uint8)  # what is not of a tile must not matter
        if self.a_tile:
            self.a_tile.scatter(self.a, SHARED_BASE, shared, SHARED_BASE)
        self.b_tile.scatter(self.b.T, SHARED_BASE + b_at, shared, SHARED_BASE)
        return shared, 0, b_at

    def instruction(self, accumulators: str, a: str = "%rd0", b: str = "%rd1") -> str:
        """The wgmma, with scale-d in %pr7."""
        d_type, a_type, b_type = self.types
        shape = f"m64n{self.n}k{K_OF[a_type]}"
        suffix = ".satfinite" if self.satfinite else ""
        immediates = ""
        if d_type != "s32":
            immediates = f", {self.scale_a}, {self.scale_b}"
            if a_type in ("f16", "bf16"):
                assert self.b_tile is not None
                transposes = ([int(self.a_tile.mn_major)] if self.a_tile else []) + [int(self.b_tile.mn_major)]
                immediates += "".join(f", {one}" for one in transposes)
        return (
            f"wgmma.mma_async.sync.aligned.{shape}.{d_type}.{a_type}.{b_type}{suffix} {accumulators}, {a}, {b}, %pr7"
            f"{immediates};"
        )

    def kernel(self) -> Matrices:
        """The kernel: accumulators are input registers 0.., A in registers follows them."""
        shared, a_at, b_at = self.memory()
        assert self.b_tile is not None
        inputs = [matrix.pack(self.c[accumulator_places(self.n)], self.d_bits)]
        a_operand, setup = "%rd0", ""
        if self.a_tile:
            setup = f"mov.b64 %rd0, {self.a_tile.descriptor(SHARED_BASE + a_at)};"
        else:
            inputs.append(operand_registers(self.a, matrix.WIDTHS[self.types[1]]))
            a_operand = names("i", 4, self.registers)
        moves = "".join(f"mov.b32 %o{n}, %i{n};" for n in range(self.registers))
        body = f"""{setup} mov.b64 %rd1, {self.b_tile.descriptor(SHARED_BASE + b_at)};
            mov.b32 %r0, {int(self.accumulate)}; setp.ne.u32 %pr7, %r0, 0;
            {moves}
            wgmma.fence.sync.aligned;
            {self.instruction(names("o", self.registers), a_operand)}
            wgmma.commit_group.sync.aligned;
            wgmma.wait_group.sync.aligned 0;"""
        return Matrices(body, outputs=self.registers, inputs=np.concatenate(inputs), shared=shared)

    def run(self, policy: Policy = LATE) -> tuple[np.ndarray, Outcome]:
        """D's codes [64, N], and the outcome."""
        outcome = self.kernel().run(policy)
        return self.matrix_of(outcome.registers), outcome

    def matrix_of(self, registers: np.ndarray) -> np.ndarray:
        """D's codes [64, N] of accumulator registers."""
        d = np.zeros((64, self.n), np.uint32)
        d[accumulator_places(self.n)] = matrix.unpack(registers, self.d_bits)
        return d
