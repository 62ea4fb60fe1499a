"""What each row of a bandwidth-bound operator is measured against, and which rows fall short of it.

Judged is the default form, the one that ``ours`` names; where the form with programmatic dependent launch meets the
aim, the entry says so. Aims, all from the same run:

* ``peer``: no peer is faster, cold or warm;
* ``bandwidth``: from 64 MB moved, at least 90 % of the copy bandwidth with a cold L2, bytes counted once;
* ``latency``: up to 64 tokens, operators of one pass take no longer, warm, than an empty graph node and 1.2 µs (rows
  of up to 4,096 elements) or 1.6 µs;
* ``weights``: up to 64 tokens, operators that read weights take, warm, no longer than 1.4 times a kernel that only
  reads the same bytes (the peer of :mod:`benchmarks.peers.read_only`).

A peer that is faster by less than the spread of the two is a tie, which the entry says instead of a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from benchmarks.harness.summary import took_part

Aim = Literal["peer", "bandwidth", "latency", "weights"]
REASONS = Path(__file__).parent.parent / "shortfalls.yaml"
READ_ONLY = "read weights"
ONE_PASS = frozenset({
    "compressor", "dequantize", "embed", "indexer_q", "inverse_rope_quant", "mhc_post",
    "moe_combine", "q_norm_rope_kv_insert", "quantize", "rms_norm", "rms_norm_quant", "router_choose", "swiglu_quant",
})  # fmt: skip
READS_WEIGHTS = frozenset({"mhc_head", "mhc_post_pre", "mhc_pre", "router", "router_hash"})
OTHERS = frozenset({"attention_combine", "expert_offsets", "sample"})
"""Operators of several rounds over their data, for which there is no latency to compare with but the peers'."""
JUDGED = ONE_PASS | READS_WEIGHTS | OTHERS
FEW_TOKENS = 64
BANDWIDTH_BYTES = 64e6
OF_COPY_LEAST = 0.9
LATENCY_US = {4096: 1.2, 1 << 30: 1.6}
"""Largest row length in elements → µs over an empty node."""
OVER_READING = 1.4
TIE = "a tie: the times from the 10th to the 90th percentile overlap"


class Reason(BaseModel):
    """Why rows of an operator fall short: ``cases`` is a regular expression for their labels, ``profiled`` when."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cases: str
    aim: Aim
    reason: str
    profiled: str


@dataclass(frozen=True)
class Shortfall:
    """One aim that one row missed. ``found`` and ``wanted`` in ``unit``; ``with_pdl`` as ``found``, or ``None``.

    ``met_with_pdl``: whether our form with programmatic dependent launch meets the aim. ``reason``: empty if unknown.
    """

    aim: Aim
    mode: str
    found: float
    wanted: float
    unit: str
    with_pdl: float | None
    met_with_pdl: bool
    against: str
    reason: str


def read_reasons(path: Path = REASONS) -> dict[str, list[Reason]]:
    """Operator → reasons, in the file's order. Raises ``ValueError`` in one line where the file is not of this form."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        reasons = TypeAdapter(dict[str, list[Reason]]).validate_python(loaded)
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from None
    for op in reasons:
        if op not in JUDGED:
            raise ValueError(f"{path.name}: found operator {op!r}; valid: {', '.join(sorted(JUDGED))}")
    return reasons


def judge(result: Mapping[str, Any], reasons: Mapping[str, Sequence[Reason]]) -> dict[str, list[dict[str, Any]]]:
    """Label → what the row misses, as a result file holds it; rows of judged operators that miss something."""
    if result["op"] not in JUDGED:
        return {}
    found = {}
    for case in result["cases"]:
        missed = [asdict(each) for each in _case(result, case, reasons.get(result["op"], ()))]
        if missed:
            found[case["label"]] = missed
    return found


def with_verdicts(result: Mapping[str, Any], reasons: Mapping[str, Sequence[Reason]]) -> dict[str, Any]:
    """``result`` with a list ``short`` in each row of a judged operator, empty where the row meets its aims."""
    if result["op"] not in JUDGED:
        return dict(result)
    missed = judge(result, reasons)
    return {**result, "cases": [{**case, "short": missed.get(case["label"], [])} for case in result["cases"]]}


def _case(result: Mapping[str, Any], case: Mapping[str, Any], reasons: Sequence[Reason]) -> Iterable[Shortfall]:
    timed, others = took_part(result, case)
    ours = timed.get(result["ours"])
    if ours is None:
        return
    pdl = timed.get(f"{result['ours']} pdl")

    def short(aim: Aim, mode: str, unit: str, wanted: float, value: Any, against: str, least: bool = False) -> Any:
        found, other = value(ours), value(pdl) if pdl else None
        sign = -1 if least else 1
        if sign * found <= sign * wanted:
            return []
        met = other is not None and sign * other <= sign * wanted
        rounded = [None if number is None else round(number, 4) for number in (found, wanted, other)]
        why = next((each.reason for each in reasons if each.aim == aim and re.search(each.cases, case["label"])), "")
        return [Shortfall(aim, mode, rounded[0], rounded[1], unit, rounded[2], met, against, why)]  # type: ignore[arg-type]

    for mode in ("cold", "warm"):
        if others:
            best = min(others, key=lambda name: timed[name][mode]["median_us"])
            wanted = timed[best][mode]["median_us"]
            for each in short("peer", mode, "µs", wanted, lambda peer: peer[mode]["median_us"], best):  # noqa: B023
                yield replace(each, reason=TIE) if ours[mode]["p10_us"] <= timed[best][mode]["p90_us"] else each
    if case["work"]["bytes"] >= BANDWIDTH_BYTES:
        yield from short(
            "bandwidth", "cold", "of copy", OF_COPY_LEAST, lambda peer: peer["achieved"]["cold"]["of_copy"],
            "copy", least=True,
        )  # fmt: skip
    tokens = case["sizes"].get("T", 0)
    if not 0 < tokens <= FEW_TOKENS:
        return
    if result["op"] in ONE_PASS:
        columns = next((case["sizes"][name] for name in ("d", "K", "I") if name in case["sizes"]), max(LATENCY_US))
        over_us = next(over for most, over in LATENCY_US.items() if columns <= most)
        wanted = result["ceilings"]["empty_node_us"] + over_us
        yield from short("latency", "warm", "µs", wanted, lambda peer: peer["warm"]["median_us"], "empty node")
    elif READ_ONLY in timed:
        wanted = OVER_READING * timed[READ_ONLY]["warm"]["median_us"]
        yield from short("weights", "warm", "µs", wanted, lambda peer: peer["warm"]["median_us"], READ_ONLY)
