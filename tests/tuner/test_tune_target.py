"""The configurations of a target: which fit, which are refused and why, in which order."""

from __future__ import annotations

import pytest

from dsv4.generator.spec import SpecError, plan
from dsv4.tuner.target import Target, changes, choices, rank, resident_ctas, spelled

RMS = Target("rms_norm", "sm_90a", dims={"d": 1536})


def test_the_default_is_first_and_every_configuration_appears_once():
    plans, refusals = RMS.configurations()
    assert plans[0].config == RMS.default().config and plans[0].is_default
    assert sum(each.is_default for each in plans) == 1
    spelled_all = [spelled(each.config) for each in plans]
    assert len(set(spelled_all)) == len(plans) > 5
    assert refusals.count > 0 and all(count > 0 for count in refusals.by_reason.values())


def test_reasons_that_differ_in_numbers_only_are_counted_together():
    _, refusals = RMS.configurations()
    assert len(refusals.by_reason) < refusals.count
    for reason in refusals.by_reason:
        assert "valid" in reason and "\n" not in reason
    counts = list(refusals.by_reason.values())
    assert counts == sorted(counts, reverse=True)


def test_the_order_is_by_distance_from_the_default_then_by_use_of_shared_memory():
    target = Target("fmha", "sm_90a", dims={"D": 128}, variant={"causal": True})
    plans, _ = target.configurations()
    default = target.default()
    distances = [len(changes(each, default)) for each in plans]
    assert distances == sorted(distances) and distances[0] == 0 and distances[1] == 1
    near = [each for each in plans if len(changes(each, default)) == 1]
    used = [resident_ctas(each) * each.predicted.smem_bytes for each in near]
    assert used == sorted(used, reverse=True) and len(set(used)) > 1
    assert rank(list(reversed(plans)), default) == plans


def test_pinned_tunables_narrow_the_space():
    every, _ = RMS.configurations()
    pinned = Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 2})
    some, _ = pinned.configurations()
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
        bad.configurations()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_choices_keep_booleans_and_numbers_apart():
    one = plan("rms_norm", "sm_90a", dims={"d": 1536})
    found = choices([one])
    assert found == {name: [value] for name, value in one.config.items()}
    assert spelled({"a": True, "b": 4}) == "a=true b=4"
