"""From the real specs to plans: overrides, contracts, work counts, default lists."""

import pytest

from dsv4.generator.spec import (
    Refused,
    SpecError,
    default_plans,
    list_models,
    list_ops,
    load_arch,
    load_model,
    load_op,
    plan,
    read_op,
    space,
    work,
)

ARCHS = ("sm_90a", "sm_100a")
READY = ("rms_norm", "fmha")


def test_the_ready_operators():
    assert set(READY) <= set(list_ops(planned=False))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("op", READY)
def test_default_plans_are_all_different_and_default(op, arch):
    plans = default_plans(op, arch)
    assert plans and len({kernel.name for kernel in plans}) == len(plans)
    assert all(kernel.is_default and kernel.compute_capabilities for kernel in plans)
    assert {kernel.build_target for kernel in plans} == {"sm_90a" if arch == "sm_90a" else "sm_100f"}


def test_rms_norm_covers_the_widths_of_every_model():
    sizes = {kernel.dims["d"] for kernel in default_plans("rms_norm", "sm_90a")}
    for name in list_models():
        model = load_model(name)
        assert {model.hidden, model.q_lora, model.head_dim} <= sizes, name


def test_any_width_that_is_a_multiple_of_eight():
    for d in (8, 24, 72, 1000, 5120, 8200, 16384, 32768):
        assert plan("rms_norm", "sm_100a", dims={"d": d}).dims == {"d": d}
    with pytest.raises(SpecError, match=r"dims\.d: found 1001; valid: multiples of 8 from 8 to 32768"):
        plan("rms_norm", "sm_100a", dims={"d": 1001})


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("head_dim", [64, 128, 256, 512])
def test_fmha_has_a_default_for_every_head_dim(arch, head_dim):
    kernel = plan("fmha", arch, dims={"D": head_dim})
    assert kernel.is_default and head_dim % kernel.config["pv_n_tile"] == 0


@pytest.mark.parametrize(
    "choices, field, valid",
    [
        ({"dims": {"Sq": 3}}, "dims.Sq", "D"),
        ({"dims": {"D": 0}}, "dims.D", "multiples of 64"),
        ({"dims": {"D": True}}, "dims.D", "a positive whole number"),
        ({"variant": {"casual": True}}, "variants.casual", "did you mean causal?"),
        ({"variant": {"causal": "yes"}}, "variants.causal", "false, true"),
        ({"variant": {"causal": 1}}, "variants.causal", "false, true"),
        ({"config": {"tile_n": 100}}, "tunables.tile_n", "128"),
        ({"config": {"tile_n": "64); import os"}}, "tunables.tile_n", "128"),
        ({"config": {"tile_k": 64}}, "tunables.tile_k", "tile_n"),
        ({"model": "flasch"}, "model", "did you mean flash?"),
    ],
)
def test_overrides_that_the_spec_does_not_list(choices, field, valid):
    with pytest.raises(SpecError) as caught:
        plan("fmha", "sm_90a", **choices)
    assert field in str(caught.value) and valid in str(caught.value) and "\n" not in str(caught.value)


def test_arch_without_a_template():
    with pytest.raises(SpecError, match="arch: found 'sm_80'"):
        plan("fmha", "sm_80")


def test_fmha_contract():
    contract = plan("fmha", "sm_90a", dims={"D": 64}, variant={"has_sink": True}).contract
    names = [argument.name for argument in contract.arguments]
    assert names == ["q", "k", "v", "sink", "o", "lse", "softmax_scale"]
    q, sink, lse, scale = (contract.arguments[i] for i in (0, 3, 5, 6))
    assert q.shape == ("B", "Sq", "Hq", 64) and q.strides == ("any", "any", "any", 1) and q.stride_multiple == 8
    assert not sink.optional and sink.dtype == "f32"
    assert lse.shape == ("B", "Hq", "Sq") and lse.role == "output" and lse.dtype == "f32"
    assert scale.kind == "scalar" and scale.shape == ()
    assert contract.dims == {"B": None, "Sq": None, "Sk": None, "Hq": None, "Hkv": None, "D": 64}
    assert plan("fmha", "sm_90a").contract.arguments[3].optional


def test_rms_norm_contract():
    contract = plan("rms_norm", "sm_90a", dims={"d": 1536}).contract
    assert [argument.name for argument in contract.arguments] == ["x", "w", "y", "eps"]
    assert [argument.role for argument in contract.arguments] == ["input", "input", "output", "input"]
    assert contract.arguments[1].shape == (1536,) and contract.arguments[1].strides == (1,)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sq, sk", [(5, 5), (3, 7), (7, 3), (1, 9), (4, 0), (0, 4)])
def test_work_counts_the_visible_pairs(causal, sq, sk):
    kernel = plan("fmha", "sm_90a", dims={"D": 64}, variant={"causal": causal})
    counts = work(load_op("fmha"), kernel, {"B": 2, "Sq": sq, "Sk": sk, "Hq": 6, "Hkv": 3})
    visible = sum(not causal or j <= i + sk - sq for i in range(sq) for j in range(sk))
    assert counts["visible"] == visible
    assert counts["mma"] == 4 * 2 * 6 * visible * 64 and counts["exp2"] == 2 * 6 * visible


