"""Sweeps on a Ray cluster of several nodes, one of which dies."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from trqam_fast.errors import REQUEUE
from trqam_fast.runs import checkpoint
from trqam_fast.sweep import cluster
from trqam_fast.sweep.execute import execute, finished
from trqam_fast.sweep.plan import make_plan, write_plan
from trqam_fast.sweep.spec import Resources, parse_spec
from trqam_fast.sweep.state import read_state

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
LOGS = ("metrics.csv", "eval.csv")


@pytest.fixture(scope="module")
def values(generated):
    return {
        "tasks": [TASK],
        "algos": ["bc", "qam", "trqam"],
        "seeds": [0, 1],
        "seeds_per_job": 1,
        "flags": {
            "preset": "smoke", "generated_dir": str(generated), "generated_transitions": 3000,
            "generated_noise": 0.5, "bc_steps": 100, "offline_steps": 500, "online_steps": 0,
            "log_interval": 50, "eval_interval": 0, "save_interval": 25, "eval_episodes": 1,
            "eval_envs": 1, "max_episode_steps": 50, "batch_size": 16,
            "actor_hidden_dims": [32, 32], "value_hidden_dims": [32, 32],
        },
        "resources": {"cpus": 1, "memory_gb": 0.25},
    }  # fmt: skip


@pytest.fixture(scope="module")
def spec(values):
    return parse_spec(values)


@pytest.fixture(scope="module")
def undisturbed(spec, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    jobs = make_plan(spec, out)
    for job in jobs:
        assert execute(out, job).state == "done"
    return out


@pytest.fixture
def nodes(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": cluster.OBJECT_STORE_BYTES, "memory": 2**30}
    handler = signal.getsignal(signal.SIGTERM)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    for _ in range(3):
        made.add_node(num_cpus=1, **memory)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()
    signal.signal(signal.SIGTERM, handler)


def parent(pid: int) -> int:
    """The process that started another one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def busy_job(jobs, out, others):
    """Wait for a fine-tuning job with a checkpoint, beside `others`; return it with its process."""
    while True:
        time.sleep(0.02)
        for job in jobs:
            state = read_state(out, job)
            if job.algo == "bc" or job in others or state is None or state.state != "running":
                continue
            if checkpoint.newest(job.run_dir(out) / "checkpoints") and not finished(out, job):
                return job, state.pid


def kill_a_worker_and_a_node(nodes, jobs, out, killed):
    """Kill the process of one job and the whole node, workers and all, of another."""
    job, pid = busy_job(jobs, out, killed)
    os.kill(pid, signal.SIGKILL)
    killed.append(job)
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes.worker_nodes}
    job, pid = busy_job(jobs, out, killed)
    nodes.remove_node(raylets[parent(pid)], allow_graceful=False)
    killed.append(job)


@pytest.mark.slow
def test_a_worker_and_a_node_die_and_every_run_ends_as_without(spec, undisturbed, nodes, tmp_path):
    jobs = make_plan(spec, tmp_path)
    assert len(jobs) == 6
    write_plan(jobs, tmp_path)
    killed, lines = [], []
    killer = threading.Thread(
        target=kill_a_worker_and_a_node, args=(nodes, jobs, tmp_path, killed), daemon=True
    )
    with cluster.connected(nodes.address, None, None) as ray:
        killer.start()
        states = cluster.run_jobs(ray, jobs, tmp_path, spec.resources, 3, lines.append)
    assert len(killed) == 2, "no worker and no node was killed while a run was under way"
    assert {job.name for job in jobs} == set(states)
    assert all(state.state == "done" for state in states.values()), lines
    for job in killed:
        assert read_state(tmp_path, job).attempt > 1
        assert "resuming from step_" in job.log(tmp_path).read_text()
    assert_alike(jobs, tmp_path, undisturbed)


def assert_alike(jobs, out, undisturbed):
    """Every job ended with the rows and the weights of one that nobody disturbed."""
    for job in jobs:
        ours, theirs = job.run_dir(out), job.run_dir(undisturbed)
        for log in LOGS:
            assert (ours / log).read_bytes() == (theirs / log).read_bytes(), job.name
        end = sorted((theirs / "checkpoints").glob("*.pt"))[-1].name
        states_at_end = [
            torch.load(path / "checkpoints" / end, weights_only=True)["agent"]
            for path in (ours, theirs)
        ]
        for name, tensor in states_at_end[0].items():
            assert torch.equal(tensor, states_at_end[1][name]), (job.name, name)


