"""The whole way from a plan to an artifact, with the real compiler for both archs and no GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from scale_kernel import TEXT, emitter, scale_plan

from dsv4.generator.build import BuildResult, build, build_support_library, key
from dsv4.generator.build.evidence import read_evidence
from dsv4.generator.build.ptx import entries, source_lines, untaken_lines
from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import Manifest, Resources, sha256_file
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.loader import support_library, verify

Built = dict[tuple[str, bool], BuildResult]
CHOICES = [(arch, square) for arch in ("sm_90a", "sm_100a") for square in (False, True)]


def manifest_of(result: BuildResult) -> Manifest:
    assert result.artifact is not None, result.error
    return Manifest.model_validate_json((result.artifact / "manifest.json").read_bytes())


def build_one(plan: KernelPlan, cache: Path, text: str = TEXT) -> BuildResult:
    return build([plan], cache_root=cache, jobs=1, emit=emitter(text))[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(cache: Path) -> Built:
    """Both variants for both archs, compiled by two processes."""
    seen: list[BuildResult] = []
    plans = [scale_plan(arch, square=square) for arch, square in CHOICES]
    results = build(plans, cache_root=cache, jobs=2, emit=emitter(), progress=seen.append)
    assert sorted(result.plan.name for result in seen) == sorted(plan.name for plan in plans)
    return dict(zip(CHOICES, results, strict=True))


@pytest.mark.parametrize("choice", CHOICES)
def test_an_artifact_is_whole_and_says_what_it_is(built: Built, choice: tuple[str, bool]) -> None:
    result = built[choice]
    manifest = manifest_of(result)
    assert result.artifact is not None and result.artifact.name == manifest.key and not result.cached
    assert set(manifest.files) == {"source.py", "kernel.ptx", "kernel.cubin", "kernel.so"}
    for name, sha in manifest.files.items():
        assert sha256_file(result.artifact / name) == sha
    found = {path.name for path in result.artifact.iterdir()}
    assert found == {*manifest.files, "manifest.json", "evidence.json"}
    assert manifest.function == f"dsv4_scale_{manifest.key[:12]}"
    assert read_evidence(result.artifact).rungs() == ("spec", "compiled")
    assert manifest.toolchain["nvidia-cutlass-dsl"] and "x86_64" not in manifest.host_isa
    ptx = (result.artifact / "kernel.ptx").read_text()
    assert [launch.kernel for launch in manifest.launches] == list(entries(ptx))


def test_the_runtime_finds_and_trusts_what_was_built(built: Built, cache: Path) -> None:
    kernels = KernelCache(cache)
    for (arch, square), result in built.items():
        found = kernels.find("scale", arch, {}, {"square": square}, {"n": 64})
        assert found is not None and found.folder == result.artifact
        verify(found, (9, 0) if arch == "sm_90a" else (10, 3))
    assert support_library(cache) == build_support_library(cache)


def test_what_the_host_code_asks_for_is_what_was_predicted(built: Built) -> None:
    for (arch, _), result in built.items():
        used, launch = result.used, manifest_of(result).launches[0]
        assert used is not None and used.smem_bytes == result.plan.predicted.smem_bytes == launch.smem_bytes == 768
        assert (launch.block, launch.cluster, launch.pdl) == ((64, 1, 1), (1, 1, 1), False), arch
        assert used.registers is not None and 8 <= used.registers <= 40
        assert (used.spill_bytes, used.local_bytes, used.tmem_columns, used.threads) == (0, 0, 0, 64)


def test_the_blackwell_kernel_serves_the_family(built: Built) -> None:
    manifest = manifest_of(built["sm_100a", True])
    assert manifest.toolchain["target"] == "sm_100f" and manifest.compute_capabilities == ((10, 0), (10, 3))
    assert ".target sm_100f" in (built["sm_100a", True].artifact / "kernel.ptx").read_text()  # type: ignore[operator]


def test_a_target_that_the_compiler_refuses_falls_back_to_the_chip(cache: Path) -> None:
    manifest = manifest_of(build_one(scale_plan("sm_100a", build_target="sm_107x"), cache))
    assert manifest.toolchain["target"] == "sm_100a" and manifest.compute_capabilities == ((10, 0),)


def test_no_line_of_a_branch_not_taken_is_in_the_ptx(built: Built) -> None:
    for (_, square), result in built.items():
        assert result.artifact is not None
        source = (result.artifact / "source.py").read_text()
        ptx = (result.artifact / "kernel.ptx").read_text()
        assert len(source_lines(ptx)) > 5
        assert untaken_lines(source, ptx, {"square": square}) == []
        accused = untaken_lines(source, ptx, {"square": not square})
        word = "value * value" if square else "value + cutlass.Float32"
        assert [source.splitlines()[line - 1].strip() for line in accused] == [
            f"value = {word}{'' if square else '(0.5)'}"
        ]


def test_files_are_named_without_the_machine(built: Built, cache: Path) -> None:
    for result in built.values():
        assert result.artifact is not None
        for name in ("kernel.ptx", "kernel.cubin", "kernel.so"):
            content = (result.artifact / name).read_bytes()
            assert str(cache).encode() not in content and b"source.py" in content


def test_the_same_bytes_from_another_process_in_another_order(built: Built, tmp_path: Path) -> None:
    """A worker that compiled other kernels before gives what a fresh one gives (nothing of them is left over)."""
    other = [scale_plan(threads=96), scale_plan(square=True), scale_plan(square=False)]
    again = build(other, cache_root=tmp_path, jobs=1, emit=emitter())
    for square, result in ((True, again[1]), (False, again[2])):
        assert manifest_of(result).files == manifest_of(built["sm_90a", square]).files


def test_a_second_build_is_a_hit_and_quick(built: Built, cache: Path) -> None:
    plans = [scale_plan(arch, square=square) for arch, square in CHOICES]
    before = {choice: manifest_of(result) for choice, result in built.items()}
    started = time.monotonic()
    again = build(plans, cache_root=cache, jobs=2, emit=emitter())
    assert time.monotonic() - started < 1.0
    for choice, result in zip(CHOICES, again, strict=True):
        assert result.cached and result.used == built[choice].used and manifest_of(result) == before[choice]
    assert sorted(result.seconds for result in again)[1] < 0.05


def test_what_matters_changes_the_key_and_nothing_else_does(cache: Path, built: object) -> None:
    assert build_one(scale_plan(model="flash", forbid_spills=False), cache).cached
    changed = [scale_plan(spec_sha256="1" * 64), scale_plan(is_default=False), scale_plan(bucket={"n": (1, 64)})]
    results = build(changed, cache_root=cache, jobs=1, emit=emitter())
    assert [(result.cached, result.error) for result in results] == [(False, None)] * 3


@pytest.mark.parametrize("damage", ["shorten", "alter", "remove", "manifest"])
def test_a_damaged_artifact_is_built_anew(built: Built, cache: Path, damage: str) -> None:
    result = built["sm_90a", False]
    assert result.artifact is not None
    victim = result.artifact / ("manifest.json" if damage == "manifest" else "kernel.so")
    content = victim.read_bytes()
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(content[:-9] if damage != "alter" else bytes([*content[:-1], content[-1] ^ 1]))
    again = build_one(result.plan, cache)
    assert not again.cached and again.error is None and (result.artifact / "kernel.so").read_bytes()
    assert build_one(result.plan, cache).cached


def test_force_compiles_again_and_keeps_the_evidence(built: Built, cache: Path) -> None:
    plan = built["sm_90a", True].plan
    again = build([plan], cache_root=cache, jobs=1, emit=emitter(), force=True)[0]
    assert not again.cached and again.artifact == built["sm_90a", True].artifact
    assert len(read_evidence(again.artifact).checks) == 2  # type: ignore[arg-type]


def test_a_wrong_prediction_is_an_error_and_no_artifact(tmp_path: Path) -> None:
    wrong = Resources(smem_bytes=700, tmem_columns=64, threads=64)
    result = build_one(scale_plan(predicted=wrong), tmp_path)
    assert result.artifact is None and result.used is not None
    assert result.error == (
        "smem_bytes: predicted 700, the compiled kernel asks for 768; "
        "tmem_columns: predicted 64, the compiled kernel asks for 0"
    )
    assert not list(tmp_path.glob("kernels/*/*/*"))


SPILLING = TEXT.replace(
    "value = staged[thread] * alpha\n",
    "parts = cute.make_rmem_tensor(cute.make_layout(40), cutlass.Float32)\n"
    "        for i in cutlass.range_constexpr(40):\n"
    "            parts[i] = x[i]\n"
    "        parts[index % 40] = staged[thread] * alpha\n"
    "        value = parts[(index * 7) % 40]\n",
)


def test_local_memory_is_shown_and_refused_where_the_spec_forbids_it(tmp_path: Path) -> None:
    plans = [scale_plan(), scale_plan(forbid_spills=False, threads=32)]
    refused, allowed = build(plans, cache_root=tmp_path, jobs=1, emit=emitter(SPILLING))
    assert refused.artifact is None and "local memory" in (refused.error or "") and (refused.local_bytes or 0) >= 160
    assert allowed.error is None and manifest_of(allowed).used.local_bytes == refused.local_bytes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "value = staged[thread] * alpha\n",
            "value = staged[thread] * beta\n",
            "name 'beta' is not defined (source.py:28)",
        ),
        ("y[index] = value", "y[index, index, index] = value", "weakly congruent to the layout"),
        ("alpha, square).launch", "alpha).launch", "missing a required argument: 'square' (source.py:46)"),
        (
            'return (x, y, cutlass.Float32(1.0), variant["square"], stream)',
            "return (x, y)",
            "gives 2 values and launch",
        ),
        ("(n,), assumed_align=16)\n    y", "(n, n), assumed_align=16)\n    y", "refuses its own contract"),
    ],
)
def test_a_compile_error_is_one_line_with_a_log(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    bad, good = scale_plan(), scale_plan(threads=32)
    broken, fine = emitter(TEXT.replace(old, new)), emitter()
    first, second = build(
        [bad, good], cache_root=tmp_path, jobs=1, emit=lambda plan: (broken if plan is bad else fine)(plan)
    )
    assert first.artifact is None and first.error is not None and message in first.error
    assert "\n" not in first.error and "\x1b" not in first.error and len(first.error) < 500
    assert first.log is not None and "Traceback" in first.log.read_text() and first.log.parent == tmp_path / "logs"
    assert second.error is None and second.artifact is not None
    assert not (tmp_path / "building").exists()


def test_a_compile_that_hangs_is_killed_and_the_next_one_served(tmp_path: Path) -> None:
    endless = emitter(
        TEXT.replace("def arguments(variant):\n", "def arguments(variant):\n    while True:\n        pass\n")
    )
    hangs, fine = scale_plan(compile_seconds_limit=3.0), scale_plan(threads=32)
    started = time.monotonic()
    first, second = build(
        [hangs, fine], cache_root=tmp_path, jobs=1, emit=lambda plan: (endless if plan is hangs else emitter())(plan)
    )
    assert first.error == "compiling took longer than 3 s of processor time and was stopped (compile_seconds_limit)"
    assert 3.0 <= first.seconds < 30.0 and time.monotonic() - started < 60
    assert second.error is None
    assert workers_of(os.getpid()) == []


def test_device_code_that_changes_during_the_build_is_not_stored_under_the_old_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent hashes a device module before a worker imports it; here it was another text at that time."""
    template = TEXT.replace("VARIANTS", "from dsv4.generator.device import rms_scale\n\nVARIANTS", 1)
    honest = key.device_sources
    with monkeypatch.context() as patch:
        patch.setattr(key, "device_sources", lambda names: {name: text + "\n" for name, text in honest(names).items()})
        result = build_one(scale_plan(), tmp_path, template)
    assert (
        result.artifact is None
        and result.error == "dsv4.generator.device.rms_scale was changed during the build; build again"
    )
    assert build_one(scale_plan(), tmp_path, template).error is None


