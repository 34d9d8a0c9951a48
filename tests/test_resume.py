"""Runs that are killed, stopped by a scheduler, or out of disk space."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.kill_run import compare_runs, differences, reached, start, wait_for_line
from trqam_fast import train
from trqam_fast.cli import run_command
from trqam_fast.data.recipe import Recipe
from trqam_fast.training import checkpoint, run_folder
from trqam_fast.training.presets import parse_config
from trqam_fast.training.run_folder import CsvLog

STEPS = {"pretrain": 300, "offline": 60, "online": 60}
END = sum(STEPS.values())


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    Recipe("pointmaze-medium-navigate-v0", 3000, 0.5, 0).ensure(folder, progress=False)
    return [
        "--preset", "smoke", "--generated-dir", str(folder), "--generated-transitions", "3000",
        "--bc-steps", "300", "--offline-steps", "60", "--online-steps", "60",
        "--start-training", "10", "--utd-ratio", "2", "--kl-budget-online", "2",
        "--log-interval", "20", "--eval-interval", "40", "--save-interval", "15",
        "--eval-episodes", "1", "--eval-envs", "1", "--seeds", "3", "5", "--batch-size", "16",
        "--actor-hidden-dims", "16", "16", "--value-hidden-dims", "16", "16",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(flags, folder) == 0
    return folder


def run(flags, folder, *more) -> int:
    return run_command(lambda: train.main([*flags, "--run-dir", str(folder), *more]))


@pytest.mark.slow
def test_sigkill_in_every_stage(flags, whole, tmp_path):
    """tests/kill_run.py does this at more, random, moments."""
    folder, seen = tmp_path / "cut", []
    for marker, pause in (("pretrain step 20", 0.05), ("offline step 340", 0.3), ("online", 0.3)):
        process = start([*flags, "--run-dir", str(folder), "--resume", "auto"])
        assert wait_for_line(process, marker)
        time.sleep(pause)
        assert process.poll() is None
        process.kill()
        process.communicate()
        seen.append(reached(folder))
    assert seen[1:] == ["offline", "online"]
    assert run(flags, folder, "--resume", "auto") == 0
    assert compare_runs(whole, folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "marker"), [("SIGTERM", "pretrain step"), ("SIGUSR1", "online step 380")]
)
def test_a_scheduler_stops_the_run(name, marker, flags, whole, tmp_path):
    folder = tmp_path / "cut"
    process = start([*flags, "--run-dir", str(folder)])
    assert wait_for_line(process, marker)
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    assert process.returncode == 75
    saved = checkpoint.load(checkpoint.newest(folder / "checkpoints"))
    assert 0 < saved["step"] < END
    assert run([], folder, "--resume") == 0
    assert compare_runs(whole, folder) == []


def test_a_signal_during_an_evaluation(flags, whole, tmp_path, monkeypatch, capsys):
    evaluate, folder = train.Trainer.evaluate, tmp_path / "cut"

    def interrupted(self, stage, agent, step):
        if step == 340:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, stage, agent, step)

    monkeypatch.setattr(train.Trainer, "evaluate", interrupted)
    assert run(flags, folder) == 75
    assert "stopped by SIGTERM after step 340; continue with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run([], folder, "--resume") == 0
    assert compare_runs(whole, folder) == []


def test_comparison_of_runs_can_fail(whole, tmp_path):
    state = checkpoint.load(checkpoint.newest(whole / "checkpoints"))
    changed = {**state, "agent": {**state["agent"], "lam": state["agent"]["lam"] + 1e-7}}
    assert differences(state, changed) == ["/agent/lam"]
    assert differences(state, {**state, "seconds": {}}) == []


def test_auto_starts_then_continues(flags, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    only = [*flags, "--algo", "bc", "--online-steps", "0", "--resume", "auto"]
    assert run_command(lambda: train.main(only)) == 0
    (folder,) = (tmp_path / "runs").glob("*/bc/*")
    assert run_command(lambda: train.main(only)) == 0
    assert "resuming from step_000000300.pt" in capsys.readouterr().out
    assert list((tmp_path / "runs").glob("*/bc/*")) == [folder]


def test_the_end_of_a_stage_before_cannot_move(flags, whole, capsys):
    assert run([], whole, "--resume", "--offline-steps", "70") == 2
    assert "end stage offline at step 370, but the run ended it at step 360" in (
        capsys.readouterr().err
    )


def test_intervals_may_change(flags, whole, tmp_path):
    folder = tmp_path / "run"
    assert run(flags, folder, "--algo", "bc", "--online-steps", "0") == 0
    more = ("--log-interval", "7", "--eval-interval", "9", "--save-interval", "11")
    assert run([], folder, "--resume", *more, "--eval-episodes", "2", "--eval-envs", "2") == 0
    assert json.loads((folder / "config.json").read_text())["log_interval"] == 7


@pytest.mark.parametrize("source", ["step_000000300.pt", "step_000000360.pt", ""])
def test_starting_from_a_checkpoint(source, flags, whole, tmp_path, capsys):
    path = whole / "checkpoints" / source if source else whole
    more = ["--pretrained", str(path), "--offline-steps", "0", "--online-steps", "20"]
    bc = flags.index("--bc-steps")
    assert run([*flags[:bc], *flags[bc + 2 :], *more], tmp_path / "run") == 0
    stage = {"step_000000300.pt": "pretrain", "step_000000360.pt": "offline"}.get(source, "online")
    assert f", stage {stage}\n" in capsys.readouterr().out
    state = checkpoint.load(checkpoint.newest(tmp_path / "run/checkpoints"))
    assert state["step"] == 20 and state["stage"] == "online"
    assert set(state["success"]) == {"pretrain", "offline", "online"}


def test_a_checkpoint_that_contradicts_the_flags(flags, whole, tmp_path, capsys):
    for more, message in (
        (["--horizon-length", "3", "--action-chunking"], "has shape [5, 16]"),
        (["--actor-hidden-dims", "16", "8"], "has shape [16, 16], but the flags ask for [16, 8]"),
        (["--seeds", "1", "2", "3"], "holds 2 runs, but --seeds names 3"),
    ):
        assert run([*flags, "--pretrained", str(whole), *more], tmp_path / "run") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_pretraining_is_skipped_unless_asked_for():
    assert parse_config(["--pretrained", "a.pt"]).bc_steps == 0
    assert parse_config(["--pretrained", "a.pt", "--bc-steps", "7"]).bc_steps == 7


def test_a_full_disk_is_reported_and_the_run_goes_on(flags, whole, tmp_path):
    """A limit on the size of files makes the kernel refuse the larger checkpoints."""
    folder = tmp_path / "run"
    limit = (whole / "checkpoints/step_000000300.pt").stat().st_size + 4000
    script = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))\n"
        "from trqam_fast.cli import run_command\nfrom trqam_fast import train\n"
        "sys.exit(run_command(train.main))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *flags, "--run-dir", str(folder)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "cannot write the checkpoint" in done.stderr and "the run goes on" in done.stderr
    assert "step 420" in done.stdout
    assert checkpoint.load(checkpoint.newest(folder / "checkpoints"))["step"] == 300
    # With room again, the run ends as if nothing had happened.
    assert run([], folder, "--resume") == 0
    assert compare_runs(whole, folder) == []


def test_rows_that_the_disk_refuses_are_written_later(tmp_path, monkeypatch):
    log = CsvLog(tmp_path / "a.csv", ("step", "value"))
    log.write([{"step": 1, "value": 2}])
    before = log.path.read_bytes()

    class Full:
        def __init__(self, *args, **kwargs):
            self.file = log.path.open("ab")

        def __enter__(self):
            return self

        def write(self, text):
            self.file.write(text[:3].encode())
            self.file.flush()
            raise OSError(28, "No space left on device")

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(run_folder, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        log.write([{"step": 2, "value": 3}])
    assert log.path.read_bytes() == before
    monkeypatch.undo()
    log.write([{"step": 3, "value": 4}])
    assert log.path.read_text() == "step,value\n1,2\n2,3\n3,4\n"
