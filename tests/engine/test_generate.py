"""``python -m dsv4.generate``: text from checkpoints in every layout, and one line for everything that is wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dsv4.runtime.checkpoint.write_tiny import write_checkpoint
from dsv4.runtime.engine import command, generation
from dsv4.runtime.engine.arguments import parser
from dsv4.runtime.engine.meter import ProgressLine
from dsv4.runtime.model.config import WeightScheme
from dsv4.runtime.model.presets import NARROW

IDS = "5,9,11,300,7"
Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    for layout in get_args(WeightScheme):
        write_checkpoint(root / layout, NARROW, layout=layout, shards=3 if layout == "nvfp4" else 1, seed=1)
    return {layout: root / layout for layout in get_args(WeightScheme)}


@pytest.fixture
def generate(checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Generate:
    """Runs the command in this process: exit code, stdout, stderr."""

    def run(*arguments: str, checkpoint: Path | None = None) -> tuple[int, str, str]:
        place = checkpoint or checkpoints["fp8_mxfp4"]
        code = command.main(["--checkpoint", str(place), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.filterwarnings("ignore:.*unverified")
@pytest.mark.parametrize("layout", get_args(WeightScheme))
@pytest.mark.parametrize("numerics", ["exact", "official", "engine"])
def test_every_layout(generate: Generate, checkpoints: dict[str, Path], layout: str, numerics: str) -> None:
    arguments = ("--prompt-ids", IDS, "--max-new-tokens", "4", "--numerics", numerics, "--ignore-eos", "--json")
    code, out, _ = generate(*arguments, checkpoint=checkpoints[layout])
    assert code == 0
    (sequence,) = json.loads(out)["sequences"]
    assert len(sequence["ids"]) == 4 and all(0 <= token < 320 for token in sequence["ids"])
    assert sequence["prompt_ids"] == [5, 9, 11, 300, 7] and sequence["finish"] == "length"


def test_ids_are_streamed_to_stdout_and_figures_to_stderr(generate: Generate) -> None:
    arguments = ("--prompt-ids", IDS, "--max-new-tokens", "6", "--ignore-eos")
    code, out, err = generate(*arguments, "--json")
    ids = json.loads(out)["sequences"][0]["ids"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generation.Tokenizer, "load", lambda folder: None)
        code, out, err = generate(*arguments)
    assert code == 0 and out == ",".join(map(str, ids)) + "\n"
    assert "5 prompt tokens at" in err and "6 new at" in err and "ended by length" in err and "\r" not in err


def test_drafts_and_chunks_change_nothing(generate: Generate) -> None:
    arguments = ("--prompt-ids", IDS, "--max-new-tokens", "12", "--numerics", "exact", "--json")
    plain, chunked, drafted = (
        json.loads(generate(*arguments, *more)[1])["sequences"][0] for more in ((), ("--chunk", "2"), ("--speculate",))
    )
    assert plain["ids"] == chunked["ids"] == drafted["ids"]
    assert plain["drafts"] == 0 and drafted["drafts"] > 0


def test_sampling_is_by_seed(generate: Generate) -> None:
    arguments = ("--prompt-ids", IDS, "--max-new-tokens", "8", "--temperature", "1.2", "--top-p", "0.9", "--json")
    texts = [json.loads(generate(*arguments, "--seed", seed)[1])["sequences"][0]["ids"] for seed in ("1", "2", "1")]
    assert texts[0] == texts[2] != texts[1]


def test_several_prompts_make_a_batch(generate: Generate) -> None:
    prompts = ("--prompt-ids", "4", "--prompt-ids", IDS, "--max-new-tokens", "3", "--ignore-eos", "--numerics", "exact")
    code, out, _ = generate(*prompts, "--json")
    batch = [sequence["ids"] for sequence in json.loads(out)["sequences"]]
    alone = json.loads(generate(*prompts[2:], "--json")[1])["sequences"][0]["ids"]
    assert code == 0 and len(batch) == 2 and batch[1] == alone
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generation.Tokenizer, "load", lambda folder: None)
        lines = generate(*prompts)[1].splitlines()
    assert lines == [f"[{number}] {','.join(map(str, ids))}" for number, ids in enumerate(batch)]


def test_text_in_and_out(generate: Generate) -> None:
    pytest.importorskip("tokenizers", reason="an optional library: the extra `text`")
    arguments = ("--prompt", "héllo", "--max-new-tokens", "20", "--temperature", "1", "--ignore-eos")
    code, out, _ = generate(*arguments)
    whole = json.loads(generate(*arguments, "--json")[1])["sequences"][0]
    assert code == 0 and out == whole["text"] + "\n"
    assert len(whole["prompt_ids"]) in range(3, 7)


def test_the_table_of_the_cache(generate: Generate) -> None:
    _, _, err = generate(
        "--prompt-ids", IDS, "--max-new-tokens", "1", "--show-cache", "--cache", "40MiB", "--block", "128"
    )
    assert err.startswith("KV cache: 40.00 MiB budget, blocks of 128 tokens")
    assert "one sequence up to 6 tokens" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt-ids", "5,320"), "prompt: token 1: found id 320; valid: 0 to 319"),
        (("--prompt-ids", "5,-1"), "prompt: token 1: found id -1"),
        (("--prompt-ids", ""), "prompt: found no tokens"),
        (("--prompt-ids", "5;6"), "--prompt-ids: found '5;6'"),
        ((), "prompt: found none; valid: --prompt TEXT or --prompt-ids"),
        (("--prompt-ids", "1", "--max-new-tokens", "0"), "sampling: max_new_tokens: found 0"),
        (("--prompt-ids", "1", "--temperature", "-1"), "sampling: temperature: found -1.0"),
        (("--prompt-ids", "1", "--temperature", "1e-42"), "sampling: temperature: found 1e-42"),
        (("--prompt-ids", "1", "--top-k", str(1 << 63)), "sampling: top_k: found 9223372036854775808"),
        (("--prompt-ids", "1", "--stop-ids", "x"), "--stop-ids: found 'x'"),
        (("--prompt-ids", "1", "--stop-ids", "7,320"), "--stop-ids: found id 320; valid: 0 to 319"),
        (("--prompt-ids", "1", "--chunk", "0"), "--chunk: found 0"),
        (("--prompt-ids", "1", "--device", "cuda:77"), "device: found cuda:77"),
        (("--prompt-ids", "1", "--device", "tpu"), "device: found 'tpu'"),
        (("--prompt-ids", "1", "--cache", "lots"), "size: found 'lots'"),
        (("--prompt-ids", "1", "--cache", "100KiB"), "cache: budget: found 102400 bytes"),
        (
            ("--prompt-ids", ",".join("1" * 400), "--cache", "1400KiB", "--block", "128", "--chunk", "8"),
            "at most 128, what this",
        ),
    ],
)
def test_what_is_given_is_checked_before_anything_loads(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(generation, "load", load)
    code, out, err = generate(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def broken(folder: Path, change: Callable[[Path], Any]) -> Path:
    write_checkpoint(folder, NARROW, seed=1, tokenizer=False)
    change(folder)
    return folder


def edited(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.rglob("config.json")], "found no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: edited(folder, o_groups=3), "o_groups"),
        (lambda folder: edited(folder, compress_ratios=[0, 4, 0]), "compress_ratios"),
        (cut, "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
    ],
)
def test_checkpoints_that_are_wrong(
    generate: Generate, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    code, out, err = generate("--prompt-ids", "1", checkpoint=broken(tmp_path / "wrong", change))
    assert code == 2 and out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1
    code, _, err = generate("--prompt-ids", "1", checkpoint=tmp_path / "nothing here")
    assert code == 2 and "nothing here" in err


def test_a_model_of_other_sizes_than_its_tensors(generate: Generate, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        edited(folder, n_routed_experts=16)
        (folder / "inference" / "config.json").unlink()

    code, _, err = generate("--prompt-ids", "1", checkpoint=broken(tmp_path / "wrong", change))
    assert code == 2 and "missing" in err and "more lines with --debug" in err and err.count("\n") == 1


def test_a_prompt_that_the_model_cannot_have(generate: Generate, tmp_path: Path) -> None:
    folder = broken(tmp_path / "short", lambda folder: edited(folder, max_position_embeddings=64))
    (folder / "inference" / "config.json").unlink()
    code, _, err = generate("--prompt-ids", ",".join(["1"] * 65), checkpoint=folder)
    assert code == 2 and "at most 64, max_position_embeddings of the model" in err
    code, out, _ = generate("--prompt-ids", ",".join(["1"] * 60), "--json", "--ignore-eos", checkpoint=folder)
    assert code == 0 and len(json.loads(out)["sequences"][0]["ids"]) == 5


def test_no_tokenizer(generate: Generate, tmp_path: Path) -> None:
    folder = broken(tmp_path / "bare", lambda folder: None)
    code, _, err = generate("--prompt", "text", checkpoint=folder)
    assert code == 2 and "--prompt: " in err and "found no tokenizer.json; valid: --prompt-ids" in err


def test_no_mtp_layer(generate: Generate, tmp_path: Path) -> None:
    config = NARROW.replace(num_nextn_predict_layers=0, compress_ratios=(0, 4, 128))
    write_checkpoint(tmp_path, config, tokenizer=False)
    code, _, err = generate("--prompt-ids", "1", "--speculate", checkpoint=tmp_path)
    assert code == 2 and "no MTP layer" in err
    assert generate("--prompt-ids", "1", "--max-new-tokens", "2", checkpoint=tmp_path)[0] == 0


def test_the_traceback_comes_with_debug(generate: Generate) -> None:
    code, _, err = generate("--prompt-ids", "999", "--debug")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: prompt: token 0")


def test_faults_of_the_program_are_told_apart(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("two\nlines")

    monkeypatch.setattr(generation, "load", broken)
    code, _, err = generate("--prompt-ids", "1")
    assert code == 1 and err == "error: TypeError: two; lines (a fault of this program; --debug shows where)\n"


def test_errors_of_many_lines() -> None:
    assert command.one_line("a\n b \n\nc") == "a; b; c"
    assert command.one_line("\n".join("abcdefg")) == "a; b; c; d; … 3 more lines with --debug"
    assert command.one_line("") == "?"


def test_ctrl_c_in_this_process(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    add = generation.Meter.add

    def interrupt(meter: generation.Meter) -> None:
        add(meter)
        if meter.new_tokens == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(generation.Meter, "add", interrupt)
    code, out, err = generate("--prompt-ids", IDS, "--max-new-tokens", "50", "--ignore-eos", "--json")
    (sequence,) = json.loads(out)["sequences"]
    assert code == 130 and sequence["finish"] == "interrupted" and len(sequence["ids"]) == 3
    assert "ended by interrupted" in err


def test_ctrl_c_while_loading(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "load", interrupted)
    assert generate("--prompt-ids", "1") == (130, "", "error: interrupted before there was a token\n")


def test_as_a_program(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """As a person runs it: its help without torch, then a long text that Ctrl-C ends."""
    started = [sys.executable, "-X", "importtime", "-m", "dsv4.generate"]
    shown = subprocess.run([*started, "--help"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "examples:" in shown.stdout and "torch" not in shown.stderr

    place = str(checkpoints["plain"])
    arguments = ["--checkpoint", place, "--prompt-ids", IDS, "--max-new-tokens", "100000", "--ignore-eos"]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "dsv4.generate", *arguments, "--numerics", "exact"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        first = running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and first and out.endswith("\n")
    assert "ended by interrupted" in err and "Traceback" not in err


def test_the_small_are_expanded_and_the_large_are_not(checkpoints: dict[str, Path]) -> None:
    from dsv4.runtime.checkpoint.loader import load
    from dsv4.runtime.engine import expanding

    weights = load(checkpoints["fp8_mxfp4"]).weights
    expected = expanding.expanded_bytes(weights)
    spread = expanding.expand_if_small(weights)
    assert expanding.expanded_bytes(spread) == expected > 4_000_000
    first, wide = weights.layers[0].moe.experts.w1, spread.layers[0].moe.experts.w1
    assert wide.expanded and wide.format is first.format and torch.equal(wide.codes, first.dequantize(torch.float32))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(expanding, "EXPANDED_BYTES_MAX", expected - 1)
        assert expanding.expand_if_small(weights) is weights


@pytest.mark.parametrize("given", [["--prompt-ids", "5"], ["--checkpoint", "here", "--block", "64"], ["--nothing"]])
def test_usage_errors_are_one_line(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(given)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("valid: what --help shows\n")


def test_a_reader_that_has_enough(checkpoints: dict[str, Path]) -> None:
    """As ``… | head -c 1`` does: the program ends, without a word."""
    arguments = ["--checkpoint", str(checkpoints["plain"]), "--prompt-ids", IDS, "--ignore-eos"]
    command_line = [sys.executable, "-m", "dsv4.generate", *arguments, "--max-new-tokens", "3"]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(120) == 0 and "error" not in said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """How far the prompt is, and how many new tokens there are; gone before the text and at the end."""
    monkeypatch.setattr(generation, "ProgressLine", lambda stream: ProgressLine(stream, every_s=0))
    given = ["--checkpoint", str(checkpoints["plain"]), "--prompt-ids", IDS, "--chunk", "2", "--max-new-tokens", "3"]
    for more in ([], ["--json"]):
        err = Terminal()
        assert not generation.generate(parser().parse_args([*given, "--ignore-eos", *more]), io.StringIO(), err)
        shown = err.getvalue().split("\r")
        assert "prompt: 2 of 5 tokens" in shown and "prompt: 4 of 5 tokens" in shown
        assert any(text.startswith("2 new tokens, ") for text in shown) == bool(more)
        assert shown[-1].startswith("5 prompt tokens at ")
