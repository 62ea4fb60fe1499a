"""The measuring worker's own logic, on the CPU with Python functions as kernels; timing with made-up clocks."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from dsv4.generator.spec import plan
from dsv4.generator.verify import cases
from dsv4.runtime.reference.rms_norm import rms_norm
from dsv4.runtime.tuned import Policy
from dsv4.tuner import builders, measure, timing
from dsv4.tuner.protocol import Event, Request, Timing
from dsv4.tuner.target import Target

DIMS = {"d": 64}


def right(x, w, y, eps):
    y.copy_(rms_norm(x, w, eps))


def wrong(x, w, y, eps):
    y.copy_(rms_norm(x, w, eps) * 1.01)


def raising(x, w, y, eps):
    raise ValueError("argument #0: bad stride\nwith a second line")


def wavering(x, w, y, eps):
    """Right to the last bit but one, and never twice the same."""
    y.copy_(rms_norm(x, w, eps))
    if y.numel() and torch.isfinite(y).all():
        bits = y.view(torch.int16)
        bits[-1, next(WAVER) % bits.shape[1]] += 1


WAVER = itertools.count()
KERNELS = {"right": right, "wrong": wrong, "raising": raising, "wavering": wavering}


class Bound:
    """A kernel that was loaded, by name; ``most_alive`` of them were at once."""

    alive = most_alive = 0

    def __init__(self, name: str, order: dict[str, int]) -> None:
        self.name, self.order = name, order
        Bound.alive += 1
        Bound.most_alive = max(Bound.most_alive, Bound.alive)

    def __del__(self) -> None:
        Bound.alive -= 1

    def __call__(self, *values) -> None:
        KERNELS[self.name](*(values[self.order[name]] for name in ("x", "w", "y", "eps")))


class Rounds:
    """What ``measure.timed`` gives: rounds that take what ``us`` says of the kernel, or raise."""

    copies = 2
    us: ClassVar[dict[str, float | Exception]] = {}

    def __init__(self, kernel: Bound, *_: object) -> None:
        self.kernel = kernel

    def round_us(self) -> float:
        us = self.us[self.kernel.name]
        if isinstance(us, Exception):
            raise us
        return us


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch):
    """Kernels of the given microseconds a round."""

    def make(**us: float | Exception) -> None:
        for name in us:
            monkeypatch.setitem(KERNELS, name, right)
        monkeypatch.setattr(Rounds, "us", us)
        monkeypatch.setattr(measure, "timed", Rounds)
        monkeypatch.setattr(measure.timing, "under_load", lambda run: None)

    return make


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = plan("rms_norm", "sm_90a", dims=DIMS)
    order = {argument.name: place for place, argument in enumerate(manifest.contract.arguments)}

    def read(folder: Path):
        return SimpleNamespace(folder=folder, manifest=manifest)

    def load(artifact):
        return Bound(artifact.folder.name, order)

    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure.Artifact, "read", read)
    measure._cases.clear()

    def call(*names: str, well: bool = True, sizes=(), **more) -> list[Event]:
        monkeypatch.setattr(measure, "device_is_well", lambda: well)
        out = tmp_path / "events"
        out.unlink(missing_ok=True)
        request = Request(artifacts=tuple(f"/cache/{name}" for name in names), sizes=sizes, **more)
        try:
            measure.serve(request, measure.Answer(out), load)
        finally:
            call.events = [Event.model_validate_json(line) for line in out.read_text().splitlines()]
        return call.events

    return call


def test_right_wrong_and_failing_kernels_are_told_apart(serve):
    events = serve("right", "wrong", "raising", "right")
    told = [(event.event, event.artifact.rsplit("/", 1)[1]) for event in events]
    assert told == [
        ("begin", "right"), ("checked", "right"), ("begin", "wrong"), ("checked", "wrong"),
        ("begin", "raising"), ("failed", "raising"), ("begin", "right"), ("checked", "right"),
    ]  # fmt: skip
    good, bad = events[1].data, events[3].data
    assert good["ok"] and good["findings"] == [] and good["cases"] > 5 and good["cosine"] > 0.9999
    assert good["deterministic"] and not bad["deterministic"]
    assert not bad["ok"] and "T=1, normal: y:" in bad["findings"][0]
    assert events[5].data["error"] == "ValueError: argument #0: bad stride"


def test_a_kernel_that_never_gives_the_same_bits_twice_is_known_for_it():
    manifest = plan("rms_norm", "sm_90a", dims=DIMS)
    order = [argument.name for argument in manifest.contract.arguments]
    case = next(c for c in cases("rms_norm", DIMS, {}, device="cpu") if c.name == "T=7, normal")

    def bound(function):
        return lambda *values: function(**dict(zip(order, values, strict=True)))

    assert measure.is_deterministic(bound(right), manifest.contract, case)
    assert not measure.is_deterministic(bound(wavering), manifest.contract, case)


def test_after_a_device_error_the_worker_stops(serve):
    with pytest.raises(ValueError, match="bad stride"):
        serve("raising", "right", well=False)
    assert [event.event for event in serve.events] == ["begin", "failed"]


def measured(events: list[Event], rounds: int) -> list[str]:
    """The artifacts that were timed in so many rounds."""
    return [e.artifact.rsplit("/", 1)[1] for e in events if e.event == "measured" and e.data["rounds"] == rounds]


def test_only_survivors_get_more_rounds(serve, rounds, monkeypatch):
    """Six right kernels of different speed: two go on to the second rung, and none beside a much faster incumbent."""
    names = [f"right{number}" for number in range(1, 7)]
    rounds(default=8.0, incumbent=0.5, wrong1=0.1, **{name: float(name[-1]) for name in names})
    monkeypatch.setitem(KERNELS, "wrong1", wrong)
    asked = {"sizes": ({"T": 3},), "rungs": (5, 15), "default_us": (4.0,)}
    events = serve(*names, "wrong1", **asked, beside=("/cache/default",))
    assert measured(events, 15) == ["right1", "right2"] and measured(events, 5) == names
    assert sum(e.event == "checked" for e in events) == 7
    # What they count for is the default's time in the study times the ratio to the rounds in between.
    assert [Timing.model_validate(e.data).us for e in events if e.event == "measured"][:3] == [0.5, 1.0, 1.5]
    (data,) = (e.data for e in events if e.event == "measured" and e.data["rounds"] == 15 and e.data["median_us"] == 2)
    assert data["beside"] == {"ratio": 0.25, "low": 0.25, "high": 0.25, "default_us": 8.0, "anchor_us": 4.0}
    events = serve(*names, **asked, beside=("/cache/default", "/cache/incumbent"))
    assert measured(events, 5) == names and measured(events, 15) == []


def test_the_default_alone_is_set_beside_nothing(serve, rounds):
    rounds(right1=3.0)
    (event,) = (e for e in serve("right1", sizes=({"T": 3},), rungs=(15,)) if e.event == "measured")
    assert event.data["beside"] is None and event.data["rounds"] == 15 and Timing.model_validate(event.data).us == 3.0


def test_one_that_fails_in_its_rounds_costs_itself_only_and_the_default_ends_them(serve, rounds):
    error = ValueError("argument #0: bad stride")
    rounds(default=2.0, incumbent=2.0, right1=1.0, broken=error, right2=1.0)
    asked = {"sizes": ({"T": 3}, {"T": 5}), "rungs": (5, 15), "default_us": (2.0, 2.0)}
    beside = ("/cache/default", "/cache/incumbent")
    events = serve("right1", "broken", "right2", **asked, beside=beside)
    assert [e.artifact for e in events if e.event == "failed"] == ["/cache/broken"]
    assert measured(events, 15) == ["right1", "right2"] * 2
    Rounds.us["incumbent"] = error
    with pytest.raises(ValueError, match="bad stride"):
        serve("right1", "right2", **asked, beside=beside)
    assert serve.events[-1].event == "failed" and serve.events[-1].artifact == "/cache/incumbent"


def test_so_many_kernels_are_loaded_at_once_and_what_passed_is_not_checked_again(serve, rounds):
    names = [f"right{number}" for number in range(20)]
    rounds(default=2.0, **dict.fromkeys(names, 1.0))
    Bound.most_alive = Bound.alive = 0
    asked = {"sizes": ({"T": 3},), "rungs": (5,), "default_us": (2.0,), "beside": ("/cache/default",)}
    events = serve(*names, **asked, passed=tuple(f"/cache/{name}" for name in names[1:]))
    assert measured(events, 5) == names
    assert [e.artifact for e in events if e.event == "checked"] == ["/cache/right0"]
    assert Bound.most_alive == measure.TOGETHER_MAX + 1


def test_kernels_of_one_contract_share_the_arguments(monkeypatch):
    made = []
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "argument_lists", lambda make, policy: made.append(make()) or [made[-1]])
    monkeypatch.setattr(timing, "Timed", lambda kernel, arguments, policy: arguments)
    manifest, shared = plan("rms_norm", "sm_90a", dims=DIMS), measure.Shared()
    one, other = (measure.timed(right, manifest, {"T": 3}, 0, Policy(), shared) for _ in range(2))
    assert one is other and len(made) == 1
    longer = plan("rms_norm", "sm_90a", dims={"d": 128})
    assert measure.timed(right, longer, {"T": 3}, 0, Policy(), shared) is not one and len(made) == 2


def test_cases_are_made_once_for_equal_tiles(monkeypatch):
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    one = SimpleNamespace(op="rms_norm", dims=DIMS, variant={}, config={"tile_m": 8, "stages": 1})
    other = SimpleNamespace(op="rms_norm", dims=DIMS, variant={}, config={"tile_m": 8, "stages": 2})
    measure._cases.clear()
    assert measure.cases_for(one, 0) is measure.cases_for(other, 0)
    assert measure.cases_for(one, 1) is not measure.cases_for(one, 0)


class Clock:
    """A kernel whose rounds take the given times, in turn."""

    copies, policy = 3, Policy()

    def __init__(self, name: str, times: list[float], log: list[str]) -> None:
        self.name, self.times, self.log = name, times, log

    def round_us(self) -> float:
        self.log.append(self.name)
        return self.times[self.log.count(self.name) % len(self.times)]

    def enqueue(self) -> None:
        pass


def test_a_comparison_takes_turns_and_pairs_the_rounds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    log: list[str] = []
    # The machine slows down by half in every other round; pairs see it on both sides.
    found = timing.compare(Clock("a", [10.0, 15.0], log), Clock("b", [8.0, 12.0], log), {"T": 5}, rounds=8)  # type: ignore[arg-type]
    assert found["ratio"] == pytest.approx(0.8)
    assert log[2:10] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert found["first"]["rounds"] == 8 and found["first"]["sizes"] == {"T": 5}


def test_a_measurement_is_the_median_of_its_rounds():
    summary = timing.summary({"T": 1}, [3.0, 1.0, 2.0, 100.0, 2.5], copies=4)
    assert summary.median_us == 2.5 and summary.low_us == 2.0 and summary.high_us == 3.0 and summary.input_copies == 4


@pytest.mark.parametrize(
    ("bytes_each", "free", "copies"),
    [(1 << 20, 1 << 34, 32), (10 << 20, 1 << 34, 10), (40 << 20, 1 << 34, 4), (1 << 30, 1 << 30, 1)],
)
def test_copies_of_the_inputs_are_about_twice_the_l2(monkeypatch, bytes_each, free, copies):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 << 20))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    assert timing.input_copies([torch.empty(bytes_each, dtype=torch.uint8, device="meta"), 1.0, None]) == copies


def test_prebuilt_kernels_are_found_by_what_they_are(tmp_path: Path):
    plans = [plan("rms_norm", "sm_90a", dims={"d": columns}) for columns in (512, 1024, 4096)]
    old = json.loads(json.dumps(plans[1].spec_sha256))[::-1]

    def artifact(made, spec_sha256, bucket):
        manifest = SimpleNamespace(**made.identity, spec_sha256=spec_sha256, bucket=bucket)
        return SimpleNamespace(folder=tmp_path / made.name, manifest=manifest)

    kept = (
        artifact(plans[0], plans[0].spec_sha256, {}), artifact(plans[1], old, {}),
        artifact(plans[2], plans[2].spec_sha256, {"T": (0, 8)}), artifact(plans[0], plans[0].spec_sha256, {}),
    )  # fmt: skip
    cache = SimpleNamespace(root=tmp_path, artifacts=lambda op, arch: kept)
    prebuilt = builders.Prebuilt(cache)  # type: ignore[arg-type]
    assert prebuilt.only(Target("rms_norm", "sm_90a", dims={"d": 512}).space()) == [plans[0].config]
    assert prebuilt.only(Target("rms_norm", "sm_90a", dims={"d": 1024}).space()) == []
    assert prebuilt.only(Target("rms_norm", "sm_90a", dims={"d": 4096}).space()) == []  # it is for some sizes alone
    seen: list[str | None] = []
    built = prebuilt.build(plans, lambda one: seen.append(one.error))
    assert built[0].artifact == tmp_path / plans[0].name
    assert [one.artifact for one in built[1:]] == [None, None]
    assert seen[0] is None and "not in the cache" in str(seen[1])


@pytest.mark.gpu
@pytest.mark.parametrize("policy", timing.POLICIES, ids=lambda policy: f"{policy.launch} {policy.l2}")
def test_a_copy_is_timed_near_the_memory_bandwidth(policy: Policy):
    """64 MB read and 64 MB written: no GPU of these archs takes less than 15 µs or more than 1 ms."""

    def copy(source, target):
        target.copy_(source)

    def arguments():
        source = torch.randn(16 << 20, device="cuda")
        return [source, torch.empty_like(source)]

    run = timing.Timed(copy, timing.argument_lists(arguments, policy), policy)
    assert 15 < statistics.median(run.round_us() for _ in range(5)) < 1000


@pytest.mark.gpu
def test_a_small_copy_is_slower_from_memory_than_from_the_cache():
    """4 MB in, 4 MB out."""

    def timed(l2: str) -> float:
        def arguments():
            source = torch.randn(1 << 20, device="cuda")
            return [source, torch.empty_like(source)]

        policy = Policy(l2=l2)
        lists = timing.argument_lists(arguments, policy)
        run = timing.Timed(lambda source, target: target.copy_(source), lists, policy)
        return statistics.median(run.round_us() for _ in range(8))

    assert timed("warm") < 0.9 * timed("cold")
