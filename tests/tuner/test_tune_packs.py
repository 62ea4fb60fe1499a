"""plan → compile → pack → measure PACK → import: a pack is believed as a whole or not at all, and measuring one needs
the runtime only."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from dsv4.generator.build.evidence import read_evidence
from dsv4.generator.cli import run as run_cli
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Policy
from dsv4.tuner import cli, exchange, packs
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.measure_pack import ResultsRefused, measure_pack, read_results
from dsv4.tuner.packs import PackRefused, read_contents, unpack, write_pack
from dsv4.tuner.storage import open_storage
from dsv4.tuner.study import Study, study_names
from dsv4.tuner.target import Target, ranked
from dsv4.tuner.worker import Outcome
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 512})
PLANS = list(ranked(TARGET.space(), TARGET.default()))[:14]
ARGUMENTS = ("--op", "rms_norm", "--arch", "sm_90a", "--dims", "d=512")


def cost(config, sizes) -> float:
    return 40.0 / config["rows_per_cta"] + config["threads_per_row"] / 64 + config["rows_in_flight"]


def call(cache: KernelCache, *arguments: object) -> int:
    os.environ["DSV4_CACHE"] = str(cache.root)
    return run_cli(cli.app, [str(each) for each in arguments])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4_CACHE", "set by each call")


@pytest.fixture
def compiled(cache: KernelCache) -> KernelCache:
    """A cache with compiled candidates, the default and the support library."""
    FakeBuilder(cache).build(PLANS, lambda one: None)
    (cache.root / "support").mkdir(mode=0o700)
    (cache.root / "support" / "libdsv4_support-1.so").write_bytes(b"support")
    (cache.root / "support" / "libdsv4_support-1.json").write_text('{"sha256": "…"}')
    return cache


@pytest.fixture
def job(compiled: KernelCache, tmp_path: Path) -> Path:
    """A pack of candidates."""
    file = tmp_path / "job.tar.gz"
    assert call(compiled, "pack", file, "--candidates", *ARGUMENTS, "--shape", "T=64", "--bucket", "T=1:100") == 0
    return file


def gpu_at(cache: KernelCache, **more) -> FakeGpu:
    """A GPU that knows the kernels of a cache by their folders."""
    builder = FakeBuilder(cache)
    for plan in PLANS:
        artifacts = cache.artifacts(plan.op, plan.arch)
        folder = next(each.folder for each in artifacts if each.manifest.config == plan.config)
        builder.plans[str(folder)] = plan
    return FakeGpu(builder, cost, **more)


def measured_elsewhere(job: Path, root: Path, out: Path, **more):
    elsewhere = KernelCache(root)
    unpack(job, elsewhere)
    return measure_pack(job, out, elsewhere, GPU, measure=gpu_at(elsewhere, **more))


def test_a_pack_has_the_job_and_every_object(job, compiled, tmp_path):
    contents = read_contents(job)
    assert contents.kind == "candidates" and contents.job is not None
    assert contents.job.default.config == TARGET.default().config and len(contents.job.candidates) == len(PLANS) - 1
    assert sum(name.endswith("kernel.so") for name in contents.files) == len(PLANS)
    assert "support/libdsv4_support-1.so" in contents.files
    again = tmp_path / "again.tar.gz"
    assert call(compiled, "pack", again, "--candidates", *ARGUMENTS, "--shape", "T=64", "--bucket", "T=1:100") == 0
    assert again.read_bytes() == job.read_bytes()
    elsewhere = KernelCache(tmp_path / "elsewhere")
    unpack(job, elsewhere)
    assert len(elsewhere.artifacts("rms_norm", "sm_90a")) == len(PLANS)
    for path in elsewhere.root.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022
    assert not list((elsewhere.root / "building").iterdir())


def test_the_whole_way_from_compile_to_an_entry_that_serves(job, compiled, tmp_path, capsys):
    out = tmp_path / "results.json"
    results = measured_elsewhere(job, tmp_path / "elsewhere", out)
    assert results.is_done and len(results.outcomes) == len(PLANS) and results.winner
    assert call(compiled, "import", out, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["new"] == len(PLANS) and answer["entry"]
    cache = KernelCache(compiled.root)
    (entry,) = exchange.cached_entries(cache)
    best = min(PLANS, key=lambda plan: cost(plan.config, {}))
    assert entry.config == best.config and entry.question.bucket == {"T": (1, 100)} and entry.question.device == GPU
    found = cache.find("rms_norm", "sm_90a", {"d": 512}, entry.question.variant, {"T": 50}, device=GPU)
    assert found is not None and found.manifest.key == results.winner
    storage = open_storage(cache.root / "studies" / "rms_norm.sm_90a.journal")
    study = Study(storage, study_names(storage)[0], Encoding(TARGET.space()))
    assert len(study.tried()) == len(PLANS)
    assert call(compiled, "import", out, "--json") == 0  # twice is once
    assert json.loads(capsys.readouterr().out)["new"] == 0 and len(exchange.cached_entries(cache)) == 1

    winners = tmp_path / "winners.tar.gz"
    assert call(cache, "pack", winners) == 0
    serving = KernelCache(tmp_path / "serving")
    assert call(serving, "import", winners) == 0
    serving.refresh()
    served = serving.find("rms_norm", "sm_90a", {"d": 512}, entry.question.variant, {"T": 50}, device=GPU)
    assert served is not None and served.manifest.key == results.winner
    assert len(serving.artifacts("rms_norm", "sm_90a")) == 1


def test_a_job_says_how_calls_are_timed(compiled, tmp_path):
    file, out = tmp_path / "warm.tar.gz", tmp_path / "results.json"
    arguments = (*ARGUMENTS, "--shape", "T=64", "--launch", "eager", "--l2", "warm")
    assert call(compiled, "pack", file, "--candidates", *arguments) == 0
    elsewhere = KernelCache(tmp_path / "elsewhere")
    unpack(file, elsewhere)
    gpu = gpu_at(elsewhere)
    measure_pack(file, out, elsewhere, GPU, measure=gpu)
    assert {request.policy for request in gpu.requests} == {Policy(launch="eager", l2="warm")}
    assert gpu.requests[-1].compare and call(compiled, "import", out) == 0
    (entry,) = compiled.tuned("rms_norm", "sm_90a")
    assert entry.question.policy == Policy(launch="eager", l2="warm")


def test_an_interrupted_measurement_goes_on(job, tmp_path):
    out, root = tmp_path / "results.json", tmp_path / "elsewhere"
    unpack(job, KernelCache(root))
    gpu = gpu_at(KernelCache(root))
    gpu.interrupt_after = 2
    with pytest.raises(KeyboardInterrupt):
        measure_pack(job, out, KernelCache(root), GPU, measure=gpu)
    first = read_results(out)
    assert not first.is_done and len(first.outcomes) == 1 + 8
    again = gpu_at(KernelCache(root))
    results = measure_pack(job, out, KernelCache(root), GPU, measure=again)
    assert results.is_done and results.outcomes[:9] == first.outcomes
    assert len(again.measured()) == len(PLANS) - 9
    once_more = gpu_at(KernelCache(root))
    assert measure_pack(job, out, KernelCache(root), GPU, measure=once_more) == results and not once_more.requests


def test_candidates_take_turns_with_the_default_and_the_best_so_far(job, tmp_path):
    """On a GPU that gets slower from batch to batch; one of the best faults when it is timed again."""
    cache = KernelCache(tmp_path / "elsewhere")
    unpack(job, cache)
    gpu = gpu_at(cache, drift=lambda request: 1.5**request)
    told: list[str] = []

    def measure(request, *, limit_s, progress=lambda outcome: None):
        for folder in request.beside[1:]:
            progress(Outcome(folder, error="no answer within 60 s: killed"))
            told.append(folder)
        return gpu(request, limit_s=limit_s, progress=progress)

    results = measure_pack(job, tmp_path / "results.json", cache, GPU, measure=measure)
    default, first, second, last = gpu.requests
    assert default.beside == () and first.beside == default.artifacts and default.rungs == (15,)
    assert first.rungs == second.rungs == (5, 15) and first.default_us == second.default_us
    assert told == list(second.beside[1:]) and len(told) == 1 and second.beside[0] == first.beside[0] and last.compare
    for each in results.outcomes:
        assert each["score_us"] == pytest.approx(1.5 * cost(each["config"], {}))  # as if with the default's request
        assert read_evidence(cache.folder("rms_norm", "sm_90a", each["detail"]["artifact"])).checks
    best = min(results.outcomes, key=lambda each: cost(each["config"], {}))
    assert results.winner == best["detail"]["artifact"]


def test_results_that_are_not_finished_altered_or_of_another_pack(job, compiled, tmp_path, capsys):
    out, root = tmp_path / "results.json", tmp_path / "elsewhere"
    results = measured_elsewhere(job, root, out)
    out.write_text(results.model_copy(update={"is_done": False}).sealed().model_dump_json())
    assert call(compiled, "import", out) == 2 and "valid: finished ones" in capsys.readouterr().err
    out.write_text(results.model_copy(update={"winner": "0" * 32}).model_dump_json())
    with pytest.raises(ResultsRefused, match="altered"):
        read_results(out)
    assert call(compiled, "import", out) == 2 and not (compiled.root / "tuned").exists()
    out.write_text(results.model_copy(update={"pack_sha256": "0" * 64}).sealed().model_dump_json())
    with pytest.raises(ResultsRefused, match="another pack or device"):
        measure_pack(job, out, KernelCache(root), GPU, measure=gpu_at(KernelCache(root)))


def test_what_fails_or_loses_elsewhere_brings_no_entry(job, compiled, tmp_path, capsys):
    best = min(PLANS, key=lambda plan: cost(plan.config, {})).config
    results = measured_elsewhere(
        job, tmp_path / "a", tmp_path / "a.json", wrong=lambda config: config == best, again=lambda config, sizes: 1.0
    )
    assert [each["failure"] for each in results.outcomes if each["failure"]] == ["T=7: y is off"]
    assert call(compiled, "import", tmp_path / "a.json") == 0
    assert "1.000× as fast" in capsys.readouterr().err and not (compiled.root / "tuned").exists()
    with pytest.raises(PackRefused, match="the default of rms_norm on sm_90a fails here"):
        measured_elsewhere(job, tmp_path / "b", tmp_path / "b.json", wrong=lambda config: True)


def rewritten(job: Path, change) -> None:
    """The pack again, with ``change(members)`` made to its names and contents."""
    with tarfile.open(job) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    members = change(members) or members
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(data or b"")
            archive.addfile(member, io.BytesIO(data or b""))
    job.write_bytes(buffer.getvalue())


def flip(members):
    index = next(place for place, (name, _) in enumerate(members) if name.endswith("kernel.so"))
    members[index] = (members[index][0], members[index][1] + b"!")


def rename(members, to: str):
    contents = json.loads(members[0][1])
    name, data = members[-1]
    contents["files"][to] = contents["files"].pop(name)
    members[0] = (members[0][0], json.dumps(contents).encode())
    members[-1] = (to, data)


def link(members):
    members[-1] = (members[-1][0], None)


def newer(members):
    contents = json.loads(members[0][1])
    members[0] = (members[0][0], json.dumps({**contents, "dsv4_pack": 2}).encode())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip, "kernel.so: found another sha256"),
        (lambda members: members[:-1], "which pack.json names"),
        (lambda members: [*members, ("kernels/more", b"")], "does not name once as a file"),
        (lambda members: [*members, members[-1]], "does not name once as a file"),
        (lambda members: members[1:], "found no pack.json at its start"),
        (lambda members: rename(members, "../../evil"), "valid: names below kernels/ and support/"),
        (lambda members: rename(members, "/tmp/evil"), "valid: names below kernels/ and support/"),
        (link, "does not name once as a file"),
        (newer, "dsv4_pack: found 2; valid: 1"),
    ],
)
def test_a_pack_that_was_altered_is_refused_and_nothing_is_kept(job, tmp_path, change, words):
    rewritten(job, change)
    elsewhere = KernelCache(tmp_path / "elsewhere")
    with pytest.raises(PackRefused, match=words.replace(".", r"\.")):
        unpack(job, elsewhere)
    kept = [path for path in elsewhere.root.rglob("*") if path.is_file()]
    assert kept == [] and not (tmp_path / "evil").exists()


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_a_pack_that_was_cut_short_is_one_line(job, tmp_path, keep, capsys):
    job.write_bytes(job.read_bytes()[:keep])
    elsewhere = KernelCache(tmp_path / "elsewhere")
    with pytest.raises(PackRefused):
        unpack(job, elsewhere)
    assert call(elsewhere, "measure", job) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (elsewhere.root / "kernels").exists()


def test_a_kernel_that_is_not_what_its_manifest_says_is_not_packed(compiled, tmp_path):
    artifact = compiled.artifacts("rms_norm", "sm_90a")[0]
    (artifact.folder / "kernel.so").write_bytes(b"another")
    with pytest.raises(PackRefused, match="build it anew"):
        write_pack(tmp_path / "x.tar.gz", compiled, [artifact], kind="winners")
    assert not (tmp_path / "x.tar.gz").exists()


def test_bad_usage_of_pack_is_one_line(cache, tmp_path, capsys):
    for arguments, words in (
        (("pack", tmp_path / "x", "--candidates"), "found no --op and --arch"),
        (("pack", tmp_path / "x"), "found no winners"),
        (("pack", tmp_path / "x", "--candidates", *ARGUMENTS), "found no default"),
        (("measure", tmp_path / "none"), "No such file"),
    ):
        assert call(cache, *arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


def test_measuring_a_pack_needs_no_compiler_and_no_search_library():
    code = (
        "import sys, dsv4.tuner.measure_pack;"
        "bad = {'cutlass', 'jinja2', 'optuna', 'typer', 'rich', 'yaml'} & {m.split('.')[0] for m in sys.modules};"
        "sys.exit(', '.join(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_pack_is_no_pickle(job):
    with gzip.open(job) as stream, tarfile.open(fileobj=stream) as archive:
        names = archive.getnames()
    assert names[0] == packs.CONTENTS and not any(name.endswith((".pkl", ".pickle", ".pt")) for name in names)
