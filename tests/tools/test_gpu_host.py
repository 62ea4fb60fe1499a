"""The GPU-host harness, on this machine and through an `ssh` that runs its command here in another home folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runner reads /proc")

FAKE_SSH = """#!/bin/sh
# Skips options up to the host, then runs the command as sshd would: one string, through a shell, in the home folder.
while [ $# -gt 0 ]; do case "$1" in -o) shift 2;; -*) shift;; *) break;; esac; done
echo "$*" >> "$FAKE_SSH_LOG"
if [ -e "$FAKE_SSH_DOWN" ]; then
  left=$(cat "$FAKE_SSH_DOWN")
  if [ "$left" -gt 0 ]; then
    echo $((left - 1)) > "$FAKE_SSH_DOWN"; echo "ssh: connect: No route to host" >&2; exit 255
  fi
fi
shift
HOME="$FAKE_SSH_HOME" && export HOME && cd "$HOME" && exec sh -c "$*"
"""


class Bench:
    """A throw-away checkout, a harness root and a way to call the client."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.tree = tmp / "tree"
        self.tree.mkdir()
        self.home = tmp / "home of the host"
        self.home.mkdir()
        (tmp / "bin").mkdir()
        ssh = tmp / "bin" / "ssh"
        ssh.write_text(FAKE_SSH)
        ssh.chmod(0o755)
        self.down = tmp / "down"
        self.env = {
            **os.environ,
            "PATH": f"{tmp / 'bin'}:{os.environ['PATH']}",
            "FAKE_SSH_HOME": str(self.home),
            "FAKE_SSH_LOG": str(tmp / "ssh.log"),
            "FAKE_SSH_DOWN": str(self.down),
            "HOME": str(tmp),
        }
        self.env.pop("DSV4_GPU_HOST_RUN", None)
        self.root = tmp / "root"

    def command(self, *arguments: str, host: bool = False) -> list[str]:
        place = ["--host", "me@gpu", "--python", sys.executable] if host else ["--local", "--root", str(self.root)]
        return [sys.executable, str(TOOLS / "gpu_host.py"), *place, *arguments]

    def call(self, *arguments: str, host: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, host=host), cwd=self.tree, env=self.env, capture_output=True, text=True, timeout=60
        )

    def popen(self, *arguments: str, host: bool = False) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments, host=host),
            cwd=self.tree,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def git(self) -> None:
        subprocess.run(["git", "init", "-q"], cwd=self.tree, check=True)


@pytest.fixture
def bench(tmp_path: Path):
    made = Bench(tmp_path)
    yield made
    for host in (False, True):
        made.down.unlink(missing_ok=True)
        made.call("--grace", "0", "--stop", host=host)


def wait_for(path: Path, seconds: float = 20.0) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().strip():
            return path.read_text().strip()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear in {seconds} s")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("host", [False, True])
def test_log_and_exit_code_come_back_and_arguments_arrive_unchanged(bench: Bench, host: bool):
    bench.git()
    odd = ["two words", "it's", '"quoted"', "$HOME", "a;b|c", "", "ü"]
    code = "import sys; print(sys.argv[1:]); print('to stderr', file=sys.stderr); sys.exit(3)"
    done = bench.call("--", sys.executable, "-c", code, *odd, host=host)
    assert done.returncode == 3, done.stderr
    assert repr(odd) in done.stdout and "to stderr" in done.stdout
    (folder,) = (bench.tree / "build" / "gpu_host").iterdir()
    assert (folder / "log").read_text() == done.stdout
    assert (folder / "exit_code").read_text() == "3\n"
    assert "exit code 3" in done.stderr and folder.name in done.stderr


def test_every_run_has_a_fresh_log(bench: Bench):
    assert "first" in bench.call("--", "echo", "first").stdout
    second = bench.call("--", "echo", "second").stdout
    assert second == "second\n"
    assert len(list((bench.root / "runs").iterdir())) == 2


def test_the_time_limit_ends_the_whole_group_even_what_ignores_term_or_left_the_group(bench: Bench):
    deaf = f'trap "" TERM; echo $$ > {bench.tmp}/deaf; while :; do sleep 0.1; done'
    script = f"setsid sh -c '{deaf}' & sleep 60"
    began = time.monotonic()
    done = bench.call("--timeout", "1", "--grace", "0.5", "--", "sh", "-c", script)
    assert done.returncode == 124, done.stderr
    assert time.monotonic() - began < 20
    assert "time limit" in done.stdout and "time limit" in done.stderr
    assert not is_alive(int(wait_for(bench.tmp / "deaf")))


def test_what_a_command_leaves_behind_is_ended_with_it(bench: Bench):
    pid_file = bench.tmp / "left"
    done = bench.call("--grace", "0.5", "--", "sh", "-c", f"setsid sleep 300 & echo $! > {pid_file}; exit 5")
    assert done.returncode == 5
    assert not is_alive(int(wait_for(pid_file)))


def test_an_earlier_run_is_stopped_first(bench: Bench):
    pid_file = bench.tmp / "first"
    first = bench.popen("--", "sh", "-c", f"echo $$ > {pid_file}; exec sleep 300")
    pid = int(wait_for(pid_file))
    second = bench.call("--", "sh", "-c", f"kill -0 {pid} && echo overlap; echo second")
    assert second.stdout.endswith("second\n") and "overlap" not in second.stdout.splitlines()
    assert "was stopped" in second.stderr
    _, errors = first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM
    assert "stopped by run" in errors


