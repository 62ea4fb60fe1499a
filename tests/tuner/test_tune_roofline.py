"""Where times stand beside the chip's limits and beside peers: figures by hand, files that are none, shapes that are
not the study's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from dsv4.generator.console import UsageError
from dsv4.runtime.tuned import FAKE_DEVICE
from dsv4.tuner import peers, roofline
from dsv4.tuner.page import page
from dsv4.tuner.report import Report, Row
from dsv4.tuner.target import Target

H100 = "NVIDIA H100 80GB HBM3"
FMHA = {"B": 2, "Hq": 8, "Hkv": 8, "Sq": 256, "Sk": 512}
DECODE = {"B": 32, "Hq": 32, "Hkv": 8, "Sq": 1, "Sk": 4096}


def about(op: str = "fmha", dims=None, sizes=(FMHA, DECODE), device: str = H100, **policy) -> dict:
    plan = Target(op, "sm_90a", dims={"D": 128} if dims is None else dims).default()
    return {
        "op": op, "arch": "sm_90a", "dims": plan.dims, "variant": plan.variant, "sizes": list(sizes),
        "default": plan.config, "device": {"name": device, "driver": "580.1", "cuda": "13.0"},
        "policy": {"launch": "graph", "l2": "cold", **policy},
    }  # fmt: skip


def report(of: dict, shapes_us: list[float], found: list[peers.Peer] | None = None) -> Report:
    row = Row(0, of["default"], shapes_us[0], None, False, 0.01, shapes_us, "abc")
    placed = {"default": roofline.place(of, of["default"], shapes_us)}
    return Report("study", of, [row], row, row, {}, "1 is too few", {}, {}, 0, {}, placed, found or [])


def test_shares_are_counts_over_rates_over_time():
    prefill, decode = roofline.place(about(), about()["default"], [20.0, 400.0])
    moved = 4 * 2 * 256 * 8 * 128 + 4 * 2 * 512 * 8 * 128 + 4 * 2 * 8 * 256
    products, exponentials = 4 * 2 * 8 * 256 * 512 * 128, 2 * 8 * 256 * 512
    assert prefill.counts["bytes"] == moved and prefill.gigabytes_per_s == pytest.approx(moved / 20e3)
    assert prefill.shares == {
        "HBM": pytest.approx(moved / 3.35e6 / 20),
        "MMA": pytest.approx(products / 989.4e6 / 20),
        "exp2": pytest.approx(exponentials / (132 * 16 * 1755) / 20),
    }
    assert decode.bound == "HBM" and decode.least_us == pytest.approx(decode.shares["HBM"] * 400)
    assert decode.teraflops == pytest.approx(4 * 32 * 32 * 4096 * 128 / 400e6)
    known = roofline.limits("sm_90a", "NVIDIA H200")
    assert known[0].per_us == 4.8e6 and "4.8 TB/s (datasheet)" in known[0].words
    assert "assumed" in known[2].words and roofline.limits("sm_100a", "")[1].per_us == 2250e6


def test_what_is_no_kernel_any_more_has_no_place():
    assert roofline.place({**about(), "op": "forgotten"}, about()["default"], [1.0, 1.0]) == []
    assert roofline.place(about(), {"tile_m": 3}, [1.0, 1.0]) == []


def result(op="rms_norm", cases=(), **more) -> dict:
    return {"schema": 1, "op": op, "date": "2026-11-21T02:25:37+00:00", "device": {"name": H100}, "void": [],
            "cases": list(cases), **more}  # fmt: skip


def case(sizes: dict, us: dict[str, float], label: str = "a case") -> dict:
    each = {name: {"cold": {"median_us": value}, "warm": {"median_us": value / 2}} for name, value in us.items()}
    return {"label": label, "sizes": sizes, "peers": {**each, "absent": {"skipped": "not installed"}}}


def parsed(*raw: dict) -> list[peers.ResultFile]:
    return [peers.ResultFile.model_validate(each) for each in raw]


NORM = {"op": "rms_norm", "dims": {"d": 512}, "sizes": ({"T": 64}, {"T": 4096})}


def test_peers_are_those_of_the_same_sizes_and_flags():
    file = result(cases=[
        case({"T": 64, "d": 512}, {"quack": 2.0, "dsv4 kernel": 1.5}), case({"T": 64, "d": 1024}, {"quack": 3.0}),
        case({"T": 65, "d": 512}, {"quack": 4.0}), case({"T": 4096}, {"quack": 5.0}),
    ])  # fmt: skip
    found = peers.matching(about(**NORM), parsed(file))
    assert [(each.place, each.name, each.us, each.is_ours) for each in found] == [
        (0, "dsv4 kernel", 1.5, True), (0, "quack", 2.0, False),
    ]  # fmt: skip
    assert {each.date for each in found} == {"2026-11-21"} and all(each.same_device for each in found)
    assert [each.us for each in peers.matching(about(**NORM, l2="warm"), parsed(file))] == [0.75, 1.0]
    assert peers.matching(about(**NORM, launch="eager"), parsed(file)) == []
    assert not peers.matching(about(**NORM, device="NVIDIA H200"), parsed(file))[0].same_device
    assert peers.matching(about(**NORM), parsed({**file, "void": ["copy_gb_s drifted"]}, {**file, "op": "fmha"})) == []


def test_a_newer_file_takes_the_place_of_an_older_one():
    old = result(cases=[case({"T": 64, "d": 512}, {"quack": 2.0, "torch": 9.0})])
    new = {**result(cases=[case({"T": 64, "d": 512}, {"quack": 1.8})]), "date": "2026-12-01T00:00:00+00:00"}
    found = peers.matching(about(**NORM), parsed(new, old))
    assert [(each.name, each.us, each.date) for each in found] == [
        ("quack", 1.8, "2026-12-01"), ("torch", 9.0, "2026-11-21"),
    ]  # fmt: skip


def test_flags_are_known_by_value_by_label_and_by_name():
    whole = about(sizes=(DECODE,))
    sizes = {**DECODE, "D": 128}
    for causal, count in ((False, 1), (True, 0)):
        file = parsed(result("fmha", [case({**sizes, "causal": causal}, {"cudnn": 1.0})]))
        assert len(peers.matching(whole, file)) == count
    quantize = about("quantize", {"K": 4096}, ({"T": 1},))
    quantize["variant"]["format"] = "fp8_128"
    for label, count in (("fp8_128 T=1 K=4096", 1), ("nvfp4 T=1 K=4096", 0)):
        file = parsed(result("quantize", [case({"T": 1, "K": 4096, "format": 0}, {"tile-kernels": 1.0}, label)]))
        assert len(peers.matching(quantize, file)) == count
    indexer = about("indexer_q", {}, ({"T": 1},))  # its one static size, H = 64, need not be named
    for fp4, count in ((False, 1), (True, 0)):
        assert (
            len(peers.matching(indexer, parsed(result("indexer_q", [case({"T": 1, "fp4": fp4}, {"x": 1.0})])))) == count
        )


def test_the_result_files_of_a_checkout_are_found(tmp_path: Path):
    found = peers.shipped("rms_norm")
    assert [file.op for file in found] == ["rms_norm"] * len(found) and found
    shown = peers.matching(about("rms_norm", {"d": 7168}, ({"T": 9376},)), found)
    assert {"quack", "torch", "torch.compile"} <= {each.name for each in shown}
    assert all(each.label == "T=9376 d=7168" and each.device == H100 for each in shown)
    assert peers.shipped("rms_norm", tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "found no JSON"),
        ('{"schema": 2}', "schema: found 2; valid: a result file of benchmarks (schema 1)"),
        ("[]", "schema: found None"),
        ('{"schema": 1, "op": "rms_norm"}', "date: found"),
    ],
)
def test_what_is_no_result_file_is_said_in_one_line(tmp_path: Path, text: str, words: str):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        peers.read_result(file)
    assert words in str(caught.value) and "\n" not in str(caught.value) and "--peers" in str(caught.value)
    with pytest.raises(UsageError, match="No such file"):
        peers.read_result(tmp_path / "none.json")


def polylines(html: str) -> list[list[tuple[float, float]]]:
    points = re.findall(r'class="roof" points="([^"]+)"', html)
    return [[tuple(map(float, point.split(","))) for point in each.split()] for each in points]  # type: ignore[misc]


def test_the_page_draws_the_roof_with_a_corner_and_every_place_below_it():
    of = about()
    found = peers.matching(of, parsed(result("fmha", [case({**DECODE, "D": 128, "causal": False}, {"cudnn": 180.0})])))
    html = page(report(of, [20.0, 400.0], found))
    (roof,) = polylines(html)
    assert len(roof) == 3 and roof[0][1] > roof[1][1] == roof[2][1]
    dots = [
        (float(x), float(y))
        for x, y in re.findall(r'<circle class="(?:default-bar|peer)" cx="([\d.]+)" cy="([\d.]+)" r="4', html)
    ]
    assert len(dots) == 3
    for x, y in dots:
        (x1, y1), (x2, y2) = next(pair for pair in pairwise(roof) if pair[0][0] <= x <= pair[1][0])
        assert y > y1 + (y2 - y1) * (x - x1) / (x2 - x1)
    assert "cudnn" in html and "0.450×" in html and f"2026-11-21, {H100}" in html
    assert "989.4 TFLOP/s, bf16 (datasheet)" in html and "assumed" in html


def test_an_operator_without_products_is_placed_by_bandwidth():
    html = page(report(about(**NORM), [2.0, 5.0]))
    (roof,) = polylines(html)
    assert len(roof) == 2 and roof[0][1] == roof[1][1] and "MB of a call" in html and "GB/s" in html
    assert "No result file has this operator at these shapes" in html


def test_made_up_times_are_placed_nowhere():
    of = about(device=FAKE_DEVICE)
    made_up = replace(report(of, [20.0, 400.0]), placed={})
    html = page(made_up)
    assert html.count("Made-up times: they are not") == 2 and polylines(html) == []


def test_peers_of_another_operator_are_refused_on_the_command_line(tmp_path: Path, monkeypatch, capsys):
    from dsv4.generator.cli import run as run_cli
    from dsv4.tuner import cli

    monkeypatch.setenv("DSV4_CACHE", str(tmp_path / "cache"))
    sweep = ("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--dims", "d=512", "--measure", "fake", "--budget", "2")
    assert run_cli(cli.app, list(sweep)) == 0
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(result(cases=[case({"T": 64, "d": 512}, {"quack": 2.0})])))
    bad.write_text(json.dumps(result("fmha")))
    capsys.readouterr()
    target = tmp_path / "r.html"
    assert run_cli(cli.app, ["report", "--peers", str(good), "-o", str(target)]) == 0
    assert "quack" not in target.read_text() and "Made-up times: they are not set beside" in target.read_text()
    capsys.readouterr()
    assert run_cli(cli.app, ["report", "--peers", str(good), "--peers", str(bad), "-o", str(target)]) == 2
    assert f"--peers: {bad}: found results of fmha; valid: of rms_norm" in capsys.readouterr().err
