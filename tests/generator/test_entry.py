"""Ctrl-C at any moment after a command has begun, its imports among them: one line, exit code 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
AT_IMPORT = """
import os, signal, sys
def hook(event, found):
    if event == "import" and found[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
"""
STUB = "from dsv4.generator.entry import enter\nenter('stub', 'stub')\n"


def begun(code: str, *arguments: str, folder: Path, ignoring: bool = False) -> subprocess.Popen[str]:
    """A Python that runs ``code`` with the interrupt as a terminal's foreground job has it, or with none."""
    how = signal.SIG_IGN if ignoring else signal.SIG_DFL
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}", "DSV4_CACHE": f"{folder}/c"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, how),
    )


def script(name: str) -> str:
    module, function = SCRIPTS[name].split(":")
    return f"from {module} import {function}\n{function}()\n"


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("module", ["typer", "rich.table", "pydantic", "dsv4.runtime.cache"])
@pytest.mark.parametrize("name", ["dsv4-gen", "dsv4-tune"])
def test_an_interrupt_while_it_imports_is_one_line(tmp_path, name, module):
    process = begun(AT_IMPORT.format(module=module) + script(name), "--help", folder=tmp_path)
    assert ended(process) == (130, "", f"{name}: interrupted\n")


SWEEP = ("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--measure", "fake", "--budget", "5")


@pytest.mark.parametrize("module", ["torch", "optuna", "dsv4.tuner.cost.rank"])
def test_an_interrupt_while_a_command_imports_is_one_line(tmp_path, module):
    code, out, err = ended(begun(AT_IMPORT.format(module=module) + script("dsv4-tune"), *SWEEP, folder=tmp_path))
    assert (code, out) == (130, "") and err in (
        "dsv4-tune: interrupted\n",
        "dsv4-tune: interrupted; what was finished is kept\n",
    )


def test_interrupts_at_moments_of_their_own(tmp_path):
    """As a person does it: after so many seconds, while the command imports and searches."""
    long = (*SWEEP[:-1], "100000")
    for delay in (0.4, 0.9, 1.7, 3.0):
        process = begun("print(1, flush=True)\n" + script("dsv4-tune"), *long, folder=tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
        assert code == 130 and "Traceback" not in err and "\ndsv4-tune: interrupted" in f"\n{err}", (delay, err)


def stub(folder: Path, text: str) -> None:
    (folder / "stub.py").write_text("import os, signal, time, weakref\n" + text)


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


def test_an_interrupt_that_became_another_error_is_still_one(tmp_path):
    stub(
        tmp_path, f"def main():\n    try: {INTERRUPT}; time.sleep(9)\n    except KeyboardInterrupt: raise ImportError\n"
    )
    assert ended(begun(STUB, folder=tmp_path)) == (130, "", "stub: interrupted\n")
    stub(tmp_path, "def main(): raise ImportError('its own')\n")
    code, _, err = ended(begun(STUB, folder=tmp_path))
    assert code == 1 and "Traceback" in err and "its own" in err


def test_an_interrupt_that_a_callback_drops_comes_again(tmp_path):
    stub(
        tmp_path,
        f"class Thing: pass\ndef dead(_):\n    {INTERRUPT}\n    time.sleep(9)\n"
        "def main():\n    thing = Thing()\n    held = weakref.ref(thing, dead)\n    del thing\n    time.sleep(60)\n",
    )
    assert ended(begun(STUB, folder=tmp_path)) == (130, "", "stub: interrupted\n")


def test_a_background_job_goes_on_ignoring_it(tmp_path):
    stub(tmp_path, f"{INTERRUPT}\ndef main():\n    {INTERRUPT}\n    print('done')\n")
    assert ended(begun(STUB, folder=tmp_path, ignoring=True)) == (0, "done\n", "")