def test_a_recycled_pid_is_left_alone(bench: Bench):
    """The record of the earlier run names a pid that now belongs to somebody else."""
    bench.call("--", "true")
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        current = json.loads((bench.root / "current.json").read_text())
        current["supervisor"]["pid"] = stranger.pid  # its start time is the old supervisor's
        (bench.root / "current.json").write_text(json.dumps(current))
        done = bench.call("--", "echo", "ran")
        assert done.stdout == "ran\n" and "was stopped" not in done.stderr
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("host", [False, True])
def test_the_run_survives_its_client_and_can_be_read_later(bench: Bench, host: bool):
    bench.git()
    go = bench.tmp / "go"
    script = f"echo before; while [ ! -e {go} ]; do sleep 0.05; done; echo after; exit 9"
    client = bench.popen("--", "sh", "-c", script, host=host)
    assert client.stdout is not None and client.stdout.readline() == "before\n"
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    go.touch()
    done = bench.call("--attach", host=host)
    assert (done.returncode, done.stdout) == (9, "before\nafter\n")


def test_a_dropped_connection_is_asked_again(bench: Bench):
    bench.git()
    go = bench.tmp / "go"
    script = f"echo before; while [ ! -e {go} ]; do sleep 0.05; done; echo after; exit 4"
    client = bench.popen("--", "sh", "-c", script, host=True)
    assert client.stdout is not None and client.stdout.readline() == "before\n"
    bench.down.write_text("2")
    time.sleep(0.2)
    go.touch()
    out, errors = client.communicate(timeout=60)
    assert (client.returncode, out) == (4, "after\n"), errors
    if bench.down.read_text().strip() == "0":
        assert "connection lost" in errors


def test_an_unreachable_host_is_one_line(bench: Bench):
    bench.git()
    bench.down.write_text("1000000")
    done = bench.call("--", "true", host=True)
    assert done.returncode == 125
    assert done.stderr == "gpu_host: ssh: connect: No route to host\n"


def test_the_working_tree_travels_and_what_is_gone_here_is_gone_there(bench: Bench):
    bench.git()
    (bench.tree / ".gitignore").write_text("ignored/\n")
    (bench.tree / "ignored").mkdir()
    (bench.tree / "ignored" / "secret").write_text("x")
    (bench.tree / "ignored" / "carried.so").write_text("carried")
    (bench.tree / "pkg").mkdir()
    (bench.tree / "pkg" / "a b.py").write_text("one")
    (bench.tree / "old.py").write_text("old")
    show = "import os,sys; print(sorted(os.path.join(d,f)[2:] for d,_,fs in os.walk('.') for f in fs))"
    first = bench.call("--carry", "ignored/carried.so", "--", sys.executable, "-c", show, host=True)
    assert first.stdout == "['.gitignore', 'ignored/carried.so', 'old.py', 'pkg/a b.py']\n", first.stderr
    (bench.tree / "old.py").unlink()
    (bench.tree / "pkg" / "a b.py").write_text("two")
    (bench.home / ".cache/dsv4-gpu-host/tree/kept.cache").write_text("made there")
    second = bench.call("--", sys.executable, "-c", show + ";print(open('pkg/a b.py').read())", host=True)
    assert second.stdout == "['.gitignore', 'kept.cache', 'pkg/a b.py']\ntwo\n", second.stderr
    assert (bench.tree / "ignored" / "secret").exists()


@pytest.mark.parametrize("host", [False, True])
def test_files_are_fetched(bench: Bench, host: bool):
    bench.git()
    script = "mkdir -p out/deep; echo 1 > out/a.json; echo 2 > out/deep/b.json; echo 3 > out/c.txt"
    done = bench.call("--fetch", "out/**/*.json", "--", "sh", "-c", script, host=host)
    assert done.returncode == 0, done.stderr
    (folder,) = (bench.tree / "build" / "gpu_host").iterdir()
    found = {str(p.relative_to(folder / "files")): p.read_text() for p in (folder / "files").rglob("*") if p.is_file()}
    assert found == {"out/a.json": "1\n", "out/deep/b.json": "2\n"}


def test_environment_and_a_command_that_does_not_exist(bench: Bench):
    assert bench.call("--env", "A=b c", "--", "sh", "-c", 'echo "$A"').stdout == "b c\n"
    missing = bench.call("--", "no-such-program")
    assert missing.returncode == 127 and "cannot start 'no-such-program'" in missing.stdout


def test_stop_and_a_run_whose_supervisor_died(bench: Bench):
    assert "nothing was running" in bench.call("--stop").stderr
    pid_file = bench.tmp / "pid"
    client = bench.popen("--", "sh", "-c", f"echo $$ > {pid_file}; exec sleep 300")
    pid = int(wait_for(pid_file))
    current = json.loads((bench.root / "current.json").read_text())
    os.kill(current["supervisor"]["pid"], signal.SIGKILL)
    _, errors = client.communicate(timeout=30)
    assert client.returncode == 125 and "ended without a result" in errors
    assert is_alive(pid)
    assert current["id"] in bench.call("--grace", "0.5", "--stop").stderr
    assert not is_alive(pid)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a command after --"),
        (("--timeout", "0", "--", "true"), "--timeout must be above 0"),
        (("--env", "A", "--", "true"), "NAME=VALUE"),
        (("--stop", "--", "true"), "give a command after --"),
    ],
)
def test_wrong_usage_is_exit_code_2(bench: Bench, arguments, words):
    done = bench.call(*arguments)
    assert done.returncode == 2 and words in done.stderr


def test_an_unknown_run_is_one_line(bench: Bench):
    bench.call("--", "true")
    done = bench.call("--attach", "../runs")
    assert done.returncode == 125
    assert done.stderr.splitlines()[-1] == "gpu_host: no run '../runs' on this machine"


def test_the_runner_needs_only_the_standard_library():
    source = (TOOLS / "gpu_host_runner.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported - {"__future__"} <= set(sys.stdlib_module_names)
