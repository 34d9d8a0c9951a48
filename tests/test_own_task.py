"""Tasks of one's own: the registry, the wrapper, and the whole trainer on them.

Longer than 400 lines, as every kind of environment goes through the same doors.
"""

import csv
import json
import math
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests import own_tasks
from tests.runs import rows, run
from trqam_fast import evaluate, train
from trqam_fast.agents import BCAgent
from trqam_fast.agents.config import CloningConfig
from trqam_fast.cli import run_command
from trqam_fast.data.readers import look_at, parse_source
from trqam_fast.data.tasks import find_task
from trqam_fast.errors import RunError, UsageError
from trqam_fast.evaluation import Evaluator
from trqam_fast.report import __main__ as report
from trqam_fast.runs.folder import RunFolder
from trqam_fast.runs.read import Row
from trqam_fast.simulator.bounds import scaled, unscaled
from trqam_fast.simulator.environment import interface_of, make_env
from trqam_fast.simulator.online import OnlineEnvironment
from trqam_fast.simulator.own import Standard
from trqam_fast.status import __main__ as status
from trqam_fast.sweep.plan import make_plan
from trqam_fast.sweep.spec import parse_spec
from trqam_fast.training.interface import describe
from trqam_fast.training.ledger import Ledger
from trqam_fast.training.presets import make_config
from trqam_fast.training.summary import summarise

