import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from tests import own_tasks
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.cli import run_command
from trqam_fast.errors import RunError
from trqam_fast.evaluation import Evaluator
from trqam_fast.evaluation.episodes import Request, Slot, Start, Troupe, make_env
from trqam_fast.evaluation.policy import ROWS, choose_chunks

CONFIG = TRQAMConfig(
    actor_hidden_dims=(8,), value_hidden_dims=(8,), num_qs=2, flow_steps=2, horizon_length=5,
    action_chunking=True,
)  # fmt: skip
MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
SHORT = {"max_episode_steps": 40}


def make_agent(obs_dim=2, act_dim=2, seeds=(0, 1), config=CONFIG, **options):
    return TRQAMAgent(config, obs_dim, act_dim, list(seeds), **options)


def traced(agent, rows):
    """Add every observation that the policy sees to the set `rows`, bit for bit."""
    act = agent.act

    def recording(observations, noise, run=None):
        rows.update(row.tobytes() for row in observations[0].numpy())
        return act(observations, noise, run=run)

    agent.act = recording
    return agent


@pytest.fixture
def closing():
    """Evaluators that are closed when the test ends."""
    made = []

    def make(*arguments, **options):
        made.append(Evaluator(*arguments, **({"env_options": SHORT} | options)))
        return made[-1]

    yield make
    for evaluator in made:
        evaluator.close()


def processes(evaluator):
    return [player.process for player in evaluator.players]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_episodes_do_not_depend_on_workers_or_environments(closing, backend):
    outcomes = []
    for envs, workers in ((1, 0), (5, 0), (5, 1), (6, 2), (3, 3)):
        seen = set()
        agent = traced(make_agent(backend=backend), seen)
        # A teleporter draws from numpy's global generator.
        name = "pointmaze-teleport-navigate-singletask-task1-v0"
        evaluator = closing(name, envs, workers)
        np.random.seed(envs)
        before = np.random.get_state()[1].copy()
        threads = torch.get_num_threads()
        outcomes.append((evaluator.evaluate(agent, 1, 7, seed=7), seen))
        assert np.array_equal(np.random.get_state()[1], before)
        assert torch.get_num_threads() == threads
    assert len(outcomes[0][1]) == 7 * 8  # 40 steps in chunks of 5
    assert all(outcome == outcomes[0] for outcome in outcomes[1:])


def test_every_episode_has_its_own_state_of_the_global_generator(closing, monkeypatch):
    def make_noisy_env(*arguments, **options):
        """Every step depends on numpy's global generator, as a teleporter's does."""
        env = make_env(*arguments, **options)
        step = env.step

        def noisy(action):
            observation, *rest = step(action)
            return observation + np.random.standard_normal(2), *rest

        env.step = noisy
        return env

    monkeypatch.setattr("trqam_fast.evaluation.episodes.make_env", make_noisy_env)
    outcomes = []
    for envs in (1, 2, 5):
        outcomes.append(set())
        agent = traced(make_agent(), outcomes[-1])
        closing(MAZE, envs).evaluate(agent, 0, 5, seed=7)
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_the_policy_computes_with_one_thread(closing):
    agent, before = make_agent(), torch.get_num_threads()
    act, threads = agent.act, set()

    def counting(*arguments, **options):
        threads.add(torch.get_num_threads())
        return act(*arguments, **options)

    agent.act = counting
    try:
        torch.set_num_threads(2)
        closing(MAZE, 2).evaluate(agent, 0, 2, seed=0)
        assert threads == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("width, best_of_n", [(8, 1), (512, 1), (32, 4)])
def test_a_row_of_a_policy_call_does_not_depend_on_the_others(backend, width, best_of_n):
    config = TRQAMConfig(
        actor_hidden_dims=(width,) * 2, value_hidden_dims=(16,), num_qs=2, flow_steps=3,
        horizon_length=5, action_chunking=True, best_of_n=best_of_n,
    )  # fmt: skip
    agent = make_agent(37, 5, config=config, backend=backend)
    rng = np.random.default_rng(0)
    requests = [
        Request(rng.standard_normal(37), rng.standard_normal((best_of_n, agent.dim)))
        for _ in range(2 * ROWS + 3)
    ]
    together = choose_chunks(agent, 1, requests)
    assert len(together) == len(requests) and together[0].shape == (5, 5)
    for count in (1, 2, 3, ROWS - 1, ROWS, ROWS + 1):
        for first in range(0, len(requests) - count, 7):
            part = choose_chunks(agent, 1, requests[first : first + count])
            for ours, wanted in zip(part, together[first:], strict=False):
                assert np.array_equal(ours, wanted)


