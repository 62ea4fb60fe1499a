"""`dsv4-tune export`, `import`, `merge`, `diff` and `checksum`: tuned entries as files."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Annotated

import typer

from dsv4.generator.commands import select
from dsv4.generator.console import UsageError, err, out, print_json
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.errors import CacheRefused
from dsv4.runtime.tuned import Entry
from dsv4.tuner import exchange
from dsv4.tuner.commands import options
from dsv4.tuner.measure_pack import ResultsRefused, read_results
from dsv4.tuner.packs import unpack

HERE = "here"
File = Annotated[Path, typer.Argument(help="A file of entries.", show_default=False)]
PreferOption = Annotated[str, typer.Option("--prefer", help="Of two answers: newest, ours (the first) or theirs.")]
PREFER: dict[str, exchange.Prefer] = {"newest": "newest", "ours": "ours", "theirs": "theirs"}


def export_entries(file: File, op: select.Op = None, arch: select.Arch = None) -> None:
    """Write the tuned entries of this cache to a file that one can commit and ship.

    Example: dsv4-tune export tuned/h100.json
    """
    select.Selection(op, arch)
    entries = exchange.cached_entries(options.usable_cache(), op, arch)
    if not entries:
        raise UsageError("export: found no tuned entries; valid: tune something first (dsv4-tune sweep)")
    exchange.write_export(file, entries)
    err.print(f"{len(entries)} entries in {file}, checksum {exchange.checksum(entries)[:16]}", markup=False)


def import_file(
    file: File,
    prefer: PreferOption = "newest",
    storage: options.Storage = None,
    json: options.Json = False,
) -> None:
    """Take in a file of entries, a pack, or the results of `measure`. All of it is checked before any of it is kept.

    Example: dsv4-tune import tuned/h100.json
    """
    rule = _prefer(prefer)
    cache = options.usable_cache()
    if not file.is_file():
        raise UsageError(f"{file}: found no such file; valid: one of dsv4-tune export, pack or measure")
    if tarfile.is_tarfile(file):
        try:
            contents = unpack(file, cache)
        except CacheRefused as error:
            raise UsageError(str(error)) from None
        _told(json, file, {"kind": contents.kind, "files": len(contents.files), "entries": len(contents.entries)})
        return
    raw = exchange.read_json(file)
    if isinstance(raw, dict) and "dsv4_results" in raw:
        from dsv4.tuner.storage import open_storage
        from dsv4.tuner.take_results import take_results

        try:
            results = read_results(file)
        except ResultsRefused as error:
            raise UsageError(str(error)) from None
        taken = take_results(results, cache, open_storage(storage) if storage else None)
        told = {"kind": "results", "study": taken.study, "new": taken.fresh, "entry": taken.entry, "why": taken.why}
        _told(json, file, told)
        return
    entries = exchange.read_export(file)
    ours = exchange.cached_entries(cache)
    merged = exchange.merge(ours, entries, rule)
    fresh = [entry for entry in merged if all(entry.sha256 != known.sha256 for known in ours)]
    try:
        cache.keep_all(fresh)
    except CacheRefused as error:
        raise UsageError(str(error)) from None
    cache.refresh()
    for entry in fresh:
        if why := exchange.foreign(entry, cache):
            err.print(f"{entry.name} cannot serve yet: {why}; valid: build it, or import a pack", markup=False)
    _told(json, file, {"kind": "entries", "entries": len(entries), "new": len(fresh)})


def merge_files(
    files: Annotated[list[Path], typer.Argument(help="Files of entries, ours first.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The merged file.")],
    prefer: PreferOption = "newest",
) -> None:
    """Merge files of entries into one; the cache is not touched.

    Example: dsv4-tune merge tuned/a.json tuned/b.json -o tuned/both.json
    """
    rule = _prefer(prefer)
    entries: list[Entry] = []
    for number, file in enumerate(files):
        more = exchange.read_export(file)
        entries = more if number == 0 else exchange.merge(entries, more, rule)
    exchange.write_export(output, entries)
    err.print(f"{len(entries)} entries in {output}, checksum {exchange.checksum(entries)[:16]}", markup=False)


def diff_entries(
    ours: Annotated[str, typer.Argument(help="A file of entries, or 'here' for this cache.")],
    theirs: Annotated[str, typer.Argument(help="Another.")],
    json: options.Json = False,
) -> None:
    """Print what two sets of entries answer differently. Exit code 0 whether they differ or not.

    Example: dsv4-tune diff here tuned/h100.json
    """
    cache = options.usable_cache()
    found = exchange.differences(_entries(ours, cache), _entries(theirs, cache))
    if json:
        rows = [
            {
                "question": each.question.model_dump(mode="json"),
                "ours": each.ours.config if each.ours else None,
                "theirs": each.theirs.config if each.theirs else None,
            }
            for each in found
        ]
        print_json({"differences": rows})
        return
    for each in found:
        out.print(each.words(), highlight=False, markup=False)
    err.print(f"{len(found)} differences", markup=False)


def print_checksum(json: options.Json = False) -> None:
    """Print what ranks compare to know that the same kernels will serve them.

    Example: dsv4-tune checksum
    """
    cache = options.usable_cache()
    entries = exchange.cached_entries(cache)
    if json:
        print_json({"cache": str(cache.root), "checksum": cache.checksum(), "entries": len(entries)})
        return
    out.print(cache.checksum(), highlight=False)


def _entries(name: str, cache: KernelCache) -> list[Entry]:
    return exchange.cached_entries(cache) if name == HERE else exchange.read_export(Path(name))


def _prefer(text: str) -> exchange.Prefer:
    if text not in PREFER:
        raise UsageError(f"--prefer: found '{text}'; valid: {', '.join(PREFER)}")
    return PREFER[text]


def _told(json: bool, file: Path, what: dict[str, object]) -> None:
    if json:
        print_json({"file": str(file), **what})
        return
    err.print(f"{file}: " + ", ".join(f"{name} {value}" for name, value in what.items()), markup=False)
