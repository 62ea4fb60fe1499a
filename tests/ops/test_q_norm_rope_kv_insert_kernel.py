"""q_norm_rope_kv_insert's kernels: what the compiled code contains, their values in the emulator, and the judge."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.emit import emit
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.case import Case
from tests.ops import builds as builds

OP = "q_norm_rope_kv_insert"
# arch, heads, cache, pdl, warps, heads of a warp: packed and plain pools, one head in flight and more.
CONFIGURATIONS = {
    "packed": ("sm_90a", 6, "kv_fp8", True, 8, 2),
    "plain": ("sm_100a", 5, "plain", False, 2, 1),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(OP, arch, dims={"H": heads}, variant={"cache": cache, "pdl": pdl}, config=config)
        for arch, heads, cache, pdl, warps, each in CONFIGURATIONS.values()
        for config in [{"warps": warps, "heads_per_warp": each}]
    ]
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


def access_bytes(text: str, opcode: str) -> set[int]:
    """How many bytes an opcode's uses move at once."""
    sizes = [re.fullmatch(r"(?:v(\d)\.)?b(\d+)", width) for width in builds.widths(text, opcode)]
    return {int(size[1] or 1) * int(size[2]) // 8 for size in sizes if size}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    builds.takes_what_was_predicted(built[name])
    assert ("griddepcontrol.wait" in builds.ptx(built[name])) == CONFIGURATIONS[name][3]


def test_accesses_are_16_bytes_wide_but_for_codes_scales_and_row_numbers(built: dict[str, BuildResult]) -> None:
    packed, plain = builds.ptx(built["packed"]), builds.ptx(built["plain"])
    assert access_bytes(packed, "ld.global") == access_bytes(plain, "ld.global") == {16, 8}
    assert access_bytes(packed, "st.global") == {16, 8, 1}
    assert access_bytes(plain, "st.global") == {16}


def test_offsets_into_pools_and_queries_are_64_bits_wide(built: dict[str, BuildResult]) -> None:
    for result in built.values():
        assert re.search(r"(mad|mul)\.lo\.s64", builds.ptx(result))


def test_the_weight_is_read_before_the_launch_before_has_ended(built: dict[str, BuildResult]) -> None:
    text = builds.ptx(built["packed"])
    before_first_wait = text.split("griddepcontrol.wait")[0]
    assert before_first_wait.count("ld.global") in (0, 2)  # keys' CTAs: two vectors of the weight; queries': nothing
    assert text.count("griddepcontrol.wait") == 2


# Numbers of cases (without the empty one): gaps, pages of five rows, magnitudes, a large number, NaN, unchanged keys.
@pytest.mark.parametrize(("name", "numbers"), [("packed", (1, 3, 4, 6, 10, 11, 12)), ("plain", (2, 4, 6, 11, 12))])
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str, numbers: tuple[int, ...]) -> None:
    assert builds.findings(built[name], numbers) == []


def right(case: Case) -> dict[str, torch.Tensor]:
    return {**builds.right_outputs(case), **{name: case.expected[name].clone() for name in case.inouts}}


def code_two_steps_off(got: dict[str, torch.Tensor], row: tuple[int, int]) -> None:
    byte = got["pool"][row[0], 576 * row[1] + 5]
    got["pool"][row[0], 576 * row[1] + 5] = byte + 2 if int(byte) & 0x7F < 0x70 else byte - 2


def scale_doubled(got: dict[str, torch.Tensor], row: tuple[int, int]) -> None:
    got["pool"][row[0], 5 * 576 + 8 * row[1] + 6] += 1


def padding_not_zero(got: dict[str, torch.Tensor], row: tuple[int, int]) -> None:
    got["pool"][row[0], 5 * 576 + 8 * row[1] + 7] = 1


def end_of_page_written(got: dict[str, torch.Tensor], row: tuple[int, int]) -> None:
    got["pool"][row[0], -1] = 0


def scratch_row_written(got: dict[str, torch.Tensor], row: tuple[int, int]) -> None:
    got["pool"][-1, 5 * 576 - 1] ^= 1


def rotary_part_turned_back(got: dict[str, torch.Tensor], row: tuple[int, int]) -> None:
    odd = slice(576 * row[1] + 449, 576 * row[1] + 576, 4)  # the sign bit of every second number
    got["pool"][row[0], odd] ^= 0x80


def head_one_step_off(got: dict[str, torch.Tensor], row: tuple[int, int]) -> None:
    got["q_out"].view(torch.int16)[2, 1] += 1


def number_two_steps_off(got: dict[str, torch.Tensor], row: tuple[int, int]) -> None:
    got["q_out"].view(torch.int16)[2, 1, 7] += 2


@pytest.mark.parametrize(
    "mistake",
    [
        code_two_steps_off,
        scale_doubled,
        padding_not_zero,
        end_of_page_written,
        scratch_row_written,
        rotary_part_turned_back,
        head_one_step_off,
        number_two_steps_off,
    ],
)
def test_the_judge_finds(mistake: Callable[[dict[str, torch.Tensor], tuple[int, int]], None]) -> None:
    case = cases(OP, {"H": 2}, {"cache": "kv_fp8", "pdl": False})[4]
    assert "pages of five rows" in case.name
    got = right(case)
    assert judge(OP, got, case).ok
    rows = case.inputs["rows"]
    assert isinstance(rows, torch.Tensor)
    row = int(rows[rows >= 0][0])
    mistake(got, (row // 5, row % 5))
    assert not judge(OP, got, case).ok


@pytest.mark.parametrize("cache", ["kv_fp8", "plain"])
def test_keys_that_stay_as_they_are_have_the_quantisers_bytes(cache: str) -> None:
    """What the reference stores, byte for byte; one code a step off, which is allowed elsewhere, is found."""
    case = cases(OP, {"H": 2}, {"cache": cache, "pdl": False})[-1]
    kv, rows = case.inputs["kv"], case.inputs["rows"]
    assert isinstance(kv, torch.Tensor) and isinstance(rows, torch.Tensor)
    assert torch.equal(case.expected["keys"], kv.double())
    got = right(case)
    assert judge(OP, got, case).ok
    (name,) = case.inouts
    bits = got[name].view(torch.int16 if cache == "plain" else torch.uint8)
    bits[int(rows[0]) // (64 if cache == "kv_fp8" else 1), 0] ^= 1
    assert not judge(OP, got, case).ok


def test_the_models_head_counts_are_default_kernels() -> None:
    made = {(each.dims["H"], each.variant["cache"], each.variant["pdl"]) for each in default_plans(OP, "sm_90a")}
    assert {(heads, "kv_fp8", pdl) for heads in (64, 128) for pdl in (False, True)} <= made


def test_an_emitted_file_has_nothing_of_the_other_pool() -> None:
    texts = {cache: emit(plan(OP, "sm_90a", variant={"cache": cache})).text for cache in ("kv_fp8", "plain")}
    assert "store_plain" not in texts["kv_fp8"] and "store_kv_fp8" not in texts["plain"]
    assert all("HEADS_PER_WARP" not in text for text in texts.values())


def test_heads_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(Refused, match="divides H"):
        plan(OP, "sm_90a", dims={"H": 6}, config={"heads_per_warp": 4})