@pytest.mark.parametrize(
    "env_id",
    [
        "pointmaze-teleport-singletask-task1-v0", "cube-double-singletask-task2-v0",
        "scene-singletask-task2-v0", "puzzle-3x3-singletask-task2-v0",
    ],
)  # fmt: skip
def test_nothing_leaks_from_one_episode_to_the_next(env_id):
    def play(slot, episode):
        """Return everything that a policy sees of an episode with fixed actions."""
        request = slot.start(Start(episode, 9, (1, 2)))
        actions = np.random.default_rng(episode).uniform(-1, 1, (6, 5, 5))
        # Down, gripper closed: into objects and buttons.
        actions[..., 2] -= 0.5
        seen = [request.observation]
        for chunk in actions:
            seen.append(slot.play(chunk[:, : slot.env.action_space.shape[0]]).observation)
        return np.stack(seen), physics(slot.env)

    def physics(env):
        data = getattr(env.unwrapped, "_data", None) or env.unwrapped.data
        names = ("qpos", "qvel", "ctrl", "qacc_warmstart", "cfrc_ext", "time", "mocap_pos")
        return np.concatenate([np.ravel(getattr(data, name)) for name in names])

    used, fresh = Slot(env_id, {}), Slot(env_id, {})
    for episode in (0, 1, 2):
        play(used, episode)
    for ours, wanted in zip(play(used, 3), play(fresh, 3), strict=True):
        assert np.array_equal(ours, wanted)
    used.start(Start(4, 9, (1, 2)))
    fresh.start(Start(4, 9, (1, 2)))
    assert np.array_equal(physics(used.env), physics(fresh.env))
    used.env.close()
    fresh.env.close()


def test_an_episode_alone_equals_the_same_among_others():
    """Through the environment's whole life: start orders in another order, in one slot."""
    agent = make_agent()

    def play(troupe, episode):
        (reply,) = troupe.play([(0, Start(episode, 5, (1, agent.dim)))])
        seen = []
        while isinstance(reply, Request):
            seen.append(reply.observation)
            (reply,) = troupe.play([(0, choose_chunks(agent, 0, [reply])[0])])
        return np.stack(seen), reply

    def troupe():
        return Troupe("pointmaze-medium-singletask-task1-v0", SHORT)

    first = troupe()
    for episode in (0, 1, 2):
        play(first, episode)
    (ours, result), (wanted, alone) = play(first, 3), play(troupe(), 3)
    assert np.array_equal(ours, wanted) and result == alone


def test_the_action_space_of_an_environment_can_be_seeded():
    env = make_env("cube-single-singletask-task1-v0")
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    env.action_space.seed(3)
    first = env.unwrapped.action_space.sample()
    env.action_space.seed(3)
    assert np.array_equal(env.unwrapped.action_space.sample(), first)
    env.close()


def test_chunks_are_executed_open_loop(closing):
    agent, calls = make_agent(), []
    act = agent.act

    def counted(observations, noise, run=None):
        calls.append(len(np.unique(observations[0].numpy(), axis=0)))
        assert observations.shape[1] == ROWS
        return act(observations, noise, run=run)

    agent.act = counted
    closing(MAZE, 4).evaluate(agent, 0, 4, seed=0)
    assert calls == [4] * 8  # 40 steps in chunks of 5, all environments in one call


def test_each_run_acts_with_its_own_weights(closing):
    seen = set()
    agent, evaluator = traced(make_agent(), seen), closing(MAZE, 2)
    evaluator.evaluate(agent, 0, 2, seed=0)
    first = set(seen)
    with torch.no_grad():
        agent.online.flat[1].add_(1.0)
    evaluator.evaluate(agent, 0, 2, seed=0)
    assert seen == first
    evaluator.evaluate(agent, 1, 2, seed=0)
    assert seen != first


