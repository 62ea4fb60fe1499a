"""The dated result file: everything that a table or a reader needs, in one JSON object."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.harness.aims import Reason, with_verdicts
from benchmarks.harness.controls import COPY_BYTES, DRIFT_MAX, PRODUCT_SIZE, Controls, ceilings, drift
from benchmarks.harness.machine import device_slug
from benchmarks.harness.operator import OperatorBenchmark
from benchmarks.harness.rounds import CaseResult

SCHEMA = 1
RESULTS = Path(__file__).parent.parent / "results"
METHOD = (
    "CUDA-graph replay between two events, many calls a graph, time divided by the calls (a graph node's own cost is "
    "contained; see ceilings.empty_node_us). cold: every call has its own inputs and at least 2x L2 is read before the "
    "replay, untimed. warm: one set of inputs. host: eager calls enqueued without waiting, host time. Peers take "
    f"turns, the order reversed every other round. Controls: {COPY_BYTES >> 20} MB copy (read + written), "
    f"{PRODUCT_SIZE}^3 bf16 product; the run is void where their readings differ by more than {100 * DRIFT_MAX:.0f} %."
)


def assemble(
    bench: OperatorBenchmark,
    results: Sequence[CaseResult],
    readings: Sequence[Controls],
    descriptions: Mapping[str, Mapping[str, Any]],
    *,
    rounds: int,
    isolated: bool,
    commit: str | None,
    when: datetime | None = None,
    left: Sequence[str] = (),
    reasons: Mapping[str, Sequence[Reason]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The result object, each row judged. ``descriptions``: peer → what its session says of its machine and versions.

    ``left``: labels of the cases for which there was no time. ``reasons``: why rows fall short (see aims.py).
    """
    known = {peer.name: peer for peer in bench.peers()}
    top = ceilings(readings)
    versions: dict[str, str] = {}
    for description in descriptions.values():
        versions.update(description["versions"])
    result = {
        "schema": SCHEMA,
        "op": bench.op,
        "date": (when or datetime.now(UTC)).isoformat(timespec="seconds"),
        "commit": commit,
        "device": next(iter(descriptions.values()))["device"],
        "versions": versions,
        "method": METHOD,
        "isolated": isolated,
        "rounds": rounds,
        "ours": bench.ours,
        "peers": {name: known[name].about for name in descriptions},
        "shown": [name for name in descriptions if known[name].shown],
        "ceilings": top.as_dict(),
        "controls": [reading.as_dict() for reading in readings],
        "void": drift(readings),
        "left": list(left),
        "cases": [_case(bench, each, top) for each in results],
    }
    return with_verdicts(result, reasons)


def _case(bench: OperatorBenchmark, result: CaseResult, top: Controls) -> dict[str, Any]:
    work = bench.work(result.case)
    peers: dict[str, Any] = {}
    for name, opened in result.opened.items():
        if opened.skipped:
            peers[name] = {"skipped": opened.skipped}
            continue
        modes = result.summaries[name]
        peers[name] = {
            **{mode: summary.as_dict() for mode, summary in modes.items()},
            "errors": opened.errors,
            "achieved": {
                mode: _achieved(work.bytes, work.flops, modes[mode].median_us, top) for mode in ("cold", "warm")
            },
            "ours_over_this": {
                mode: round(result.summaries[bench.ours][mode].median_us / summary.median_us, 4)
                for mode, summary in modes.items()
                if bench.ours in result.summaries
            },
        }
    return {
        "label": result.case.label,
        "sizes": dict(result.case.sizes),
        "seed": result.seed,
        "work": {"bytes": work.bytes, "flops": work.flops},
        "peers": peers,
    }


def _achieved(moved_bytes: int, flops: int, median_us: float, top: Controls) -> dict[str, float]:
    gb_s, tflops = moved_bytes / median_us / 1e3, flops / median_us / 1e6
    return {
        "gb_s": round(gb_s, 2),
        "of_copy": round(gb_s / top.copy_gb_s, 4),
        "tflops": round(tflops, 3),
        "of_product": round(tflops / top.product_tflops, 4),
    }


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """Write ``<date>_<device>_<op>.json``, whole or not at all; a second run on a day gets ``-2``, ``-3`` …"""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['date'][:10]}_{device_slug(result['device']['name'])}_{result['op']}"
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    replace_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return path


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read(path: Path) -> dict[str, Any]:
    """A result file of this schema; ``ValueError`` in one line where it is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no JSON ({error}); valid: a result file") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        found = result.get("schema") if isinstance(result, dict) else type(result).__name__
        raise ValueError(f"{path}: schema: found {found!r}; valid: {SCHEMA}")
    return result
