"""Every limit of the chip is refused with a reason that names the field; what just fits is not."""

from dataclasses import replace

import pytest

from dsv4.generator.resources import (
    KernelRequest,
    Refused,
    RoleRequest,
    SmemRequest,
    TmaRequest,
    TmemRequest,
    place,
)
from dsv4.generator.spec import load_arch

HOPPER, BLACKWELL = load_arch("sm_90a").limits, load_arch("sm_100a").limits


def smem(name, size, align=16, **more):
    return SmemRequest(name, size, align, "u8", size, field=f"smem.{name}", **more)


def tmem(name, columns, lanes=128, first_lane=0, **more):
    return TmemRequest(name, columns, lanes, first_lane, 4, "f32", field=f"tmem.{name}", **more)


def role(name, warps, registers=None):
    return RoleRequest(name, warps, registers, field=f"roles.{name}")


def tma(box, swizzle=0, bits=16, multiple=16, strides=(None,), into=None):
    return TmaRequest("x", "x", bits, tuple(box), multiple, strides, swizzle, into, field="tma[0]")


BASE = KernelRequest("kernel", (), (), (role("all", 4),), ())


def reasons(request, limits=BLACKWELL):
    with pytest.raises(Refused) as caught:
        place(request, limits, "arch")
    assert all("valid: " in reason and "\n" not in reason for reason in caught.value.reasons)
    return " | ".join(caught.value.reasons)


def fits(request, limits=BLACKWELL):
    return place(request, limits, "arch")


def test_shared_memory_to_the_last_byte():
    assert fits(replace(BASE, smem=(smem("a", 232448),))).smem_bytes == 232448
    text = reasons(replace(BASE, smem=(smem("a", 232448), smem("b", 1, 1))))
    assert "storage.smem" in text and "232,464 B" in text and "16 B too many" in text


@pytest.mark.parametrize("align", [0, 3, 2048])
def test_alignment(align):
    assert "smem.a.align" in reasons(replace(BASE, smem=(smem("a", 64, align),)))


def test_empty_regions_are_refused():
    assert "smem.a.bytes" in reasons(replace(BASE, smem=(smem("a", 0),)))
    assert "tmem.s.columns" in reasons(replace(BASE, tmem=(tmem("s", 0),)))
    assert "roles.b.warps" in reasons(replace(BASE, roles=(role("a", 4), role("b", 0))))
    assert "storage.roles: no warps" in reasons(replace(BASE, roles=()))


def test_alias():
    budget = fits(replace(BASE, smem=(smem("a", 64, 128), smem("b", 64, alias="a"), smem("c", 8))))
    assert budget.smem["b"].offset_bytes == 0 and budget.smem["c"].offset_bytes == 64
    assert budget.smem_bytes == 128 and [region.name for region in budget.smem_members] == ["a", "c"]
    assert "smem.b.bytes" in reasons(replace(BASE, smem=(smem("a", 64), smem("b", 65, alias="a"))))
    assert "smem.b.alias" in reasons(replace(BASE, smem=(smem("b", 65, alias="a"), smem("a", 65))))
    two = (smem("x", 16), smem("a", 64), smem("b", 64, 1024, alias="a"))
    assert "align a to 1024 B" in reasons(replace(BASE, smem=two))
    assert "exists twice" in reasons(replace(BASE, smem=(smem("a", 64), smem("a", 64))))


@pytest.mark.parametrize("warps, ok", [(32, True), (33, False)])
def test_threads(warps, ok):
    request = replace(BASE, roles=(role("a", warps),))
    if ok:
        assert fits(request).threads == 1024
    else:
        assert "storage.roles: 1056 threads" in reasons(request)


def test_register_pool():
    fine = (role("producer", 4, 24), role("consumer", 8, 240))
    budget = fits(replace(BASE, roles=fine))
    assert budget.launch_registers == 168 and budget.roles["consumer"].first_warp == 4
    assert "storage.roles: 65,536 registers" in reasons(replace(BASE, roles=(role("p", 4, 32), role("c", 8, 240))))


def test_one_warpgroup_with_all_registers_of_a_thread():
    assert fits(replace(BASE, roles=(role("a", 4, 24), role("b", 4, 240)))).launch_registers == 255


@pytest.mark.parametrize("registers", [16, 20, 25, 248])
def test_setmaxnreg_values(registers):
    text = reasons(replace(BASE, roles=(role("a", 4, registers),)))
    assert f"roles.a.registers: a asks for {registers}" in text and "multiples of 8 in 24..240" in text


def test_a_warpgroup_sets_one_value():
    text = reasons(replace(BASE, roles=(role("a", 4, 64), role("b", 1, 24), role("c", 3, 32))))
    assert "warps 4..7 are one warpgroup" in text and "b 24, c 32" in text
    assert "whole warpgroups" in reasons(replace(BASE, roles=(role("a", 4, 64), role("b", 2, 24))))
    assert "one warpgroup" in reasons(replace(BASE, roles=(role("a", 2, 64), role("b", 2, None))))


def test_launch_registers():
    assert fits(replace(BASE, roles=(role("a", 16),), launch_registers=128)).launch_registers == 128
    text = reasons(replace(BASE, roles=(role("a", 16),), launch_registers=136))
    assert "storage.launch_registers: 136 registers × 512 threads" in text and "at most 128" in text


