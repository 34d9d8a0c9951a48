"""Sweeps: their jobs, their states, and their command."""

import contextlib
import dataclasses
import os
import time

import pytest
import torch

from tests.datasets import TASK
from tests.sweeps import BASE, run
from trqam_fast.errors import Stopped, UsageError
from trqam_fast.runs import checkpoint
from trqam_fast.status.outcome import read_outcomes
from trqam_fast.sweep import estimate
from trqam_fast.sweep.execute import execute
from trqam_fast.sweep.finished import finished
from trqam_fast.sweep.plan import make_plan, write_plan
from trqam_fast.sweep.spec import parse_spec
from trqam_fast.sweep.state import StateFile, read_state, state_path


@pytest.fixture
def small(generated):
    """A sweep of one seed whose runs take a second."""
    return BASE | {
        "seeds": [0],
        "flags": {
            "preset": "smoke", "generated_dir": str(generated), "generated_transitions": 3000,
            "generated_noise": 0.5, "bc_steps": 10, "offline_steps": 10, "online_steps": 0,
            "log_interval": 5, "eval_interval": 0, "save_interval": 5, "eval_episodes": 1,
            "max_episode_steps": 50, "eval_envs": 1, "batch_size": 8, "actor_hidden_dims": [16, 16],
            "value_hidden_dims": [16, 16],
        },
    }  # fmt: skip


def test_nothing_starts_from_half_a_pretraining(tmp_path, small, monkeypatch):
    bc, qam, _ = make_plan(parse_spec(small), tmp_path)

    def crash(self, stage, agent, step):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("trqam_fast.training.loop.Trainer.evaluate", crash)
        assert execute(tmp_path, bc).state == "failed"
    assert list((bc.run_dir(tmp_path) / "checkpoints").glob("*.pt"))
    assert execute(tmp_path, qam).reason == "its pretraining has not ended"
    assert not qam.run_dir(tmp_path).exists()


def test_jobs_run_are_skipped_and_fail(tmp_path, small):
    jobs = make_plan(parse_spec(small), tmp_path)
    bc, qam, _ = jobs
    early = execute(tmp_path, qam)
    assert (early.state, early.reason) == ("failed", "its pretraining has not ended")
    state = execute(tmp_path, bc)
    assert (state.state, state.reason, state.attempt) == ("done", "", 1)
    assert state.ended >= state.started and state.pid == os.getpid()
    assert "data: 3000 transitions" in bc.log(tmp_path).read_text()
    again = execute(tmp_path, bc)
    assert dataclasses.replace(again, beat=0) == dataclasses.replace(state, beat=0)
    late = execute(tmp_path, qam)
    assert (late.state, late.attempt) == ("done", 1)
    for text in (None, "", '{"state": "running"}'):
        state_path(tmp_path, bc).unlink()
        if text is not None:
            state_path(tmp_path, bc).write_text(text)
        assert (execute(tmp_path, bc).state, execute(tmp_path, bc).attempt) == ("done", 0)


def test_a_job_goes_on_when_it_is_made_longer(tmp_path, small):
    """Also one that had ended; the result is that of a run of that length."""
    bc, qam, _ = jobs = make_plan(parse_spec(small), tmp_path)
    write_plan(jobs, tmp_path)
    assert [execute(tmp_path, job).state for job in (bc, qam)] == ["done", "done"]
    small["flags"] |= {"offline_steps": 20, "threads": 2, "eval_envs": 2}
    bc, qam, _ = jobs = make_plan(parse_spec(small), tmp_path)
    write_plan(jobs, tmp_path)
    assert finished(tmp_path, bc) and not finished(tmp_path, qam)
    kinds = [read_outcomes(tmp_path, jobs)[job.name].kind for job in (bc, qam)]
    assert kinds == ["done", "queued"]
    state = execute(tmp_path, qam)
    assert (state.state, state.attempt) == ("done", 2) and finished(tmp_path, qam)
    whole = make_plan(parse_spec(small), tmp_path / "whole")[:2]
    assert [execute(tmp_path / "whole", job).state for job in whole] == ["done", "done"]
    folders = [qam.run_dir(tmp_path), whole[1].run_dir(tmp_path / "whole")]
    ends = [checkpoint.load(checkpoint.newest(each / "checkpoints"))["agent"] for each in folders]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    for odd in ("10", None, [1]):  # as a damaged plan may have it
        values = {**qam.config, "offline_steps": odd}
        assert finished(tmp_path, dataclasses.replace(qam, config=values))
    (qam.run_dir(tmp_path) / "config.json").write_text("{")
    assert finished(tmp_path, qam)
    refused = (
        ({"bc_steps": 20}, "--bc-steps 10 became 20"), ({"lr": 1.0}, "--lr"),
        ({"offline_steps": 15}, "--offline-steps 20 became 15"),
        ({"generated_dir": "/elsewhere"}, "--generated-dir"),
    )  # fmt: skip
    for flags, change in refused:
        other = small | {"flags": small["flags"] | flags}
        with pytest.raises(UsageError, match=f"other flags: {change}"):
            write_plan(make_plan(parse_spec(other), tmp_path), tmp_path)


