"""Sweeps: their file, their plan, their jobs and their command."""

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import pytest

from trqam_fast.cli import run_command
from trqam_fast.damage import Unreadable
from trqam_fast.errors import Stopped, UsageError
from trqam_fast.sweep import __main__ as command
from trqam_fast.sweep import estimate
from trqam_fast.sweep.execute import execute, finished
from trqam_fast.sweep.plan import make_plan, read_plan, write_plan
from trqam_fast.sweep.spec import parse_spec, read_spec
from trqam_fast.sweep.state import StateFile, read_state, state_path

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
CUBE = "cube-double-play-singletask-task2-v0"
BASE = {"tasks": [TASK], "algos": ["bc", "qam", "trqam"], "seeds": [0, 1, 2]}


def plan(tmp_path, **changes):
    return make_plan(parse_spec(BASE | changes), tmp_path)


@pytest.fixture
def small(generated):
    """A sweep of one seed whose runs take a second."""
    return BASE | {
        "seeds": [0],
        "flags": {
            "preset": "smoke", "generated_dir": str(generated), "generated_transitions": 3000,
            "generated_noise": 0.5, "bc_steps": 10, "offline_steps": 10, "online_steps": 0,
            "log_interval": 5, "eval_interval": 0, "save_interval": 5, "eval_episodes": 1,
            "eval_envs": 1, "batch_size": 8, "actor_hidden_dims": [16, 16],
            "value_hidden_dims": [16, 16],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_names": []}, "'task_names'"),
        ({"tasks": []}, "tasks is []"),
        (
            {"tasks": ["cube-double-play-task2-v0"]},
            "MODULE:FACTORY; nearest: cube",
        ),
        ({"tasks": ["cube-decuple-play-singletask-task*-v0"]}, "stands for no OGBench single"),
        ({"algos": ["trqam", "ppo"]}, "'ppo' is no algorithm"),
        ({"seeds": [0, 0]}, "name each only once"),
        ({"seeds": [0, -1]}, "seeds has -1"),
        ({"seeds_per_job": 0}, "seeds_per_job is 0"),
        ({"retries": True}, "retries is True"),
        ({"flags": {"learning_rate": 1.0}}, "[flags] has 'learning_rate'"),
        ({"flags": {"seeds": [1]}}, "[flags] has 'seeds'"),
        ({"flags": {"lr": "fast"}}, "[flags] lr is 'fast'; give a number"),
        ({"flags": {"batch_size": 1.5}}, "batch_size is 1.5; give a whole number"),
        ({"flags": {"generated": 1}}, "generated is 1; give true or false"),
        ({"flags": {"pretrained": 3}}, "pretrained is 3; give a path in quotes"),
        ({"flags": {"backend": "cuda"}}, "backend is 'cuda'; give 'auto' or 'reference' or"),
        ({"flags": {"actor_hidden_dims": ["a"]}}, "give a list of a whole number"),
        ({"flags": {"generated_noise": "much"}}, "generated_noise is 'much'; give a number"),
        ({"flags": {"device": "cuda"}}, "[flags] has 'device'"),
        ({"flags": 3}, "[flags] is 3; write a table"),
        ({"task": {CUBE: {"lr": 0.1}}}, f"[task.{CUBE}] is for none of the sweep's tasks"),
        ({"algo": {"qam-e": {"lr": 0.1}}}, "[algo.qam-e] is for none of the sweep's algos"),
        ({"algo": {"bc": {"lr": 0.1}}}, "[algo.bc] is for none of the sweep's algos that have"),
        ({"tasks": [TASK, TASK.replace("task1", "task*")]}, "name each only once, stars resolved"),
        ({"grid": 3}, "[grid] is 3; write a table"),
        ({"grid": {"trqam": {"lr": [1, 1.0]}}}, "give each value only once"),
        ({"grid": {"bc": {"lr": [0.1]}}}, "[grid.bc] is for no fine-tuning algorithm"),
        ({"grid": {"trqam": {"kl_budget": 0.5}}}, "kl_budget is 0.5; give a list"),
        ({"variants": {"bc": {"a": {}}}}, "[variants.bc] is for no fine-tuning algorithm"),
        ({"variants": {"trqam": {}}}, "[variants.trqam] is empty"),
        ({"variants": {"trqam": {"a b": {}}}}, "[variants.trqam] has 'a b'; name it by letters"),
        ({"variants": {"trqam": {"a": 3}}}, "[variants.trqam.a] is 3; write a table"),
        ({"variants": {"trqam": {"a": {"dual": 3}}}}, "[variants.trqam.a] dual is 3"),
        (
            {"grid": {"qam": {"lr": [0.1]}}, "variants": {"qam": {"a": {"lr": 0.2}}}},
            "[variants.qam.a] has lr, which [grid.qam] varies",
        ),
        ({"resources": {"cpu": 1}}, "[resources] has 'cpu'"),
        ({"resources": {"cpus": 0}}, "cpus is 0"),
        ({"resources": {"gpus": 1.5}}, "gpus is 1.5; a job uses one GPU at most"),
    ],
)
def test_a_mistake_in_the_file_is_named(changes, message):
    with pytest.raises(UsageError) as error:
        parse_spec(BASE | changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": {"lr": -1.0}}, "--lr is -1.0"),
        ({"algo": {"qam": {"bc_steps": 3}}}, "bc_steps of qam is 3, but pretraining is shared"),
        (
            {"grid": {"trqam": {"horizon_length": [1, 7]}}},
            f"horizon_length of trqam on {TASK} is 1, but it shares its pretraining",
        ),
        ({"flags": {"pretrained": "x.pt"}}, "algos has bc, but pretrained is 'x.pt'"),
        (
            {"flags": {"pretrained": "x.pt", "bc_steps": 3}, "algos": ["trqam"]},
            "bc_steps is 3, but pretrained is 'x.pt'",
        ),
        ({"grid": {"qam": {"pretrained": ["a.pt"]}}}, "pretrained of qam is 'a.pt', but"),
        ({"algo": {"qam": {"offline_steps": 0}}}, "--offline-steps and --online-steps are 0"),
    ],
)
def test_flags_that_no_run_can_have_are_refused(tmp_path, changes, message):
    with pytest.raises(UsageError) as error:
        plan(tmp_path, **changes)
    assert message in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(Unreadable, match="No such file"):
        read_spec(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("tasks = [")
    with pytest.raises(UsageError, match="broken.toml is not TOML"):
        read_spec(broken)


def test_the_plan(tmp_path):
    jobs = plan(
        tmp_path,
        tasks=[TASK, CUBE],
        seeds_per_job=2,
        flags={"discount": 0.9, "bc_steps": 7, "offline_steps": 9, "generated": False},
        task={CUBE: {"discount": 0.8}},
        algo={"qam": {"inv_temp": 3.0, "discount": 0.7}},
        grid={"trqam": {"kl_budget": [0.25, 1.0], "clip_adj": [False]}},
    )
    assert len(jobs) == 2 * 2 * 4
    assert [job.algo for job in jobs[:4]] == ["bc"] * 4
    assert [job.seeds for job in jobs[:2]] == [(0, 1), (2,)]
    by_name = {job.name: job for job in jobs}
    first = by_name[f"{CUBE}/bc/seeds_2"]
    assert (first.method, first.after) == ("BC", None)
    assert (first.config["bc_steps"], first.config["seeds"]) == (7, [2])
    assert "discount" not in first.config  # which behaviour cloning has no use for
    qam = by_name[f"{CUBE}/qam/seeds_2"]
    assert (qam.method, qam.after) == ("QAM", first.name)
    assert (qam.config["discount"], qam.config["inv_temp"]) == (0.7, 3.0)
    assert by_name[f"{TASK}/qam/seeds_2"].config["discount"] == 0.7
    assert by_name[f"{CUBE}/trqam_kl-budget_0.25_clip-adj_False/seeds_2"].config["discount"] == 0.8
    assert qam.config["pretrained"] == str(first.run_dir(tmp_path))
    assert (qam.config["bc_steps"], qam.config["offline_steps"]) == (0, 9)
    assert not qam.config["generated"]
    methods = {job.method for job in jobs if job.algo == "trqam"}
    assert methods == {
        "TRQAM kl-budget 0.25 clip-adj False",
        "TRQAM kl-budget 1.0 clip-adj False",
    }
    assert all(os.path.isabs(job.config["pretrained"]) for job in jobs[4:])
    assert all(job.train_config().to_dict()["algo"] == job.algo for job in jobs)


def test_each_variant_has_every_combination(tmp_path):
    jobs = plan(
        tmp_path,
        algos=["trqam"],
        grid={"trqam": {"kl_budget": [0.25, 1.0]}},
        variants={"trqam": {"paper": {}, "high-start": {"init_lambda": 10.0}}},
    )
    found = {job.method: (job.config["kl_budget"], job.config["init_lambda"]) for job in jobs[1:]}
    usual = jobs[1].config["init_lambda"]
    assert usual != 10.0
    assert found == {
        "TRQAM paper kl-budget 0.25": (0.25, usual),
        "TRQAM paper kl-budget 1.0": (1.0, usual),
        "TRQAM high-start kl-budget 0.25": (0.25, 10.0),
        "TRQAM high-start kl-budget 1.0": (1.0, 10.0),
    }
    assert jobs[-1].name == f"{TASK}/trqam_high-start_kl-budget_1.0/seeds_0_1_2"


def test_every_name_is_one_folder_deep(tmp_path):
    for job in plan(tmp_path, grid={"trqam": {"kl_budget": [0.25, 1.0]}}):
        assert re.fullmatch(r"[^/ ]+/[^/ ]+/seeds_[0-9_]+", job.name)


def test_pretraining_that_nobody_asked_for_is_no_result(tmp_path):
    jobs = plan(tmp_path, algos=["trqam"])
    assert [(job.algo, job.method) for job in jobs] == [("bc", None), ("trqam", "TRQAM")]


def test_a_given_checkpoint_replaces_pretraining(tmp_path):
    jobs = plan(tmp_path, algos=["trqam"], flags={"pretrained": "x.pt"})
    assert [(job.algo, job.after) for job in jobs] == [("trqam", None)]
    assert jobs[0].config["pretrained"] == os.path.abspath("x.pt")


def test_a_star_stands_for_all_tasks():
    spec = parse_spec(BASE | {"tasks": ["scene-play-singletask-task*-v0"]})
    assert len(spec.tasks) == 5
    spec = parse_spec(
        BASE
        | {
            "tasks": ["scene-play-singletask-task*-v0", CUBE],
            "task": {
                "scene-play-singletask-task*-v0": {"lr": 0.1, "tau": 0.2},
                "scene-play-singletask-task3-v0": {"lr": 0.3},
            },
        }
    )
    assert spec.task["scene-play-singletask-task2-v0"] == {"lr": 0.1, "tau": 0.2}
    assert spec.task["scene-play-singletask-task3-v0"] == {"lr": 0.3, "tau": 0.2}
    assert CUBE not in spec.task


@pytest.mark.parametrize("path", sorted(Path("sweeps").rglob("*.toml")), ids=str)
def test_the_sweeps_of_this_repository_are_valid(path, tmp_path):
    assert make_plan(read_spec(path), tmp_path)


def test_seeds_are_packed_as_far_as_memory_allows(tmp_path):
    def sizes(**resources):
        changes = {"tasks": [CUBE], "seeds": list(range(8)), "resources": resources}
        return [len(job.seeds) for job in plan(tmp_path, **changes) if job.algo == "trqam"]

    assert sizes(memory_gb=64) == [8]
    assert sizes(memory_gb=1.2) == [1] * 8
    assert 1 < max(sizes(memory_gb=4)) < 8
    assert max(sizes(gpus=0.5, gpu_memory_gb=8)) < max(sizes(gpus=1, gpu_memory_gb=8))


def test_resources_become_flags(tmp_path):
    assert plan(tmp_path, resources={"cpus": 2})[0].config["threads"] == 2
    gpu = plan(tmp_path, resources={"gpus": 0.5}, flags={"threads": 3})[0]
    assert (gpu.config["device"], gpu.config["threads"]) == ("cuda", 3)


def test_a_plan_is_kept_added_to_and_defended(tmp_path):
    jobs = plan(tmp_path, algos=["bc", "qam"])
    write_plan(jobs, tmp_path)
    assert read_plan(tmp_path) == jobs
    more = plan(tmp_path)
    write_plan(more, tmp_path)
    assert {job.name for job in read_plan(tmp_path)} == {job.name for job in more}
    write_plan(jobs, tmp_path)
    assert {job.name for job in read_plan(tmp_path)} == {job.name for job in more}
    with pytest.raises(UsageError, match="other flags: --lr 0.002 became 0.1; name another"):
        write_plan(plan(tmp_path, flags={"lr": 0.1}), tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        read_plan(tmp_path)
    with pytest.raises(UsageError, match="holds no sweep"):
        read_plan(tmp_path / "none")


def test_seeds_that_were_packed_together_stay_so(tmp_path):
    write_plan(plan(tmp_path, tasks=[CUBE], seeds=[4, 0, 1]), tmp_path)

    def groups(**changes):
        jobs = plan(tmp_path, tasks=[CUBE], **changes)
        return [job.seeds for job in jobs if job.algo == "trqam"]

    assert groups(seeds=[0, 1, 2, 3, 4]) == [(4, 0, 1), (2, 3)]
    assert groups(seeds=[0, 1, 2, 3, 4], seeds_per_job=1) == [(4, 0, 1), (2,), (3,)]
    assert groups(seeds=[0, 1]) == [(0, 1)]


def test_what_does_not_change_a_run_may_change(tmp_path):
    """The order of flags, whether BC is a result, and where the sweep's folder lies."""
    flags = {"lr": 0.1, "tau": 0.2}
    write_plan(plan(tmp_path / "a", algos=["trqam"], flags=flags), tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    now = plan(tmp_path / "b", flags=dict(reversed(flags.items())))
    write_plan(now, tmp_path / "b")
    assert read_plan(tmp_path / "b") == now


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


def test_a_seed_that_diverges_is_the_reason(tmp_path, small):
    small["flags"] |= {"lr": 1e30, "clip_grad": False}
    job = make_plan(parse_spec(small), tmp_path)[0]
    state = execute(tmp_path, job)
    assert state.state == "done" and "seed 0: " in state.reason and "not finite" in state.reason


def test_a_crash_is_a_failure_with_its_reason(tmp_path, small, monkeypatch):
    def crash(config):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("trqam_fast.train.run", crash)
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


def test_the_heartbeat_touches_the_file(tmp_path, small, monkeypatch):
    monkeypatch.setattr("trqam_fast.sweep.state.HEARTBEAT_SECONDS", 0.01)
    file = StateFile(tmp_path, make_plan(parse_spec(small), tmp_path)[0])
    file.write()
    with file.beating():
        os.utime(file.path, (0, 0))
        deadline = time.monotonic() + 5
        while file.path.stat().st_mtime == 0:
            assert time.monotonic() < deadline


def run(*argv):
    return run_command(lambda: command.main([str(word) for word in argv]))


def test_one_job_from_the_command(tmp_path, small, capsys, monkeypatch):
    jobs = make_plan(parse_spec(small), tmp_path)
    write_plan(jobs, tmp_path)
    assert run("--out", tmp_path, "--job", jobs[1].name) == 1
    assert run("--out", tmp_path, "--job", jobs[0].name) == 0
    assert finished(tmp_path, jobs[0])
    assert run("--out", tmp_path, "--job", "nope") == 2
    assert "is none of" in capsys.readouterr().err

    def stop(config):
        raise Stopped("stopped by SIGUSR1 after step 5")

    monkeypatch.setattr("trqam_fast.train.run", stop)
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


def test_a_command_that_lacks_something(tmp_path, capsys):
    assert run("sweeps/smoke.toml") == 2
    assert run("--out", tmp_path) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_an_address_where_nothing_answers_is_told_at_once(tmp_path, capsys):
    pytest.importorskip("ray")
    assert run("sweeps/smoke.toml", "--out", tmp_path, "--address", "127.0.0.1:9") == 2
    assert "127.0.0.1:9, where no Ray cluster answers" in capsys.readouterr().err


def test_plans_are_plain_json(tmp_path):
    write_plan(plan(tmp_path), tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["format"] == 2