def test_an_emission_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    bad, good = scale_plan(), scale_plan(threads=32)
    broken = emitter(TEXT.replace("config.stages", "config.sages"))
    first, second = build(
        [bad, good], cache_root=tmp_path, jobs=1, emit=lambda plan: (broken if plan is bad else emitter())(plan)
    )
    assert first.error is not None and "has no attribute 'sages'" in first.error and second.artifact is not None


def test_two_plans_of_one_kernel_compile_once(tmp_path: Path) -> None:
    plan = scale_plan()
    first, second = build([plan, replace(plan, model="pro")], cache_root=tmp_path, jobs=2, emit=emitter())
    assert first.artifact == second.artifact and first.seconds == second.seconds and second.plan.model == "pro"


INTERRUPTED = """
    import signal
    import sys
    from pathlib import Path
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits that it is ignored
    sys.path.insert(0, {here!r})
    from dsv4.generator.build import build
    from scale_kernel import TEXT, emitter, scale_plan
    endless = emitter(TEXT.replace("return (x, y,", "while True:\\n        pass\\n    return (x, y,"))
    fine = scale_plan()
    plans = [fine, scale_plan(threads=32), scale_plan(threads=96)]
    try:
        build(plans, cache_root=Path({cache!r}), jobs=2,
              emit=lambda plan: (emitter() if plan is fine else endless)(plan),
              progress=lambda result: print("built", flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_an_interrupted_build_leaves_no_process_and_nothing_half_written(tmp_path: Path, how: str) -> None:
    script = textwrap.dedent(INTERRUPTED).format(here=str(Path(__file__).parent), cache=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "built\n"
    workers = workers_of(process.pid)
    assert workers
    process.send_signal(getattr(signal, how))
    code = process.wait(timeout=20)
    process.stdout.close()
    assert code == (130 if how == "SIGINT" else -signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    artifacts = list(tmp_path.glob("kernels/*/*/*"))
    assert len(artifacts) == 1 and (artifacts[0] / "manifest.json").exists()
    if how == "SIGINT":
        assert not (tmp_path / "building").exists()
    assert build_one(scale_plan(), tmp_path).cached  # what was done is kept; a killed build's rest is swept up
    assert not (tmp_path / "building").exists()


def workers_of(parent: int) -> list[int]:
    """Compile processes that ``parent`` started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            status = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if b"dsv4.generator.build.worker" in command and int(status[1]) == parent:
            found.append(int(entry.name))
    return found
