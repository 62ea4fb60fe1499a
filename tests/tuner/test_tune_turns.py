"""Rounds in turn on a simulated GPU whose clock drifts: one after the other the order is wrong, in turn right."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsv4.generator.spec import plan
from dsv4.runtime.tuned import Policy
from dsv4.tuner import measure, timing, turns, worker
from dsv4.tuner.protocol import Event, Request
from dsv4.tuner.worker import _collect
from tests.tuner.simulated_gpu import SimulatedGpu

COSTS = {f"k{number}": 1.0 - number / 100 for number in range(6)}
"""Of the candidates in their order: each is a little faster than the one before it. The default's is 1."""
LEAP_US = 1.0e5
"""In the midst of the rounds of them all."""
DRIFTS: dict[str, Callable[[float], float]] = {
    "heating": lambda us: 1 + us / 1e6,
    "a leap": lambda us: 1.25 if us > LEAP_US else 1.0,
}


def simulate(monkeypatch: pytest.MonkeyPatch, gpu: SimulatedGpu) -> None:
    """The worker's GPU and clock are simulated, and its kernels are loaded from nowhere."""
    manifest = plan("rms_norm", "sm_90a", dims={"d": 64})
    monkeypatch.setattr(timing, "torch", SimpleNamespace(cuda=gpu.cuda, Tensor=torch.Tensor))
    monkeypatch.setattr(timing, "l2_flush", lambda device: gpu.flush)
    monkeypatch.setattr(timing, "read_gpu", lambda: None)
    monkeypatch.setattr(turns, "perf_counter", lambda: gpu.host_us / 1e6)
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "device_is_well", lambda: True)
    monkeypatch.setattr(measure, "check", lambda kernel, manifest, seed: {"ok": True, "cases": 1, "findings": []})
    monkeypatch.setattr(measure.Artifact, "read", lambda folder: SimpleNamespace(folder=folder, manifest=manifest))


def served(monkeypatch, tmp_path: Path, gpu: SimulatedGpu, names: list[str], policy: Policy, **more) -> dict:
    """Each candidate's last timings."""
    simulate(monkeypatch, gpu)
    request = Request(artifacts=tuple(f"/{name}" for name in names), sizes=({"T": 3}, {"T": 5}), policy=policy, **more)
    out = tmp_path / "events"
    out.unlink(missing_ok=True)
    costs = {"default": 1.0, **COSTS}
    measure.serve(request, measure.Answer(out), lambda one: partial(gpu.kernel, cost=costs[one.folder.name]))
    events = [Event.model_validate_json(line) for line in out.read_text().splitlines()]
    return {name[1:]: outcome.timings for name, outcome in _collect(events)[0].items() if outcome.timings}


@pytest.mark.parametrize(("launch", "l2"), [("graph", "cold"), ("graph", "warm"), ("eager", "cold")])
@pytest.mark.parametrize("drift", DRIFTS)
def test_the_order_is_right_on_a_gpu_that_drifts(monkeypatch, tmp_path, launch, l2, drift):
    """(Eager and warm, the host takes longer than any of these kernels.)"""
    policy = Policy(launch=launch, l2=l2)
    gpu = SimulatedGpu(slowness=DRIFTS[drift])
    asked = {"rungs": (5,), "beside": ("/default",), "default_us": (20.0, 30.0)}
    found = served(monkeypatch, tmp_path, gpu, list(COSTS), policy, **asked)
    assert sorted(found, key=lambda name: found[name][0].us) == sorted(COSTS, key=COSTS.__getitem__)
    for name, timings in found.items():
        ratios = [each.beside.ratio for each in timings]
        rel = 0.02 if policy.launch == "eager" else 0.002  # whose launches take their time, whatever the kernel
        assert ratios == pytest.approx([COSTS[name]] * 2, rel=rel)
        assert [each.us for each in timings] == pytest.approx([20.0 * ratios[0], 30.0 * ratios[1]])
    assert any(timings[0].high_us > 1.02 * timings[0].low_us for timings in found.values())  # in the midst of rounds


@pytest.mark.parametrize("drift", ["heating", "a leap"])
def test_one_after_the_other_the_order_would_be_wrong(monkeypatch, tmp_path, drift):
    gpu = SimulatedGpu(slowness=DRIFTS[drift])
    alone = {}
    for name in COSTS:
        alone |= served(monkeypatch, tmp_path, gpu, [name], Policy(), rungs=(5,))
    assert sorted(alone, key=lambda name: alone[name][0].us) != sorted(COSTS, key=COSTS.__getitem__)


