"""mbarriers driven through long sequences by one thread, remote arrivals, named barriers that reduce."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.agreement.probe import OUT, TARGET, Probe
from benchmarks.agreement.tables import mixed_u32, table
from dsv4.emulator.text_kernel import Kernel, aligned

STEPS = 120


@dataclass
class _State:
    """What the ISA says of a barrier: only used to keep the sequence within what is defined."""

    expected: int
    pending: int
    tx: int = 0

    def settle(self) -> None:
        if self.pending == 0 and self.tx == 0:
            self.pending = self.expected


def _sequence(seed: int) -> tuple[str, list[str]]:
    """Statements of one thread and a label for each test: arrivals, transactions before and after they are expected."""
    rng = np.random.default_rng(seed)
    state = _State(*[int(rng.integers(1, 6))] * 2)
    body = f"mbarrier.init.shared.b64 [%smem], {state.expected};\n"
    labels: list[str] = []
    states = 0

    def tested(label: str) -> None:
        nonlocal body
        for parity in (0, 1):
            body += f"mbarrier.test_wait.parity.shared.b64 %p0, [%smem], {parity}; selp.b32 %r0, 1, 0, %p0;\n"
            body += f"st.global.b32 [%a_{OUT}+{4 * len(labels)}], %r0;\n"
            labels.append(f"{label}, parity {parity}")
        if states:
            body += "mbarrier.test_wait.shared.b64 %p0, [%smem], %d0; selp.b32 %r0, 1, 0, %p0;\n"
            body += f"st.global.b32 [%a_{OUT}+{4 * len(labels)}], %r0;\n"
            labels.append(f"{label}, state of an arrival")

    tested("init")
    for step in range(STEPS):
        choice = int(rng.integers(0, 5))
        if choice <= 1 and (state.pending > 1 or state.tx == 0) and state.pending:
            count = int(rng.integers(1, state.pending + 1))
            if count == state.pending and state.tx != 0:
                count = max(1, count - 1)
            if count > state.pending:
                continue
            body += f"mbarrier.arrive.shared.b64 %d0, [%smem], {count};\n"
            states = 1
            state.pending -= count
            label = f"{step}: arrive {count}"
        elif choice == 2 and state.pending:
            size = int(rng.integers(1, 1000)) if state.tx >= 0 else -state.tx
            body += f"mbarrier.arrive.expect_tx.shared.b64 %d0, [%smem], {size};\n"
            states = 1
            state.tx += size
            state.pending -= 1
            label = f"{step}: arrive.expect_tx {size}"
        elif choice == 3 and (state.tx or state.pending):
            size = state.tx if state.tx > 0 else int(rng.integers(1, 500))
            if state.tx > 1 and rng.integers(0, 2):
                size = state.tx // 2
            if state.tx <= 0 and (state.pending == 0 or state.tx < 0):
                continue
            body += f"mbarrier.complete_tx.relaxed.cta.shared.b64 [%smem], {size};\n"
            state.tx -= size
            label = f"{step}: complete_tx {size}"
        elif choice == 4 and state.tx < 0:
            body += f"mbarrier.expect_tx.relaxed.cta.shared.b64 [%smem], {-state.tx};\n"
            label = f"{step}: expect_tx {-state.tx}"
            state.tx = 0
        else:
            continue
        state.settle()
        tested(label)
    return body, labels


def _remote() -> Probe:
    """Arrivals and expected bytes at the barrier of CTA 0 from both CTAs of a cluster."""
    sync = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
    test = "mbarrier.test_wait.parity.shared.b64 %p0, [%smem], 0; selp.b32 %r5, 1, 0, %p0;\n"
    body = "setp.eq.u32 %p1, %rank, 1; and.pred %p2, %p1, %lead; mapa.shared::cluster.u32 %r1, %smem, 0;\n"
    body += "mad.wide.u32 %d1, %rank, 16, %a_out;\n"
    body += f"@%lead mbarrier.init.shared.b64 [%smem], 3; @%lead fence.mbarrier_init.release.cluster; {sync}"
    steps = (
        "@%p2 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1];",
        "@%p2 mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%r1], 96; @%p2 bra OWN; "
        "@%lead mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%r1], 96; OWN:",
        "@%p2 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1], 1;",
    )
    for n, step in enumerate(steps):
        body += f"{step}\n{sync}{test} @%lead st.global.b32 [%d1+{4 * n}], %r5;\n{sync}"
    arrays = {OUT: aligned(np.zeros((2, 4), np.uint32))}
    return Probe("barriers", "remote", Kernel(body, {}, arrays, cluster=2, target=TARGET), ("leader", "peer"))


def probes() -> Iterator[Probe]:
    for seed in range(8):
        body, labels = _sequence(seed)
        guarded = f"@!%lead bra END;\n{body}mbarrier.inval.shared.b64 [%smem];\nEND:\n"
        arrays = {OUT: aligned(np.zeros((len(labels), 1), np.uint32))}
        yield Probe("barriers", f"sequence_{seed}", Kernel(guarded, {}, arrays, target=TARGET), tuple(labels))
    yield _remote()
    a = mixed_u32(np.random.default_rng(81), 1024)
    negative, later = "setp.lt.s32 p, a, 0;", "setp.ge.u32 q, %thread, 64;"
    rows = [
        ("bar.red.popc", f"{negative} bar.red.popc.u32 d, 0, p;"),
        ("bar.red.popc negated", f"{negative} bar.red.popc.u32 d, 1, 128, !p;"),
        ("bar.red.and", f"{negative} bar.red.and.pred q, 0, p; selp.b32 d, 1, 0, q;"),
        ("bar.red.or", f"{negative} bar.red.or.pred q, 2, 128, p; selp.b32 d, 1, 0, q;"),
        ("bar.red.popc of 64", f"{negative} mov.b32 d, 0; {later} @q bra S; bar.red.popc.u32 d, 3, 64, p; S:"),
    ]  # fmt: skip
    yield table("barriers", "reductions", rows, {"a": a})
