"""wgmma: poison, what happens in flight, fences, groups, races, and what a warpgroup must do together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsv4.emulator.oracle import matrix
from dsv4.emulator.policy import Policy, mixed
from tests.emulator.matrix_machine import EARLY, LATE, SHARED_BASE, Matrices, Outcome, clean
from tests.emulator.wgmma_kernel import Product, accumulator_places, names, tile_of

N = 16
REGISTERS = N // 2
ACC = names("o", REGISTERS)
FENCE, COMMIT, WAIT = (
    f"wgmma.{one}.sync.aligned{' 0' * (one == 'wait_group')};" for one in ("fence", "commit_group", "wait_group")
)


def ones(*, in_registers: bool = False, mn_major: bool = False, accumulate: bool = True) -> Product:
    """A and B of ones in bf16: every sum is 16; the accumulators start as 0."""
    code = 0x3F80
    a, b = np.full((64, 16), code, np.uint32), np.full((16, N), code, np.uint32)
    swizzle = 32 if mn_major else 128
    a_tile = None if in_registers else tile_of(64, "bf16", mn_major=mn_major, swizzle_bytes=swizzle)
    b_tile = tile_of(N, "bf16", mn_major=mn_major, swizzle_bytes=swizzle)
    zeros = np.zeros((64, N), np.uint32)
    return Product(a, b, zeros, ("f32", "bf16", "bf16"), a_tile, b_tile, accumulate=accumulate)


def run(product: Product, body: str, policy: Policy = LATE, **changes: object) -> Outcome:
    """The kernel of `product` with other statements after its set-up. {mma} is the wgmma on the output registers."""
    kernel = product.kernel()
    setup = kernel.body[: kernel.body.index("wgmma.fence")]
    a = "%rd0" if product.a_tile else names("i", 4, product.registers)
    statements = body.replace("{mma}", product.instruction(names("o", product.registers), a))
    return replace(kernel, body=setup + statements, **changes).run(policy)  # type: ignore[arg-type]


def value(outcome: Outcome) -> set[float]:
    return set(outcome.registers.view(np.float32).ravel().tolist())


# ---------------------------------------------------------------------------------------------------------- poison


@pytest.mark.parametrize("mn_major", [False, True])
@pytest.mark.parametrize("operand", ["A", "B"])
def test_an_element_that_was_never_written_is_named(operand: str, mn_major: bool) -> None:
    product = ones(mn_major=mn_major)
    shared, a_at, b_at = product.memory()
    tile, at, place = {"A": (product.a_tile, a_at, (37, 6)), "B": (product.b_tile, b_at, (10, 4))}[operand]
    assert tile is not None
    address = int(tile.addresses(SHARED_BASE + at)[place])
    unset = np.zeros(shared.size // 4, bool)
    unset[(address - SHARED_BASE) // 4] = True  # this element and its neighbour in the word
    outcome = run(product, f"{FENCE} {{mma}} {COMMIT} {WAIT}", unset=unset)
    kind, name = {"A": ("row", 37), "B": ("column", 10)}[operand]
    # the word's first element: along K when K-major, along rows or columns when MN-major
    mn = name - name % 2 if mn_major else name
    k = place[1] if mn_major else place[1] - place[1] % 2
    first = int(tile.addresses(SHARED_BASE + at)[mn, k])
    said = outcome.messages("undefined_value")
    assert said[0].startswith(f"operand {operand} (bf16) of wgmma: {kind} {mn}, k {k} at shared address 0x{first:x}")
    poison = np.zeros((64, N), bool)
    hit = slice(mn, mn + 2) if mn_major else mn
    if operand == "A":
        poison[hit] = True
    else:
        poison[:, hit] = True
    assert np.array_equal(outcome.poison, poison[accumulator_places(N)])
    others = {one.warp for one in outcome.findings if "operand" in one.message}
    assert others <= {0, 1, 2, 3}


def test_an_undefined_register_of_a_is_named() -> None:
    product = ones(in_registers=True)
    a = f"{{%i{REGISTERS}, %i{REGISTERS + 1}, %i{REGISTERS + 2}, %r5}}"
    body = f"""setp.ne.u32 %pr0, %tid, {32 * 2 + 13}; @%pr0 mov.b32 %r5, %i{REGISTERS + 3};
        {FENCE} {product.instruction(ACC, a)} {COMMIT} {WAIT}"""
    outcome = run(product, body)
    # warp 2, lane 13, register 3: row 32 + 3 + 8, K 8 + 2
    assert outcome.messages("undefined_value") == [
        "operand A of wgmma: the register that holds row 43, k 10 was never written"
    ]
    poison = np.zeros((64, N), bool)
    poison[43] = True
    assert np.array_equal(outcome.poison, poison[accumulator_places(N)])


@pytest.mark.parametrize("accumulate", [False, True])
def test_poison_of_accumulators_stays_where_it_is_unless_scale_d_clears_it(accumulate: bool) -> None:
    product = ones(accumulate=accumulate)
    fresh = names("r", REGISTERS, 8)
    writes = "".join(f"mov.b32 %r{8 + n}, 0;" for n in range(REGISTERS) if n != 5)
    reads = "".join(f"mov.b32 %o{n}, %r{8 + n};" for n in range(REGISTERS))
    body = f"""setp.eq.u32 %pr0, %tid, 70; {writes} @!%pr0 mov.b32 %r13, 0;
        {FENCE} {product.instruction(fresh)} {COMMIT} {WAIT} {reads}"""
    outcome = run(product, body)
    assert outcome.kinds() == []
    expected = np.zeros((REGISTERS, 128), bool)
    expected[5, 70] = accumulate
    assert np.array_equal(outcome.poison, expected)


# ------------------------------------------------------------------------------------------------------- in flight


@pytest.mark.parametrize("policy", [LATE, EARLY, mixed(4)], ids=lambda policy: policy.name)
def test_an_accumulator_that_is_read_before_the_wait_is_found(policy: Policy) -> None:
    outcome = run(ones(), f"{FENCE} {{mma}} {COMMIT} add.u32 %r3, %o2, 1; {WAIT}", policy)
    assert outcome.kinds() == ["wgmma_in_flight"]


def test_an_accumulator_that_is_written_before_the_wait_is_found() -> None:
    assert run(ones(), f"{FENCE} {{mma}} {COMMIT} mov.b32 %o3, 0; {WAIT}").kinds() == ["wgmma_in_flight"]


def test_a_register_of_a_that_is_overwritten_before_the_wait_is_found() -> None:
    body = f"{FENCE} {{mma}} {COMMIT} mov.b32 %i{REGISTERS + 1}, 5; {WAIT}"
    outcome = run(ones(in_registers=True), body)
    assert outcome.messages("wgmma_in_flight") == [
        "register 1 of operand A was overwritten before the wgmma that reads it was waited for"
    ]
    assert value(outcome) == {16.0}  # the sum is that of the captured values


def test_a_register_of_a_may_be_overwritten_after_the_wait() -> None:
    clean(run(ones(in_registers=True), f"{FENCE} {{mma}} {COMMIT} {WAIT} mov.b32 %i{REGISTERS + 1}, 5;"))


def test_operand_a_must_not_be_an_accumulator_in_flight() -> None:
    product = ones(in_registers=True)
    second = product.instruction(names("r", REGISTERS, 8), "{%o0, %o1, %o2, %o3}")
    fresh = "".join(f"mov.b32 %r{8 + n}, 0;" for n in range(REGISTERS))
    outcome = run(product, f"{fresh} {FENCE} {{mma}} {second} {COMMIT} {WAIT}")
    assert "wgmma_in_flight" in outcome.kinds()


@pytest.mark.parametrize("policy", [LATE, EARLY, mixed(5)], ids=lambda policy: policy.name)
def test_wait_group_n_leaves_the_newest_groups_in_flight(policy: Policy) -> None:
    product = ones()
    other = product.instruction(names("r", REGISTERS, 8))
    fresh = "".join(f"mov.b32 %r{8 + n}, 0;" for n in range(REGISTERS))
    start = f"{fresh} {FENCE} {{mma}} {COMMIT} {other} {COMMIT} wgmma.wait_group.sync.aligned 1;"
    outcome = run(product, f"{start} add.f32 %o0, %o0, 0f3F800000; {WAIT}", policy)
    clean(outcome)
    assert value(outcome) == {16.0, 17.0}
    early = run(product, f"{start} add.f32 %r9, %r9, 0f3F800000; {WAIT}", policy)
    assert early.kinds() == ["wgmma_in_flight"]


def test_a_wgmma_outside_of_any_group_is_not_waited_for() -> None:
    assert run(ones(), f"{FENCE} {{mma}} {WAIT}").kinds()[:1] == ["wgmma_in_flight"]


# ----------------------------------------------------------------------------------------------------------- fences


def test_no_fence_at_all_is_found() -> None:
    assert run(ones(), f"{{mma}} {COMMIT} {WAIT}").kinds() == ["wgmma_fence"]


def test_registers_that_are_written_between_wait_and_wgmma_need_a_fence() -> None:
    once = f"{{mma}} {COMMIT} {WAIT}"
    outcome = run(ones(), f"{FENCE} {once} mov.b32 %o1, 0; {once}")
    assert outcome.kinds() == ["wgmma_fence"]
    clean(run(ones(), f"{FENCE} {once} mov.b32 %o1, 0; {FENCE} {once}"))


def test_registers_of_a_that_are_written_between_wait_and_wgmma_need_a_fence() -> None:
    once = f"{{mma}} {COMMIT} {WAIT}"
    change = f"mov.b32 %i{REGISTERS}, 0x40004000;"
    outcome = run(ones(in_registers=True), f"{FENCE} {once} {change} {once}")
    assert outcome.kinds() == ["wgmma_fence"]
    clean(run(ones(in_registers=True), f"{FENCE} {once} {change} {FENCE} {once}"))


def test_untouched_accumulators_need_no_fence_and_writes_behind_a_fence_are_not_accused() -> None:
    once = f"{{mma}} {COMMIT} {WAIT}"
    outcome = run(ones(), f"{FENCE} {once} {once}")
    clean(outcome)
    assert value(outcome) == {32.0}
    clean(run(ones(), f"{FENCE} {once} {FENCE} mov.b32 %o1, 0; {once}"))


# ------------------------------------------------------------------------------------------------- shared memory


def test_ordinary_stores_need_a_proxy_fence_before_the_wgmma() -> None:
    body = f"{FENCE} {{mma}} {COMMIT} {WAIT}"
    assert "missing_proxy_fence" in run(ones(), body, prologue="bar.sync 0;").kinds()


@pytest.mark.parametrize(
    ("operand", "wait_first", "kinds"), [("A", False, {"race"}), ("B", False, {"race"}), ("B", True, set())]
)
def test_an_operand_that_is_overwritten_in_flight_is_a_race(operand: str, wait_first: bool, kinds: set[str]) -> None:
    product = ones()
    _, a_at, b_at = product.memory()
    store = (
        f"""bar.sync 0; setp.eq.u32 %pr0, %tid, 0; @%pr0 st.shared.b32 [%smem+{b_at if operand == "B" else a_at}], 0;"""
    )
    tail = f"{WAIT} {store}" if wait_first else f"{store} {WAIT}"
    for policy in (LATE, EARLY):
        assert set(run(product, f"{FENCE} {{mma}} {COMMIT} {tail}", policy).kinds()) == kinds


def test_a_descriptor_that_reaches_beyond_shared_memory_is_found() -> None:
    product = ones()
    outcome = run(product, f"add.s64 %rd1, %rd1, {product.memory()[0].size // 16}; {FENCE} {{mma}} {COMMIT} {WAIT}")
    assert "out_of_bounds" in outcome.kinds()


# ------------------------------------------------------------------------------------------------------- warpgroups


def test_descriptors_are_the_same_in_all_threads_of_a_warp() -> None:
    body = f"setp.eq.u32 %pr0, %tid, 3; @%pr0 add.s64 %rd0, %rd0, 2; {FENCE} {{mma}} {COMMIT} {WAIT}"
    outcome = run(ones(), body)
    assert outcome.messages("wgmma_warpgroup")[0] == (
        "the matrix descriptor of operand A is not the same in all threads"
    )


def test_descriptors_are_the_same_in_all_warps_of_a_warpgroup() -> None:
    body = f"setp.ge.u32 %pr0, %tid, 96; @%pr0 add.s64 %rd0, %rd0, 2; {FENCE} {{mma}} {COMMIT} {WAIT}"
    said = run(ones(), body).messages("wgmma_warpgroup")
    assert len(said) == 1 and "different matrix descriptors of operand A" in said[0]


def test_scale_d_is_the_same_in_all_threads() -> None:
    body = f"setp.ne.u32 %pr7, %tid, 40; {FENCE} {{mma}} {COMMIT} {WAIT}"
    assert set(run(ones(), body).kinds()) == {"wgmma_warpgroup"}


def test_all_warps_of_a_warpgroup_execute_the_same_wgmmas() -> None:
    body = f"""{FENCE} setp.lt.u32 %pr0, %tid, 32; @%pr0 bra OTHER; {{mma}} {COMMIT} {WAIT} bra DONE;
        OTHER: {{mma}} {COMMIT} {WAIT} DONE:"""
    said = run(ones(), body).messages("wgmma_warpgroup")
    assert len(said) == 1 and "execute different wgmmas" in said[0]


def test_a_warpgroup_has_four_warps() -> None:
    product = ones()
    shared, _, b_at = product.memory()
    assert product.a_tile and product.b_tile
    body = f"""mov.b64 %rd0, {product.a_tile.descriptor(SHARED_BASE)}; mov.b64 %rd1,
        {product.b_tile.descriptor(SHARED_BASE + b_at)}; setp.ne.u32 %pr7, 0, 0;
        {FENCE} {product.instruction(ACC)} {COMMIT} {WAIT}"""
    outcome = Matrices(body, outputs=REGISTERS, shared=shared, threads=64).run()
    assert outcome.messages("wgmma_warpgroup") == ["warps 0 to 1 are no warpgroup: the CTA has 2 warps"]


def test_a_second_warpgroup_has_rows_of_its_own() -> None:
    """Two warpgroups with different A tiles and the same B."""
    product = ones()
    shared, _, b_at = product.memory()
    assert product.a_tile and product.b_tile
    twos = np.zeros(b_at, np.uint8)
    product.a_tile.scatter(np.full((64, 16), 0x4000, np.uint32), SHARED_BASE, twos, SHARED_BASE)
    both = np.concatenate([shared, twos])
    body = f"""mov.b64 %rd0, {product.a_tile.descriptor(SHARED_BASE)};
        mov.b64 %rd1, {product.b_tile.descriptor(SHARED_BASE + b_at)};
        setp.ge.u32 %pr0, %tid, 128; @%pr0 mov.b64 %rd0, {product.a_tile.descriptor(SHARED_BASE + shared.size)};
        setp.ne.u32 %pr7, 0, 0; {FENCE} {product.instruction(ACC)} {COMMIT} {WAIT}"""
    outcome = Matrices(body, outputs=REGISTERS, shared=both, threads=256).run()
    clean(outcome)
    found = outcome.registers.view(np.float32)
    assert set(found[:, :128].ravel()) == {16.0} and set(found[:, 128:].ravel()) == {32.0}


def test_wide_accumulators_of_f16_are_packed_in_pairs() -> None:
    row, column = accumulator_places(N)
    d = (64.0 * np.arange(64)[:, None] + np.arange(N)[None, :]).astype(np.float16).view(np.uint16).astype(np.uint32)
    packed = matrix.pack(d[row, column], 16)
    assert packed.shape == (N // 4, 128)
    assert packed[0, 0] == d[0, 0] | d[0, 1] << 16 and packed[1, 5] == d[9, 2] | d[9, 3] << 16
