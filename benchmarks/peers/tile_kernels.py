"""DeepSeek's TileKernels (TileLang): its kernels on the arguments of our benchmarks.

Where its public function prepares a weight or allocates what a server would keep, the kernels below it are called, with
buffers made once for the case. Its scale factors are its own; where they mean the same numbers they are checked so.
What it does not offer: norms, the gate's product, the cache and its compressor, the indexer's queries, the inverse
rotation, sampling.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from typing import Any, NamedTuple

from benchmarks.harness.operator import Call, Case, Inputs, Unavailable
from benchmarks.peers.prepared import once

SINKHORN_STEPS = 20
POST_FACTOR = 2.0
EPS = 1e-6


class Mapping(NamedTuple):
    """Routes on their way to rows of their experts, in any order: i32 [E + 1], [T, k] and [rows]."""

    offsets: Any
    route_row: Any
    row_token: Any


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


def moe_combine(case: Case) -> Call:
    """Its sum of rows by index. It knows no shared expert: that one's rows lie behind the routed ones, as a seventh."""
    import torch

    reduce, tokens = module("moe.reduce_fused_kernel").reduce_fused, int(case.sizes["T"])
    rows = once(lambda routed, shared: torch.cat((routed, shared)))

    def with_shared(index: Any) -> Any:
        last = torch.arange(tokens, device=index.device, dtype=index.dtype) + index.numel()
        return torch.cat((index, last[:, None]), dim=1)

    index = once(with_shared)
    return lambda s: reduce(rows(s["rows"], s["shared"]), None, index(s["index"]), out=s["out"])


def router_choose(case: Case, *, k: int, factor: float) -> Call:
    """Its gate with √softplus, without groups: (experts i64, weights)."""
    gate = module("moe.top2_sum_gate_kernel").top2_sum_gate
    ranks = {"ep_rank": 0, "num_ep_ranks": 1, "tp_rank": 0, "num_tp_ranks": 1}
    shared = {"use_shared_as_routed": False, "num_shared_experts": 0}
    options = {**ranks, **shared, "routed_scaling_factor": factor, "scoring_func": "sqrtsoftplus"}
    return lambda s: gate(s["logits"][0], s["bias"], k, 1, 1, **options)


def expert_offsets(case: Case, *, align: int, rows: int) -> Call:
    """Its mapping of routes to rows, not in the order of the routes: (offsets, route_row, row_token).

    The experts are i64 as it wants them, made before; it allocates its outputs.
    """
    import torch

    mapping, count = module("moe.get_fused_mapping_kernel").get_fused_mapping, int(case.sizes["E"])
    wide = once(lambda experts: experts.long())

    def call(s: Inputs) -> Any:
        experts = wide(s["experts"])
        _, row_token, _, route_row, start, end, _, _ = mapping(experts, count, rows, align)
        return Mapping(torch.cat((start, end[-1:])), route_row, row_token)

    return call


def cast_back(case: Case, *, block: int) -> Call:
    """Codes and scales by blocks of columns back as bf16; its scales are float32, made before."""
    back = module("quant.cast_back_kernel").per_token_cast_back
    wide = once(lambda scale: scale.float())
    return lambda s: back((s["codes"], wide(s["scale"])), "bf16", block)


def embed(case: Case) -> Call:
    """torch's gather, then its copy to the four streams."""
    import torch

    columns, tokens = int(case.sizes["d"]), int(case.sizes["T"])
    expand = module("mhc.expand_kernel").expand_to_mhc_fwd_tl(columns, 4)
    rows = torch.empty(tokens, columns, device="cuda", dtype=torch.bfloat16)

    def call(s: Inputs) -> Any:
        torch.index_select(s["table"], 0, s["tokens"], out=rows)
        expand(rows, s["streams"])
        return s["streams"]

    return call


def mhc_head(case: Case, norm: Any) -> Call:
    """Its projection (of 24 columns, of which 4 are wanted), gates and weighted sum, then ``norm`` of (h, weight).

    It wants the tokens of one sequence: [1, T, ...].
    """
    import torch

    head = module("modeling.mhc.functional").mhc_head

    def call(s: Inputs) -> Any:
        with torch.no_grad():
            h = head(s["streams"][None], s["fn"], s["scale"], s["base"], norm_eps=EPS, pre_eps=EPS, n_splits=1)
            return norm(h[0], s["norm_weight"])

    return call