REACH = "tests.own_tasks:Reach"
SMALL = [
    "--max-episode-steps", "12", "--bc-steps", "12", "--offline-steps", "8",
    "--log-interval", "4", "--eval-interval", "4", "--save-interval", "4", "--eval-episodes", "2",
    "--batch-size", "8", "--actor-hidden-dims", "16", "--value-hidden-dims", "16",
]  # fmt: skip
ONLINE = ["--online-steps", "40", "--start-training", "10"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return own_tasks.write_data(tmp_path_factory.mktemp("own") / "reach.npz")


@pytest.fixture(scope="module")
def flags(dataset):
    return ["--env-id", REACH, "--dataset", str(dataset), *SMALL]


def test_ogbench_is_one_entry_of_the_registry():
    task = find_task("cube-double-play-singletask-task1-v0")
    assert (task.env_id, task.dataset_name) == (
        "cube-double-singletask-task1-v0", "cube-double-play-v0",
    )  # fmt: skip
    assert find_task("Pendulum-v1").dataset_name is None
    assert find_task("cube-double-singletask-task1-v0").dataset_name is None
    assert find_task(REACH).env_id == REACH
    sentence = "^--env-name, or --env-id, is 'Pendulum-v'; name an OGBench .*; nearest: Pendulum-v1"
    with pytest.raises(UsageError, match=sentence):
        find_task("Pendulum-v")


@pytest.mark.parametrize(
    ("env_id", "sentence"),
    [
        ("no_such_module:make", "'no_such_module'); start in its folder, set PYTHONPATH or name"),
        ("tests.own_tasks:missing", "tests.own_tasks has no missing and registers no environment"),
        ("tests.own_tasks:broken", "cannot be made (ValueError: no robot)"),
        ("tests.own_tasks:NOISE", "cannot be made (TypeError"),
        ("builtins:dict", "returned a dict; return a gymnasium.Env"),
        ("CartPole-v1", "has actions in Discrete(2)"),
        ("tests.own_tasks:Whole", "has actions of int64; use a Box of floats"),
    ],
)
def test_what_is_no_environment_is_refused_with_one_sentence(env_id, sentence):
    with pytest.raises(UsageError) as error:
        make_env(env_id)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_wrapper_around_an_environment_of_ogbench_keeps_its_units():
    env = make_env("tests.own_tasks:rescaled")
    given = env.env
    seen = []
    given.step = lambda action, step=given.step: (seen.append(action), step(action))[1]
    env.reset(seed=0)
    for action in (-1.0, 0.0, 1.0):
        env.step(np.full(2, action, np.float32))
    np.testing.assert_allclose(seen, [[0.0] * 2, [0.5] * 2, [1.0] * 2])


@pytest.mark.parametrize(("limit", "steps"), [(None, 20), (9, 9), (500, 20)])
def test_a_limit_of_the_environments_own_counts(limit, steps):
    assert interface_of("tests.own_tasks:hurried", max_episode_steps=limit).steps == steps


def test_actions_keep_their_units():
    low, high = np.array([-10.0, 0.0]), np.array([30.0, 1.0])
    own = np.array([[-10.0, 0.5], [30.0, 0.0], [10.0, 1.0]])
    assert np.allclose(scaled(own, low, high), [[-1, 0], [1, -1], [0, 1]])
    assert np.allclose(unscaled(scaled(own, low, high), low, high), own)
    env = make_env("tests.own_tasks:make_reach")
    env.reset(seed=0)
    start = env.unwrapped.point
    env.step(np.float32([0.5]))
    assert np.isclose(env.unwrapped.point, np.clip(start + 20, -100, 100))
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_success_is_the_users_return_or_the_environments_or_termination():
    def outcome(env_id, action, **options):
        env = make_env(env_id, max_episode_steps=9, **options)
        env.reset(seed=3)
        while True:
            *_, terminated, truncated, info = env.step(np.float32([action]))
            if terminated or truncated:
                return info["success"], terminated, float(env.unwrapped.point > 0)

    for action in (-1.0, 1.0):
        success, terminated, _ = outcome(REACH, action)
        assert success == terminated
        success, _, right = outcome("tests.own_tasks:Graded", action)
        assert success == right
        assert outcome(REACH, action, success_return=-9)[0] == 1
        assert outcome("tests.own_tasks:Graded", action, success_return=1)[0] == 0


@pytest.mark.parametrize(
    ("reward", "info", "outcome"),
    [
        (np.float32([-1]), {"success": np.bool_(True)}, 1.0),
        (-1, {"is_success": np.array([0])}, 0.0),
        (True, {"success": 1.0}, 1.0),
        (None, {}, "gave the reward None; return a finite number"),
        (np.zeros(2), {}, "gave the reward [0. 0.]; return a finite number"),
        ("1", {}, "gave the reward 1; return a finite number"),
        (0, {"success": 0.01}, "gave the info success 0.01; return True or False, or 1 or 0"),
        (0, {"success": "no"}, "gave the info success no; return True or False"),
        (0, {"is_success": None}, 0.0),
    ],
    ids=str,
)
def test_rewards_and_successes_are_numbers(reward, info, outcome):
    env = make_env(REACH)
    env.reset(seed=0)
    env.unwrapped.step = lambda action: (np.zeros(2), reward, False, False, info)
    if isinstance(outcome, str):
        with pytest.raises(RunError) as error:
            env.step(np.zeros(1, np.float32))
        assert str(error.value).startswith(f"{REACH} {outcome}")
    else:
        _, given, *_, info = env.step(np.zeros(1, np.float32))
        assert (given, info["success"]) == (float(np.asarray(reward).item()), outcome)


@pytest.mark.parametrize("given", [[3, 250], [3.0, 250.0], [3.7, 0]])
def test_spaces_of_whole_numbers_change_none(given):
    image = spaces.Box(0, 255, (2,), np.uint8)
    inner = own_tasks.Reach()
    inner.observation_space = spaces.Dict(a=spaces.Tuple([image]), b=spaces.Discrete(2))
    inner.observe = lambda: {"a": (given,), "b": 1}
    env = Standard(inner, REACH, None)
    if given[0] == 3:
        assert env.reset(seed=0)[0].tolist() == [*given, 0, 1]
        return
    with pytest.raises(RunError, match="with 3.7, of float64, but its observation_space has uint8"):
        env.reset(seed=0)


def test_registered_environments_and_dicts():
    found = interface_of("tests.own_tasks:Registered-v0")
    assert (found.obs_dim, found.act_dim, found.steps, found.mujoco) == (2, 1, 7, False)
    assert math.isinf(interface_of(REACH).steps)
    found = interface_of("tests.own_tasks:Keyed")
    assert (found.parts, found.act_shape) == ((("place",), ("aim", "goal")), (1, 1))
    line, _, note = describe(make_config(env_id="tests.own_tasks:Keyed", dataset="a.npz"), found)
    assert "3 numbers an observation (place, aim/goal), 1 an action" in line
    assert note.startswith("note: the environment shows no step limit; an episode that does not")
    with make_env("tests.own_tasks:Registered-v0") as env:
        observation, _ = env.reset(seed=0)
        # The order of a dict's keys is that of their names.
        inner = env.unwrapped
        assert observation.tolist() == np.float32([inner.goal, inner.point]).tolist()


@pytest.mark.parametrize(
    ("env_id", "options", "rule"),
    [
        ("Pendulum-v1", {}, "an episode that terminates"),
        ("Pendulum-v1", {"success_return": -200.0}, "a return of -200 or more"),
        ("tests.own_tasks:Graded", {"max_episode_steps": 9}, "its info's is_success"),
        ("tests.own_tasks:rescaled", {}, "its info's success"),
    ],
)
def test_the_start_says_what_counts_as_success(env_id, options, rule):
    """And where an episode that terminates does, how to have it otherwise."""
    config = make_config(env_id=env_id, dataset="a.npz", **options)
    line, *notes = describe(config, interface_of(env_id, trying=True, **options))
    assert line.endswith(f"; success: {rule}")
    assert any("pass --success-return" in note for note in notes) == ("terminates" in rule)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("OldReset", "fails at the first reset (TypeError: OldReset.reset() got an unexpected"),
        ("OldStep", "fails at the first step (ValueError: not enough values to unpack (expected 5"),
        ("Failing", "fails at the first step (ValueError: motor is off); expected step(action) ->"),
        ("Wide", "gave an observation of 3 numbers, but its observation_space has 2; return what"),
        ("Blind", "gave an observation with nan as number 1; return finite numbers"),
    ],
)
def test_an_environments_mistakes_are_told_before_training(name, sentence, flags, tmp_path, capsys):
    own = f"tests.own_tasks:{name}"
    assert run(["--env-id", own, *flags[2:]], tmp_path / "run") == 2
    assert f"error: {own} {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sensor_that_fails_later_names_the_environment(workers):
    """In evaluations; and nothing of it comes to the replay buffer."""
    own, options = "tests.own_tasks:Fading", {"max_episode_steps": 12}
    assert interface_of(own, trying=True, **options).obs_dim == 2
    sentence = f"{own} gave an observation with nan as number 1; return finite"
    agent = BCAgent(CloningConfig(actor_hidden_dims=(8,)), 2, 1, [0])
    evaluator = Evaluator(own, 1, workers, env_options=options)
    with pytest.raises(RunError, match=sentence):
        evaluator.evaluate(agent, 0, 1, 0)
    online = OnlineEnvironment(own, 0, **options)
    for _ in range(3):
        online.step(np.zeros(1, np.float32))
    with pytest.raises(RunError, match=sentence):
        online.step(np.zeros(1, np.float32))
    with make_env(own, **options) as env:
        env.reset(seed=0)
        env.unwrapped.step = lambda action: (np.zeros(2), np.inf, False, False, {})
        with pytest.raises(RunError, match=f"{own} gave the reward inf; return a finite number"):
            env.step(np.zeros(1, np.float32))


