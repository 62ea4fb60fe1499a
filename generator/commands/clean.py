"""`dsv4-gen clean`: empty the kernel cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from dsv4.generator.commands import select
from dsv4.generator.console import UsageError, print_json


def clean_cache(
    op: select.Op = None,
    arch: select.Arch = None,
    everything: Annotated[bool, typer.Option("--all", help="Every kernel in the cache.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    json: select.Json = False,
) -> None:
    """Remove kernels from the cache: those of --op and --arch, or --all.

    Example: dsv4-gen clean --op fmha --arch sm_90a
    """
    if not (op or arch or everything):
        raise UsageError("clean: nothing selected; valid: --op OP, --arch ARCH, or --all")
    cache, doomed = select.cached_artifacts(op, arch)
    if not dry_run:
        for artifact in doomed:
            _remove(artifact.folder)
    if json:
        print_json({"removed": [artifact.manifest.key for artifact in doomed], "dry_run": dry_run})
    else:
        print(f"{'would remove' if dry_run else 'removed'} {len(doomed)} kernels from {cache.root}")


def _remove(folder: Path) -> None:
    """Rename first, so that nobody finds half of an artifact."""
    grave = folder.with_name(f".removed-{folder.name}")
    folder.rename(grave)
    shutil.rmtree(grave)
