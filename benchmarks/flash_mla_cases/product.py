"""Which cases there are: the part of FlashMLA's tests that is DeepSeek-V4's (head dimension 512).

The axes and their values are those of ``test_flash_mla_sparse_decoding.py`` and ``test_flash_mla_sparse_prefill.py`` of
FlashMLA 9241ae3. Left out are the 576 columns of another model. Its tests run the cases of one of their loops twice,
with the same arguments; here each is there once. The 70,000 queries, whose result they do not look at, are checked.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

HEADS = (64, 128)


@dataclass(frozen=True)
class Scope:
    """One pool of keys: ``rows`` of a request (or what their mean is), ``topk`` indices a query, rows a page, and
    whether there are lengths."""

    rows: int
    topk: int
    page: int
    has_length: bool = False

    @property
    def label(self) -> str:
        return f"{self.rows}r{self.topk}k{self.page}p{'L' if self.has_length else ''}"


@dataclass(frozen=True)
class Decode:
    """One call of ``flash_mla_with_kvcache``.

    ``varies``: requests have different numbers of rows. ``is_empty``: every index is −1. ``has_zero``: half of the
    requests have no rows. ``has_sink``: a sink, of which a third is +∞ and a third −∞.
    """

    group: str
    batch: int
    queries: int
    heads: int
    scopes: tuple[Scope, ...]
    varies: bool = True
    is_empty: bool = False
    has_zero: bool = False
    has_sink: bool = True

    @property
    def label(self) -> str:
        flags = [("varies", self.varies), ("empty", self.is_empty), ("zero", self.has_zero), ("sink", self.has_sink)]
        words = [f"B{self.batch}", f"Q{self.queries}", f"H{self.heads}", "+".join(each.label for each in self.scopes)]
        return " ".join(["decode", *words, *(name for name, on in flags if on)])


@dataclass(frozen=True)
class Prefill:
    """One call of ``flash_mla_sparse_fwd``. ``is_empty``: some queries have no valid index."""

    group: str
    queries: int
    rows: int
    topk: int
    heads: int
    has_sink: bool = False
    has_length: bool = False
    is_empty: bool = False

    @property
    def label(self) -> str:
        flags = [("empty", self.is_empty), ("length", self.has_length), ("sink", self.has_sink)]
        words = [f"T{self.queries}", f"H{self.heads}", f"{self.rows}r{self.topk}k"]
        return " ".join(["prefill", *words, *(name for name, on in flags if on)])


Case = Decode | Prefill

DECODE_SHAPES = ((512, 64, (2, 64, 69)), (1024, 576, (2, 61)), (2046, 2048, (2, 64, 576)))
"""Rows of a request, top-k and the page sizes that go with them."""
CORNER_SHAPES = ((512, 64, (61,)), (650, 576, (53,)))
DECODE_BATCHES = (4, 74, 321)
ALSO_FIXED_BATCH = 74
"""Where there are no lengths, also with as many rows for every request."""


def decode_cases() -> Iterator[Decode]:
    """The product, the corners (every index −1, requests without rows, no sink) and the production shapes."""
    for heads in HEADS:
        for scopes in _scope_sets(DECODE_SHAPES):
            for batch, queries in itertools.product(DECODE_BATCHES, (1, 3)):
                for varies in _varies(batch, scopes):
                    yield Decode("decode product", batch, queries, heads, scopes, varies)
        for scopes in _scope_sets(CORNER_SHAPES):
            for batch in DECODE_BATCHES:
                for varies in _varies(batch, scopes):
                    for empty, zero, sink in itertools.product((True, False), repeat=3):
                        if empty or zero or sink:
                            yield Decode("decode corners", batch, 3, heads, scopes, varies, empty, zero, sink)
    window = Scope(16384, 128, 256)
    for heads, extra in (
        *((64, Scope(16384, 512, 64)), (128, Scope(16384, 1024, 64))),
        *((heads, Scope(16384, 1024, 2, has_length=True)) for heads in HEADS),
    ):
        for batch in (2, 64, 74, 128, 148, 256):
            yield Decode("decode production", batch, 2, heads, (window, extra))
    for heads in HEADS:
        yield Decode("decode production", 148, 2, heads, (Scope(32768, 16384, 64),))


def _scope_sets(shapes: tuple[tuple[int, int, tuple[int, ...]], ...]) -> Iterator[tuple[Scope, ...]]:
    """One pool, or any two, with and without lengths."""
    each = [(rows, topk, page) for rows, topk, pages in shapes for page in pages]
    for shape, has_length in itertools.product(each, (False, True)):
        yield (Scope(*shape, has_length),)
        for other, other_has_length in itertools.product(each, (False, True)):
            yield Scope(*shape, has_length), Scope(*other, other_has_length)


def _varies(batch: int, scopes: tuple[Scope, ...]) -> tuple[bool, ...]:
    fixed_too = batch == ALSO_FIXED_BATCH and not any(scope.has_length for scope in scopes)
    return (True, False) if fixed_too else (True,)


REGULAR_SHAPES = ((128, 128), (256, 256), (512, 512))
IRREGULAR_SHAPES = ((592, 128), (1840, 256), (1592, 384), (1521, 512), (95, 128), (153, 256), (114, 384))
"""Rows of keys and top-k; with more indices than rows the rest of them are no rows."""


def prefill_cases() -> Iterator[Prefill]:
    """Plain shapes, lengths and sinks, queries or blocks of keys without a valid index, the production shapes."""
    for heads in HEADS:
        for (rows, topk), queries in itertools.product(REGULAR_SHAPES + IRREGULAR_SHAPES, (1, 62, 213)):
            yield Prefill("prefill product", queries, rows, topk, heads)
        for (rows, topk), queries in itertools.product(IRREGULAR_SHAPES, (62, 213)):
            for sink, length in ((False, True), (True, False), (True, True)):
                yield Prefill("prefill product", queries, rows, topk, heads, sink, length)
        for queries, rows, topk in ((1, 128, 128), (1, 256, 256), (1234, 4321, 4096), (4096, 2048, 2048)):
            yield Prefill("prefill corners", queries, rows, topk, heads, True, True, is_empty=True)
        for (rows, topk), queries in itertools.product(((32, 2048), (64, 8192)), (1, 1024)):
            yield Prefill("prefill corners", queries, rows, topk, heads, True, True)
        yield Prefill("prefill corners", 70000, 256, 256, heads, True, True)
    for heads, topk in ((64, 512), (128, 1024)):
        for rows in (8192, 32768, 49152, 65536):
            yield Prefill("prefill production", 4096, rows, topk, heads, has_sink=True)


def all_cases() -> list[Case]:
    """Every case once, in an order (of a hash of its label) that makes any part of them a sample of the whole."""
    return sorted([*decode_cases(), *prefill_cases()], key=lambda case: (seed_of(case), case.label))


def seed_of(case: Case) -> int:
    """The seed of a case's numbers: a hash of its label, the same everywhere."""
    return zlib.crc32(case.label.encode())
