"""compressor: the compressed entries that a step completes, and the partial state that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import compressor as reference
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.pages import Fake

INPUTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def _check_values(op: str, values: dict[str, Any]) -> None:
    compression: Compression = values["compression"]
    tokens, state_rows = values["kv"].shape[0], values["state"].shape[0] - 1
    in_range(op, "compression.phase", compression.phase, 0, values["ape"].shape[0])
    in_range(op, "compression.fresh", compression.fresh, -1, tokens)
    in_range(op, "compression.stored", compression.stored, -1, state_rows)
    in_range(op, "compression.state_rows", compression.state_rows, -1, state_rows)
    in_range(op, "compression.entry_rows", compression.entry_rows, -1, values["pool"].rows - 1)


def _serves(
    kv: torch.Tensor,
    score: torch.Tensor,
    ape: torch.Tensor,
    norm: torch.Tensor,
    cos_sin: torch.Tensor,
    state: torch.Tensor,
    pool: Pool,
    compression: Compression,
    *,
    rotate_hadamard: bool,
    stage_dtype: torch.dtype | None,
    fake: Fake,
    dtype: torch.dtype,
    **_: object,
) -> Served | None:
    inputs = INPUTS.get(kv.dtype)
    stored = pool.format is not PoolFormat.PLAIN or are(torch.bfloat16, pool.data)
    if inputs is None or not are(kv.dtype, score) or not are(torch.bfloat16, norm) or not stored or fake != "none":
        return None
    if not are(torch.float32, ape, cos_sin, state) or stage_dtype is not None or dtype != torch.float32:
        return None
    variant = {"format": pool.format.value, "hadamard": rotate_hadamard, "inputs": inputs}
    sizes = {"T": kv.shape[0], "N": cos_sin.shape[0], "R": state.shape[0]}
    return Served({"m": ape.shape[0], "D": norm.shape[0]}, sizes, variant)


def _call(
    kernel: Callable[..., None],
    kv: torch.Tensor,
    score: torch.Tensor,
    ape: torch.Tensor,
    norm: torch.Tensor,
    cos_sin: torch.Tensor,
    state: torch.Tensor,
    pool: Pool,
    compression: Compression,
    *,
    eps: float,
    **_: object,
) -> None:
    plain = pool.data.view(-1, pool.width) if pool.format is PoolFormat.PLAIN else None
    kernel(
        kv,
        score,
        ape,
        norm,
        cos_sin,
        state,
        pool.data if plain is None else None,
        plain,
        compression.phase,
        compression.fresh,
        compression.stored,
        compression.entry_rows,
        compression.state_rows,
        pool.page,
        int(compression.apart),
        eps,
    )


_operator = Operator(
    "compressor",
    reference.compressor,
    "kv: float [T, c]",
    "score: float [T, c]",
    "ape: wide [m, c]",
    "norm: float [D]",
    "cos_sin: wide [N, r]",
    "state: wide [R, 2*c]",
    "pool: pool [D]",
    "compression: compression [T, N, s]",
    dynamic=("T", "N", "R"),
    check_values=_check_values,
    kernel=KernelPath(_serves, _call),
    mutates=("state", "pool"),
)


def compressor(
    kv: torch.Tensor,
    score: torch.Tensor,
    ape: torch.Tensor,
    norm: torch.Tensor,
    cos_sin: torch.Tensor,
    state: torch.Tensor,
    pool: Pool,
    compression: Compression,
    *,
    eps: float = 1e-6,
    rotate_hadamard: bool = False,
    stage_dtype: torch.dtype | None = None,
    fake: Fake = "none",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the completed entries into ``pool`` and the rows of the last tokens into ``state``.

    Args:
        kv, score: float [T, c], the products of wkv and wgate; c is D in HCA and 2·D in CSA.
        ape: [m, c], added to the score of a token by its position mod m. norm: [D].
        cos_sin: [N, r], ``rope_table`` of the entries' first positions.
        state: [R, 2·c], the partial state of all sequences, its last row scratch; written to.
        pool: rows of D numbers; written to.
        compression: which rows go where, see ``Compression``. Rows that ``state`` or ``pool`` has not, and tokens that
            this step has not, are found in debug mode only; a kernel reads or writes beside the tensors for them.
        rotate_hadamard: transform the entries (the indexer's keys).
        stage_dtype: rounded to after each step; ``None`` rounds once. fake: rounding before a plain pool.
        dtype: of the arithmetic.

    Raises ``ContractError``. dsv4-reference §5.
    """
    _operator(
        kv,
        score,
        ape,
        norm,
        cos_sin,
        state,
        pool,
        compression,
        eps=eps,
        rotate_hadamard=rotate_hadamard,
        stage_dtype=stage_dtype,
        fake=fake,
        dtype=dtype,
    )
