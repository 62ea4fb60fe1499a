"""The configurations of a target: which fit, which are refused and why, in which order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dsv4.generator.console import UsageError
from dsv4.generator.spec import SpecError
from dsv4.tuner.commands import options
from dsv4.tuner.target import Target, changes, rank, ranked, resident_ctas
from dsv4.tuner.tried import spelled

RMS = Target("rms_norm", "sm_90a", dims={"d": 1536})


def plans_of(target: Target) -> list:
    return list(ranked(target.space(), target.default()))


def test_the_default_is_first_and_every_configuration_appears_once():
    plans = plans_of(RMS)
    assert plans[0].config == RMS.default().config and plans[0].is_default
    assert sum(each.is_default for each in plans) == 1
    spelled_all = [spelled(each.config) for each in plans]
    assert len(set(spelled_all)) == len(plans) > 5


def test_the_order_is_by_distance_from_the_default_then_by_use_of_shared_memory():
    target = Target("fmha", "sm_90a", dims={"D": 128}, variant={"causal": True}, pinned={"opt_level": 3})
    plans = plans_of(target)
    default = target.default()
    distances = [len(changes(each, default)) for each in plans]
    assert distances == sorted(distances) and distances[0] == 0 and distances[1] == 1
    near = [each for each in plans if len(changes(each, default)) == 1]
    used = [resident_ctas(each) * each.predicted.smem_bytes for each in near]
    assert used == sorted(used, reverse=True) and len(set(used)) > 1
    assert rank(list(reversed(plans)), default) == plans


def test_pinned_tunables_narrow_the_space():
    every = plans_of(RMS)
    some = plans_of(Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 2}))
    assert 0 < len(some) < len(every)
    assert {each.config["opt_level"] for each in some} == {2}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pinned": {"no_such": 1}}, "no_such"),
        ({"pinned": {"opt_level": 17}}, "17"),
        ({"dims": {"Q": 3}}, "Q"),
        ({"variant": {"causal": True}}, "causal"),
    ],
)
def test_unknown_names_and_values_are_one_line(changed, words):
    bad = Target("rms_norm", "sm_90a", **changed)
    with pytest.raises(SpecError) as caught:
        bad.space()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_spelled():
    assert spelled({"a": True, "b": 4}) == "a=true b=4"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            Target("rms_norm", "sm_90a", dims={"d": 16384}, pinned={"threads_per_row": 1024, "rows_per_cta": 2}),
            "threads >= 32 and threads <= 1024 never holds (without it",
        ),
        (
            Target("fmha", "sm_90a", dims={"D": 128}, pinned={"tile_m": 64, "consumer_warpgroups": 3}),
            "tile_m * (D // pv_n_tile) == 64 * consumer_warpgroups never holds",
        ),
        (
            Target("fmha", "sm_100a", dims={"D": 128}, pinned={"q_tiles": 1, "softmax_registers": 184}),
            "no configuration is left",
        ),
    ],
)
def test_an_empty_space_says_which_constraint_emptied_it(target, words):
    with pytest.raises(UsageError) as caught:
        target.space()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_auto_is_the_arch_of_this_machines_gpu(monkeypatch):
    cuda = options_torch(monkeypatch, (10, 3))
    assert options.resolve_arch("auto") == "sm_100a" and options.resolve_arch("sm_90a") == "sm_90a"
    assert options.make_target("rms_norm", "auto", None, ["d=512"], [], []).arch == "sm_100a"
    cuda.capability = (8, 0)
    with pytest.raises(UsageError, match="--arch: found 'auto' on a Some GPU; valid: on sm_100a, sm_90a"):
        options.resolve_arch("auto")
    cuda.capability = None
    with pytest.raises(UsageError, match="--arch: found 'auto' on a machine without a GPU; valid: sm_100a, sm_90a"):
        options.resolve_arch("auto")


def options_torch(monkeypatch, capability):
    """Stands for ``torch.cuda`` with one GPU of ``capability``; None for a machine without one."""
    cuda = SimpleNamespace(capability=capability, get_device_name=lambda: "Some GPU")
    cuda.is_available = lambda: cuda.capability is not None
    cuda.get_device_capability = lambda: cuda.capability
    for name in ("is_available", "get_device_capability", "get_device_name"):
        monkeypatch.setattr(f"torch.cuda.{name}", getattr(cuda, name))
    return cuda
