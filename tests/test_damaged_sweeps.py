"""Sweeps' files with impossible values or damage: one sentence, and nothing outside --out."""

import json
import os
from pathlib import Path

import pytest

from tests.datasets import TASK
from tests.sweeps import BASE, plan, run
from trqam_fast.damage import Damaged, Unreadable
from trqam_fast.errors import UsageError
from trqam_fast.status.__main__ import main as status
from trqam_fast.status.outcome import read_outcomes
from trqam_fast.sweep import estimate
from trqam_fast.sweep.plan import check_different, read_plan, write_plan
from trqam_fast.sweep.spec import read_spec
from trqam_fast.sweep.state import STALE_SECONDS, StateFile, read_state, state_path
from trqam_fast.text import time_since

HEAD = f'tasks = ["{TASK}"]\nalgos = ["trqam"]\nseeds = [0]\n'


@pytest.fixture
def dry_run(tmp_path, capsys, monkeypatch):
    """Returns the exit status and what is said of a sweep with these lines."""
    monkeypatch.setattr(estimate, "PROBE_SECONDS", 0.001)

    def go(lines, head=HEAD):
        (tmp_path / "sweep.toml").write_text(head + lines)
        code = run(tmp_path / "sweep.toml", "--out", tmp_path / "out", "--dry-run")
        return code, capsys.readouterr()

    return go


@pytest.mark.parametrize(
    "lines",
    [
        "resources.cpus = nan", "resources.cpus = inf", "resources.cpus = 1e18",
        "resources.memory_gb = nan", "resources.memory_gb = inf", "resources.memory_gb = 1e308",
        "resources.gpu_memory_gb = inf", f"retries = {5000 * '9'}",
        f"x = {100_000 * '['}{100_000 * ']'}", "x.y = 1\n" * 50_000,
        "flags.threads = 1000000000", "flags.num_qs = 1000000000",
        "flags.batch_size = 1000000000", "flags.best_of_n = 1000000000",
        "flags.value_hidden_dims = [1000000000]", "flags.horizon_length = 1000000000",
        "flags.generated_seed = -1", "flags.generated_noise = inf", "flags.kl_budget = nan",
        'flags.dataset_dir = "\\u0000"', "flags.generated_transitions = 0",
    ],
    ids=lambda lines: lines[:40],
)  # fmt: skip
def test_impossible_values_end_with_one_sentence(lines, dry_run):
    code, said = dry_run(lines)
    assert code == 2
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 2200


@pytest.mark.parametrize(
    "lines", ["resources = {cpus = 1e-10, memory_gb = 1e-10}",
              "resources = {cpus = 5e-324, memory_gb = 5e-324}", "flags.horizon_length = 1500"],
)  # fmt: skip
def test_unusual_values_are_estimated(lines, dry_run):
    code, said = dry_run(f"{lines}\nflags.preset = 'smoke'" if "flags" in lines else lines)
    assert code == 0
    assert all(line.startswith("note: a job of ") for line in said.err.splitlines())
    assert "2 jobs, 1 runs that are results" in said.out


def test_what_is_no_file_of_a_sweep(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="no regular file"):
        read_spec(tmp_path / "pipe")
    (tmp_path / "large").write_text("# \n" * 100_000)
    with pytest.raises(Damaged, match="larger than"):
        read_spec(tmp_path / "large")


def test_names_in_the_file_move_no_cursor(dry_run):
    _, said = dry_run('"\\u001b[2J" = 1')
    assert "\x1b" not in said.err and "means nothing there" in said.err


def test_values_that_are_paths_stay_inside_the_folder(tmp_path):
    """As a flag of the whole sweep has the same value, nothing else refuses it."""
    bad = "/x/../../../../escaped"
    jobs = plan(
        tmp_path / "out", flags={"dataset_dir": bad}, grid={"trqam": {"dataset_dir": [bad]}}
    )
    for job in jobs:
        assert Path(os.path.abspath(job.run_dir(tmp_path))).is_relative_to(tmp_path / "runs")
        assert job.name.count("/") == 2 and ".." not in job.name.split("/")
    with pytest.raises(UsageError, match="let the values in .grid. differ"):
        check_different([jobs[0], jobs[0]])


def with_job(tmp_path, **changes):
    jobs = plan(tmp_path)
    write_plan(jobs, tmp_path)
    path = tmp_path / "plan.json"
    values = json.loads(path.read_text())
    values["jobs"][0] |= changes
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../../escaped/x"}, {"name": "/etc/x"}, {"name": "a/./b"}, {"name": ""},
        {"name": "a\x1b[2J/b"}, {"name": 5}, {"after": "../x"}, {"env_name": None}, {"algo": []},
        {"method": 3}, {"seeds": ["x"]}, {"seeds": [-1]}, {"seeds": []}, {"seeds": 5},
        {"config": None}, {"config": [1]}, {"other": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_with_impossible_jobs(changes, tmp_path, capsys):
    path = with_job(tmp_path, **changes)
    with pytest.raises(Damaged, match=f"{path} is damaged"):
        read_plan(tmp_path)
    assert run("--out", tmp_path, "--job", "x") == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", '{"format": 2}', '{"format": []}', "9" * 5000]
)
def test_a_plan_that_is_none(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(Damaged):
        read_plan(tmp_path)


def test_a_plan_that_the_system_refuses(tmp_path, refused):
    write_plan(plan(tmp_path), tmp_path)
    with refused(tmp_path / "plan.json", 13), pytest.raises(Unreadable, match="keep it"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        {"state": "x"}, {"state": []}, {"reason": 5}, {"host": None}, {"pid": "x"},
        {"attempt": None}, {"attempt": 1.5}, {"started": "x"}, {"ended": []}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_an_odd_state_costs_its_job_alone(odd, tmp_path, capsys):
    jobs = plan(tmp_path)
    write_plan(jobs, tmp_path)
    StateFile(tmp_path, jobs[0]).write()
    path = state_path(tmp_path, jobs[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    with pytest.raises(Damaged, match="is damaged"):
        read_state(tmp_path, jobs[0])
    outcomes = read_outcomes(tmp_path, jobs)
    assert outcomes[jobs[0].name].kind == "unreadable"
    assert outcomes[jobs[1].name].kind != "unreadable"
    assert status([str(tmp_path)]) == 0
    assert "unreadable" in capsys.readouterr().out


def test_a_state_that_the_system_refuses_is_named(tmp_path, refused):
    (job, *_) = jobs = plan(tmp_path)
    StateFile(tmp_path, job).write()
    with refused(state_path(tmp_path, job), 13):
        assert "cannot be read" in read_outcomes(tmp_path, jobs)[job.name].reason


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
def test_steps_of_the_clock(step, tmp_path, monkeypatch):
    """A beat after a step forward makes a job alive again; one backward never makes it stale."""
    (job, *_) = plan(tmp_path)
    file = StateFile(tmp_path, job)
    file.write()
    assert not read_state(tmp_path, job).stale
    now = state_path(tmp_path, job).stat().st_mtime
    monkeypatch.setattr("time.time", lambda: now + step)
    assert read_state(tmp_path, job).stale == (step > STALE_SECONDS)
    assert time_since(now) == ("under 1 min" if step < 0 else "24.0 h")
    os.utime(file.path, (now + step, now + step))
    assert not read_state(tmp_path, job).stale
    assert file.end("done").ended == now + step


def test_base_is_a_sweep(tmp_path):
    """What the cases above change runs as it is."""
    assert len(plan(tmp_path)) == len(BASE["algos"])
