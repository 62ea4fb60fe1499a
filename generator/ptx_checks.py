"""Static checks over PTX: the mistakes of hand-written attention kernels that show without running anything.

Every check takes a :class:`Listing` and returns findings, each with its PTX line; an empty list says that the check
found nothing, not that the kernel is right. What a check cannot see stands in its docstring; ``check_ptx`` runs all.

The walk along paths knows labels and branches. Waiting loops that the compiler emits between braces are taken as one
step, because they cannot be left without the wait being over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MAX_TMEM_COLUMNS = 512
MIN_TMEM_COLUMNS = 32


@dataclass(frozen=True)
class Finding:
    """One suspicion. ``line`` counts from 1 in the PTX text; 0 where it is about the kernel as a whole."""

    check: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.check}, PTX line {self.line}: {self.message}"


@dataclass(frozen=True)
class Instruction:
    """One statement: ``guard`` (``@%p1`` or empty), full opcode, operands as written, and its line."""

    line: int
    guard: str
    opcode: str
    operands: tuple[str, ...]

    def starts(self, *prefixes: str) -> bool:
        return self.opcode.startswith(prefixes)


@dataclass
class Listing:
    """One kernel: its instructions in order, ``labels`` (name → index of the instruction after it), declarations."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    declarations: list[tuple[int, str]] = field(default_factory=list)

    def of(self, *prefixes: str) -> list[Instruction]:
        return [item for item in self.instructions if item.starts(*prefixes)]

    def successors(self, index: int) -> list[int]:
        """Indices of the instructions that may run next."""
        item = self.instructions[index]
        if item.opcode in ("ret", "exit", "trap") and not item.guard:
            return []
        after = [index + 1] if index + 1 < len(self.instructions) else []
        if item.starts("bra"):
            target = [self.labels[item.operands[0]]] if item.operands[0] in self.labels else []
            target = [index for index in target if index < len(self.instructions)]
            return target + (after if item.guard else [])
        return after


_ENTRY = re.compile(r"\.entry\s+([\w$]+)")
_LABEL = re.compile(r"^([\w$]+):\s*(.*)$")
_STATEMENT = re.compile(r"^(?:(@!?%?[\w$]+)\s+)?([\w.:]+)\s*(.*)$", re.DOTALL)