def test_work_without_a_size():
    with pytest.raises(SpecError, match="a size for T"):
        work(load_op("rms_norm"), plan("rms_norm", "sm_90a"), {})


def test_numeric_class_follows_the_order_of_accumulation_only():
    one = plan("fmha", "sm_90a", config={"kv_stage": 1})
    two = plan("fmha", "sm_90a", config={"kv_stage": 2})
    other = plan("fmha", "sm_90a", config={"tile_n": 64})
    assert one.numeric_class == two.numeric_class != other.numeric_class


def test_a_plan_is_the_default_when_it_says_the_same_in_full():
    standard = plan("fmha", "sm_100a")
    again = plan("fmha", "sm_100a", config=dict(standard.config))
    other = {"kv_stage": 1 if standard.config["kv_stage"] != 1 else 2}
    assert again.is_default and again.name == standard.name
    assert not plan("fmha", "sm_100a", config=other).is_default


def test_the_space_holds_each_configuration_once_and_prunes():
    seen, refused_early = set(), 0
    total = 1
    tunables = load_op("fmha").on("sm_90a")
    for tunable in tunables.values():
        total *= len(tunable.on("sm_90a"))
    points = list(space("fmha", "sm_90a", dims={"D": 128}))
    for config, kernel in points:
        key = tuple(config.items())
        assert key not in seen
        seen.add(key)
        if isinstance(kernel, Refused):
            assert kernel.reasons and all("valid: " in reason for reason in kernel.reasons), kernel
            refused_early += len(config) < len(tunables)
        else:
            assert kernel.config == config
    assert 0 < len(points) < total and refused_early > 0
    assert sum(not isinstance(kernel, Refused) and kernel.is_default for _, kernel in points) == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_rates_say_where_they_come_from(arch):
    rates = load_arch(arch).rates
    assert {rates[name].origin for name in ("hbm", "mma_bf16")} == {"datasheet"}


def test_models():
    flash, pro, tiny = (load_model(name) for name in ("flash", "pro", "tiny"))
    assert flash.compress_ratios.count(4) == 21 and flash.compress_ratios.count(128) == 20
    assert pro.compress_ratios.count(4) == 30 and pro.compress_ratios.count(128) == 31
    assert tiny.compress_ratios == (0, 0, 4, 128, 4, 0) and tiny.head_dim == 512
    assert (flash.routed_scaling, pro.routed_scaling) == (1.5, 2.5)


MINIMAL = """
op: scale
doc: y = a x
template: {sm_90a: norm/scale.py.j2}
dims: {T: {dynamic: any}, d: {static: [64, 96]}}
tensors: {x: {shape: [T, d / 64], dtype: bf16}}
outputs: {y: {shape: [T, d], dtype: bf16}}
tunables: {tile: [32, 64]}
storage:
  sm_90a:
    smem: [{name: row, bytes: 6400 // (d - 70)}]
    roles: [{name: all, warps: 4}]
numerics: {reference: scale, class: exact, tolerance: bitwise}
defaults: {sm_90a: {tile: 32}}
"""


def test_sizes_that_give_no_whole_number_are_refused_not_rounded():
    with pytest.raises(Refused, match=r"d / 64 = 1\.5 is not a whole number"):
        plan(read_op(MINIMAL, "t.yaml"), "sm_90a", dims={"d": 96})


def test_a_division_by_zero_is_refused():
    spec = read_op(MINIMAL.replace("d - 70", "d - 64"), "t.yaml")
    with pytest.raises(
        Refused, match=r"storage\.sm_90a\.smem\[0\]\.bytes: .* division by zero; valid: other values of d"
    ):
        plan(spec, "sm_90a")
    conditional = MINIMAL.replace("warps: 4}", "warps: 4, when: 4 // (d - 64) > 0}")
    with pytest.raises(SpecError, match="division by zero; valid: a condition that has a value"):
        plan(read_op(conditional, "t.yaml"), "sm_90a")


def test_a_missing_feature_is_refused():
    spec = read_op(MINIMAL.replace("d / 64", "d") + "requires: {sm_90a: [tcgen05]}\n", "t.yaml")
    with pytest.raises(Refused, match=r"requires\.sm_90a: tcgen05 is no feature of sm_90a"):
        plan(spec, "sm_90a")
    assert [type(kernel) for _, kernel in space(spec, "sm_90a")] == [Refused]


def test_comments_do_not_change_the_hash_of_a_spec_and_values_do():
    text = MINIMAL.replace("d - 70", "d - 50")
    hashes = [
        plan(read_op(version, "t.yaml"), "sm_90a").spec_sha256
        for version in (text, "# a comment" + text, text.replace("tile: [32, 64]", "tile: [32, 64, 128]"))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
