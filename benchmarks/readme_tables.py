"""Write the tables of the README and of docs/measured.md from dated results: ``python -m benchmarks.readme_tables``.

A table stands between ``<!-- tables: OP -->`` and ``<!-- /tables -->``, that of all operators between ``<!-- overview
-->`` and ``<!-- /overview -->``, which has its picture in docs/measured.svg. For each device the newest result of the
operator that is not void is taken. Without --write the files are compared with what would be written: exit code 1 if
one differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import overview
from benchmarks.harness.result import RESULTS, read

README = Path(__file__).parent.parent / "README.md"
MEASURED = README.parent / "docs" / "measured.md"
SECTION = re.compile(r"(<!-- tables: (?P<op>\w+) -->\n)(?P<body>.*?)(<!-- /tables -->)", re.DOTALL)
OVERVIEW = re.compile(r"(<!-- overview -->\n)(?P<body>.*?)(<!-- /overview -->)", re.DOTALL)
PICTURE = MEASURED.with_suffix(".svg")
MODES = ("cold", "warm")


def newest(folder: Path, op: str) -> list[tuple[str, dict[str, Any]]]:
    """(file name, result) of ``op``, one for each device: the newest that is not void, a whole one before one that was
    cut short.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"*_{op}*.json")):
        result = read(path)
        if result["op"] != op or result["void"]:
            continue
        device = result["device"]["name"]
        if device not in found or _rank(result) >= _rank(found[device][1]):
            found[device] = (path.name, result)
    return [found[device] for device in sorted(found)]


def _rank(result: Mapping[str, Any]) -> tuple[bool, str]:
    return not result.get("left"), result["date"]


def tables(results: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """The Markdown of one operator: a table and its provenance for each result, or a sentence where there is none."""
    blocks = [one_table(name, result) for name, result in results]
    return "\n".join(blocks) if blocks else "Not measured yet.\n"


def one_table(name: str, result: Mapping[str, Any]) -> str:
    """A line a case, a column a peer: median µs a call, cold / warm, and for peers the multiple of ours."""
    ours = result["ours"]
    measured = {peer for case in result["cases"] for peer, timing in case["peers"].items() if "skipped" not in timing}
    peers = [ours, *(peer for peer in result["shown"] if peer != ours and peer in measured)]
    header = ["case", *peers, f"{ours}, of copy", "of product"]
    lines = [row(header), row(["---", *["---:"] * (len(header) - 1)])]
    for case in result["cases"]:
        cells = [case["label"], *(cell(case["peers"].get(peer), is_ours=peer == ours) for peer in peers)]
        achieved = case["peers"].get(ours, {}).get("achieved", {}).get("cold")
        cells += [f"{100 * achieved[key]:.0f} %" if achieved else "–" for key in ("of_copy", "of_product")]
        lines.append(row(cells))
    top, device = result["ceilings"], result["device"]
    runs = f"{len(result['runs'])} runs" if "runs" in result else "run"
    lines += [
        "",
        f"Median µs a call by CUDA-graph replay, L2 cold / warm; in brackets the time over ours. {device['name']}, "
        f"driver {device.get('driver', 'unknown')}, torch {result['versions']['torch']}, {result['date'][:10]}; in "
        f"the same {runs}: copy {top['copy_gb_s']:.0f} GB/s, 8192³ product {top['product_tflops']:.0f} TFLOP/s, empty "
        f"graph node {top['empty_node_us']:.2f} µs. "
        f"[{name}](benchmarks/results/{name})",
        *shortfalls(result),
        "",
    ]
    return "\n".join(lines)


def shortfalls(result: Mapping[str, Any]) -> list[str]:
    """The rows that miss an aim (benchmarks/harness/aims.py) as a Markdown list, one item for each aim and reason."""
    rows: dict[tuple[str, str], dict[str, bool]] = {}
    for case in result["cases"]:
        for short in case.get("short", ()):
            labels = rows.setdefault((short["aim"], short["reason"] or "no reason known"), {})
            labels[case["label"]] = labels.get(case["label"], True) and short["met_with_pdl"]
    if not rows:
        return [] if "short" not in next(iter(result["cases"]), {}) else ["", "Every row meets its aims."]
    lines = ["", "Short of an aim († met with programmatic dependent launch):", ""]
    for (aim, reason), labels in rows.items():
        named = ", ".join(label + "†" * met for label, met in labels.items())
        lines.append(f"- {aim}: {named}. {reason[0].upper()}{reason[1:].rstrip('.')}.")
    return lines


def cell(peer: Mapping[str, Any] | None, *, is_ours: bool) -> str:
    """``2.31 / 1.80 (1.15× / 1.17×)``; ``–`` where the peer was skipped or absent."""
    if peer is None or "skipped" in peer:
        return "–"
    medians = [peer[mode]["median_us"] for mode in MODES]
    text = " / ".join(f"{median_us:.2f}" if median_us < 100 else f"{median_us:.1f}" for median_us in medians)
    ratios = [peer["ours_over_this"].get(mode) for mode in MODES]
    if is_ours or not all(ratios):
        return text
    return f"{text} ({' / '.join(f'{1 / ratio:.2f}×' for ratio in ratios)})"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rewritten(readme: str, folder: Path) -> str:
    """``readme``, a file's text, with every marked section written anew. Raises ``ValueError`` where there is none."""
    if not SECTION.search(readme) and not OVERVIEW.search(readme):
        raise ValueError("found no section <!-- tables: OP --> … <!-- /tables -->; valid: at least one")
    readme = OVERVIEW.sub(lambda match: match[1] + overview.table(standings(folder)) + match[3], readme)
    return SECTION.sub(lambda match: match[1] + tables(newest(folder, match["op"])) + match[4], readme)


def standings(folder: Path) -> list[overview.Standing]:
    """Of every operator's newest results, those that have a peer."""
    found = [overview.standing(*each) for ops in overview.GROUPS.values() for op in ops for each in newest(folder, op)]
    return [each for each in found if each is not None]


def run(
    write: Annotated[bool, typer.Option("--write", help="Write the files; without it, only compare.")] = False,
    readme: Annotated[list[Path] | None, typer.Option(help="A file with marked sections; repeatable.")] = None,
    folder: Annotated[Path, typer.Option("--results", help="The folder of dated results.")] = RESULTS,
) -> None:
    """Write the tables from the newest dated results, or say whether they are up to date."""
    err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    stale = False
    texts: dict[Path, tuple[str, str]] = {}
    for path in readme or (README, MEASURED):
        text = path.read_text(encoding="utf-8")
        try:
            texts[path] = text, rewritten(text, folder)
        except ValueError as error:
            err.print(f"{path.name}: {error}")
            raise typer.Exit(1) from None
    if not readme:
        drawn = PICTURE.read_text(encoding="utf-8") if PICTURE.exists() else ""
        texts[PICTURE] = drawn, overview.picture(standings(folder))
    for path, (text, wanted) in texts.items():
        if write:
            path.write_text(wanted, encoding="utf-8")
        elif wanted != text:
            err.print(f"{path}: the tables are not those of {folder}; valid: run make tables")
            stale = True
    if stale:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(run)
