"""The space is counted and drawn without being listed, and agrees with a walk over all of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from itertools import islice

import pytest

from dsv4.generator.resources import Refused
from dsv4.generator.spec import load_op
from dsv4.generator.spec.plan import Planner
from dsv4.generator.spec.space import space as walk
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.space import Space
from dsv4.tuner.survey import survey
from dsv4.tuner.target import Target, ranked

TARGETS = [
    ("rms_norm", "sm_90a", {"d": 1536}),
    ("fmha", "sm_100a", {"D": 128}),
    ("fmha", "sm_90a", {"D": 64}),
    ("router_logits", "sm_90a", {}),
]


def large_space() -> Space:
    """fmha's constraints over 1.7 million points."""
    spec = load_op("fmha")
    wider = {
        "tile_n": spec.tunables["tile_n"].model_copy(update={"per_arch": {"sm_90a": tuple(range(16, 257, 16))}}),
        "kv_stage": spec.tunables["kv_stage"].model_copy(update={"values": tuple(range(1, 65))}),
        "persistent_ctas": spec.tunables["persistent_ctas"].model_copy(
            update={"per_arch": {"sm_90a": tuple(range(0, 1056, 132))}}
        ),
    }
    spec = spec.model_copy(update={"tunables": {**spec.tunables, **wider}})
    return Space(Planner(spec, "sm_90a", dims={"D": 128}))


@pytest.mark.parametrize(("op", "arch", "dims"), TARGETS)
def test_counts_and_configurations_are_those_of_a_full_walk(op, arch, dims):
    space = Space(Planner(op, arch, dims=dims))
    allowed = [canonical_json(config) for config in space.in_order()]
    fitting, refused_by_chip = set(), 0
    for config, point in walk(op, arch, dims=dims):
        if not isinstance(point, Refused):
            fitting.add(canonical_json(config))
        elif set(config) == set(space.names) and canonical_json(config) in set(allowed):
            refused_by_chip += 1
    assert len(allowed) == len(set(allowed)) == space.tally().allowed == len(fitting) + refused_by_chip
    assert {key for key, plan in zip(allowed, map(space.plan, space.in_order()), strict=True)
            if not isinstance(plan, Refused)} == fitting  # fmt: skip
    assert sorted(map(canonical_json, space.near(next(space.in_order())))) == sorted(allowed)
    assert space.tally().allowed + space.tally().refused == space.points


def test_a_survey_is_exact_for_a_small_space_and_near_for_a_sampled_one():
    space = Target("fmha", "sm_90a", dims={"D": 128}, pinned={"o_apart": False}).space()
    exact, sampled = survey(space), survey(space, planned_max=400, seed=3)
    assert exact.sampled == 0 and sampled.sampled == 400
    assert exact.points == sampled.points and exact.allowed == sampled.allowed
    assert sampled.fitting == pytest.approx(exact.fitting, rel=0.15)
    assert exact.refused == exact.points - exact.fitting > 0
    assert all(reason.exact for reason in exact.reasons) and not all(reason.exact for reason in sampled.reasons)
    assert all(reason.count > 0 and "valid" in reason.text and "\n" not in reason.text for reason in exact.reasons)
    kinds = [reason for reason in sampled.reasons if "constraints:" in reason.text]
    assert kinds == [reason for reason in exact.reasons if "constraints:" in reason.text]


def test_a_space_of_a_million_points_is_quick():
    began = time.process_time()
    space = large_space()
    assert space.points > 1_000_000
    rng = random.Random(0)
    drawn = [space.draw(rng) for _ in range(200)]
    assert all(config is not None and not space._below(len(space.names), config).refused for config in drawn)
    found = survey(space, planned_max=300)
    assert found.sampled == 300 and 0 < found.fitting < found.allowed < found.points
    default = space.planner.plan()
    assert len(first := list(islice(ranked(space, default), 5))) == 5 and first[0].config == default.config
    assert time.process_time() - began < 8


def test_draws_are_uniform():
    space = Target("rms_norm", "sm_90a", dims={"d": 512}, pinned={"opt_level": 3, "rows_in_flight": 1}).space()
    count, draws = space.tally().allowed, 3000
    rng = random.Random(5)
    seen = Counter(canonical_json(space.draw(rng)) for _ in range(draws))
    assert len(seen) == count
    expected = draws / count
    chi_squared = sum((found - expected) ** 2 / expected for found in seen.values())
    assert chi_squared < count + 5 * (2 * count) ** 0.5


def test_the_nearest_configuration_is_itself_or_allowed():
    space = Target("fmha", "sm_90a", dims={"D": 128}).space()
    rng = random.Random(1)
    encoding = Encoding(space)
    moved = 0
    for _ in range(200):
        anything = {name: rng.choice(values) for name, values in encoding.values.items()}
        near = space.nearest(anything)
        assert near is not None and space.nearest(near) == near
        moved += near != {**near, **anything}
    assert 0 < moved < 200
    for config in islice(space.in_order(), 50):
        assert space.nearest(config) == config


def test_pins_count_as_the_space():
    space = Target("rms_norm", "sm_90a", dims={"d": 1536}, pinned={"opt_level": 2}).space()
    every = Target("rms_norm", "sm_90a", dims={"d": 1536}).space()
    assert space.points * 2 == every.points and space.tally().allowed * 2 == every.tally().allowed


def test_parameters_keep_booleans_and_numbers_apart_and_go_back_and_forth():
    space = Target("fmha", "sm_90a", dims={"D": 128}).space()
    encoding = Encoding(space)
    assert "kv_stage" in encoding.ordered and "ping_pong" not in encoding.ordered
    for config in islice(space.in_order(), 0, None, 37):
        params = encoding.params(config)
        assert {**config, **encoding.config(params)} == config
        for name, value in params.items():
            assert encoding.distributions[name]._contains(encoding.distributions[name].to_internal_repr(value))
