"""The kernels of the lessons: the right ones, and those with a mistake planted in their source."""

from __future__ import annotations

from tests.lessons.planting import Edits, Job

TILE_M, TILE_N = 64, 32
SMALL = {"tile_m": TILE_M, "tile_n": TILE_N, "consumer_warpgroups": 1, "ping_pong": False, "persistent_ctas": 0}
HEAD_DIMS = {
    64: SMALL,
    128: SMALL,
    256: SMALL | {"pv_n_tile": 256},
    512: SMALL | {"pv_n_tile": 256, "consumer_warpgroups": 2, "kv_stage": 1},
}
STAGE_COUNTS = (1, 2, 3)

PINNED_TILE: Edits = {
    "sm90_attention": ("source[None, tile], target[None, slot]", "source[None, 0], target[None, slot]")
}
PHASE_STAYS: Edits = {"sm90_ring": ("next_phase = phase ^ 1", "next_phase = phase")}
NO_RESCALE: Edits = {
    "sm90_attention": (
        "    if cutlass.const_expr(not tiling.rescale_under_qk):\n"
        "        softmax.scale_rows(sm90_wgmma.rows_of(acc_o), correction)\n"
        "    return next_slot, next_phase",
        "    return next_slot, next_phase",
    )
}
ONE_K_BLOCK: Edits = {
    "sm90_wgmma": (
        "in cutlass.range_constexpr(cute.size(a, mode=[2]))",
        "in cutlass.range_constexpr(cute.size(a, mode=[2]) if accumulate else 1)",
    )
}
ONE_MAXIMUM: Edits = {
    "softmax": (
        "    return cute.arch.fmax(top, cute.arch.shuffle_sync_bfly(top, offset=2))",
        "    for lanes in cutlass.range_constexpr(1, 5):\n"
        "        top = cute.arch.fmax(top, cute.arch.shuffle_sync_bfly(top, offset=1 << lanes))\n"
        "    return top",
    )
}
SINK_IN_LOGITS: Edits = {  # added to every real logit it cancels out: what is left is the missing column
    "softmax": ("denominator = total + cute.math.exp2(sink * LOG2_E - shift, fastmath=True)", "denominator = total")
}
TAKEN_BRANCH: Edits = {
    "source": (
        "    if cutlass.const_expr(pdl):\n        cute.arch.griddepcontrol_wait()",
        "    if cutlass.const_expr(not pdl):\n        cute.arch.griddepcontrol_wait()",
    )
}
O_ON_S: Edits = {"source": ("O_FIRST_COLUMNS = (64,)", "O_FIRST_COLUMNS = (0,)")}


def _sm90(edits: Edits | None = None, head_dim: int = 64, has_sink: bool = False, **config: int) -> Job:
    return Job(
        "fmha", "sm_90a", {"D": head_dim}, {"has_sink": has_sink}, {**HEAD_DIMS[head_dim], **config}, edits or {}
    )


def _sm100(edits: Edits | None = None) -> Job:
    return Job("fmha", "sm_100a", {"D": 64}, {}, {"q_tiles": 1, "tile_n": 64}, edits or {})


def _threads(mistake: str) -> Job:
    return Job(
        "fmha", config={"tile_m": 64}, module="tests.lessons.attention_by_threads", function="compile_attention",
        arguments=(mistake,),
    )  # fmt: skip


def _round_trip(columns: int, reload: str) -> Job:
    return Job(module="tests.lessons.tmem_round_trip", function="compile_round_trip", arguments=(columns, reload))


JOBS: dict[str, Job] = {
    "right": _sm90(),
    "right sink": _sm90(has_sink=True),
    "pinned tile": _sm90(PINNED_TILE),
    "no rescale": _sm90(NO_RESCALE),
    "one maximum": _sm90(ONE_MAXIMUM),
    "taken branch": _sm90(TAKEN_BRANCH),
    "sink in logits": _sm90(SINK_IN_LOGITS, has_sink=True),
    **{f"stages {n}": _sm90(kv_stage=n) for n in STAGE_COUNTS},
    **{f"phase stays {n}": _sm90(PHASE_STAYS, kv_stage=n) for n in STAGE_COUNTS},
    **{f"head {d}": _sm90(head_dim=d) for d in HEAD_DIMS},
    **{f"one block {d}": _sm90(ONE_K_BLOCK, head_dim=d) for d in HEAD_DIMS},
    "right sm_100a": _sm100(),
    "O on S": _sm100(O_ON_S),
    **{f"threads {m}": _threads(m) for m in ("none", "slices", "no lse", "sink in logits", "sink in segments")},
    **{f"round trip {n}": _round_trip(n, "same") for n in (32, 16)},
    "round trip, other atom": _round_trip(32, "other"),
}