def split_operands(text: str) -> tuple[str, ...]:
    """Operands between the commas that stand in no bracket."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return (*parts, current.strip()) if current.strip() else tuple(parts)


def parse(ptx: str) -> list[Listing]:
    """The kernels of a PTX text. Inner braces (inline assembly) become their own straight line: labels in them are
    local, so their branches are left out. Raises ValueError where the text holds no kernel."""
    kernels: list[Listing] = []
    current: Listing | None = None
    depth = 0
    pending, pending_line = "", 0
    for number, raw in enumerate(ptx.splitlines(), 1):
        text = raw.split("//", 1)[0].strip()
        entry = _ENTRY.search(text)
        if entry:
            current = Listing(entry.group(1))
            kernels.append(current)
            depth = 0
        if current is None or not text:
            continue
        if not pending and text in ("{", "}"):
            depth += 1 if text == "{" else -1
            if depth == 0:
                current = None
            continue
        if depth == 0:  # the signature
            continue
        label = _LABEL.match(text) if not pending else None
        if label:
            if depth == 1:
                current.labels[label.group(1)] = len(current.instructions)
            text = label.group(2)
        pending_line = pending_line or number
        pending = f"{pending} {text}".strip()
        while ";" in pending:
            statement, pending = (part.strip() for part in pending.split(";", 1))
            if statement:
                _add(current, statement, pending_line, depth)
            pending_line = number
        if not pending or pending.startswith("."):
            if pending.startswith((".loc", ".file", ".pragma")):
                pending = ""
            pending_line = 0 if not pending else pending_line
    if not kernels:
        raise ValueError("no .entry in the PTX text")
    return kernels


def _add(kernel: Listing, statement: str, line: int, depth: int) -> None:
    statement = re.sub(r"^(\.loc\s+\d+\s+\d+\s+\d+\s*)+", "", statement)
    if statement.startswith("."):
        kernel.declarations.append((line, statement))
        return
    match = _STATEMENT.match(statement)
    if match is None:
        raise ValueError(f"PTX line {line}: cannot read {statement!r}")
    guard, opcode, operands = match.groups()
    if depth > 1 and opcode.startswith("bra"):
        return
    kernel.instructions.append(Instruction(line, guard or "", opcode, split_operands(operands)))


# ---------------------------------------------------------------------------------------------------------------------
# Values and paths


def _definitions(kernel: Listing, register: str) -> list[Instruction]:
    """Instructions whose first operand is ``register``: what may have written it."""
    return [item for item in kernel.instructions if item.operands and item.operands[0] == register]


_NUMBER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)\Z")


def constant(kernel: Listing, operand: str) -> int | None:
    """The number that ``operand`` is, or that one move or more, all of the same number, put into it; else None."""
    if _NUMBER.match(operand):
        return int(operand, 0)
    made = _definitions(kernel, operand)
    values = {item.operands[1] if item.starts("mov.") and len(item.operands) == 2 else "" for item in made}
    value = values.pop() if len(values) == 1 else ""
    return int(value, 0) if _NUMBER.match(value) else None


def _predicate(kernel: Listing, operand: str) -> bool | None:
    """What a predicate always is, or None where it is computed or not the same everywhere."""
    made = _definitions(kernel, operand)
    answers: set[bool | None] = set()
    for item in made:
        if item.starts("mov.pred"):
            value = constant(kernel, item.operands[1])
            answers.add(None if value is None else value != 0)
        elif item.starts("setp.") and len(item.operands) == 3:
            left, right = (constant(kernel, item.operands[1]), constant(kernel, item.operands[2]))
            compare = {"ne": left != right, "eq": left == right}.get(item.opcode.split(".")[1])
            answers.add(None if left is None or right is None else compare)
        else:
            answers.add(None)
    return answers.pop() if len(answers) == 1 else None


def _reaches_before(
    kernel: Listing, start: int, target: Callable[[Instruction], bool], stop: Callable[[Instruction], bool]
) -> Instruction | None:
    """The first ``target`` that some path from after ``start`` meets before it meets a ``stop``."""
    seen: set[int] = set()
    queue = kernel.successors(start)
    while queue:
        index = queue.pop()
        if index in seen:
            continue
        seen.add(index)
        item = kernel.instructions[index]
        if stop(item):
            continue
        if target(item):
            return item
        queue.extend(kernel.successors(index))
    return None


def _is_arrival(item: Instruction) -> bool:
    """An instruction by which a thread tells others that it has got this far."""
    return item.starts("mbarrier.arrive", "bar.sync", "bar.arrive", "barrier.", "bar.cta", "tcgen05.commit")


# ---------------------------------------------------------------------------------------------------------------------
# The checks


def check_allocation(kernel: Listing, budget_columns: int) -> list[Finding]:
    """``tcgen05.alloc`` takes a constant power of two of 32 … 512 columns, the sum equals the budget, and every
    allocation is given back, with the permit relinquished. Counts instructions; does not follow addresses."""
    found = []
    total = 0
    allocations, returns = kernel.of("tcgen05.alloc"), kernel.of("tcgen05.dealloc")
    for item in allocations:
        columns = constant(kernel, item.operands[1])
        if columns is None:
            found.append(Finding("allocation", item.line, f"columns {item.operands[1]}: not one constant"))
            continue
        total += columns
        if columns & (columns - 1) or not MIN_TMEM_COLUMNS <= columns <= MAX_TMEM_COLUMNS:
            found.append(Finding("allocation", item.line, f"{columns} columns: valid are powers of two from 32 to 512"))
    first = allocations[0].line if allocations else 0
    if total != budget_columns and all("not one constant" not in finding.message for finding in found):
        found.append(Finding("allocation", first, f"{total} columns allocated, the budget has {budget_columns}"))
    given_back = [constant(kernel, item.operands[1]) for item in returns]
    taken = [constant(kernel, item.operands[1]) for item in allocations]
    if sorted(map(str, given_back)) != sorted(map(str, taken)):
        found.append(Finding("allocation", first, f"allocated {taken}, given back {given_back} columns"))
    if allocations and not kernel.of("tcgen05.relinquish_alloc_permit"):
        found.append(Finding("allocation", first, "the allocation permit is never relinquished"))
    return found


def check_store_waits(kernel: Listing) -> list[Finding]:
    """On every path, a ``tcgen05.st`` meets ``tcgen05.wait::st`` before the thread's next arrival on a barrier (else
    the MMA that the arrival admits may read what was there before). Does not look through calls; there are none."""
    found = []
    for index, item in enumerate(kernel.instructions):
        if item.starts("tcgen05.st."):
            arrival = _reaches_before(kernel, index, _is_arrival, lambda i: i.starts("tcgen05.wait::st"))
            if arrival is not None:
                message = f"reaches {arrival.opcode} (line {arrival.line}) without tcgen05.wait::st"
                found.append(Finding("store_waits", item.line, message))
    return found


def check_load_waits(kernel: Listing) -> list[Finding]:
    """On every path, a ``tcgen05.ld`` meets ``tcgen05.wait::ld`` before the thread's next arrival on a barrier (else
    the columns may be overwritten while they are read)."""
    found = []
    for index, item in enumerate(kernel.instructions):
        if item.starts("tcgen05.ld."):
            arrival = _reaches_before(kernel, index, _is_arrival, lambda i: i.starts("tcgen05.wait::ld"))
            if arrival is not None:
                message = f"reaches {arrival.opcode} (line {arrival.line}) without tcgen05.wait::ld"
                found.append(Finding("load_waits", item.line, message))
    return found


def check_thread_fences(kernel: Listing) -> list[Finding]:
    """On every path from a wait on an mbarrier, ``tcgen05.fence::after_thread_sync`` comes before the next load from
    TMEM, and ``before_thread_sync`` between a ``tcgen05.st`` and the next mbarrier arrival (PTX ISA, tcgen05.fence).

    Stores and MMAs after a wait are left out: many waits before them are about shared memory (TMA bytes, messages),
    need no such fence, and the PTX does not say which those are."""
    found = []
    for index, item in enumerate(kernel.instructions):
        if item.starts("tcgen05.st."):
            met = _reaches_before(
                kernel,
                index,
                lambda i: i.starts("mbarrier.arrive"),
                lambda i: i.starts("tcgen05.fence::before_thread_sync", "bar.", "barrier."),
            )
            if met is not None:
                message = f"reaches {met.opcode} (line {met.line}) without tcgen05.fence::before_thread_sync"
                found.append(Finding("thread_fences", item.line, message))
        if item.starts("mbarrier.try_wait", "mbarrier.test_wait"):
            met = _reaches_before(
                kernel,
                index,
                lambda i: i.starts("tcgen05.ld."),
                lambda i: i.starts("tcgen05.fence::after_thread_sync", "mbarrier.try_wait", "bar.", "barrier."),
            )
            if met is not None:
                message = f"reaches {met.opcode} (line {met.line}) without tcgen05.fence::after_thread_sync"
                found.append(Finding("thread_fences", item.line, message))
    return found


def products(kernel: Listing) -> list[list[Instruction]]:
    """``tcgen05.mma`` in runs of one accumulator, cut where a commit or a wait stands between: one product each."""
    runs: list[list[Instruction]] = []
    fresh = True
    for item in kernel.instructions:
        if item.starts("tcgen05.commit", "mbarrier.try_wait", "mbarrier.test_wait"):
            fresh = True
        elif item.starts("tcgen05.mma."):
            if fresh or runs[-1][0].operands[0] != item.operands[0]:
                runs.append([])
            runs[-1].append(item)
            fresh = False
    return runs


def check_first_product(kernel: Listing) -> list[Finding]:
    """The first block of each product does not always accumulate (it would add what TMEM held before), and the other
    blocks always do. Whether a computed predicate is right at run time is for the emulator to say."""
    found = []
    for run in products(kernel):
        first = _predicate(kernel, run[0].operands[-1])
        if first is True:
            found.append(Finding("first_product", run[0].line, "enable-input-d of the first block is always 1"))
        for item in run[1:]:
            if _predicate(kernel, item.operands[-1]) is not True:
                found.append(Finding("first_product", item.line, "enable-input-d of a later block is not always 1"))
    return found


def check_store_types(kernel: Listing) -> list[Finding]:
    """TMEM is stored as 32-bit cells: a packing 32x32b store of 16-bit elements is unverified on hardware."""
    return [
        Finding("store_types", item.line, f"{item.opcode}: valid is a plain .b32 store of packed pairs")
        for item in kernel.of("tcgen05.st.")
        if ".b32" not in item.opcode or "unpack" in item.opcode
    ]


def check_proxy_fences(kernel: Listing) -> list[Finding]:
    """On every path, a store to shared memory meets ``fence.proxy.async`` before the thread's next mbarrier arrival, if
    the kernel stores from shared memory by TMA and the store is a vector store (how tiles are staged).

    Scalar stores are messages between threads and are not looked at; addresses are not followed.
    """
    copies = kernel.of("cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor")
    if not any(".global.shared::cta" in item.opcode for item in copies):
        return []
    found = []
    for index, item in enumerate(kernel.instructions):
        if item.starts("st.shared.v", "st.shared::cta.v", "stmatrix"):
            met = _reaches_before(
                kernel, index, lambda i: i.starts("mbarrier.arrive", "bar."), lambda i: i.starts("fence.proxy.async")
            )
            if met is not None:
                message = f"reaches {met.opcode} (line {met.line}) without fence.proxy.async"
                found.append(Finding("proxy_fences", item.line, message))
    return found


def check_barrier_init(kernel: Listing) -> list[Finding]:
    """Every mbarrier is initialised with a constant count above 0, and on every path from there
    ``fence.mbarrier_init`` comes before the CTA's barrier."""
    found = []
    for index, item in enumerate(kernel.instructions):
        if not item.starts("mbarrier.init"):
            continue
        count = constant(kernel, item.operands[1])
        if count is None or count <= 0:
            found.append(
                Finding("barrier_init", item.line, f"arrival count {item.operands[1]} is not a constant above 0")
            )
        met = _reaches_before(
            kernel,
            index,
            lambda i: i.starts("bar.", "barrier.", "mbarrier.try_wait"),
            lambda i: i.starts("fence.mbarrier_init", "fence.proxy.async"),
        )
        if met is not None:
            message = f"reaches {met.opcode} (line {met.line}) without fence.mbarrier_init"
            found.append(Finding("barrier_init", item.line, message))
    return found