def test_batches_of_a_cold_and_a_hot_gpu_agree(monkeypatch, tmp_path):
    """What a study goes by does not hang on when a batch was measured."""
    asked = {"rungs": (5, 15), "beside": ("/default",), "default_us": (20.0, 30.0)}
    found = []
    for slower in (1.0, 1.3):
        gpu = SimulatedGpu(slowness=lambda us, slower=slower: slower)
        found.append(served(monkeypatch, tmp_path, gpu, list(COSTS), Policy(), **asked)["k5"])
    cold, hot = ([each.us for each in timings] for timings in found)
    assert cold == pytest.approx(hot) and cold == pytest.approx([19.0, 28.5])
    assert found[1][0].median_us == pytest.approx(1.3 * found[0][0].median_us)


def test_passes_go_forward_and_backward_between_rounds_of_the_reference(monkeypatch):
    log: list[str] = []

    def round_us(name: str) -> float | None:
        log.append(name)
        return None if name == "b" and log.count("b") == 3 else 2.0

    ticks = iter(range(1000))
    monkeypatch.setattr(turns, "perf_counter", lambda: float(next(ticks)))
    found = turns.in_turn(["a", "b", "c"], round_us, 3, "R")
    assert "".join(log) == "abcRRabcRcbaRacR"
    assert set(found) == {"a", "c", "R"} and [len(found[name].rounds_us) for name in "acR"] == [3, 3, 4]
    log.clear()
    alone = turns.in_turn(["a", "c"], round_us, 2)
    assert "".join(log) == "acacca" and alone["a"] == turns.Turns([2.0, 2.0], [])


SIMULATED_WORKER = """
import os, sys, time
from functools import partial
from pathlib import Path
import pytest
from dsv4.tuner import measure
from tests.tuner.simulated_gpu import SimulatedGpu
from tests.tuner.test_tune_turns import COSTS, simulate

gpu = SimulatedGpu()
simulate(pytest.MonkeyPatch(), gpu)
request = measure.Request.model_validate_json(sys.stdin.read())
with open(os.environ["REQUESTS"], "a") as log:
    log.write(request.model_dump_json() + chr(10))

def load(artifact):
    name, calls = artifact.folder.name, 0
    def kernel(*arguments):
        nonlocal calls
        calls += 1
        if name == "hangs" and calls > 500:  # in the midst of its rounds
            time.sleep(300)
        gpu.kernel(*arguments, cost=COSTS.get(name, 1.0))
    return kernel

answer = measure.Answer(Path(sys.argv[2]))
answer.say("ready", device="Simulated GPU", capability=[9, 0])
measure.serve(request, answer, load)
answer.say("end")
"""


def test_one_that_hangs_in_its_rounds_costs_itself_and_the_others_are_timed_anew(tmp_path, monkeypatch):
    script, log, seen = tmp_path / "worker.py", tmp_path / "requests", []
    script.write_text(SIMULATED_WORKER)
    monkeypatch.setenv("REQUESTS", str(log))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    request = Request(
        artifacts=("/k0", "/k1", "/hangs", "/k3"), sizes=({"T": 3},), policy=Policy(launch="eager"), rungs=(5, 15),
        beside=("/default", "/k2"), default_us=(30.0,),
    )  # fmt: skip
    outcomes = worker.run(
        request,
        limit_s=3.0,
        progress=lambda outcome: seen.append(outcome.artifact),
        command=(sys.executable, str(script)),
    )
    requests = [Request.model_validate_json(line) for line in log.read_text().splitlines()]
    assert seen == ["/hangs", "/k0", "/k1", "/k3"] and requests[0] == request
    left = {"artifacts": ("/k0", "/k1", "/k3"), "passed": request.artifacts}  # which are not checked again
    assert requests[1] == request.model_copy(update=left) and len(requests) == 2
    bad = outcomes.pop(2)
    assert bad.failure == "no answer within 3 s: killed" and not bad.timings
    for each in outcomes:
        (timing,) = each.timings
        assert each.failure is None and each.checked == {"ok": True, "cases": 1, "findings": []}
        assert list(each.history) == [5, 15] and timing.rounds == 15
        assert timing.beside.ratio == pytest.approx(COSTS[each.artifact[1:]], rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("policy", timing.POLICIES, ids=lambda policy: f"{policy.launch} {policy.l2}")
def test_a_kernel_beside_itself_takes_as_long_and_one_of_half_the_bytes_less(policy: Policy):
    """Copies of 64 MB, beside one that is the same and one of half of it, with arguments that they share."""

    def arguments():
        source = torch.randn(16 << 20, device="cuda")
        return [source, torch.empty_like(source)]

    def copy(source, target, *, part: int = 1):
        target[: len(target) // part].copy_(source[: len(source) // part])

    lists = timing.argument_lists(arguments, policy)
    kernels = {"default": copy, "same": copy, "half": partial(copy, part=2)}
    runs = {name: timing.Timed(kernel, lists, policy) for name, kernel in kernels.items()}
    found = turns.in_turn(["same", "half"], lambda name: runs[name].round_us(), 15, "default")
    ratios = {name: turns.beside(found[name], 1.0).ratio for name in ("same", "half")}
    assert ratios["same"] == pytest.approx(1.0, rel=0.02) and 0.3 < ratios["half"] < 0.8
