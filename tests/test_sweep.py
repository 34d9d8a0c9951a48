"""Sweeps: from their file to their plan."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.datasets import TASK
from tests.sweeps import BASE, plan
from trqam_fast.damage import Unreadable
from trqam_fast.errors import UsageError
from trqam_fast.sweep import memory
from trqam_fast.sweep.memory import host_need, memory_notes, run_bytes
from trqam_fast.sweep.plan import make_plan, read_plan, seeds_folder, write_plan
from trqam_fast.sweep.spec import parse_spec, read_spec
from trqam_fast.training.presets import make_config

CUBE = "cube-double-play-singletask-task2-v0"


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
        ({"algos": ["trqam", "ppo"]}, "--algo is 'ppo'; choose one of bc, fql, "),
        ({"algos": ["nowhere:Mine"]}, "importing nowhere fails (ModuleNotFoundError: No module"),
        ({"seeds": [0, 0]}, "name each only once"),
        ({"seeds": [0, -1]}, "seeds has -1"),
        ({"seeds_per_job": 0}, "seeds_per_job is 0"),
        ({"retries": True}, "retries is True"),
        ({"flags": {"learning_rate": 1.0}}, "means nothing there; nearest: lr"),
        ({"flags": {"seeds": [1]}}, "[flags] has 'seeds'"),
        ({"flags": {"lr": "fast"}}, "[flags] lr is 'fast'; give a number"),
        ({"flags": {"batch_size": 1.5}}, "batch_size is 1.5; give a whole number"),
        ({"flags": {"generated": 1}}, "generated is 1; give true or false"),
        ({"flags": {"pretrained": 3}}, "pretrained is 3; give a path in quotes"),
        ({"flags": {"backend": "cuda"}}, "backend is 'cuda'; give 'auto' or 'reference' or"),
        ({"flags": {"actor_hidden_dims": ["a"]}}, "give a list of whole numbers"),
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
        ({"algo": {"qam": {"pretrained_seed": 3}}}, "pretrained_seed of qam is 3, but pretraining"),
        ({"flags": {"pretrained_seed": 3}}, "--pretrained-seed is 3; it chooses from --pretrained"),
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
    assert 1 < max(sizes(memory_gb=6)) < 8
    gpu = {"gpu_memory_gb": 8, "memory_gb": 32}
    assert max(sizes(gpus=0.5, **gpu)) < max(sizes(gpus=1, **gpu))
    assert max(sizes(gpus=1, gpu_memory_gb=80, memory_gb=6)) < 8  # a GPU's job is on a host too


def test_environments_of_a_robot_arm_take_memory(tmp_path):
    def planned(task, envs, **resources):
        flags = {"preset": "paper", "eval_envs": envs}
        jobs = plan(tmp_path, tasks=[task], algos=["trqam"], flags=flags, resources=resources)
        return jobs, parse_spec(BASE | {"resources": resources}).resources

    jobs, resources = planned(CUBE, 25, memory_gb=4)
    assert [len(job.seeds) for job in jobs if job.after] == [1, 1, 1]
    (note,) = memory_notes(jobs, resources)
    assert re.search(rf"of {CUBE} may take 6\.\d GiB \(.*4.7 for environments.* is 4; give", note)
    for few in (planned(CUBE, 8, memory_gb=6), planned(TASK, 25, memory_gb=4)):
        assert memory_notes(*few) == []
        assert len(few[0][-1].seeds) > 1
    (note,) = memory_notes(*planned(CUBE, 25, gpus=1, memory_gb=4))
    assert "may take 6.3 GiB" in note


def test_transitions_take_memory(tmp_path):
    """Those that are read at the start, and those of the online stage, of every seed."""

    def planned(**flags):
        flags = {"preset": "paper"} | flags
        jobs = plan(tmp_path, tasks=[TASK], algos=["trqam"], seeds=list(range(8)), flags=flags,
                    resources={"memory_gb": 16})  # fmt: skip
        config = jobs[-1].train_config()
        return len(jobs[-1].seeds), host_need(config, 8, 1)

    few, small = planned(generated=True, generated_transitions=100_000)
    _, large = planned(generated=True, generated_transitions=5_000_000)
    assert small.data == 100_000 * 480 and small.online == 0
    assert large.data == 5_000_000 * 480
    packed, online = planned(generated=True, online_steps=10**6)
    assert online.online == 3 * 4 * 8 * 10**6 * (2 * 128 + 21 + 3) and packed < few
    assert planned(dataset_dir=str(tmp_path))[1].data == 480 * 10**6
    (tmp_path / "pointmaze-medium-navigate-v0.flat").mkdir()
    assert planned(dataset_dir=str(tmp_path))[1].data == 0


def test_the_seeds_of_a_job_are_a_folder_however_many(tmp_path):
    jobs = plan(tmp_path, seeds=list(range(1000, 1100)), seeds_per_job=100,
                resources={"memory_gb": 640})  # fmt: skip
    names = {Path(job.name).name for job in jobs}
    assert len(jobs[0].seeds) == 100 and len(names) == 1 and len(names.pop()) < 40
    # Those that fitted have the names that earlier plans gave them.
    assert seeds_folder(tuple(range(60))) == f"seeds_{'_'.join(map(str, range(60)))}"


def test_an_environment_of_ones_own_is_made_once(tmp_path, monkeypatch):
    made = []
    inner = memory.interface_of
    monkeypatch.setattr(memory, "interface_of", lambda *a, **o: made.append(a) or inner(*a, **o))
    memory.own_widths.cache_clear()
    jobs = plan(tmp_path, tasks=["Pendulum-v1"], flags={"dataset": str(tmp_path / "x.npz")})
    memory_notes(jobs, parse_spec(BASE).resources)
    assert len(made) == 1


def test_memory_of_a_gpu_is_what_one_needed():
    """An H100 needed 3.10 GiB for the updates of eight runs at paper scale (docs/gpu.md)."""
    config = make_config(CUBE, preset="paper")
    assert 3.10 < run_bytes(config, 8, 1, gpu=True) / 2**30 < 4


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
    common = {"tasks": [CUBE], "resources": {"memory_gb": 8}}
    write_plan(plan(tmp_path, **common, seeds=[4, 0, 1]), tmp_path)

    def groups(**changes):
        jobs = plan(tmp_path, **common, **changes)
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


def test_plans_are_plain_json(tmp_path):
    write_plan(plan(tmp_path), tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["format"] == 2