def check_single_issue(kernel: Listing) -> list[Finding]:
    """MMAs, commits, tensor copies and announcements of bytes stand behind a branch on ``elect.sync``, so that one
    thread of the warp issues them. The branch has to be the last one before, with no label between. Gathers of rows are
    left out, as copies of single rows are: each lane asks for rows of its own. (The emulator finds a whole warp's.)"""
    elected = {item.operands[0].split("|")[1] for item in kernel.of("elect.sync") if "|" in item.operands[0]}
    refused = {item.operands[0] for item in kernel.of("not.pred") if item.operands[1] in elected}
    targets = set(kernel.labels.values())
    found = []
    for index, item in enumerate(kernel.instructions):
        issued = item.starts("tcgen05.mma.", "tcgen05.commit", "cp.async.bulk.tensor", "mbarrier.arrive.expect_tx")
        if not issued or ".tile::gather4" in item.opcode:
            continue
        start = index
        while start > 0 and start not in targets and not kernel.instructions[start - 1].starts("bra"):
            start -= 1
        before = kernel.instructions[start - 1] if start > 0 and start not in targets else None
        guard = before.guard if before is not None else ""
        if guard.removeprefix("@") not in refused and guard.removeprefix("@!") not in elected:
            found.append(Finding("single_issue", item.line, f"{item.opcode.split('.cta')[0]} is not elected"))
    return found


