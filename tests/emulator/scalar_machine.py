"""One warp for opcode tests: PTX text through the real parser and lowering into the real handlers."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from dsv4.emulator.lower import lower
from dsv4.emulator.ptx import parse

FULL = 0xFFFFFFFF
FLAGS = ("-O3", "-shared", "-fPIC", "-mavx2", "-mf16c", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
WORDS = {"pred": 0, "b16": 1, "b32": 1, "f32": 1, "b64": 2, "b128": 4, "b8": 1}


def build(folder: Path) -> ctypes.CDLL:
    """Compiles the scalar handlers and the harness into `folder` and opens them."""
    core = Path(str(files("dsv4.emulator"))) / "core"
    sources = [*sorted(core.glob("scalar_*.c")), Path(__file__).with_name("scalar_harness.c")]
    target = folder / "scalar.so"
    subprocess.run(["gcc", *FLAGS, f"-I{core}", *map(str, sources), "-o", str(target), "-lm"], check=True)
    library = ctypes.CDLL(str(target))
    library.handler_name.restype = ctypes.c_char_p
    library.message.restype = ctypes.c_char_p
    return library


@dataclass
class Outcome:
    """Registers after a run: `values` (uint64 per lane) and `bad` (bit a lane) by name; status of the last handler."""

    values: dict[str, np.ndarray]
    bad: dict[str, int]
    status: int


class ScalarMachine:
    """Runs PTX statements on one warp."""

    def __init__(self, folder: Path) -> None:
        self._library = build(folder)
        count = self._library.handler_count()
        self.handlers = {self._library.handler_name(n).decode(): n for n in range(count)}

    def run(
        self,
        body: str,
        inputs: dict[str, tuple[str, np.ndarray]],
        outputs: dict[str, str],
        *,
        mask: int = FULL,
        live: int = FULL,
        bad: dict[str, int] | None = None,
        before: int = 0,
    ) -> Outcome:
        """Runs `body` with registers `inputs` {name: (type, uint64 a lane)}; `outputs` {name: type} start as `before`.

        `bad` gives lanes of inputs that are poison; outputs start as poison in no lane.
        """
        types = {name: kind for name, (kind, _) in inputs.items()} | outputs
        declarations = "".join(f".reg .{kind} {name};\n" for name, kind in types.items())
        module = parse(f".version 8.8\n.target sm_100a\n.visible .entry k()\n{{\n{declarations}{body}\nret;\n}}\n")
        slots: dict[str, int] = {}
        program = lower(module, module.entries["k"], self.handlers, slots=slots)
        r = np.zeros((program.registers + 4, 32), np.uint32)
        r_bad = np.zeros(program.registers + 4, np.uint32)
        p, p_bad = np.zeros(program.predicates, np.uint32), np.zeros(program.predicates, np.uint32)
        for slot, special, value in program.constants.tolist():
            assert special < 0
            r[slot] = value
        for name, kind in outputs.items():
            if name in slots and name not in inputs:
                if kind == "pred":
                    p[slots[name]] = before & FULL
                for word in range(WORDS[kind]):
                    r[slots[name] + word] = before >> (32 * word) & FULL
        for name, (kind, values) in inputs.items():
            if name not in slots:
                continue
            poison = (bad or {}).get(name, 0)
            if kind == "pred":
                p[slots[name]] = sum(int(bool(v)) << lane for lane, v in enumerate(values))
                p_bad[slots[name]] = poison
            for word in range(WORDS[kind]):
                r[slots[name] + word] = (values >> np.uint64(32 * word)).astype(np.uint64) & np.uint64(FULL)
                r_bad[slots[name] + word] = poison
        pointers = [
            a.ctypes.data_as(ctypes.c_void_p) for a in (program.instructions, program.slots, r, r_bad, p, p_bad)
        ]
        status = self._library.run(
            pointers[0], len(program.instructions), *pointers[1:], ctypes.c_uint32(mask), ctypes.c_uint32(live)
        )
        result: dict[str, np.ndarray] = {}
        result_bad: dict[str, int] = {}
        for name, kind in types.items():
            if name not in slots:
                continue
            if kind == "pred":
                result[name] = np.array([int(p[slots[name]]) >> lane & 1 for lane in range(32)], np.uint64)
                result_bad[name] = int(p_bad[slots[name]])
                continue
            wide = r[slots[name]].astype(np.uint64)
            if WORDS[kind] > 1:
                wide |= r[slots[name] + 1].astype(np.uint64) << np.uint64(32)
            result[name] = wide
            result_bad[name] = int(np.bitwise_or.reduce(r_bad[slots[name] : slots[name] + WORDS[kind]]))
        return Outcome(result, result_bad, status)
