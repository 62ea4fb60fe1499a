"""Dispatch: what serves a call, what is said when nothing can, and what a watcher sees. No GPU: one is pretended."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dsv4
from dsv4.runtime import dispatch, loader, warm
from dsv4.runtime.errors import ContractError, Dsv4Warning, KernelMissing, SettingError
from dsv4.runtime.tuned import Device

X, W = torch.randn(6, 64).bfloat16(), torch.randn(64).bfloat16()
HERE = Device(name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30, sms=132, driver="580.95.05", cuda="13.0")


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests for a CUDA device find an H100; a kernel's first run gets tensors on the CPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(dispatch, "device_identity", lambda index: HERE)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(
        dispatch, "tiny_arguments", lambda manifest, device: warm.tiny_arguments(manifest, torch.device("cpu"))
    )


def request(**changes: Any) -> dispatch.Request:
    asked: dict[str, Any] = {"dims": {"d": 64}, "sizes": {"T": 6}, "variant": {"pdl": False}}
    return dispatch.Request("rms_norm", torch.device("cuda", 0), **{**asked, **changes})


def serve_cpu_with(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any], artifact: Any) -> None:
    monkeypatch.setattr(dispatch, "serve", lambda request: dispatch.Loaded(artifact, kernel))


def test_cpu_is_served_by_the_reference_even_under_raise() -> None:
    dsv4.configure(missing="raise")
    with warnings.catch_warnings(), dsv4.trace_dispatch() as calls:
        warnings.simplefilter("error")
        dsv4.rms_norm(X, W)
    assert [(c.op, c.implementation, c.key, c.device, c.sizes) for c in calls] == [
        ("rms_norm", "reference", None, "cpu", {"d": 64, "T": 6})
    ]


def test_kernel_is_loaded_and_run_once(
    h100: None, make: Any, support: Path, compiled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make(so=compiled["kernel"])
    loads: list[Any] = []
    real = loader.load

    def counted(*arguments: Any) -> Any:
        loads.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(loader, "load", counted)
    first, second = dispatch.serve(request()), dispatch.serve(request(sizes={"T": 9}))
    assert first is second and first is not None and first.artifact.manifest.key == artifact.manifest.key
    assert len(loads) == 1
    before = first.function()
    dispatch.serve(request(sizes={"T": 10}))
    assert first.function() == before  # the run that loads its module is not repeated


def test_a_kernel_without_dependent_launch_serves_where_no_other_does(
    h100: None, make: Any, support: Path, compiled: dict[str, bytes]
) -> None:
    plain = make(so=compiled["kernel"])
    asked = request(variant={"pdl": True})
    served = dispatch.serve(asked)
    assert served is not None and served.artifact.manifest.key == plain.manifest.key
    make("b" * 32, so=compiled["kernel"], variant={"pdl": True}, function=plain.manifest.function)
    dsv4.configure()
    served, other = dispatch.serve(asked), dispatch.serve(request())
    assert served is not None and served.artifact.manifest.key == "b" * 32
    assert other is not None and other.artifact.manifest.key == plain.manifest.key


def test_a_kernel_for_dependent_launch_serves_nobody_else(
    h100: None, make: Any, support: Path, compiled: dict[str, bytes]
) -> None:
    make(so=compiled["kernel"], variant={"pdl": True})
    with pytest.warns(Dsv4Warning, match="no kernel"):
        assert dispatch.serve(request()) is None


def test_missing_kernel_raises_or_is_said_once(h100: None) -> None:
    with pytest.warns(Dsv4Warning, match=r"rms_norm on cuda:0 \(sm_90a\), .*no kernel in .*PyTorch serves") as said:
        assert dispatch.serve(request()) is None
        assert dispatch.serve(request(sizes={"T": 7})) is None
    assert len(said) == 1
    dsv4.configure(missing="raise")
    with pytest.raises(KernelMissing, match=r"no kernel in .*; valid: build one with dsv4-gen build"):
        dispatch.serve(request())


def test_missing_from_the_environment(h100: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4_MISSING", "raise")
    dispatch.reset()
    with pytest.raises(KernelMissing):
        dispatch.serve(request())
    monkeypatch.setenv("DSV4_MISSING", "ignore")
    dispatch.reset()
    with pytest.raises(SettingError, match="DSV4_MISSING: found 'ignore'; valid: raise, reference"):
        dispatch.serve(request())


def test_other_arch_has_no_kernel(h100: None, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    with pytest.warns(Dsv4Warning, match="no kernel"):
        assert dispatch.serve(request()) is None


def test_refused_artifact_gives_way_to_the_next(
    h100: None, make: Any, support: Path, compiled: dict[str, bytes]
) -> None:
    sound = make("a" * 32, so=compiled["kernel"])
    cut = make("b" * 32, so=compiled["kernel"])
    (cut.folder / "kernel.so").write_bytes(compiled["kernel"][:-1])
    with pytest.warns(Dsv4Warning, match=r"kernel refused: .*kernel\.so: found sha256") as said:
        served = dispatch.serve(request())
    assert served is not None and served.artifact.manifest.key == sound.manifest.key
    assert len(said) == 1


def test_refused_artifact_alone_gives_the_reference_or_raises(h100: None, make: Any, support: Path) -> None:
    make(so=b"not a library", host_isa=["avx1024"])
    with pytest.warns(Dsv4Warning) as said:
        assert dispatch.serve(request()) is None
    assert ["avx1024" in str(w.message) for w in said] == [True, False]
    dsv4.configure(missing="raise")
    with pytest.raises(KernelMissing), pytest.warns(Dsv4Warning, match="avx1024"):
        dispatch.serve(request())


def test_refused_cache_is_named_in_the_error(h100: None, make: Any, fresh_runtime: Path) -> None:
    make()
    fresh_runtime.chmod(0o777)
    dsv4.configure(missing="raise")
    with pytest.raises(KernelMissing, match="world-writable"), pytest.warns(Dsv4Warning, match="kernel cache refused"):
        dispatch.serve(request())


def test_no_loading_while_a_graph_is_captured(
    h100: None, make: Any, support: Path, compiled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(so=compiled["kernel"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(KernelMissing, match=r"being captured before .*; valid: call dsv4\.warmup\(\)"):
        dispatch.serve(request())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    dispatch.serve(request())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert dispatch.serve(request(sizes={"T": 99})) is not None


def test_warmup_loads_defaults_and_choices(
    h100: None, make: Any, support: Path, compiled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dsv4.warmup() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    default = make(so=compiled["kernel"])
    make("b" * 32, so=compiled["kernel"], is_default=False)
    make("c" * 32, arch="sm_100a", compute_capabilities=[[10, 0]])
    assert dsv4.warmup() == [default.manifest.name]
    assert dsv4.warmup(["fmha"]) == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert dispatch.serve(request()) is not None


def test_smallest_arguments_follow_the_contract(make: Any) -> None:
    x, w, y, eps = warm.tiny_arguments(make(bucket={"T": (16, None)}).manifest, torch.device("cpu"))
    assert (x.shape, w.shape, y.shape, eps) == ((16, 64), (64,), (16, 64), 1.0)
    assert x.dtype == w.dtype == torch.bfloat16 and (x == 0).all()
    for each in (x, w, y):  # a kernel that writes a whole row of a page of one byte meets nobody else's memory
        assert each.storage_offset() == 0 and each.untyped_storage().nbytes() >= each.nbytes + 2**16


def test_extents_are_arithmetic_and_nothing_else() -> None:
    sizes = {"B": 3, "T": 16}
    assert [warm.extent(each, sizes) for each in (7, "T", "B + 1", "T//4*B-1")] == [7, 16, 4, 11]
    for text in ("C + 1", "B.real", "max(B, 1)", "B ** 9", "'B'"):
        with pytest.raises(ValueError, match="valid: "):
            warm.extent(text, sizes)


def test_kernel_gets_the_contracts_order_and_rows(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def kernel(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
        seen.append((tuple(x.shape), tuple(weight.shape), tuple(out.shape), eps))
        out.fill_(3)

    artifact = make()
    serve_cpu_with(monkeypatch, kernel, artifact)
    with dsv4.trace_dispatch() as calls:
        for shape in ((6, 64), (2, 3, 64), (64,)):
            y = dsv4.rms_norm(X.flatten()[: torch.Size(shape).numel()].view(shape), W, 0.5)
            assert y.shape == shape and (y == 3).all()
        out = torch.empty(6, 128).bfloat16()[:, :64]
        assert dsv4.rms_norm(X, W, out=out) is out and (out == 3).all()
    assert seen == [((n, 64), (64,), (n, 64), eps) for n, eps in ((6, 0.5), (6, 0.5), (1, 0.5), (6, 1e-6))]
    assert {c.implementation for c in calls} == {artifact.manifest.name} and len(calls) == 4
    assert calls[0].key == artifact.manifest.key


def test_fmha_kernel_gets_the_contracts_order(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    serve_cpu_with(monkeypatch, lambda *arguments: seen.append(arguments), make())
    q, k, v = (torch.randn(2, n, h, 16).bfloat16() for n, h in ((5, 4), (7, 2), (7, 2)))
    out, lse = dsv4.fmha(q, k, v)
    sink = torch.zeros(4)
    dsv4.fmha(q, k, v, sink=sink, softmax_scale=0.3)
    assert all(a is b for a, b in zip(seen[0][:6], (q, k, v, None, out, lse), strict=True)) and seen[0][6] == 0.25
    assert seen[1][3] is sink and seen[1][6] == 0.3


def test_kernels_complaint_is_put_in_our_names(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*arguments: Any) -> None:
        raise ValueError("Mismatched Tensor on argument #0 when calling: `f(x: Tensor)`, expected dtype=bfloat16")

    dsv4.rms_norm(X, W)
    dispatch.reset()
    serve_cpu_with(monkeypatch, kernel, make())
    with pytest.raises(ContractError, match="rms_norm: Mismatched Tensor on argument x, expected dtype=bfloat16"):
        dsv4.rms_norm(X, W)
    with pytest.raises(ContractError, match=r"rms_norm: x: found torch\.float16; valid: torch\.bfloat16"):
        dsv4.rms_norm(X.half(), W)


def test_a_failing_launch_is_no_contract_error(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*arguments: Any) -> None:
        raise RuntimeError("CUDA error: launch failed")

    serve_cpu_with(monkeypatch, kernel, make())
    with pytest.raises(RuntimeError, match="launch failed"):
        dsv4.rms_norm(X, W)


def test_entries_are_remembered_and_bounded(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    artifact = make()

    def serve(request: dispatch.Request) -> dispatch.Loaded:
        asked.append(request.sizes["T"])
        return dispatch.Loaded(artifact, lambda *_: None)

    monkeypatch.setattr(dispatch, "serve", serve)
    monkeypatch.setattr(dispatch, "TABLE_ENTRIES_MAX", 3)
    for rows in (1, 2, 1, 2, 3, 1):
        dsv4.rms_norm(X[:rows], W)
    assert asked == [1, 2, 3]
    dsv4.rms_norm(X[:4], W)
    assert len(dispatch.table("rms_norm")) == 1


def test_trace_nests_and_ends() -> None:
    with dsv4.trace_dispatch() as outer:
        dsv4.rms_norm(X, W)
        with dsv4.trace_dispatch() as inner:
            dsv4.rms_norm(X, W)
        dsv4.rms_norm(X[:0], W)
    dsv4.rms_norm(X, W)
    assert [c.implementation for c in outer] == ["reference", "reference", "empty"]
    assert len(inner) == 1


@pytest.mark.parametrize("bad", ["maybe", ""])
def test_configure_refuses(bad: str) -> None:
    with pytest.raises(SettingError, match=f"missing: found '{bad}'; valid: 'raise', 'reference'"):
        dsv4.configure(missing=bad)  # type: ignore[arg-type]


def test_configure_makes_new_kernels_visible(h100: None, make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    with pytest.warns(Dsv4Warning):
        assert dispatch.serve(request()) is None
    make(so=compiled["kernel"])
    dsv4.configure()
    assert dispatch.serve(request()) is not None


def test_import_is_light() -> None:
    code = (
        "import sys, dsv4\n"
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules\n"
        "assert all(getattr(dsv4, name) for name in dsv4.__all__)\n"
        "found = {'cutlass', 'jinja2', 'yaml', 'optuna', 'rich', 'typer', 'tvm_ffi'} & set(sys.modules)\n"
        "assert not found, found\n"
        "assert not [name for name in sys.modules if name.startswith('dsv4.generator')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="module 'dsv4' has no attribute 'rmsnorm'"):
        dsv4.rmsnorm  # noqa: B018
    assert set(dsv4.__all__) <= set(dir(dsv4))