def check_local_memory(kernel: Listing) -> list[Finding]:
    """No local arrays and no local accesses in the PTX (spills that only ptxas makes show in the cubin, not here)."""
    found = [
        Finding("local_memory", line, f"declares {text[:60]}")
        for line, text in kernel.declarations
        if text.startswith(".local")
    ]
    found += [Finding("local_memory", item.line, item.opcode) for item in kernel.of("ld.local", "st.local")]
    return found


def check_counts(kernel: Listing, expected: dict[str, int]) -> list[Finding]:
    """The number of static instructions whose opcode starts with each key of ``expected`` (a loop's body counts once).
    A trip count that was unrolled by mistake shows here as a multiple."""
    found = []
    for prefix, count in expected.items():
        items = kernel.of(prefix)
        if len(items) != count:
            line = items[0].line if items else 0
            found.append(Finding("counts", line, f"{len(items)} × {prefix}, expected {count}"))
    return found


CHECKS: tuple[Callable[[Listing], list[Finding]], ...] = (
    check_store_waits,
    check_load_waits,
    check_thread_fences,
    check_first_product,
    check_store_types,
    check_proxy_fences,
    check_barrier_init,
    check_single_issue,
    check_local_memory,
)


def check_ptx(ptx: str, budget_columns: int) -> list[Finding]:
    """All findings over all kernels of ``ptx``; ``budget_columns`` is the TMEM allocation that the budget predicts for
    each of them. Raises ValueError where the text cannot be read."""
    found: list[Finding] = []
    for kernel in parse(ptx):
        found += check_allocation(kernel, budget_columns)
        found += [finding for check in CHECKS for finding in check(kernel)]
    return sorted(found, key=lambda finding: finding.line)


def describe(findings: Iterable[Finding]) -> str:
    """One line for each finding."""
    return "\n".join(str(finding) for finding in findings)