def test_workers_are_kept_and_closed(closing):
    agent, evaluator = make_agent(), closing(MAZE, 4, 2)
    first = evaluator.evaluate(agent, 0, 6, seed=0)
    before = processes(evaluator)
    assert evaluator.evaluate(agent, 0, 6, seed=0) == first
    assert processes(evaluator) == before
    maps = Path(f"/proc/{before[0].pid}/maps").read_text()
    assert "mujoco" in maps and "libtorch" not in maps
    evaluator.close()
    assert all(process.poll() is not None for process in before)
    assert evaluator.evaluate(agent, 0, 2, seed=0) == first[:2]  # starts again


def test_a_killed_worker_is_restarted_and_its_episodes_repeated(closing):
    agent, evaluator, seen = make_agent(), closing(MAZE, 4, 2), set()
    whole = closing(MAZE, 4).evaluate(traced(agent, seen), 0, 6, seed=0)
    wanted = set(seen)
    act, calls = agent.act, []

    def killing(*arguments, **options):
        calls.append(0)
        if len(calls) in (2, 5, 9):
            os.kill(processes(evaluator)[len(calls) % 2].pid, signal.SIGKILL)
        return act(*arguments, **options)

    agent.act = killing
    assert evaluator.evaluate(agent, 0, 6, seed=0) == whole
    assert seen == wanted


def test_an_episode_is_repeated_three_times_at_most(closing):
    agent, evaluator, killed = make_agent(), closing(MAZE, 2, 1), []
    act = agent.act

    def killing(*arguments, **options):
        (process,) = processes(evaluator)
        if process.pid not in killed:
            killed.append(process.pid)
            process.kill()
        return act(*arguments, **options)

    agent.act = killing
    with pytest.raises(RunError, match="died 4 times.*without workers to see why"):
        evaluator.evaluate(agent, 0, 2, seed=0)
    assert len(killed) == 4 and processes(evaluator) == [None]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_that_fails_is_no_mistake_of_this_package(workers, closing, capfd):
    agent = make_agent(act_dim=1)
    evaluator = closing("tests.own_tasks:Failing", 2, workers, env_options={})
    assert run_command(lambda: evaluator.evaluate(agent, 0, 2, seed=0)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    place = f"{Path(own_tasks.__file__)}:{own_tasks.FAILING_LINE}"
    start = f"error: ValueError: motor is off; it comes from {place}, which is not of trqam_fast; "
    assert line.startswith(f"{start}its trace is in ")
    trace = Path(line.rpartition(" ")[2])
    assert "in step" in trace.read_text()
    trace.unlink()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_without_an_end_is_told_once(workers, closing, monkeypatch, capfd):
    evaluator = closing(MAZE, 1, workers)
    evaluator.evaluate(make_agent(), 0, 2, seed=1)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("trqam_fast.evaluation.evaluator.PATIENCE", -1.0)
    for said in (f"note: no episode of {MAZE} has ended in the first", ""):
        evaluator.evaluate(make_agent(), 0, 2, seed=1)
        *lines, rest = capfd.readouterr().err.split("\n")
        assert rest == "" and [line[: len(said)] for line in lines] == [said] * bool(said)


def test_a_mistake_of_this_package_is_called_one(capsys):
    """Wherever below it the error arose: here in torch, called by a user's code before."""

    def of_a_user():
        choose_chunks(make_agent(), 0, [Request(np.zeros(7), np.zeros((1, 10)))])

    assert run_command(of_a_user) == 1
    said = capsys.readouterr().err
    assert "this is a mistake in trqam_fast, whose trace is in" in said
    Path(said.partition("trace is in ")[2].partition(";")[0]).unlink()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(ending):
    code = """
from tests.test_evaluation import MAZE, make_agent
from trqam_fast.evaluation import Evaluator
evaluator = Evaluator(MAZE, 4, 2)
agent = make_agent()
act, told = agent.act, []
def telling(*arguments, **options):
    if not told:
        told.append(print(*(p.process.pid for p in evaluator.players), flush=True))
    return act(*arguments, **options)
agent.act = telling
evaluator.evaluate(agent, 0, 1000, seed=0)
"""
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    with program:
        pids = [int(word) for word in program.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        program.send_signal(ending)
        errors = program.stderr.read()
    assert ("KeyboardInterrupt" in errors) == (ending == signal.SIGINT)
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
