"""Ctrl-C and a scheduler's signals, from the first moment of a command to its last."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from tests.kill_run import compare_runs, start, wait_for_line
from tests.runs import run
from trqam_fast import train
from trqam_fast.__main__ import COMMANDS
from trqam_fast.runs import checkpoint
from trqam_fast.training.stopping import StopRequest


def catches(pid, number):
    """Whether a process has a handler for a signal; Python itself has one for SIGINT alone."""
    with open(f"/proc/{pid}/status") as file:
        (mask,) = (line.split()[1] for line in file if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def start_command(name, *words, **options):
    command = [sys.executable, "-m", f"trqam_fast.{name}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_during_the_imports(number):
    """The trainer has its handlers before it imports torch, which takes a second or more."""
    process = start_command("train")
    while not catches(process.pid, signal.SIGUSR1):
        assert process.poll() is None
    process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (130 if number == signal.SIGINT else 75)
    assert said == f"stopped by {'Ctrl-C' if number == signal.SIGINT else number.name}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_quiet_from_its_first_line(name):
    script = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('numpy', 'torch', 'tyro', 'matplotlib'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"runpy.run_module('trqam_fast.{name}', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C\n")


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_goes_on_as_without(flags, tmp_path):
    """What is said stands on lines of its own, after the bar and the ^C of a terminal."""
    flags = [*flags, "--algo", "bc", "--bc-steps", "1500", "--log-interval", "100"]
    flags += ["--save-interval", "10000"]
    ours, theirs = pty.openpty()
    process = start([*flags, "--run-dir", str(tmp_path / "cut")], stderr=theirs)
    os.close(theirs)
    assert wait_for_line(process, "pretrain 100")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    said = b"".join(iter(lambda: read(ours), b"")).decode()
    *_, first, second = filter(None, said.splitlines())
    assert first == "stopping: the run is saved first; Ctrl-C again leaves at once"
    assert second.startswith("stopped by Ctrl-C after step ")
    assert second.endswith(f"; continue with --resume --run-dir {tmp_path}/cut")
    assert run([], tmp_path / "cut", "--resume") == 0
    assert run(flags, tmp_path / "whole") == 0
    assert compare_runs(tmp_path / "whole", tmp_path / "cut") == []


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is gone
        return b""


def interrupt_in(monkeypatch, owner, name, step=None):
    """Let Ctrl-C arrive as a function begins, at a step if it is one of a stage."""
    original = getattr(owner, name)

    def interrupted(*arguments, **options):
        if step is None or step in [getattr(argument, "step", argument) for argument in arguments]:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


def test_ctrl_c_during_an_evaluation(flags, tmp_path, monkeypatch, capsys):
    interrupt_in(monkeypatch, train.Trainer, "evaluate", 30)
    assert run(flags, tmp_path / "run") == 130
    assert "stopped by Ctrl-C after step 30; continue with --resume" in capsys.readouterr().err
    assert checkpoint.newest(tmp_path / "run/checkpoints").name == "step_000000030.pt"


def test_the_second_ctrl_c_leaves_at_once(flags, tmp_path, monkeypatch, capsys):
    """Even from the checkpoint that the first one, during that of step 5, asked for."""
    interrupt_in(monkeypatch, checkpoint.torch, "save")
    assert run(flags, tmp_path / "run") == 130
    said = capsys.readouterr().err
    assert said == f"interrupted; continue with --resume --run-dir {tmp_path}/run\n"
    whole = ["step_000000005.pt"]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == whole


def test_ctrl_c_before_there_is_a_run(flags, tmp_path, monkeypatch, capsys):
    interrupt_in(monkeypatch, train, "load_task")
    assert run(flags, tmp_path / "run") == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C; the same command begins again\n"
    assert not (tmp_path / "run").exists()


def test_handlers_are_given_back_and_an_ignored_signal_stays_ignored(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with StopRequest().listening():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest().listening():  # as a shell does for what it puts into the background
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