def test_an_offline_stage_before_an_online_one_is_not_made_longer(tmp_path, small):
    """Runs that are past it could not go on."""
    small["flags"] |= {"online_steps": 20, "start_training": 10}
    write_plan(make_plan(parse_spec(small), tmp_path), tmp_path)
    for flags, change in (({"online_steps": 30}, None), ({"offline_steps": 30}, "--offline-steps")):
        jobs = make_plan(parse_spec(small | {"flags": small["flags"] | flags}), tmp_path)
        with pytest.raises(UsageError, match=change) if change else contextlib.nullcontext():
            write_plan(jobs, tmp_path)


def test_a_seed_that_diverges_is_the_reason(tmp_path, small):
    small["flags"] |= {"lr": 1e30, "clip_grad": False}
    job = make_plan(parse_spec(small), tmp_path)[0]
    state = execute(tmp_path, job)
    assert state.state == "done" and "seed 0: " in state.reason and "not finite" in state.reason
    write_plan(make_plan(parse_spec(small), tmp_path), tmp_path)
    assert run("--out", tmp_path, "--job", job.name) == 1  # as the trainer


def test_a_crash_is_a_failure_with_its_reason(tmp_path, small, monkeypatch):
    def crash(config):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("trqam_fast.sweep.execute.run", crash)
    job = make_plan(parse_spec(small), tmp_path)[0]
    state = execute(tmp_path, job)
    assert state.state == "failed"
    assert state.reason.startswith("ZeroDivisionError: division by zero; see ")
    assert "Traceback" in job.log(tmp_path).read_text()


def test_a_silent_job_is_stale(tmp_path, small):
    job = make_plan(parse_spec(small), tmp_path)[0]
    assert read_state(tmp_path, job) is None
    file = StateFile(tmp_path, job)
    file.write()
    assert not read_state(tmp_path, job).stale
    os.utime(file.path, (0, 0))
    assert read_state(tmp_path, job).stale
    file.end("stopped", "by SIGUSR1")
    os.utime(file.path, (0, 0))
    assert not read_state(tmp_path, job).stale
    file.path.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        read_state(tmp_path, job)


def test_a_job_that_was_stopped_before_it_began_stays_queued(tmp_path, small):
    job = make_plan(parse_spec(small), tmp_path)[0]
    state = StateFile(tmp_path, job, attempt=False).not_begun("the sweep was stopped")
    assert (state.state, state.reason) == ("stopped", "the sweep was stopped")
    assert read_state(tmp_path, job) is None


def test_the_heartbeat_touches_the_file(tmp_path, small, monkeypatch):
    monkeypatch.setattr("trqam_fast.sweep.state.HEARTBEAT_SECONDS", 0.01)
    file = StateFile(tmp_path, make_plan(parse_spec(small), tmp_path)[0])
    file.write()
    with file.beating():
        os.utime(file.path, (0, 0))
        deadline = time.monotonic() + 5
        while file.path.stat().st_mtime == 0:
            assert time.monotonic() < deadline


