"""`dsv4-tune report`, `studies` and `explain`: what was found, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4.generator.commands import select
from dsv4.generator.console import UsageError, err, out, print_json
from dsv4.runtime.files import write_atomically
from dsv4.tuner import exchange
from dsv4.tuner.commands import options
from dsv4.tuner.explain import explain, find

if TYPE_CHECKING:
    from dsv4.tuner.report import Report


def report_study(
    study: Annotated[str | None, typer.Argument(help="A study or how its name begins (default: the newest).")] = None,
    op: select.Op = None,
    arch: select.Arch = None,
    storage: options.Storage = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page (default: STUDY.html).")] = None,
    peers: Annotated[
        list[Path],
        typer.Option("--peers", help="A dated result file to take peers from (default: a checkout's); repeatable."),
    ] = [],  # noqa: B006
    csv: Annotated[bool, typer.Option("--csv", help="Print one line for each configuration instead.")] = False,
    json: options.Json = False,
) -> None:
    """Write a study as one self-contained HTML page, or print it as CSV or JSON.

    Example: dsv4-tune report --op rms_norm --arch sm_90a -o rms_norm.html
    """
    if csv and json:
        raise UsageError("report: found --csv and --json; valid: one of them")
    found = gathered(study, op, arch, storage, peers)
    if json:
        print_json(found.as_json())
        return
    if csv:
        typer.echo(found.as_csv(), nl=False)
        return
    from dsv4.tuner.page import page

    target = output or Path(f"{found.study}.html")
    try:
        write_atomically(target, page(found).encode())
    except OSError as error:
        raise UsageError(f"--output: {target}: {error.strerror}; valid: a file that can be written") from None
    err.print(f"{len(found.rows)} configurations in {target}", markup=False)


def gathered(
    study: str | None, op: str | None, arch: str | None, storage: str | None, peers: Sequence[Path] = ()
) -> Report:
    """The study that these options mean, with the peers in the files ``peers`` (none: those of a checkout); or the
    recorded sweep in the file ``study``. Raises UsageError."""
    select.Selection(op, arch)
    try:
        from dsv4.tuner.peers import read_result
        from dsv4.tuner.recorded import read_report
        from dsv4.tuner.report import gather, pick_study
        from dsv4.tuner.storage import open_storage
    except ModuleNotFoundError as missing:
        raise UsageError(f"report needs {missing.name}: pip install 'dsv4-kernels[tune]'") from None
    files = [read_result(path) for path in peers]
    if study is not None and study.endswith(".json"):
        found = read_report(Path(study), files or None)
    else:
        where = _where(storage, op, arch, study)
        opened = open_storage(where)
        found = gather(opened, pick_study(opened, study, where), files or None)
    for path, result in zip(peers, files, strict=True):
        if result.op != found.about["op"]:
            raise UsageError(f"--peers: {path}: found results of {result.op}; valid: of {found.about['op']}")
    return found


def _where(storage: str | None, op: str | None, arch: str | None, study: str | None) -> str:
    """The storage to read: as asked for, else the newest journal of this cache, of those in which a ``study`` of that
    name would lie where there are any. Raises UsageError for a file that is not there (opening it would make it)."""
    if storage is not None:
        if "://" not in storage and not Path(storage).is_file():
            raise UsageError(f"--storage: {storage}: found no such journal; valid: one that sweep has written")
        return storage
    folder = options.usable_cache().root / "studies"
    journals = [path for path in folder.glob("*.journal") if _is_of(path, op, arch)]
    if not journals:
        raise UsageError(f"report: found no studies in {folder}; valid: sweep first, or --storage")
    meant = [path for path in journals if study is not None and f"{study}.".startswith(f"{_kind(path)}.")]
    return str(max(meant or journals, key=lambda path: path.stat().st_mtime_ns))


def _kind(journal: Path) -> str:
    """``OP.ARCH``, how the names of the studies in ``[made-up.]OP.ARCH.journal`` begin."""
    return journal.stem.removeprefix("made-up.")


def _is_of(journal: Path, op: str | None, arch: str | None) -> bool:
    """Whether the studies in ``journal`` are of these."""
    named_op, _, named_arch = _kind(journal).rpartition(".")
    return op in (None, named_op) and arch in (None, named_arch)


def explain_entry(
    entry: Annotated[str, typer.Argument(help="An entry's name, or the beginning of its sha256.", show_default=False)],
    json: options.Json = False,
) -> None:
    """Say in words why this configuration won, where it serves and what it was measured against.

    Example: dsv4-tune explain rms_norm.sm_90a.1a2b3c4d
    """
    cache = options.usable_cache()
    found = find(exchange.cached_entries(cache), entry)
    unusable = exchange.foreign(found, cache)
    if json:
        print_json({**found.model_dump(mode="json"), "unusable": unusable})
        return
    for line in explain(found, unusable):
        out.print(line, highlight=False, markup=False)
