"""A pool: the rows of one cache of one layer, in pages, as plain numbers or in a packed format.

A row is the key (and value) of one token, or one compressed entry. Operators find rows by their flat number,
page · P + offset. By convention the last row of a pool is scratch: it is never handed to a sequence, and the row number
−1, "none", writes there, because it counts from the end as any negative index does. A read of −1 gives zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

KV_WIDTH = 512
KV_CODES = 448
"""Dimensions of a packed row that are FP8 codes; the other 64 are rotary, in bf16."""
KV_BLOCK = 64
INDEX_WIDTH = 128
PAGE_ALIGN_BYTES = 576


class PoolFormat(Enum):
    """``PLAIN``: numbers. ``KV_FP8``: 584 bytes a row, FP8 with a scale for each 64 dimensions and 64 rotary bf16
    (dsv4-reference §4.4). ``INDEX_FP8``: 132 bytes, FP8 with one f32 scale. ``INDEX_FP4``: 68 bytes, MXFP4 (§6.5)."""

    PLAIN = "plain"
    KV_FP8 = "kv_fp8"
    INDEX_FP8 = "index_fp8"
    INDEX_FP4 = "index_fp4"


ROW_BYTES = {
    PoolFormat.KV_FP8: (KV_CODES + 2 * (KV_WIDTH - KV_CODES), 8),
    PoolFormat.INDEX_FP8: (INDEX_WIDTH, 4),
    PoolFormat.INDEX_FP4: (INDEX_WIDTH // 2, 4),
}
"""Of a packed row: the bytes in the first region of its page, and those in the second (its scales)."""


@dataclass(frozen=True)
class Pool:
    """``data`` is [pages, P, width] for ``PLAIN`` and u8 [pages, page_bytes] else, contiguous; ``page`` is P.

    A packed page holds the first regions of its P rows, one after another, then their scales; what is left of
    ``page_bytes`` is padding.
    """

    data: torch.Tensor
    format: PoolFormat
    page: int

    def __post_init__(self) -> None:
        if self.format is PoolFormat.PLAIN:
            fits = self.data.ndim == 3 and self.data.shape[1] == self.page and self.data.is_contiguous()
            valid = f"contiguous [pages, {self.page}, width]"
        else:
            least = self.page * sum(ROW_BYTES[self.format])
            fits = self.data.ndim == 2 and self.data.dtype == torch.uint8 and self.data.shape[1] >= least
            fits = fits and self.data.stride(1) == 1
            valid = f"uint8 [pages, {least} or more]"
        if not fits:
            found = f"{self.data.dtype} {list(self.data.shape)}"
            raise ValueError(f"pool {self.format.value}: data: found {found}; valid: {valid}")

    @classmethod
    def allocate(
        cls,
        rows: int,
        *,
        format: PoolFormat = PoolFormat.PLAIN,
        page: int = 64,
        width: int = KV_WIDTH,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> Pool:
        """A pool of zeros with at least ``rows`` rows beside the scratch row; ``width`` and ``dtype`` are of PLAIN."""
        pages = rows // page + 1
        if format is PoolFormat.PLAIN:
            return cls(torch.zeros(pages, page, width, dtype=dtype, device=device), format, page)
        return cls(torch.zeros(pages, page_bytes(format, page), dtype=torch.uint8, device=device), format, page)

    @property
    def rows(self) -> int:
        """Rows in all, the scratch row included."""
        return self.data.shape[0] * self.page

    @property
    def width(self) -> int:
        """Numbers in a row."""
        if self.format is PoolFormat.PLAIN:
            return self.data.shape[2]
        return KV_WIDTH if self.format is PoolFormat.KV_FP8 else INDEX_WIDTH

    @property
    def device(self) -> torch.device:
        return self.data.device


def page_bytes(format: PoolFormat, page: int) -> int:
    """Bytes of a packed page of ``page`` rows, rounded up to the alignment that its readers ask for (§4.4, §11.2)."""
    return -(-page * sum(ROW_BYTES[format]) // PAGE_ALIGN_BYTES) * PAGE_ALIGN_BYTES
