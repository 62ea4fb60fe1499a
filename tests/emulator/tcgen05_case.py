"""One tcgen05.mma with random operands: its kernel, and what tensor memory must hold afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dsv4.emulator.oracle import tcgen05 as oracle
from dsv4.emulator.policy import Policy
from tests.emulator.tcgen05_kernel import IMAGE_ADDRESS, LANES, LATE, Kernel, Outcome, commit

SCALE_COLUMNS = 8  # of each scale operand: up to 256 rows


def random_codes(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Codes of finite numbers, every binade of the narrow types included."""
    if name in ("f16", "bf16", "tf32"):
        numbers = rng.standard_normal(shape).astype(np.float32) * np.exp2(rng.integers(-6, 7, shape)).astype(np.float32)
        if name == "f16":
            return numbers.astype(np.float16).view(np.uint16).astype(np.uint32)
        bits: np.ndarray = numbers.view(np.uint32)
        return bits >> 16 if name == "bf16" else bits
    values = oracle.values_of(name)
    return rng.choice(np.flatnonzero(np.isfinite(values)), shape).astype(np.uint32)


def dense_tile(
    start: int, mn: int, k: int, bits: int, *, swizzle: int, mn_major: bool, wide: bool = False, padded: bool = False
) -> tuple[oracle.Tile, int]:
    """The tile without gaps at a shared address, and the bytes that it takes (a multiple of 1024)."""
    spread = 8 if padded else bits
    unit, row_bytes = 128 // spread, max(swizzle, 16)
    if mn_major:
        rows = 4 if wide else 8
        block = rows * row_bytes
        blocks = -(-mn // (unit * row_bytes // 16)), -(-k // rows)
        leading, stride = (block * blocks[1], block) if swizzle else (block * blocks[0], block)
        size = block * blocks[0] * blocks[1]
    else:
        units = -(-k // unit)
        leading, stride = (16 * mn, 128) if not swizzle else (16, 8 * row_bytes)
        size = mn * 16 * units if not swizzle else -(-mn // 8) * stride
    return oracle.Tile(start, leading, stride, swizzle, mn_major, wide, padded), -(-size // 1024) * 1024


@dataclass
class Case:
    """Types and shape of an MMA; `swizzle` (bytes) and `mn_major` are of A and of B."""

    kind: str
    a: str
    b: str
    d: str = "f32"
    m: int = 128
    n: int = 64
    group: int = 1
    swizzle: tuple[int, int] = (128, 128)
    mn_major: tuple[bool, bool] = (False, False)
    negate: tuple[bool, bool] = (False, False)
    a_in_tmem: bool = False
    accumulate: bool = True
    first_lane: int = 0
    advance: int = 0  # bytes by which the start addresses of K-major operands lie behind the swizzle atom's start
    scale_d: int = 0
    disabled: tuple[int, ...] = ()
    saturate: bool = False
    block: int = 0  # elements of K that share a scale factor
    scale: str = "ue8m0"
    scale_ids: tuple[int, int] = (0, 0)
    scale_vector: str = ""  # the suffix of the opcode
    seed: int = 0
    small: bool = False  # small integers, so that every sum is exact
    codes: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Draws the operands."""
        rng = np.random.default_rng(self.seed)
        k = oracle.KINDS[self.kind]
        for name, kind, shape in (("a", self.a, (self.m, k)), ("b", self.b, (self.n, k))):
            self.codes.setdefault(name, random_codes(rng, kind, shape))
        if self.d == "s32":
            d = rng.integers(-(1 << 31), 1 << 31, (self.m, self.n), dtype=np.int64).astype(np.int32).view(np.uint32)
        elif self.d == "f16":
            d = rng.standard_normal((self.m, self.n)).astype(np.float16).view(np.uint16).astype(np.uint32)
        else:
            d = (8 * rng.standard_normal((self.m, self.n))).astype(np.float32).view(np.uint32)
        self.codes.setdefault("d", d)
        if self.block:
            finite = np.arange(120, 135) if self.scale == "ue8m0" else np.arange(8, 100)
            for name, rows in (("sfa", self.m), ("sfb", self.n)):
                self.codes.setdefault(name, rng.choice(finite, (rows, k // self.block)).astype(np.uint32))

    # ------------------------------------------------------------------------------------------------- operands

    @property
    def k(self) -> int:
        """K of the instruction."""
        return oracle.KINDS[self.kind]

    @property
    def folded(self) -> bool:
        """Data path layout B."""
        return self.group == 2 and self.m == 128

    def is_padded(self, name: str) -> bool:
        """Sixteen sub-byte elements in 16 bytes."""
        return self.kind in ("f8f6f4", "mxf8f6f4") and oracle.element_bits(name) < 8

    def tiles(self) -> tuple[oracle.Tile, oracle.Tile, int]:
        """A and B of a CTA in shared memory, and the bytes of both."""
        at, tiles = IMAGE_ADDRESS, []
        for operand, name, mn in ((0, self.a, self.m // self.group), (1, self.b, self.n // self.group)):
            tile, size = dense_tile(
                at,
                mn,
                self.k,
                oracle.element_bits(name),
                swizzle=self.swizzle[operand],
                mn_major=self.mn_major[operand],
                wide=self.mn_major[operand] and self.kind == "tf32",
                padded=self.is_padded(name),
            )
            if self.advance and not self.mn_major[operand]:
                tile = oracle.Tile(at + self.advance, tile.leading, tile.stride, tile.swizzle, padded=tile.padded)
            tiles.append(tile)
            at += size
        return tiles[0], tiles[1], at - IMAGE_ADDRESS

    def image(self) -> np.ndarray:
        """Shared memory of each CTA; unused bytes are random."""
        a, b, size = self.tiles()
        image = np.random.default_rng(self.seed + 1).integers(0, 256, (self.group, size), dtype=np.uint8)
        for cta in range(self.group):
            rows, columns = self.m // self.group, self.n // self.group
            if not self.a_in_tmem:
                codes = self.codes["a"][cta * rows : (cta + 1) * rows]
                a.write(image[cta], codes, oracle.element_bits(self.a), base=IMAGE_ADDRESS)
            codes = self.codes["b"][cta * columns : (cta + 1) * columns]
            b.write(image[cta], codes, oracle.element_bits(self.b), base=IMAGE_ADDRESS)
        return image

    # ------------------------------------------------------------------------------------------- tensor memory

    @property
    def layout(self) -> dict[str, int]:
        """First column of D, of A, of the scale factors of A and of B; then the number of columns."""
        d = self.n // 2 if self.folded else self.n
        a = -(-d // 8) * 8
        sfa = a + 8 * self.a_in_tmem
        sfb = sfa + SCALE_COLUMNS * bool(self.block)
        end = sfb + SCALE_COLUMNS * bool(self.block)
        return {"d": 0, "a": a, "sfa": sfa, "sfb": sfb, "end": max(32, 1 << (end - 1).bit_length())}

    def a_words(self) -> np.ndarray:
        """A in tensor memory, [row, word of K]."""
        codes, bits = self.codes["a"].astype(np.uint64), oracle.element_bits(self.a)
        if self.is_padded(self.a):
            codes, bits = codes << np.uint64(2 if bits == 4 else 0), 8
        per_word = 32 // bits
        parts = codes.reshape(self.m, -1, per_word) << (np.arange(per_word, dtype=np.uint64) * np.uint64(bits))
        return parts.sum(axis=2).astype(np.uint32)

    def scale_words(self, name: str, scale_id: int) -> np.ndarray:
        """Words with the scale factors of each row from byte `scale_id` on; the other bytes are random."""
        codes = self.codes[name]
        raw = np.random.default_rng(self.seed + 2).integers(0, 256, (len(codes), 4)).astype(np.uint32)
        raw[:, scale_id : scale_id + codes.shape[1]] = codes
        return (raw << np.arange(0, 32, 8, dtype=np.uint32)).sum(axis=1).astype(np.uint32)

    def before(self) -> np.ndarray:
        """Tensor memory of each CTA before the MMA; what no operand uses is random."""
        at, rng = self.layout, np.random.default_rng(self.seed + 3)
        memory = rng.integers(0, 1 << 32, (self.group, LANES, at["end"]), dtype=np.uint32)
        d = oracle.d_places(self.m, self.n, self.group, self.first_lane)
        memory[d.cta, d.lane, d.column + at["d"]] = self.codes["d"]
        if self.a_in_tmem:
            words = self.a_words()
            for places in oracle.a_places(self.m, words.shape[1], self.group, self.first_lane):
                memory[places.cta, places.lane, places.column + at["a"]] = words
        if self.block:
            rows = self.m // self.group
            for cta in range(self.group):
                words = self.scale_words("sfa", self.scale_ids[0])[cta * rows : (cta + 1) * rows]
                for index, lane, column in oracle.scale_places(rows):
                    memory[cta, lane, column + at["sfa"]] = words[index]
                words = self.scale_words("sfb", self.scale_ids[1])
                for index, lane, column in oracle.scale_places(self.n, folded=self.folded):
                    memory[cta, lane, column + at["sfb"]] = words[index]
        return memory

    def expected(self) -> np.ndarray:
        """Tensor memory after it."""
        memory = self.before()
        places = oracle.d_places(self.m, self.n, self.group, self.first_lane)
        result = self.result()
        for row in range(self.m):
            for column in range(self.n):
                cta, lane = places.cta[row, column], places.lane[row, column]
                words = self.disabled[4 * cta : 4 * cta + 4]
                if not (words and words[lane // 32] >> (lane % 32) & 1):
                    memory[cta, lane, places.column[row, column]] = result[row, column]
        return memory

    def result(self) -> np.ndarray:
        """D as words: one rounding of the sum in float64."""
        a, b = oracle.numbers(self.codes["a"], self.a), oracle.numbers(self.codes["b"], self.b)
        if self.block:
            a = a * np.repeat(oracle.values_of(self.scale)[self.codes["sfa"]], self.block, axis=1)
            b = b * np.repeat(oracle.values_of(self.scale)[self.codes["sfb"]], self.block, axis=1)
        total = (-1.0 if self.negate[0] != self.negate[1] else 1.0) * np.einsum("mk,nk->mn", a, b)
        d = self.codes["d"]
        if self.accumulate:
            old = {"f32": d.view(np.float32), "f16": d.astype(np.uint16).view(np.float16), "s32": d.view(np.int32)}
            total = total + old[self.d].astype(np.float64) * 2.0**-self.scale_d
        if self.d == "s32":
            whole = total.astype(np.int64)
            return (np.clip(whole, -(1 << 31), (1 << 31) - 1) if self.saturate else whole).astype(np.uint32)
        if self.d == "f16":
            with np.errstate(over="ignore"):
                return total.astype(np.float16).view(np.uint16).astype(np.uint32)
        with np.errstate(over="ignore"):
            return total.astype(np.float32).view(np.uint32)

    # --------------------------------------------------------------------------------------------------- kernel

    def opcode(self) -> str:
        """The instruction's name."""
        scaled = f".block_scale{self.scale_vector}" if self.block else ""
        return f"tcgen05.mma.cta_group::{self.group}.kind::{self.kind}{scaled}"

    def statement(self, *, d_column: int = 0, accumulate: bool | None = None) -> str:
        """Issues the MMA in the leader."""
        a, b, _ = self.tiles()
        at = self.layout
        idesc = oracle.instruction_descriptor(
            self.kind,
            self.a,
            self.b,
            self.d,
            self.m,
            self.n,
            mn_major=self.mn_major,
            negate=self.negate,
            saturate=self.saturate,
            scale=self.scale,
            scale_ids=self.scale_ids,
        )
        operands = [f"[%r0+{d_column}]" if d_column else "[%r0]", "[%r1]" if self.a_in_tmem else "%d0", "%d1", "%r2"]
        if self.block:
            operands += ["[%r3]", "[%r4]"]
        lanes = "".join(f"mov.u32 %r{5 + n}, {word};\n" for n, word in enumerate(self.disabled))
        if self.disabled:
            operands.append("{" + ", ".join(f"%r{5 + n}" for n in range(len(self.disabled))) + "}")
        operands.append("%p1")
        if self.scale_d:
            operands.append(str(self.scale_d))
        enable = self.accumulate if accumulate is None else accumulate
        return f"""
            add.u32 %r0, %tmem, {at["d"] + (self.first_lane << 16)};
            add.u32 %r1, %tmem, {at["a"] + (self.first_lane << 16)};
            mov.u64 %d0, {a.descriptor()}; mov.u64 %d1, {b.descriptor()}; mov.u32 %r2, {idesc};
            add.u32 %r3, %tmem, {at["sfa"]}; add.u32 %r4, %tmem, {at["sfb"]};
            or.b32 %r3, %r3, {self.scale_ids[0] << 30}; or.b32 %r4, %r4, {self.scale_ids[1] << 30};
            {lanes}
            setp.eq.u32 %p1, 0, {0 if enable else 1};
            @%leader {self.opcode()} {", ".join(operands)};
        """

    def kernel(self) -> Kernel:
        """Operands into their memories, the MMA, a commit to all CTAs."""
        mask = 3 if self.group == 2 else 0
        body = self.statement() + commit(self.group, mask)
        return Kernel(body, columns=self.layout["end"], ctas=self.group, image=self.image(), before=self.before())

    def check(self, policy: Policy = LATE) -> Outcome:
        """Runs it and compares all of tensor memory."""
        outcome = self.kernel().run(policy)
        assert [(found.kind, found.message) for found in outcome.findings] == []
        assert not outcome.poison.any()
        np.testing.assert_array_equal(outcome.tmem, self.expected())
        return outcome
