"""PTX of the project's own kernels, for both chips: every instruction is read and has a rule that lowers it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv4.emulator import ptx
from dsv4.emulator.lower import lower
from dsv4.generator.build import build
from dsv4.generator.spec import plan


class AnyHandlers(dict[str, int]):
    """Numbers handlers as they are asked for: which of them the core has is not this test's question."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
@pytest.mark.parametrize(("op", "dims"), [("rms_norm", {"d": 1536}), ("fmha", {"D": 64})])
def test_every_instruction_of_a_kernel_is_read_and_lowered(
    tmp_path: Path, op: str, arch: str, dims: dict[str, int]
) -> None:
    (result,) = build([plan(op, arch, dims=dims)], cache_root=tmp_path, jobs=1)
    assert result.artifact is not None, result.error
    text = (result.artifact / "kernel.ptx").read_text()
    module = ptx.parse(text)
    (entry,) = module.entries.values()
    statements = [line.strip() for line in text[text.index(".entry") :].splitlines()]
    written = sum(line.endswith(";") and not line.startswith((".", "//")) for line in statements)
    assert len(entry.instructions) == written
    assert all(instruction.location.file for instruction in entry.instructions)
    handlers = AnyHandlers()
    program = lower(module, entry, handlers)
    assert len(program.lines) == len(entry.instructions) and handlers
