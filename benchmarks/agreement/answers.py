"""The GPU's answers in small: what tests hold the emulator to without a GPU and without the collected arrays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement.collect import META, read_volumes
from benchmarks.agreement.families import all_probes, wgmma_sums
from benchmarks.agreement.probe import Probe
from benchmarks.agreement.products import Operands
from benchmarks.agreement.warpgroups import Wgmma

SUMS_OF_A_TYPE = 18
SUMS_STYLES = ("normal, C normal", "normal, C large", "spread 6, C spread", "wide, C wide", "cancelling, C normal")


def digest(probe: Probe, out: np.ndarray) -> str:
    """A hash of an ``out`` array's bytes, without the rows that the ISA leaves open."""
    kept = out
    if probe.open_rows:
        kept = out[[n for n, label in enumerate(probe.labels) if label not in probe.open_rows]]
    return hashlib.sha256(np.ascontiguousarray(kept).tobytes()).hexdigest()[:16]


def answers(folder: Path) -> dict[str, Any]:
    """For every probe but the approximations: hashes of inputs and output, or that the GPU refuses it.

    Raises ValueError for a probe that the collection does not hold, or holds for other inputs.
    """
    meta, arrays = json.loads((folder / META).read_text()), read_volumes(folder)
    probes: dict[str, Any] = {}
    for probe in all_probes():
        answer = meta["probes"].get(probe.key)
        if probe.approximate:
            continue
        if probe.may_fail and answer is not None and "error" in answer:
            probes[probe.key] = "refused"
            continue
        if answer is None or "error" in answer or answer["input"] != probe.input_hash():
            raise ValueError(f"{probe.key}: the collection holds no answer to this very probe")
        out = arrays[f"probe/{probe.key}"]
        refused = probe.may_fail and out.ravel()[0] == 0
        probes[probe.key] = "refused" if refused else f"{answer['input']} {digest(probe, out)}"
    return {**_origin(meta), "probes": probes}


def sums(folder: Path) -> dict[str, Any]:
    """Single sums of wgmma: types of D, A, B; codes of a row of A, of a column of B, of C, and the GPU's result."""
    meta, arrays = json.loads((folder / META).read_text()), read_volumes(folder)
    found = []
    for types, wgmma, sets, key in wgmma_sums.random_products():
        matrices = wgmma.matrices(arrays[f"probe/{key}"])
        chosen = [(n, each) for n, each in enumerate(sets) if each.label in SUMS_STYLES]
        for number in range(SUMS_OF_A_TYPE):
            n, each = chosen[number % len(chosen)]
            found.append(_sum(types, wgmma, each, matrices[n], row=(7 * number) % 64, column=(5 * number) % wgmma.n))
    return {**_origin(meta), "sums": found}


def _sum(
    types: tuple[str, str, str], wgmma: Wgmma, operands: Operands, d: np.ndarray, *, row: int, column: int
) -> list[str]:
    def text(codes: np.ndarray) -> str:
        return " ".join(f"{int(code):x}" for code in codes)

    return [
        " ".join(types),
        text(operands.a[row]),
        text(operands.b[:, column]),
        f"{int(operands.c[row, column]):x}",
        f"{int(d[row, column]):x}",
    ]


def _origin(meta: dict[str, Any]) -> dict[str, Any]:
    return {"date": meta["date"], "device": meta["device"]["name"], "driver": meta["device"]["driver"]}


def write(folder: Path, target: Path) -> None:
    """Writes ``h100_answers.json`` and ``h100_sums.json`` into ``target``."""
    for name, made in (("h100_answers", answers(folder)), ("h100_sums", sums(folder))):
        (target / f"{name}.json").write_text(json.dumps(made, indent=0) + "\n")
