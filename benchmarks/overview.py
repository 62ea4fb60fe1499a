"""Every operator in one table and one picture: how many times as long the fastest peer of each row takes.

``readme_tables`` writes both: the table where a file has ``<!-- overview -->``, the picture beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.aims import BANDWIDTH_BYTES
from benchmarks.harness.summary import took_part
from dsv4.tuner.charts import Scale, Svg

GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("sparse_attention_decode", "sparse_attention_prefill", "fmha", "fmha_varlen", "attention_combine"),
    "hyper-connections": ("embed", "mhc_pre", "mhc_post", "mhc_post_pre", "mhc_head"),
    "norms, caches, queries": (
        "rms_norm", "rms_norm_quant", "q_norm_rope_kv_insert", "compressor", "indexer_q", "inverse_rope_quant",
    ),
    "experts": ("router", "router_hash", "router_choose", "expert_offsets", "swiglu_quant", "moe_combine"),
    "conversions, sampling": ("quantize", "dequantize", "sample"),
}  # fmt: skip
LEFT, RIGHT, ROW, TOP = 190, 60, 18, 34
STYLE = """
svg { background: #ffffff; font: 12px system-ui, sans-serif }
text { fill: #24292f } .name { font-weight: 600 } .tick { fill: #57606a; font-size: 11px }
.grid { stroke: #d8dee4 } .even { stroke: #24292f } .row { fill: #0969da; opacity: .35 }
.behind { fill: #cf222e; opacity: .55 } .mean { fill: #0969da; stroke: #ffffff }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117 } text { fill: #e6edf3 } .tick { fill: #8b949e } .grid { stroke: #30363d }
  .even { stroke: #e6edf3 } .row, .mean { fill: #58a6ff } .behind { fill: #f85149 } .mean { stroke: #0d1117 }
}
"""


@dataclass(frozen=True)
class Standing:
    """One operator in one result. ``ratios``: row → the fastest peer's time over ours, cold and warm.

    ``of_copy``: shares of the measured copy bandwidth, cold, of the rows that move 64 MB or more.
    """

    op: str
    name: str
    device: str
    peers: tuple[str, ...]
    ratios: Mapping[str, tuple[float, float]]
    of_copy: tuple[float, ...]

    def mean(self, mode: int) -> float:
        return statistics.geometric_mean(pair[mode] for pair in self.ratios.values())

    def worst(self) -> tuple[str, float]:
        """The row in which ours does worst beside its fastest peer, by the lower of its two ratios."""
        return min(((label, min(pair)) for label, pair in self.ratios.items()), key=lambda each: each[1])


def standing(name: str, result: Mapping[str, Any]) -> Standing | None:
    """``None`` for an operator without a peer in any row: there is nothing that it could be beside."""
    ratios, of_copy, peers = {}, [], set()
    for case in result["cases"]:
        timed, others = took_part(result, case)
        ours = timed.get(result["ours"])
        if ours is None:
            continue
        if case["work"]["bytes"] >= BANDWIDTH_BYTES:
            of_copy.append(ours["achieved"]["cold"]["of_copy"])
        if others:
            peers.update(others)
            best = [min(timed[peer][mode]["median_us"] for peer in others) for mode in ("cold", "warm")]
            ratios[case["label"]] = (best[0] / ours["cold"]["median_us"], best[1] / ours["warm"]["median_us"])
    if not ratios:
        return None
    return Standing(result["op"], name, result["device"]["name"], tuple(sorted(peers)), ratios, tuple(of_copy))


def table(standings: Sequence[Standing]) -> str:
    """A line an operator, in the order of :data:`GROUPS`."""
    lines = [
        "| operator | rows | peers | geometric mean, cold / warm | the worst row | of copy, from 64 MB |",
        "| --- | ---: | --- | ---: | --- | ---: |",
    ]
    for each in in_order(standings):
        label, ratio = each.worst()
        copy = f"{100 * min(each.of_copy):.0f} to {100 * max(each.of_copy):.0f} %" if each.of_copy else "–"
        lines.append(
            f"| [{each.op}](benchmarks/results/{each.name}) | {len(each.ratios)} | {', '.join(each.peers)} | "
            f"{each.mean(0):.2f}× / {each.mean(1):.2f}× | {label}: {ratio:.2f}× | {copy} |"
        )
    devices = ", ".join(sorted({each.device for each in standings}))
    lines += ["", f"The fastest peer's time over ours, each row with its own fastest. {devices}."]
    return "\n".join(lines) + "\n"


def in_order(standings: Iterable[Standing]) -> list[Standing]:
    places = {op: place for place, op in enumerate(op for ops in GROUPS.values() for op in ops)}
    return sorted(standings, key=lambda each: (places[each.op], each.device))


def picture(standings: Sequence[Standing]) -> str:
    """An SVG: a line an operator, a dot each row (cold), the geometric mean as a large one."""
    ordered = in_order(standings)
    groups = [(name, [each for each in ordered if each.op in ops]) for name, ops in GROUPS.items()]
    height = TOP + sum(ROW * (len(members) + 1.4) for _, members in groups if members) + 24
    svg = Svg("The fastest peer's time over ours", width=760, height=round(height))
    values = [pair[0] for each in ordered for pair in each.ratios.values()]
    low, high = min(0.7, *values), max(2.0, *values)
    x = Scale(low / 1.08, high * 1.08, LEFT, svg.width - RIGHT, log=True)
    svg.text(LEFT, 16, "the fastest peer's time over ours, L2 cold (right of 1: ours is faster)", "tick")
    for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20):
        if x.low <= tick <= x.high:
            svg.line(x(tick), TOP, x(tick), svg.height - 24, "even" if tick == 1 else "grid")
            svg.text(x(tick), svg.height - 8, f"{tick:g}×", "tick", "middle")
    y = float(TOP)
    for name, members in groups:
        if not members:
            continue
        y += ROW
        svg.text(8, y, name, "name")
        for each in members:
            y += ROW
            svg.text(LEFT - 10, y + 4, each.op, anchor="end")
            for label, (cold, warm) in each.ratios.items():
                hint = f"{each.op}, {label}: {cold:.2f}× cold, {warm:.2f}× warm"
                svg.dot(x(cold), y, "row" if cold >= 1 else "behind", hint, radius=2.6)
            mean = each.mean(0)
            svg.dot(x(mean), y, "mean", f"{each.op}: geometric mean {mean:.2f}×", radius=5)
            svg.text(svg.width - RIGHT + 10, y + 4, f"{mean:.2f}×")
        y += 0.4 * ROW
    drawn = str(svg.markup()).replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{svg.width}" ', 1)
    return drawn.replace(">", f"><style>{STYLE}</style>", 1) + "\n"
