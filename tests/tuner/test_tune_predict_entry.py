"""Predicted entries: only what the emulator has passed, only for a gain, served until something is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv4.generator.build.evidence import add_check, new_check
from dsv4.generator.cli import run as run_cli
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import ANY_DEVICE, Device, Entry, any_device
from dsv4.tuner import cli
from dsv4.tuner.budget import Budget
from dsv4.tuner.cost.calibration import shipped
from dsv4.tuner.cost.entry import MARGIN, choose, entry, passed
from dsv4.tuner.cost.model import rates
from dsv4.tuner.cost.rank import Predictor, Ranked
from dsv4.tuner.explain import explain
from dsv4.tuner.job import Candidate, Job, Results
from dsv4.tuner.question import Settings
from dsv4.tuner.sweep import sweep
from dsv4.tuner.take_results import take_results
from dsv4.tuner.target import Target
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 4096}, pinned={"opt_level": 3, "rows_in_flight": 1})
SIZES = [{"T": 64}, {"T": 4096}]
TRUST = "untested"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor("rms_norm", SIZES, rates("sm_90a"), shipped().of())


@pytest.fixture(scope="module")
def ranked(predictor) -> list[Ranked]:
    return predictor.rank(TARGET.space(), TARGET.default(), pool_max=200)


@pytest.fixture(scope="module")
def default(predictor) -> Ranked:
    return predictor.predict(TARGET.default())


def climb(cache: KernelCache, *plans, ok: bool = True) -> list[Path]:
    """Artifacts of ``plans`` that the emulator has passed, or not."""
    folders = [one.artifact for one in FakeBuilder(cache).build(plans, lambda one: None)]
    for folder in folders:
        add_check(folder, new_check("emulator", ok, findings=[]))
    cache.refresh()
    return folders


def slow(default: Ranked) -> Ranked:
    """The default as if it were predicted to be much slower, so that something gains over it."""
    return Ranked(default.plan, default.us * 1.5, default.shapes)


def kept(cache: KernelCache, ranked, default) -> Entry:
    climb(cache, ranked[1].plan, default.plan)
    choice = choose(ranked[1:], slow(default), passed(cache, default.plan))
    return cache.keep(entry(choice, slow(default), ranked, SIZES, bucket={"T": (1, 8192)}, trust=TRUST))


def served(cache: KernelCache, device: Device) -> dict:
    found = cache.find("rms_norm", "sm_90a", {"d": 4096}, {"pdl": False}, {"T": 64}, device=device)
    assert found is not None
    return found.manifest.config


def test_only_what_the_emulator_has_passed_is_chosen(cache, ranked, default):
    FakeBuilder(cache).build([ranked[0].plan], lambda one: None)
    climb(cache, ranked[1].plan, ok=False)
    climb(cache, ranked[3].plan)
    found = passed(cache, default.plan)
    assert list(found) == [canonical_json(ranked[3].plan.config)]
    assert choose(ranked, slow(default), found).artifact is found[canonical_json(ranked[3].plan.config)]
    assert choose(ranked, default, {}).ranked is None
    (folder,) = climb(cache, ranked[3].plan)
    add_check(folder, new_check("gpu", False, findings=["wrong"]))
    cache.refresh()
    assert passed(cache, default.plan) == {}


def test_a_guess_has_to_gain(cache, ranked, default):
    climb(cache, ranked[-1].plan)
    found = passed(cache, default.plan)
    none = choose(ranked, default, found)
    assert none.artifact is None and none.gain < MARGIN and "less than" in none.why
    climb(cache, default.plan)
    best = choose(ranked, default, passed(cache, default.plan))
    assert best.artifact is None and "default" in best.why


def test_it_is_clearly_unmeasured_and_serves_on_any_gpu_of_as_many_sms(cache, ranked, default):
    made = kept(cache, ranked, default)
    assert made.source == "predicted" and made.is_whole() and made.question.device == any_device(132)
    assert made.proof["unmeasured"] == TRUST and made.proof["ranking"][0]["rank"] == 1
    assert made.proof["emulator"]["ok"] and "timings" not in made.proof
    said = " ".join(explain(made))
    assert (
        "nobody has measured" in said and "any GPU of sm_90a with 132 SMs" in said and ANY_DEVICE not in said.split()[0]
    )
    assert served(cache, GPU) == ranked[1].plan.config
    other = GPU.model_copy(update={"sms": 114})
    assert served(cache, other) == default.plan.config


def measured(made: Entry, device: Device = GPU, **more) -> Entry:
    question = made.question.model_copy(update={"device": device, "spec_sha256": "another", **more})
    return made.model_copy(update={"source": "measured", "question": question, "sha256": ""})


def test_any_measurement_replaces_it(cache, ranked, default):
    made = kept(cache, ranked, default)
    elsewhere = measured(made, GPU.model_copy(update={"sms": 114}))
    cache.keep(elsewhere)
    cache.keep(measured(made, bucket={"T": (1, 64)}))
    assert [e.source for e in cache.tuned("rms_norm", "sm_90a")] == ["predicted", "measured", "measured"]
    cache.keep(measured(made))
    assert [e.source for e in cache.tuned("rms_norm", "sm_90a")] == ["measured"] * 3
    assert cache.keep(made).source == "measured"


@pytest.mark.parametrize("wins", [False, True])
def test_a_sweep_ends_it_whoever_wins(cache, ranked, default, wins):
    made = kept(cache, ranked, default)
    fast = made.config if wins else default.plan.config
    builder = FakeBuilder(cache)
    gpu = FakeGpu(builder, lambda config, sizes: 5.0 if config == fast else 9.0)
    settings = Settings(GPU, tuple(SIZES), Budget.parse(["8"]), bucket={"T": (1, 8192)})
    result = sweep(TARGET, settings, cache=cache, builder=builder, measure=gpu, seeds=[made.config])
    assert result.chosen == wins
    assert [e.source for e in cache.tuned("rms_norm", "sm_90a")] == ["measured"] * wins
    assert served(cache, GPU) == fast


def test_results_of_another_machine_end_it_where_the_default_won(cache, ranked, default):
    made = kept(cache, ranked, default)
    plan = default.plan
    job = Job(
        op=plan.op, arch=plan.arch, model=None, dims=plan.dims, variant=plan.variant, pinned=TARGET.pinned,
        sizes=tuple(SIZES), bucket=made.question.bucket, policy=made.question.policy, candidates=(),
        default=Candidate(key="0" * 32, config=plan.config, numeric_class=plan.numeric_class),
    )  # fmt: skip
    tried = {"config": plan.config, "score_us": 5.0}
    taken = take_results(Results(pack_sha256="", device=GPU, job=job, outcomes=[tried], is_done=True), cache)
    assert taken.entry is None and not cache.tuned("rms_norm", "sm_90a") and served(cache, GPU) == plan.config


@pytest.fixture
def call(cache, capsys, monkeypatch):
    monkeypatch.setenv("DSV4_CACHE", str(cache.root))
    pins = ("--set", "opt_level=3", "--set", "rows_in_flight=1", "--shape", "T=64", "--dims", "d=4096")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = run_cli(cli.app, ["predict", "--op", "rms_norm", "--arch", "sm_90a", *pins, *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_the_help_has_an_example(capsys):
    assert run_cli(cli.app, ["predict", "--help"]) == 0
    assert "Example: dsv4-tune predict" in " ".join(capsys.readouterr().out.split())


def test_the_command_ranks_and_says_that_nothing_was_measured(call, cache):
    code, out, error = call("--limit", "3")
    assert code == 1 and "not measured" in " ".join(out.split()) and "not kept" in out
    assert "the emulator has passed none of" in error and "--verify N" in error
    code, out, error = call("--no-keep", "--json")
    found = json.loads(out)
    assert (
        code == 0 and found["source"] == "predicted" and found["entry"] is None and len(found["configurations"]) == 10
    )
    assert [row["rank"] for row in found["configurations"]] == list(range(1, 11))
    assert not cache.tuned("rms_norm", "sm_90a")


def test_the_command_keeps_an_entry(call, cache, ranked, default, monkeypatch):
    climb(cache, ranked[1].plan)
    monkeypatch.setattr("dsv4.tuner.commands.predict.MARGIN", -1.0)
    code, out, _ = call("--bucket", "T=1:64")
    cache.refresh()
    (made,) = cache.tuned("rms_norm", "sm_90a")
    assert code == 0 and made.source == "predicted" and f"kept as {made.name}" in out
    assert made.config == ranked[1].plan.config and made.question.bucket == {"T": (1, 64)}
    cache.keep(measured(made))
    code, out, _ = call("--bucket", "T=1:64")
    assert code == 0 and "was measured and stays" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--op", "nothing", "--arch", "sm_90a"], "the cost model does not know nothing"),
        (["--op", "fmha"], "--arch: found nothing"),
        (["fmha.sm_90a"], "studies with --score"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(cache, capsys, monkeypatch, arguments, told):
    monkeypatch.setenv("DSV4_CACHE", str(cache.root))
    assert run_cli(cli.app, ["predict", *arguments]) == 2
    assert told in capsys.readouterr().err
