"""DeepSeek's TileKernels (TileLang): its kernels on the arguments of our benchmarks.

Where its public function prepares a weight or allocates what a server would keep, the kernels below it are called, with
buffers made once for the case. Its scale factors are its own; where they mean the same numbers they are checked so.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from typing import Any

from benchmarks.harness.operator import Call, Case, Inputs, Unavailable

SINKHORN_STEPS = 20
POST_FACTOR = 2.0
EPS = 1e-6


@functools.cache
def module(name: str) -> Any:
    """A module of the package. Raises ``Unavailable`` where it is not installed or does not import."""
    try:
        return importlib.import_module(f"tile_kernels.{name}")
    except Exception as error:  # a TileLang of another version fails in ways of its own
        raise Unavailable(f"tile_kernels is not installed ({type(error).__name__}: {error})") from None


def versions() -> dict[str, str]:
    found = {}
    for name in ("tile-kernels", "tilelang"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def mhc_post(case: Case) -> Call:
    """Its forward kernel of the post mix, into ``new_streams``."""
    kernel = module("mhc.post_kernel")._mhc_post_fwd(4, int(case.sizes["d"]))

    def call(s: Inputs) -> Any:
        kernel(s["comb"], s["streams"], s["post"], s["update"], s["new_streams"])
        return s["new_streams"]

    return call


def mhc_pre(case: Case, norm: Any = None) -> Call:
    """Its projection and its fused remainder, two launches; with ``norm`` that function of (u, weight) follows.

    The weights are rounded to TF32 once, as its kernel wants them. Gives (u or its norm, post, comb).
    """
    import torch

    columns, tokens = int(case.sizes["d"]), int(case.sizes["T"])
    rounding = module("mhc.norm_fn_kernel")
    project = rounding._mhc_pre_norm_fn_fwd_mul(24, 1, 4 * columns)
    fuse = module("mhc.pre_big_fuse_kernel")._mhc_pre_big_fuse(
        columns, EPS, EPS, EPS, POST_FACTOR, SINKHORN_STEPS, n_splits=1, mhc_mult=4
    )
    products = torch.empty(1, tokens, 24, device="cuda")
    squares = torch.empty(1, tokens, device="cuda")
    post, comb = torch.empty(tokens, 4, device="cuda"), torch.empty(tokens, 16, device="cuda")
    u = torch.empty(tokens, columns, device="cuda", dtype=torch.bfloat16)
    rounded: dict[int, torch.Tensor] = {}

    def call(s: Inputs) -> Any:
        fn = rounded.setdefault(s["fn"].data_ptr(), rounding.round_to_tf32(s["fn"]))
        project(s["streams"].view(tokens, -1), fn, products.view(tokens, 1, 24), squares.view(tokens, 1))
        fuse(products, squares, s["scale"], s["base"], s["streams"], post, comb, u)
        return (u if norm is None else norm(u, s["norm_weight"])), post, comb.view(tokens, 4, 4)

    return call


def per_token_cast(case: Case, *, block: int, name: str = "x") -> Call:
    """E4M3 by blocks of columns with powers of two as float32 scales: (codes, scales)."""
    cast = module("quant.per_token_cast_kernel").per_token_cast
    return lambda s: cast(s[name], "e4m3", block, round_sf=True)


def swiglu_quant(case: Case, *, limit: float) -> Call:
    """SwiGLU of ``gate_up`` [T, 2 I] with clamps, the row's weight and E4M3 by 128 columns: (codes, scales)."""
    import torch

    fused = module("quant.swiglu_forward_and_per_token_cast_kernel").swiglu_forward_and_per_token_cast
    rows = torch.arange(int(case.sizes["T"]), device="cuda", dtype=torch.int32)

    def call(s: Inputs) -> Any:
        weights = s["route_weight"].view(-1, 1)
        options = {"pos_to_token_topk": rows, "topk_weights": weights, "swiglu_clamp_value": limit}
        return fused(s["gate_up"], "e4m3", 128, round_sf=True, **options)

    return call
