"""What to do about a finding: one sentence a category, and for races one that knows the two instructions."""

from __future__ import annotations

HINTS = {
    "barrier": "Check the barrier's count, its initialisation before first use, and that every participant uses it "
    "once a phase.",
    "between_elements": "The kernel writes between the elements of a strided tensor: check its strides and the bounds "
    "of its last tile.",
    "bulk_copy": "See the forms of cp.async.bulk and cp.reduce.async.bulk in the PTX ISA: this combination does not "
    "exist.",
    "convergence": "All 32 threads must come to this instruction together: move it out of the divergent branch, or let "
    "the others wait at a __syncwarp.",
    "cta_group": "Use the same cta_group in every tcgen05 instruction of the kernel; cta_group::2 needs both CTAs of a "
    "pair in one cluster, alive until the end.",
    "emulator_limit": "This is a limit of the emulator, not a mistake in the kernel.",
    "endless": "The kernel did not end: look for a loop whose exit never comes, or give it more instructions.",
    "exited_cta": "Let the CTAs of a cluster wait for each other (a cluster barrier) before one of them exits.",
    "hang": "Compare what each warp waits for with who should arrive there: arrival counts, expected bytes, the parity "
    "that is waited for, and roles that skip an iteration.",
    "in_flight_at_exit": "Wait with cp.async.bulk.wait_group.read 0 in the thread that issued the copies, or for "
    "cp.async with cp.async.wait_group 0 (or at the mbarrier that they arrive at), before the thread ends.",
    "launch": "Change the launch: what the chip allows is in specs/archs.",
    "matrix_descriptor": "Compare the descriptor's fields (start, leading and stride offset, swizzle, types, M and N) "
    "with the layout that the operand was written with.",
    "misaligned": "Align the address: 16 bytes for bulk copies, 128 for a TMA tile, and 256, 512 or 1024 under a "
    "swizzle of 32, 64 or 128 bytes.",
    "missing_copy_fence": "Put fence.proxy.async (cute.arch.fence_proxy) behind the wait for the cp.async or st.async "
    "and before the copy or the MMA: in the thread that issues it, or in one that arrives at what it then waits for.",
    "missing_proxy_fence": "Put fence.proxy.async (cute.arch.fence_proxy) behind the ordinary writes and before the "
    "barrier that lets the copy or the MMA go.",
    "missing_tensormap_fence": "After changing a tensor map: release it (tensormap.cp_fenceproxy or fence.proxy."
    "tensormap::generic.release), then acquire it in the CTA that issues the copy.",
    "not_elected": "Guard the instruction with elect_one: each executing thread issues it whole.",
    "out_of_bounds": "Check the index against the extent: the last tile, the ragged edge, and byte against element "
    "strides.",
    "prior_grid": "Execute griddepcontrol.wait before touching what the previous kernel writes.",
    "race": "Order the two accesses: a barrier between them, or an arrival after the first and a wait before the "
    "second.",
    "read_only": "The tensor is an input: it must not be written.",
    "registers": "The setmaxnreg values of all warpgroups together must fit into the 64K registers of the CTA, in "
    "steps of 8.",
    "scale_factors": "Check the tensor memory columns and the layout of the scale factors, and that tcgen05.cp wrote "
    "them all.",
    "tensor_map": "Compare the tensor map (rank, box, dimensions, strides, element type, swizzle) with what the copy "
    "assumes.",
    "tmem_access": "Check lane and column against the shape and against what the CTA allocated; a warp reaches the 32 "
    "lanes of its quarter only.",
    "tmem_allocation": "Allocate a power of two from 32 to 512 columns, free exactly what was allocated, by the warp "
    "that allocated it, before the CTA exits.",
    "transaction_bytes": "Expect exactly the bytes that the copies of this phase deliver, out-of-bounds parts included "
    "(in a 2-CTA pair: of both CTAs, at the leader).",
    "trap": "The kernel executed trap: an assertion of its own failed.",
    "undefined_output": "The output depends on memory or registers that were never written: follow the value back from "
    "the store.",
    "undefined_value": "Something that was never written is used here: an accumulator that is not zeroed, a stage read "
    "before it is filled, a mask that lets padding through.",
    "unwritten_output": "No store reaches these elements: check the grid, the tile's bounds and the predicates.",
    "wgmma_fence": "Execute wgmma.fence after the registers were written and before the first wgmma that uses them.",
    "wgmma_in_flight": "Wait with wgmma.wait_group before the registers are used.",
    "wgmma_warpgroup": "All four warps of the warpgroup must execute the same wgmma with the same descriptors.",
}
"""By the kind of a finding."""

_COPIES = ("cp.async.bulk", "cp.reduce.async.bulk")
_MMA = ("wgmma.mma_async", "tcgen05.mma", "tcgen05.cp")


def hint_of(kind: str, opcode: str = "", other_opcode: str = "") -> str:
    """What to do. ``opcode`` is the instruction of the finding, ``other_opcode`` the earlier access of a race."""
    if kind == "race" and opcode and other_opcode:
        return _race(opcode, other_opcode) or HINTS["race"]
    return HINTS.get(kind, "")


def _is_load(opcode: str) -> bool:
    return opcode.startswith(_COPIES) and "mbarrier::complete_tx" in opcode


def _is_store(opcode: str) -> bool:
    return opcode.startswith(_COPIES) and ".bulk_group" in opcode


def _race(later: str, earlier: str) -> str:
    if earlier.startswith("mbarrier.init"):
        return (
            "Initialise barriers before a fence and a barrier of the CTA (of the cluster), and use them only after it."
        )
    if later.startswith("tensormap"):
        return (
            "Let the copies that use the map read it first (cp.async.bulk.commit_group and wait_group.read 0 in the "
            "thread that issued them), then change it."
        )
    if _is_load(later):
        return (
            "The copy refills memory that may still be in use: wait for the barrier that its users arrive on after "
            "their last access (for MMAs tcgen05.commit or wgmma.wait_group first), at every turn but the first."
        )
    if _is_load(earlier):
        return (
            "Wait for the mbarrier that the copy signals, with the parity of this turn, before its bytes are touched."
        )
    if _is_store(earlier):
        return (
            "Wait in the thread that issued the copy: cp.async.bulk.wait_group.read before its source is written "
            "again, wait_group before its result is read; then tell the others by a barrier."
        )
    if earlier.startswith("cp.async"):
        return (
            "Wait with cp.async.wait_group (or through its mbarrier), then at a barrier, before the bytes are touched."
        )
    if earlier.startswith(_MMA):
        return (
            "Wait until the MMA has completed: tcgen05.commit and its mbarrier, or wgmma.wait_group and a barrier, "
            "before its operands are overwritten or its result is used."
        )
    if earlier.startswith("tcgen05.ld"):
        return "Finish the load (tcgen05.wait::ld) and then arrive at the barrier that lets the columns be overwritten."
    if earlier.startswith("tcgen05.st"):
        return "Finish the store (tcgen05.wait::st) and then arrive at the barrier that lets others use the columns."
    if later.startswith(_MMA) or _is_store(later):
        return (
            "Order the ordinary writes before this instruction: fence.proxy.async, then a barrier that the issuing "
            "thread waits at."
        )
    return ""
