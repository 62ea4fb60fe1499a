"""A kernel that reads some bytes and does nothing with them: what reading an operator's weights costs by itself.

It is the yardstick of the aim ``weights`` in :mod:`benchmarks.harness.aims`, not a peer: its result is not checked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from benchmarks.harness.aims import READ_ONLY
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable

if TYPE_CHECKING:
    import torch

PROGRAMS = 264
"""Two a multiprocessor of an H100."""


@cache
def _kernel() -> Any:
    if importlib.util.find_spec("triton") is None:
        raise Unavailable("triton is not installed")
    import triton  # type: ignore[import-not-found]
    import triton.language as tl  # type: ignore[import-not-found]

    @triton.jit
    def read(words, sums, count, block: tl.constexpr):  # annotations are names to triton
        at = tl.program_id(0) * block + tl.arange(0, block)
        tl.store(sums + tl.program_id(0), tl.sum(tl.load(words + at, mask=at < count, other=0), 0))

    return read


def read_only(weights: Callable[[Inputs], torch.Tensor]) -> Peer:
    """The peer that reads the tensor which ``weights`` picks from the inputs: contiguous, a multiple of 4 bytes."""

    def prepare(case: Case) -> Call:
        import torch

        kernel = _kernel()
        sums = torch.empty(PROGRAMS, dtype=torch.int32, device="cuda")

        def call(s: Inputs) -> Any:
            words = weights(s).view(-1).view(torch.int32)
            block = 1 << (-(-words.numel() // PROGRAMS) - 1).bit_length()
            kernel[(-(-words.numel() // block),)](words, sums, words.numel(), block=block, num_warps=8)

        return call

    return Peer(READ_ONLY, prepare, "a kernel that only reads the weights", shown=False, checked=False)