def test_one_job_from_the_command(tmp_path, small, capsys, monkeypatch):
    jobs = make_plan(parse_spec(small), tmp_path)
    write_plan(jobs, tmp_path)
    assert run("--out", tmp_path, "--job", jobs[1].name) == 1
    assert run("--out", tmp_path, "--job", jobs[0].name) == 0
    assert finished(tmp_path, jobs[0])
    assert run("--out", tmp_path, "--job", "nope") == 2
    assert "is none of" in capsys.readouterr().err
    others = (["--dry-run"], ["--slurm-script"], ["sweep.toml"], ["--num-cpus", 1])
    for words in others:
        assert run("--out", tmp_path, "--job", jobs[1].name, *words) == 2
        dropped = words[0] if words[0].startswith("--") else "a sweep's file"
        assert f"drop {dropped}\n" in capsys.readouterr().err
    assert read_state(tmp_path, jobs[1]).attempt == 0

    def stop(config):
        raise Stopped("stopped by SIGUSR1 after step 5")

    monkeypatch.setattr("trqam_fast.sweep.execute.run", stop)
    assert run("--out", tmp_path, "--job", jobs[1].name) == 75
    assert read_state(tmp_path, jobs[1]).reason == "stopped by SIGUSR1 after step 5"


def test_the_dry_run_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "PROBE_SECONDS", 0.01)
    out = tmp_path / "out"
    assert run("sweeps/smoke.toml", "--out", out, "--dry-run", "--num-cpus", 2) == 0
    shown = capsys.readouterr().out
    assert f"{TASK}/trqam_kl-budget_0.5/seeds_0_1_2  after its pretraining" in shown
    assert "8 jobs, 24 runs that are results" in shown
    assert "with 2 jobs at a time" in shown
    assert not out.exists()


def test_no_time_is_guessed_for_gpus(tmp_path, capsys):
    file = tmp_path / "gpu.toml"
    file.write_text(f'tasks = ["{TASK}"]\nalgos = ["trqam"]\nseeds = [0]\nresources.gpus = 0.5\n')
    assert run(file, "--out", tmp_path / "out", "--dry-run") == 0
    assert "no estimate of the time" in capsys.readouterr().out


def test_missing_data_are_named_before_anything_runs(tmp_path, capsys):
    file, own = tmp_path / "sweep.toml", tmp_path / "own.npz"
    head = 'algos = ["trqam"]\nseeds = [0]\nresources.gpus = 0.5\n'
    file.write_text(f"{head}tasks = ['scene-play-singletask-task2-v0']\n[flags]\n"
                    f"dataset_dir = '{tmp_path}'\n")  # fmt: skip
    assert run(file, "--out", tmp_path / "out", "--dry-run") == 0
    official = f"note: on this machine the dataset {tmp_path}/scene-play-v0.npz does not exist; "
    assert capsys.readouterr().err.count(official) == 1
    file.write_text(f"{head}tasks = ['Pendulum-v1']\n[flags]\ndataset = '{own}'\n")
    assert run(file, "--out", tmp_path / "out", "--dry-run") == 0
    assert f"--dataset npz:{own} does not exist; name what does" in capsys.readouterr().err
    own.touch()
    assert run(file, "--out", tmp_path / "out", "--dry-run") == 0
    assert "does not exist" not in capsys.readouterr().err


def test_a_command_that_lacks_something(tmp_path, capsys):
    for flag, value, bound in (("--num-cpus", 0, 1), ("--num-cpus", -3, 1), ("--num-gpus", -1, 0)):
        assert run("sweeps/smoke.toml", "--out", tmp_path, "--dry-run", flag, value) == 2
        assert f"{flag} is {value}; use {bound} or more" in capsys.readouterr().err
    assert run("sweeps/smoke.toml") == 2
    assert run("--out", tmp_path) == 2
    assert "--out is missing" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert run("sweeps/smoke.toml", "--out", tmp_path) == 2
    assert "--out" in capsys.readouterr().err and len([*tmp_path.iterdir()]) == 1


def test_an_address_where_nothing_answers_is_told_at_once(tmp_path, capsys):
    pytest.importorskip("ray")
    address = ("--address", "127.0.0.1:9")
    assert run("sweeps/smoke.toml", "--out", tmp_path, *address, "--num-cpus", 2) == 2
    assert "drop them, or --address" in capsys.readouterr().err
    assert run("sweeps/smoke.toml", "--out", tmp_path, *address) == 2
    assert "127.0.0.1:9, where no Ray cluster answers" in capsys.readouterr().err