def test_tmem_columns_and_their_power_of_two():
    for columns, allocated in ((4, 32), (33, 64), (129, 256), (512, 512)):
        assert fits(replace(BASE, tmem=(tmem("s", columns),))).tmem_columns == allocated
    text = reasons(replace(BASE, tmem=(tmem("s", 256), tmem("o", 260))))
    assert "storage.tmem: 516 columns asked for (s 256 + o 260), 512 available" in text
    assert fits(BASE).tmem_columns == 0


def test_no_tmem_on_hopper():
    assert "this chip has no TMEM" in reasons(replace(BASE, tmem=(tmem("s", 4),)), HOPPER)


def test_regions_overlap_only_on_purpose():
    budget = fits(replace(BASE, tmem=(tmem("s", 128), tmem("p", 64, overlaps="s", offset_columns=64), tmem("o", 128))))
    assert (budget.tmem["p"].first_column, budget.tmem["o"].first_column) == (64, 128)
    assert "beyond s" in reasons(replace(BASE, tmem=(tmem("s", 64), tmem("p", 65, overlaps="s"))))
    two = (tmem("s", 64), tmem("p", 32, overlaps="s"), tmem("q", 8, overlaps="s", offset_columns=24))
    assert "q (columns 24..31) shares cells with p (columns 0..31)" in reasons(replace(BASE, tmem=two))
    assert "tmem.p.overlaps" in reasons(replace(BASE, tmem=(tmem("p", 32, overlaps="s"), tmem("s", 64))))


def test_other_lanes_are_no_overlap():
    regions = (tmem("low", 64, 64), tmem("high", 64, 64, 64, overlaps="low"), tmem("x", 64, 64, 64, overlaps="low"))
    assert "x (columns 0..63) shares cells with high" in reasons(replace(BASE, tmem=regions))
    assert fits(replace(BASE, tmem=regions[:2])).tmem_columns == 64
    assert "within 0..127" in reasons(replace(BASE, tmem=(tmem("s", 64, 128, 64),)))


def test_ctas_that_share_an_sm():
    two = replace(BASE, tmem=(tmem("s", 256),), blocks_per_sm=2)
    assert fits(two).blocks_per_sm == 2
    assert "2 CTAs × 512 TMEM columns = 1024" in reasons(replace(two, tmem=(tmem("s", 257),)))
    assert fits(replace(BASE, smem=(smem("a", 115712),), blocks_per_sm=2)).smem_bytes == 115712
    assert "2 CTAs × 116,752 B" in reasons(replace(BASE, smem=(smem("a", 115728),), blocks_per_sm=2))
    assert "3 CTAs × 1024 threads" in reasons(replace(BASE, roles=(role("a", 32),), blocks_per_sm=3))
    assert "storage.blocks_per_sm: found 33" in reasons(replace(BASE, blocks_per_sm=33))


def test_named_barriers():
    assert fits(replace(BASE, named_barriers=16)).named_barriers == 16
    assert "storage.named_barriers: found 17; valid: 0 to 16" in reasons(replace(BASE, named_barriers=17))


def test_clusters():
    assert fits(replace(BASE, cluster=(4, 2, 1))).cluster == (4, 2, 1)
    assert "4 × 4 × 1 = 16 CTAs cannot be scheduled" in reasons(replace(BASE, cluster=(4, 4, 1)))
    assert fits(replace(BASE, cluster=(4, 4, 1), non_portable_cluster=True)).cluster == (4, 4, 1)
    assert "1 to 16 CTAs" in reasons(replace(BASE, cluster=(17, 1, 1), non_portable_cluster=True))
    assert "storage.cluster" in reasons(replace(BASE, cluster=(0, 1, 1)))


@pytest.mark.parametrize(
    "item, text",
    [
        (tma((1,) * 6), "rank 6"),
        (tma((257, 64)), "box[0]: 257 elements"),
        (tma((0, 64)), "box[0]: 0 elements"),
        (tma((8, 4)), "8 B along the innermost dimension"),
        (tma((8, 72), swizzle=128), "144 B along the innermost dimension, the swizzle spans 128 B; valid: at most 64"),
        (tma((8, 64), swizzle=96), "swizzle: found 96"),
        (tma((8, 64), multiple=8), "multiples of 8 B"),
        (tma((8, 64), strides=(24,)), "stride 0 of x is 24 B"),
        (tma((8, 64), strides=(1 << 40,)), "below 2^40"),
        (tma((8, 64), into="nowhere"), "tma[0].into: found nowhere"),
        (tma((8, 64), swizzle=128, into="a"), "align: 1024 on a"),
    ],
)
def test_tma(item, text):
    assert text in reasons(replace(BASE, smem=(smem("a", 4096, 512),), tma=(item,)))


def test_a_tma_box_that_is_fine():
    request = replace(BASE, smem=(smem("a", 4096, 1024),), tma=(tma((8, 64), 128, into="a", strides=(2**40 - 16,)),))
    assert fits(request).tma["x"].transaction_bytes == 1024


def test_every_reason_is_told_at_once():
    request = replace(
        BASE, smem=(smem("a", 300000),), tmem=(tmem("s", 600),), roles=(role("a", 40),), cluster=(9, 1, 1)
    )
    text = reasons(request)
    assert all(part in text for part in ("storage.smem", "storage.tmem", "storage.roles", "storage.cluster"))
