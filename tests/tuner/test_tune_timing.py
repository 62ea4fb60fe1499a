"""Timing on a simulated GPU: cold is cold, warm is warm, eager pays for its launches; and the GPU's own readings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsv4.generator.spec import plan
from dsv4.runtime.tuned import Policy
from dsv4.tuner import explain, measure, telemetry, timing
from dsv4.tuner.protocol import GpuState, Request, Timing
from dsv4.tuner.turns import in_turn
from dsv4.tuner.worker import _collect
from tests.tuner import simulated_gpu
from tests.tuner.simulated_gpu import HIT_US, L2_BYTES, LAUNCH_US, MISS_US, SimulatedGpu

MIB = 1 << 20


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    made = SimulatedGpu()
    monkeypatch.setattr(timing, "torch", SimpleNamespace(cuda=made.cuda, Tensor=torch.Tensor))
    monkeypatch.setattr(timing, "l2_flush", lambda device: made.flush)
    monkeypatch.setattr(timing, "read_gpu", lambda: None)
    return made


def timed(gpu: SimulatedGpu, size_bytes: int, launch="graph", l2="cold") -> timing.Timed:
    def make_arguments():
        return [torch.empty(size_bytes, dtype=torch.uint8, device="meta"), 1.0]

    policy = Policy(launch=launch, l2=l2)
    return timing.Timed(gpu.kernel, timing.argument_lists(make_arguments, policy), policy)


def measured(run: timing.Timed, rounds: int = 5) -> Timing:
    """As the worker measures the default."""
    (turns,) = in_turn(["it"], lambda name: run.round_us(), rounds).values()
    return timing.summary({"T": 1}, turns.rounds_us, run.copies, run.policy, timing.under_load(run))


@pytest.mark.parametrize("touched_bytes", [1 << 40, 32 << 10])
@pytest.mark.parametrize("size_bytes", [64 << 10, 2 * MIB, 40 * MIB, 200 * MIB])
def test_every_call_of_a_cold_round_misses_however_little_it_touches(gpu, size_bytes: int, touched_bytes: int):
    gpu.touched_bytes = touched_bytes
    run = timed(gpu, size_bytes)
    found = measured(run)
    assert found.median_us == pytest.approx(MISS_US) and found.low_us == found.high_us
    assert found.policy == Policy() and found.input_copies == run.copies
    assert run.calls * run.repeats * run.stretches * MISS_US >= 0.9 * timing.ROUND_US
    assert run.repeats == 1 and run.calls == run.copies >= timing.COPIES_MIN


def test_without_memory_for_copies_a_cold_call_stands_alone_between_flushes(monkeypatch):
    gpu = SimulatedGpu(free_bytes=30 * MIB)
    monkeypatch.setattr(timing, "torch", SimpleNamespace(cuda=gpu.cuda, Tensor=torch.Tensor))
    monkeypatch.setattr(timing, "l2_flush", lambda device: gpu.flush)
    run = timed(gpu, 10 * MIB)
    assert (run.copies, run.calls, run.repeats) == (1, 1, 1) and run.stretches > 100
    assert run.round_us() == pytest.approx(MISS_US)


@pytest.mark.parametrize("launch", ["graph", "eager"])
def test_warm_calls_find_their_inputs_where_these_fit(gpu: SimulatedGpu, launch: str):
    run = timed(gpu, 2 * MIB, launch, "warm")
    found = measured(run)
    assert found.median_us == pytest.approx(HIT_US if launch == "graph" else LAUNCH_US, rel=0.1)
    assert run.copies == 1 and gpu.flushes == 0
    too_large = timed(gpu, 2 * L2_BYTES, "graph", "warm")
    assert measured(too_large).median_us == pytest.approx(MISS_US, rel=0.01)


@pytest.mark.parametrize("l2", ["cold", "warm"])
def test_eager_calls_cost_what_the_slower_of_host_and_kernel_takes(gpu: SimulatedGpu, monkeypatch, l2: str):
    expected = {"cold": MISS_US, "warm": LAUNCH_US}[l2]
    found = measured(timed(gpu, 64 << 10, "eager", l2))
    assert found.median_us == pytest.approx(expected, rel=0.25) and found.median_us >= expected
    assert gpu.replays == 0 and gpu.launches > 100
    monkeypatch.setattr(simulated_gpu, "LAUNCH_US", 25.0)
    assert measured(timed(gpu, 64 << 10, "eager", l2)).median_us == pytest.approx(25.0, rel=0.25)


class Nvml:
    """What torch asks NVML, with fakes for answers; an exception is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: object) -> None:
        for name in ("clock_rate", "temperature", "power_draw"):
            monkeypatch.setattr(torch.cuda, name, lambda name=name: self._answer(answers[name]))

    @staticmethod
    def _answer(value: object) -> object:
        if isinstance(value, Exception):
            raise value
        return value