@pytest.fixture
def place(monkeypatch):
    """Ray on this machine, with one place for a job; it leaves no handler of signals behind."""
    pytest.importorskip("ray")
    handler = signal.getsignal(signal.SIGTERM)
    with cluster.connected(None, 1, 1) as ray:
        yield ray
    assert signal.getsignal(signal.SIGTERM) is handler


def small_sweep(spec, **resources):
    """One seed of BC and TRQAM."""
    return dataclasses.replace(
        spec,
        algos=("bc", "trqam"),
        seeds=(0,),
        resources=Resources(cpus=1, memory_gb=0.25, **resources),
    )


def when_busy(jobs, out, act):
    """Do something in a thread as soon as fine-tuning is under way."""
    thread = threading.Thread(target=lambda: act(*busy_job(jobs, out, [])), daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_sweep_is_stopped_given_up_and_ended(spec, place, tmp_path):
    """The file `stop` writes checkpoints; a job that dies too often fails; then all goes on."""
    small = small_sweep(spec)
    jobs = make_plan(small, tmp_path)
    run = functools.partial(cluster.run_jobs, place, jobs, tmp_path, small.resources)

    thread = when_busy(jobs, tmp_path, lambda job, pid: (tmp_path / cluster.STOP).touch())
    states = run(3, lambda line: None)
    thread.join()
    assert [states[job.name].state for job in jobs] == ["done", "stopped"]
    assert "stopped by SIGUSR1 after step" in states[jobs[1].name].reason

    thread = when_busy(jobs, tmp_path, lambda job, pid: os.kill(pid, signal.SIGKILL))
    states = run(0, lambda line: None)
    thread.join()
    assert list(states) == [jobs[1].name]
    given_up = states[jobs[1].name]
    assert given_up.state == "failed" and given_up.reason.startswith("WorkerCrashedError: ")
    assert read_state(tmp_path, jobs[1]).reason == given_up.reason

    assert run(0, lambda line: None)[jobs[1].name].state == "done"
    assert run(0, lambda line: None) == {}


@pytest.mark.slow
def test_a_driver_is_stopped_and_killed_and_the_same_command_goes_on(values, undisturbed, tmp_path):
    """SIGTERM lets the job write a checkpoint; SIGKILL takes the driver's Ray and job with it."""
    pytest.importorskip("ray")
    small, out = values | {"algos": ["bc", "trqam"], "seeds": [0]}, tmp_path / "out"
    lines = [f"{name} = {json.dumps(v)}" for name, v in small.items() if not isinstance(v, dict)]
    for table in ("flags", "resources"):
        lines += [f"{table}.{name} = {json.dumps(value)}" for name, value in small[table].items()]
    file = tmp_path / "sweep.toml"
    file.write_text("\n".join(lines))
    jobs = make_plan(parse_spec(small), out)
    words = [sys.executable, "-m", "trqam_fast.sweep", str(file), "--out", str(out)]
    words += ["--num-cpus", "1"]
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    thread = when_busy(jobs, out, lambda job, pid: driver.send_signal(signal.SIGTERM))
    _, errors = driver.communicate()
    thread.join()
    assert driver.returncode == REQUEUE, errors
    assert errors.splitlines()[-1] == "the sweep was stopped; the same command continues every run"
    assert "***" not in errors
    assert read_state(out, jobs[1]).state == "stopped"

    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    thread = when_busy(jobs, out, lambda job, pid: driver.kill())
    assert driver.wait() == -signal.SIGKILL, "it ended before a run was under way"
    thread.join()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from step_" in jobs[1].log(out).read_text()
    assert_alike(jobs, out, undisturbed)


@pytest.mark.slow
def test_fractions_of_a_gpu_and_failures(spec, place, tmp_path):
    """Ray believes in a GPU; the trainer does not find it, and what depends on it fails too."""
    small = small_sweep(spec, gpus=0.5)
    jobs = make_plan(small, tmp_path)
    assert not cluster.missing_resources(place, small.resources)
    states = cluster.run_jobs(place, jobs, tmp_path, small.resources, 0, lambda line: None)
    assert "--device is cuda, but torch sees no GPU" in states[jobs[0].name].reason
    assert states[jobs[1].name].reason == "its pretraining has not ended"
    assert {state.state for state in states.values()} == {"failed"}
    for resources in (Resources(cpus=2), Resources(gpus=1, memory_gb=1e6)):
        missing = cluster.missing_resources(place, resources)
        assert "but no node has them all (at most 1, 1 and " in missing
