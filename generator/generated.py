"""The folder ``generated/``: emitted sources that people can read, and the fingerprints of all the others.

One default kernel per template and arch stands there as text, so that a diff shows what a change of a template or of a
spec does; ``INDEX.json`` holds the sha256 of every default's source. None of it is ever edited by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from dsv4.generator.emit import emit
from dsv4.generator.kernel import EmittedSource, KernelPlan

INDEX_NAME = "INDEX.json"
INDEX_SCHEMA = 1
Emit = Callable[[KernelPlan], EmittedSource]


def write(plans: Iterable[KernelPlan], root: Path, *, emit: Emit = emit) -> list[Path]:
    """Make ``root`` hold what ``plans`` give and nothing else. Returns the files that changed, appeared or went."""
    changed = []
    expected = contents(plans, emit=emit)
    for name, text in expected.items():
        path = root / name
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(text)
            os.replace(temporary, path)
            changed.append(path)
    for name in _present(root) - set(expected):
        (root / name).unlink()
        changed.append(root / name)
    return changed


def check(plans: Iterable[KernelPlan], root: Path, *, emit: Emit = emit) -> list[str]:
    """One line for each file below ``root`` that is not what ``plans`` give; empty if all is up to date."""
    expected = contents(plans, emit=emit)
    stale = []
    for name, text in expected.items():
        path = root / name
        if not path.is_file():
            stale.append(f"{name}: missing")
        elif path.read_text() != text:
            stale.append(f"{name}: {_difference(path.read_text(), text, name)}")
    stale += [f"{name}: no default gives it" for name in sorted(_present(root) - set(expected))]
    return stale


def contents(plans: Iterable[KernelPlan], *, emit: Emit = emit) -> dict[str, str]:
    """What ``generated/`` has to hold: the text of each file, by its name below the folder."""
    defaults = [plan for plan in plans if plan.is_default]
    files: dict[str, str] = {}
    shown: dict[tuple[str, str], str] = {}
    kernels: dict[str, dict[str, str]] = {}
    for plan in defaults:
        source = emit(plan)
        stem = (plan.template, plan.arch)
        if stem not in shown:
            shown[stem] = source.sha256
            files[f"{plan.arch}/{readable_name(plan)}.py"] = source.text
        entry = {"template": plan.template, "sha256": source.sha256}
        kernels[f"{plan.arch}/{readable_name(plan)}"] = entry
    index = {"schema": INDEX_SCHEMA, "kernels": dict(sorted(kernels.items()))}
    files[INDEX_NAME] = json.dumps(index, indent=1) + "\n"
    return files


def readable_name(plan: KernelPlan) -> str:
    """``fmha_D128_causal``: the operator, its static dimensions, its flags, and sizes that it is for alone
    (``mhc_pre_d4096_T0to112``). A change of the defaults keeps the name."""
    dims = "".join(f"_{name}{size}" for name, size in plan.dims.items())
    flags = "".join(f"_{name}" if v is True else f"_{name}{v}" for name, v in plan.variant.items() if v is not False)
    sizes = "".join(f"_{name}{low}to{'' if high is None else high}" for name, (low, high) in plan.bucket.items())
    return f"{plan.op}{dims}{flags}{sizes}"


def _present(root: Path) -> set[str]:
    """Emitted files and the index below ``root``; the package's own ``__init__.py`` is neither."""
    found = {path.relative_to(root) for path in root.glob("*/*.py")} | {
        p.relative_to(root) for p in root.glob("*.json")
    }
    return {str(PurePosixPath(path)) for path in found if path.name != "__init__.py"}


def _difference(found: str, expected: str, name: str) -> str:
    if name == INDEX_NAME:
        try:
            old, new = json.loads(found)["kernels"], json.loads(expected)["kernels"]
            names = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        except (ValueError, KeyError, AttributeError):
            return "cannot be read as an index"
        return f"{len(names)} kernels differ, the first is {names[0]}" if names else "written in another way"
    lines = zip(found.splitlines(), expected.splitlines(), strict=False)
    first = next((number for number, (old, new) in enumerate(lines, 1) if old != new), None)
    return f"differs from line {first}" if first else "has another length"