def test_trains_evaluates_and_reports(flags, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(flags, folder, *ONLINE, "--seeds", "0", "1") == 0
    printed = capsys.readouterr().out
    assert "2 numbers an observation, 1 an action in [-10, 30], scaled to [-1, 1]" in printed
    assert "--discount " in printed and "--sparse" not in printed
    assert "at most 12 steps" in printed and "the environment shows no MuJoCo state" in printed
    config = json.loads((folder / "config.json").read_text())
    assert config["env_name"] == REACH and config["preset"] == "default"
    found = [row for row in rows(folder / "eval.csv") if row["seed"] == "0"]
    assert {row["stage"] for row in found} == {"pretrain", "offline", "online"}
    last = [row for row in found if row["stage"] == "online"][-1]
    assert f"%, return {last['return']} over 2 episodes" in printed
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final_return_by_seed"][0] == float(last["return"])
    assert summary["online_return"] == summary["final_return"]
    table = printed.partition(f"{REACH}, return over 2 episodes")[2]
    assert f"{summary['final_return']:.6g}" in table
    assert len(rows(folder / "episodes.csv")) >= 2
    again = [str(folder), "--episodes", "2", "--workers", "1"]
    assert run_command(lambda: evaluate.main(again)) == 0
    with open(next(folder.glob("evaluation/*/episodes.csv")), newline="") as file:
        played = [row for row in csv.DictReader(file) if row["seed"] == "0"]
    # A worker plays the very episodes of the trainer's own evaluation.
    mean = np.mean([float(row["return"]) for row in played])
    assert np.isclose(mean, float(last["return"]), rtol=1e-6)
    assert run_command(lambda: report.main([str(folder), "--out", str(tmp_path)])) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Return: sum of an episode" in page and f"return {summary['final_return']:.6g}" in page
    assert run_command(lambda: status.main([str(tmp_path)])) == 0


def test_returns_of_a_summary_are_those_of_each_stage():
    """The newest of a stage; of a seed that diverged before its end there is none."""
    ledger, nan = Ledger(), math.nan
    ledger.success = {"pretrain": [0.0, 1.0], "offline": [1.0, nan]}
    given = [("pretrain", 8, 3, -5.0), ("pretrain", 8, 4, -6.0), ("offline", 12, 3, -4.0),
             ("offline", 12, 4, -3.0), ("offline", 16, 3, -2.0)]  # fmt: skip
    evaluations = [Row(stage, step, str(seed), {"return": r}) for stage, step, seed, r in given]
    summary = summarise(make_config(seeds=(3, 4)), "cpp", ledger, evaluations)
    assert summary["pretrained_return_by_seed"] == [-5.0, -6.0]
    assert summary["pretrained_return"] == -5.5 and summary["online_return"] is None
    for name in ("offline", "final"):
        assert summary[f"{name}_return_by_seed"] == [-2.0, None]
        assert summary[f"{name}_return"] == -2.0


def checkpoint_of(folder):
    path = max((folder / "checkpoints").glob("*.pt"))
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kept", [8, 16, 40])
def test_a_resumed_run_ends_as_an_uninterrupted_one(kept, flags, tmp_path):
    """Killed in pretraining, offline, and in the middle of an online episode."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(flags, whole, *ONLINE) == 0
    assert run(flags, cut, *ONLINE, "--keep", "99") == 0
    for path in (cut / "checkpoints").glob("*.pt"):
        if int(path.stem.partition("_")[2]) > kept:
            path.unlink()
    assert run([], cut, "--resume") == 0
    ours, theirs = checkpoint_of(cut), checkpoint_of(whole)
    for name, tensor in theirs["agent"].items():
        assert torch.equal(ours["agent"][name], tensor), name
    for name in ("metrics.csv", "eval.csv", "episodes.csv"):
        assert (cut / name).read_text() == (whole / name).read_text()


@pytest.mark.parametrize("walks", [True, False])
def test_values_go_on_behind_a_time_limit_and_end_at_the_goal(walks):
    env, steps = OnlineEnvironment(REACH, 5, max_episode_steps=40), []
    while not steps or steps[-1].episode is None:
        point, goal = env.observation
        way = np.clip(goal - point, -10, 30) if walks else 0.0
        steps.append(env.step(scaled(np.float32([way]), np.float32([-10]), np.float32([30]))))
    *before, last = ((step.transition["masks"], step.transition["terminals"]) for step in steps)
    assert set(before) == {(1, 0)}
    assert last == ((0, 1) if walks else (1, 1))
    assert steps[-1].episode["length"] == len(steps) and (len(steps) == 40) == (not walks)


def test_what_cannot_be_repeated_begins_a_new_episode(dataset):
    options = {"max_episode_steps": 50}
    env = OnlineEnvironment("tests.own_tasks:Noisy", 5, **options)
    action = np.float32([-0.5])
    for _ in range(3):
        env.step(action)
    again = OnlineEnvironment("tests.own_tasks:Noisy", 5, **options)
    with pytest.warns(UserWarning, match="the next episode begins"):
        assert not again.load_state_dict(env.state_dict())
    assert again.episode == env.episode + 1 and not again.actions
    same = OnlineEnvironment(REACH, 5, **options)
    for _ in range(3):
        same.step(action)
    again = OnlineEnvironment(REACH, 5, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again.load_state_dict(same.state_dict())
    assert np.array_equal(again.observation, same.observation) and len(again.actions) == 3


def test_an_episode_that_cannot_be_repeated_is_cut_off_in_the_buffer(flags, dataset, tmp_path):
    flags = ["--env-id", "tests.own_tasks:Noisy", *flags[2:], *ONLINE]
    assert run(flags, tmp_path / "run", "--keep", "99") == 0
    # A checkpoint in the middle of an episode, of which the last transition does not end one.
    for path in sorted((tmp_path / "run" / "checkpoints").glob("*.pt"), reverse=True):
        state = torch.load(path, weights_only=True)
        if state["online"] is not None and state["online"]["buffer"]["terminals"][0, -1] == 0:
            break
        path.unlink()
    added = state["online"]["buffer"]["terminals"].shape[1]
    with pytest.warns(UserWarning, match="not the uninterrupted one"):
        assert run([], tmp_path / "run", "--resume", "--online-steps", str(added + 4)) == 0
    terminals = checkpoint_of(tmp_path / "run")["online"]["buffer"]["terminals"]
    assert terminals[0, added - 1] == 1


def test_data_must_be_named_and_exclude_what_is_ogbenchs(dataset, tmp_path, capsys):
    def refused(*words):
        assert run(list(words), tmp_path / "run") == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "Pendulum-v1 has no data of OGBench; name yours with --dataset" in refused(
        "--env-id", "Pendulum-v1"
    )
    own = ("--env-id", REACH, "--dataset", str(dataset))
    assert "--sparse is True; it is for OGBench's data" in refused(*own, "--sparse")
    assert "--generated is True; it is for OGBench's data" in refused(*own, "--generated")
    assert "use 1 or more" in refused(*own, "--max-episode-steps", "0")
    assert "name the environment that the data are of" in refused(
        "--env-id", "Pendulum-v1", "--dataset", str(dataset)
    )
    assert "Seeing has 66 with its pictures, which are not read; wrap it" in refused(
        "--env-id", "tests.own_tasks:Seeing", "--dataset", str(dataset)
    )
    assert look_at(parse_source(str(dataset)), "tests.own_tasks:blindfold")[0] == []


def test_the_data_of_a_resumed_run_may_move_but_not_change(flags, dataset, tmp_path, capsys):
    folder, moved = tmp_path / "run", tmp_path / "moved.npz"
    assert run(flags, folder) == 0
    moved.write_bytes(dataset.read_bytes())
    more = ("--resume", "--dataset", str(moved), "--offline-steps", "12")
    assert run([], folder, *more) == 0
    own_tasks.write_data(moved, episodes=10)
    capsys.readouterr()
    assert run([], folder, "--resume", "--offline-steps", "16") == 2
    assert "the run was trained on" in capsys.readouterr().err
    moved.unlink()
    assert run([], folder, "--resume", "--offline-steps", "16") == 2
    assert "check the path, or name with --dataset where the data" in capsys.readouterr().err


def test_a_task_of_ogbench_with_data_of_ones_own(tmp_path):
    rng, name = np.random.default_rng(0), "pointmaze-medium-navigate-singletask-task1-v0"
    np.savez(
        tmp_path / "mine.npz", observations=rng.normal(size=(40, 2)), rewards=-np.ones(40),
        actions=rng.uniform(-1, 1, (40, 2)), terminals=np.arange(40) % 10 == 9,
    )  # fmt: skip
    flags = ["--env-name", name, "--dataset", str(tmp_path / "mine.npz"), *SMALL]
    assert run(flags, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["generated"] is False


def test_configurations_name_the_data_whatever_the_folder(dataset, monkeypatch, tmp_path):
    monkeypatch.chdir(dataset.parent)
    config = make_config(env_id=REACH, dataset="reach.npz", seeds=[0, 1])
    assert config.dataset == f"npz:{dataset}" and config.seeds == (0, 1)
    assert RunFolder.new(REACH, "trqam").path.parts[-3:-1] == ("tests.own_tasks.Reach", "trqam")


def test_a_sweep_takes_tasks_of_ones_own(dataset, tmp_path):
    values = {
        "tasks": [REACH], "algos": ["bc", "trqam"], "seeds": [0],
        "task": {REACH: {"dataset": str(dataset), "max_episode_steps": 12}},
    }  # fmt: skip
    jobs = make_plan(parse_spec(values), tmp_path)
    assert [job.name.partition("/")[0] for job in jobs] == ["tests.own_tasks.Reach"] * 2
    assert all(job.train_config().dataset == f"npz:{dataset}" for job in jobs)
    assert all(job.train_config().env_options == {"max_episode_steps": 12} for job in jobs)


def test_workers_play_the_same_episodes(flags, tmp_path):
    assert run(flags, tmp_path / "run", "--seeds", "0") == 0
    loaded = train.Policy.load(tmp_path / "run")
    results = []
    for workers in (0, 2):
        evaluator = Evaluator(REACH, 3, workers, env_options={"max_episode_steps": 12})
        results.append(evaluator.evaluate(loaded.agent, 0, 4, 7))
        evaluator.close()
    assert results[0] == results[1]
