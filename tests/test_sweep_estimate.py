"""How long a sweep takes: a job's parts, and jobs one after another."""

from types import SimpleNamespace

import pytest

from tests.datasets import TASK
from tests.sweeps import plan
from trqam_fast.evaluation.policy import ROWS
from trqam_fast.sweep import estimate
from trqam_fast.sweep.plan import Job


def test_a_job_updates_plays_and_acts(tmp_path, monkeypatch):
    """With an update of 10 ms, a step of 1 ms, a row of a policy call of 0.1 ms."""
    monkeypatch.setattr(estimate, "probe_environment", lambda *_: (4, 2, 100, 1e-3))
    monkeypatch.setattr(estimate, "probe_agent", lambda *_: (1e-2, 1e-4))
    flags = {
        "bc_steps": 300, "offline_steps": 200, "online_steps": 50, "start_training": 20,
        "utd_ratio": 2, "eval_interval": 80, "eval_episodes": 3, "horizon_length": 5,
        "action_chunking": True,
    }  # fmt: skip
    cloning, tuning = plan(tmp_path, algos=["trqam"], seeds=[0, 1], flags=flags)
    played = 3 * 2 * 100 * (1e-3 + 1e-4 / 5)  # by an evaluation of both seeds
    assert estimate.job_seconds(cloning) == pytest.approx(10 + 300 * 1e-2 + played)
    updates, acted = 200 + 2 * 30, 50 * 2 * (1e-3 + ROWS * 1e-4)
    evaluations = 1 + 3 + 1  # of the start, offline after 80, 160 and 200 steps, online at the end
    expected = 10 + updates * 1e-2 + evaluations * played + acted
    assert estimate.job_seconds(tuning) == pytest.approx(expected)


def test_a_job_is_measured_in_its_own_precision(tmp_path, monkeypatch):
    """bfloat16 updates are up to 1.6 times as fast as float32 ones."""
    made = []

    def build(*_, **options):
        made.append(options)
        return SimpleNamespace(candidates=1, noise_dim=2)

    monkeypatch.setattr(estimate, "probe_environment", lambda *_: (4, 2, 100, 1e-3))
    monkeypatch.setattr(estimate, "algorithm", lambda _: build)
    monkeypatch.setattr(estimate, "seconds_per_update", lambda *_: 1e-2)
    monkeypatch.setattr(estimate, "seconds_per_call", lambda *_: 1e-2)
    for precision in ("ieee", "bf16"):
        flags = {"precision": precision, "backend": "cpp"}
        estimate.job_seconds(plan(tmp_path, algos=["bc"], flags=flags)[0])
    assert [options["precision"] for options in made] == ["ieee", "bf16"]


def test_the_schedule_respects_order_and_places():
    def job(name, after=None):
        return Job(name, TASK, "bc", None, (0,), after, ())

    jobs = [job("a"), job("b"), job("c", "a"), job("d", "b")]
    seconds = {"a": 10.0, "b": 1.0, "c": 1.0, "d": 2.0}
    assert estimate.makespan(jobs, seconds, 1) == 14
    assert estimate.makespan(jobs, seconds, 2) == 11
    assert estimate.makespan([jobs[0], jobs[2]], seconds, 9) == 11
