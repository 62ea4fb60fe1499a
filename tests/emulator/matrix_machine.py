"""Matrix instructions on the real machine: fill shared memory and registers, run them, store the registers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from dsv4.emulator import library
from dsv4.emulator.lower import lower
from dsv4.emulator.machine import Launch, RawFinding, Region, run_grid
from dsv4.emulator.policy import FIXED, Policy
from dsv4.emulator.ptx import parse

SHARED_BASE = 1024  # shared address of the first byte of dynamic shared memory
LATE, EARLY = FIXED[0], FIXED[1]


@dataclass
class Outcome:
    """Output registers uint32 [registers, threads], whether each is poison, findings, and shared memory afterwards."""

    registers: np.ndarray
    poison: np.ndarray
    findings: list[RawFinding]
    shared: np.ndarray

    def kinds(self) -> list[str]:
        """Kinds of the findings, without those about storing the outputs."""
        return [found.kind for found in self.findings if "is stored" not in found.message]

    def messages(self, kind: str) -> list[str]:
        """Messages of the findings of this kind, without those about storing the outputs."""
        return [f.message for f in self.findings if f.kind == kind and "is stored" not in f.message]


@dataclass
class Matrices:
    """One CTA. `body` may use %i0… (inputs), %o0… (outputs), %smem (address of shared memory), %tid, %rd0..15, %r0..31
    and %pr0..7. Shared memory holds `shared` (words that `unset` marks are never written); a fence to the async proxy
    and a CTA barrier lie before the body.
    """

    body: str
    outputs: int = 0
    inputs: np.ndarray | None = None  # uint32 [registers, threads]
    shared: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    unset: np.ndarray | None = None  # bool, one a word of shared memory
    threads: int = 128
    shared_bytes: int = 0  # 0: as large as `shared`
    target: str = "sm_90a"
    dump_shared: bool = False
    prologue: str = "fence.proxy.async; bar.sync 0;"

    def text(self) -> str:
        """The PTX."""
        n_inputs = 0 if self.inputs is None else len(self.inputs)
        words = self.shared.size // 4
        loads = "".join(f"ld.global.b32 %i{n}, [%pin+{4 * n * self.threads}];\n" for n in range(n_inputs))
        stores = "".join(f"st.global.b32 [%pout+{4 * n * self.threads}], %o{n};\n" for n in range(self.outputs))
        fill = f"""mov.u32 %at, %tid.x; shl.b32 %at, %at, 2;
        FILL: setp.ge.u32 %done, %at, {4 * words}; @%done bra FILLED;
        cvt.u64.u32 %wide, %at; add.u64 %from, %pset, %wide; ld.global.b32 %word, [%from]; setp.eq.u32 %skip, %word, 0;
        add.u64 %from, %pshared, %wide; ld.global.b32 %word, [%from];
        add.u32 %to, %smem, %at; @!%skip st.shared.b32 [%to], %word;
        add.u32 %at, %at, {4 * self.threads}; bra FILL;
        FILLED:
        """
        dump = f"""bar.sync 0; mov.u32 %at, %tid.x; shl.b32 %at, %at, 2;
        DUMP: setp.ge.u32 %done, %at, {4 * words}; @%done bra DUMPED;
        cvt.u64.u32 %wide, %at; add.u64 %from, %pshared, %wide;
        add.u32 %to, %smem, %at; ld.shared.b32 %word, [%to]; st.global.b32 [%from], %word;
        add.u32 %at, %at, {4 * self.threads}; bra DUMP;
        DUMPED:
        """
        return f""".version 8.8
.target {self.target}
.extern .shared .align 1024 .b8 dynamic[];
.visible .entry kernel(.param .b64 a_in, .param .b64 a_out, .param .b64 a_shared, .param .b64 a_set)
{{
.reg .pred %pr<8>, %done, %skip; .reg .b32 %i<{max(n_inputs, 1)}>, %o<{max(self.outputs, 1)}>;
.reg .b32 %r<32>, %smem, %tid, %at, %word, %to;
.reg .b64 %rd<16>, %pin, %pout, %pshared, %pset, %wide, %from;
ld.param.b64 %pin, [a_in]; ld.param.b64 %pout, [a_out]; ld.param.b64 %pshared, [a_shared]; ld.param.b64 %pset, [a_set];
mov.u32 %smem, dynamic; mov.u32 %tid, %tid.x; mul.wide.u32 %wide, %tid, 4;
add.u64 %pin, %pin, %wide; add.u64 %pout, %pout, %wide;
{loads}
{fill if words else ""}
{self.prologue}
{self.body}
{stores}
{dump if self.dump_shared else ""}
ret;
}}
"""

    def run(self, policy: Policy = LATE) -> Outcome:
        """Runs it under a schedule."""
        module = parse(self.text())
        program = lower(module, module.entries["kernel"], library.load().handlers)
        inputs = np.zeros((1, 1), np.uint32) if self.inputs is None else np.ascontiguousarray(self.inputs, np.uint32)
        out = np.zeros((max(self.outputs, 1), self.threads), np.uint32)
        shared = np.zeros(max(self.shared.size, 4), np.uint8)
        shared[: self.shared.size] = self.shared
        written = np.ones(shared.size // 4, np.uint32)
        if self.unset is not None:
            written[: self.unset.size] = ~self.unset
        arrays = {"in": inputs, "out": out, "shared": shared, "set": written}
        shadows = {name: np.zeros(array.nbytes, np.uint8) for name, array in arrays.items()}
        shadows["out"][:] = 1
        block = np.array([array.ctypes.data for array in arrays.values()], np.uint64)
        regions = [Region("parameters", block.ctypes.data, block.nbytes, writable=False, parameters=True)]
        regions += [
            Region(name, array.ctypes.data, array.nbytes, shadow=shadows[name]) for name, array in arrays.items()
        ]
        launch = Launch(
            (1, 1, 1),
            (self.threads, 1, 1),
            dynamic_smem_bytes=self.shared_bytes or max(self.shared.size, 16),
            param_address=block.ctypes.data,
            param_bytes=block.nbytes,
        )
        result = run_grid(program, launch, replace(policy, max_instructions=2_000_000), regions)
        return Outcome(out, shadows["out"].reshape(-1, self.threads, 4)[:, :, 0] != 0, result.findings, shared)


def clean(outcome: Outcome) -> None:
    """Asserts that nothing was found."""
    assert [(found.kind, found.message) for found in outcome.findings] == []