def test_readings_are_kept_in_their_units_and_what_is_not_known_is_none(monkeypatch):
    Nvml(monkeypatch, clock_rate=1755, temperature=61, power_draw=512_300)
    assert telemetry.read_gpu() == GpuState(sm_clock_mhz=1755, temperature_c=61, power_w=512.3)
    Nvml(monkeypatch, clock_rate=1755, temperature=RuntimeError("Not Supported"), power_draw=512_300)
    assert telemetry.read_gpu() == GpuState(sm_clock_mhz=1755, temperature_c=None, power_w=512.3)
    missing = ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
    Nvml(monkeypatch, clock_rate=missing, temperature=missing, power_draw=missing)
    assert telemetry.read_gpu() is None


def test_the_gpu_is_read_while_it_works(gpu: SimulatedGpu, monkeypatch):
    seen: list[float] = []

    def read() -> GpuState:
        seen.append(gpu.stream_us - gpu.host_us)
        return GpuState(sm_clock_mhz=1700.0)

    monkeypatch.setattr(timing, "read_gpu", read)
    found = measured(timed(gpu, 2 * MIB))
    assert found.gpu == GpuState(sm_clock_mhz=1700.0) and seen[0] > 100
    both = timing.compare(timed(gpu, 2 * MIB), timed(gpu, 2 * MIB), {"T": 1}, rounds=5)
    assert both["first"]["gpu"]["sm_clock_mhz"] == both["second"]["gpu"]["sm_clock_mhz"] == 1700.0


def test_a_comparison_records_the_other_policies_too(gpu: SimulatedGpu, tmp_path: Path, monkeypatch):
    manifest = plan("rms_norm", "sm_90a", dims={"d": 64})
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure.Artifact, "read", lambda folder: SimpleNamespace(folder=folder, manifest=manifest))
    policy = Policy(launch="graph", l2="warm")
    request = Request(artifacts=("/a", "/b"), sizes=({"T": 3}, {"T": 5}), compare=True, rungs=(9,), policy=policy)
    answer = measure.Answer(tmp_path / "events")
    measure.serve(request, answer, lambda artifact: gpu.kernel)
    events = [measure.Event.model_validate_json(line) for line in (tmp_path / "events").read_text().splitlines()]
    (outcome,) = _collect(events)[0].values()
    assert [each["sizes"] for each in outcome.compared] == [{"T": 3}, {"T": 5}]
    for each in outcome.compared:
        assert each["ratio"] == pytest.approx(1.0) and each["first"]["policy"] == policy.model_dump()
        assert each["first"]["rounds"] == 9
        modes = {(m["first"]["policy"]["launch"], m["first"]["policy"]["l2"]): m for m in each["modes"]}
        assert set(modes) == {("graph", "cold"), ("eager", "cold"), ("eager", "warm")}
        assert modes["graph", "cold"]["first"]["median_us"] > each["first"]["median_us"]
        assert all(mode["second"]["rounds"] == timing.RECORD_ROUNDS for mode in modes.values())


def test_an_entry_tells_of_the_conditions_and_of_the_other_policies(gpu: SimulatedGpu, monkeypatch):
    monkeypatch.setattr(timing, "read_gpu", lambda: GpuState(sm_clock_mhz=1755.0, power_w=511.6))
    compared = timing.compare(timed(gpu, 2 * MIB), timed(gpu, 2 * MIB), {"T": 64}, rounds=5)
    warm = [timed(gpu, 2 * MIB, "graph", "warm") for _ in range(2)]
    proof = {"compared": [{**compared, "modes": [timing.compare(*warm, {"T": 64}, rounds=5)]}]}
    assert explain._conditions(proof) == [
        "The GPU ran at 1755 MHz, 512 W meanwhile.",
        "Timed in other ways, the default and this: graph launches, warm L2: T=64 2.01 → 2.01 µs.",
    ]
    assert explain._conditions({"compared": [{"sizes": {"T": 64}, "ratio": 1.0}]}) == []
