"""Generated data: shards, workers, experts, what is kept and what is made again.

Longer than 400 lines, as all of it makes the same small sets.
"""

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ogbench
import pytest

from trqam_fast.data import __main__ as command
from trqam_fast.data.generate import expert, manipspace, pointmaze, recipe, shards
from trqam_fast.data.generate.manipspace import is_healthy
from trqam_fast.data.generate.recipe import GENERATED_NAMES, GENERATOR_VERSION, Recipe
from trqam_fast.data.generate.shards import plan_shards
from trqam_fast.data.generate.workers import make_shards
from trqam_fast.errors import RunError, UsageError
from trqam_fast.model_card import data_in_words
from trqam_fast.training.presets import make_config

MAZE = "pointmaze-medium-navigate-v0"
PROGRAM = """
import sys
from dataclasses import dataclass
from pathlib import Path

def main():
    from trqam_fast.data.generate.recipe import Recipe

    folder, transitions, workers = sys.argv[1:]
    recipe = Recipe("pointmaze-medium-navigate-v0", int(transitions), None, 3)
    print(recipe.ensure(Path(folder), workers=int(workers)))
    return 0

if __name__ == "__main__":
    from trqam_fast.cli import run_command

    sys.exit(run_command(main))
"""


class FakeExpert:
    """Makes numbered rows; `trouble` is what happens at trajectory 5."""

    def __init__(self, trouble=None):
        self.trouble = trouble

    def episode(self, stream, index):
        if index == 5 and self.trouble == "raise":
            raise ValueError("the cube is gone")
        if index == 5 and self.trouble == "die":
            os._exit(3)
        if index == 5 and self.trouble == "sleep":
            time.sleep(100)
        values = np.random.default_rng([index, stream == "val"]).normal(size=(7, 3))
        return {"observations": values.astype(np.float32), "terminals": np.arange(7) == 6}

    def close(self):
        pass


class RaisingExpert(FakeExpert):
    def __init__(self):
        super().__init__("raise")


class DyingExpert(FakeExpert):
    def __init__(self):
        super().__init__("die")


class SleepingExpert(FakeExpert):
    def __init__(self):
        super().__init__("sleep")


@contextlib.contextmanager
def episode_steps(steps):
    """Make shorter trajectories, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (expert, manipspace, pointmaze, recipe):
            patch.setattr(module, "EPISODE_STEPS", steps)
        yield


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*.npz") if p.parent != folder}


def start(tmp_path, folder, transitions, workers, **options):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, program, folder, str(transitions), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)


def group_is_gone(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """The files of 20 trajectories, made in this process."""
    folder = tmp_path_factory.mktemp("generated")
    Recipe(MAZE, 20_000, None, 3).ensure(folder, progress=False)
    return folder


@pytest.mark.parametrize(
    "name", [MAZE, "cube-double-noisy-v0", "scene-play-v0", "puzzle-3x3-noisy-v0"]
)
def test_a_trajectory_does_not_depend_on_those_before_it(name):
    with episode_steps(120):
        alone = Recipe(name, 1, None, 0).expert().episode("train", 3)
        expert = Recipe(name, 10_000, None, 0).expert()
        before = [expert.episode("train", index) for index in range(3)]
        assert same(expert.episode("train", 3), alone)
        val = expert.episode("val", 3)
        expert.seed = 1
        for other in (before[0], val, expert.episode("train", 3)):
            assert not np.array_equal(other["actions"], alone["actions"])


def test_the_global_generator_is_left_alone():
    np.random.seed(1)
    expected = np.random.get_state()[1].copy()
    with episode_steps(5):
        Recipe("cube-single-play-v0", 1, None, 0).expert().episode("train", 0)
    assert np.array_equal(np.random.get_state()[1], expected)


def test_pointmaze_files(maze):
    path = Recipe(MAZE, 20_000, None, 3).path(maze)
    with np.load(path) as train, np.load(path.with_name(f"{MAZE}-val.npz")) as val:
        assert train["observations"].shape == (20 * 1001, 2)
        assert train["terminals"].nonzero()[0].tolist() == [1001 * i + 1000 for i in range(20)]
        assert val["terminals"].sum() == 2
        assert np.abs(train["actions"]).max() <= 1
        # The point moves by 0.2 a where it is free.
        moved = np.diff(train["observations"][:1000], axis=0)
        free = np.isclose(moved, 0.2 * train["actions"][:999], atol=1e-3).all(1)
        assert free.mean() > 0.5
    assert sorted(p.name for p in maze.iterdir()) == [
        f".{MAZE}-generated{GENERATOR_VERSION}-20000-noise0.5-seed3.lock",
        f"{MAZE}-generated{GENERATOR_VERSION}-20000-noise0.5-seed3",
    ]


@pytest.mark.parametrize(
    ("name", "task", "shapes"),
    [
        (MAZE, "pointmaze-medium-navigate-singletask-task1-v0", {}),
        ("cube-single-play-v0", "cube-single-play-singletask-task2-v0", {"qpos": 21}),
        ("scene-noisy-v0", "scene-noisy-singletask-task1-v0", {"qpos": 25, "button_states": 2}),
        ("puzzle-3x3-play-v0", "puzzle-3x3-play-singletask-v0", {"qpos": 23, "button_states": 9}),
    ],
)
def test_ogbench_reads_the_files(name, task, shapes, tmp_path):
    with episode_steps(100):
        made = Recipe(name, 200, None, 0)
        path = made.ensure(tmp_path, progress=False)
    with np.load(path) as archive:
        raw = {key: archive[key] for key in archive.files}
    assert {key: raw[key].shape for key in shapes} == {k: (202, n) for k, n in shapes.items()}
    floats = set(raw) - {"terminals", "button_states"}
    assert {raw[key].dtype for key in floats} == {np.dtype("float32")}
    assert raw["terminals"].dtype == bool
    if "button_states" in raw:
        assert raw["button_states"].dtype == np.int64
    if name.startswith("puzzle"):
        assert (np.diff(raw["button_states"][:101], axis=0) != 0).any()
    if name.startswith("cube"):
        assert raw["qpos"][:, 16].max() > 0.08  # the cube, whose centre lies at 0.02, was lifted
    env, train, val = ogbench.make_env_and_datasets(task, dataset_dir=str(path.parent))
    assert train["observations"].shape == (200, *env.observation_space.shape)
    assert train["actions"].shape == (200, *env.action_space.shape)
    assert val["observations"].shape == (100, *env.observation_space.shape)
    for data in (train, val):
        assert np.isfinite(data["rewards"]).all()
        assert data["rewards"].max() <= 0
        ends = data["terminals"].nonzero()[0]
        assert ends.tolist() == list(range(99, len(data["rewards"]), 100))
        inside = data["terminals"][:-1] == 0
        assert np.array_equal(
            data["next_observations"][:-1][inside], data["observations"][1:][inside]
        )
    env.close()


def test_the_trainer_reads_the_files(maze):
    from trqam_fast.data.load import load_task

    task, made = "pointmaze-medium-navigate-singletask-task1-v0", Recipe(MAZE, 20_000, None, 3)
    data, path = load_task(task, recipe=made, generated_dir=maze, progress=False)
    assert path == made.path(maze)
    assert len(data) == 20_000
    assert load_task(task, dataset_dir=path.parent)[1] == path


def test_workers_make_the_same_bytes(maze, tmp_path):
    Recipe(MAZE, 20_000, None, 3).ensure(tmp_path, progress=False, workers=2)
    assert contents(tmp_path) == contents(maze)
    assert len(contents(maze)) == 2


@pytest.mark.slow
def test_a_killed_generation_goes_on_where_it_stopped(maze, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    process = start(tmp_path, folder, 20_000, 2)
    wait_until(lambda: list(folder.glob(".*.shards/train-*.npz")))
    process.kill()
    process.communicate()
    wait_until(lambda: group_is_gone(process))  # the workers too
    kept = list(folder.glob(".*.shards/train-*.npz"))
    assert 1 <= len(kept) <= 4
    assert not contents(folder).keys() & contents(maze).keys()

    made = []
    episode = pointmaze.MazeExpert.episode

    def counted(self, stream, index):
        made.append((stream, index))
        return episode(self, stream, index)

    monkeypatch.setattr(pointmaze.MazeExpert, "episode", counted)
    Recipe(MAZE, 1000, None, 4).ensure(folder, progress=False)  # takes nothing from the other one
    assert made == [("train", 0), ("val", 0)]
    made.clear()
    Recipe(MAZE, 20_000, None, 3).ensure(folder, progress=False)
    assert len(made) == 22 - 4 * len(kept)
    name = Recipe(MAZE, 20_000, None, 3).folder_name
    for file in (folder / name).iterdir():
        assert file.read_bytes() == contents(maze)[file.name]
    assert not list(folder.glob(".*.shards"))


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(tmp_path):
    folder = tmp_path / "data"
    process = start(tmp_path, folder, 500_000, 2)
    wait_until(lambda: list(folder.glob(".*.shards/train-*.npz")))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    wait_until(lambda: group_is_gone(process), seconds=5)


@pytest.mark.parametrize(
    ("expert", "workers", "message"),
    [
        (RaisingExpert, 1, r"trajectory 5 of train cannot .* \(ValueError: the cube is gone\)"),
        (RaisingExpert, 2, r"trajectory 5 of train cannot .* \(ValueError: the cube is gone\)"),
        (DyingExpert, 2, "^a worker process died; finished trajectories are kept"),
    ],
)
def test_a_failure_stops_everything(expert, workers, message, tmp_path):
    plan = plan_shards(tmp_path, "train", 11)
    with pytest.raises(RunError, match=message) as failure:
        for _ in make_shards(plan, expert, workers):
            pass
    assert "\n" not in str(failure.value)
    assert not multiprocessing.active_children()
    assert not plan[1].path.exists()
    missing = [shard for shard in plan if not shard.path.exists()]
    assert sum(make_shards(missing, FakeExpert, 1)) == sum(s.episodes for s in missing)
    assert all(shard.path.exists() for shard in plan)


@dataclass
class Making:
    """Makes experts as a recipe does, by a method, and leaves a file for each."""

    folder: Path

    def expert(self):
        (self.folder / f"{uuid.uuid4()}.expert").touch()
        return FakeExpert()


def test_a_worker_keeps_its_expert(tmp_path):
    """One for each shard was 160 MB more for each, until the memory was full."""
    plan = plan_shards(tmp_path, "train", 30)
    assert len(plan) == 8 and sum(make_shards(plan, Making(tmp_path).expert, 2)) == 30
    assert 1 <= len(list(tmp_path.glob("*.expert"))) <= 2


def test_closing_the_iterator_ends_the_workers(tmp_path):
    """At once, whatever they are at; what is made is kept."""
    plan = plan_shards(tmp_path, "train", 11)
    steps = make_shards(plan, SleepingExpert, 2)
    assert next(steps) in (3, 4)
    began = time.monotonic()
    steps.close()
    assert time.monotonic() - began < 20 and not multiprocessing.active_children()
    assert 1 <= sum(shard.path.exists() for shard in plan) <= 2


def test_assembled_files_are_those_of_one_array(tmp_path):
    plan = plan_shards(tmp_path, "val", 10)
    assert [(shard.first, shard.episodes) for shard in plan] == [(0, 4), (4, 4), (8, 2)]
    for _ in make_shards(plan, FakeExpert, 1):
        pass
    shards.assemble(plan, tmp_path / "all.npz")
    episodes = [FakeExpert().episode("val", index) for index in range(10)]
    with np.load(tmp_path / "all.npz") as archive:
        for name in ("observations", "terminals"):
            expected = np.concatenate([episode[name] for episode in episodes])
            assert archive[name].dtype == expected.dtype
            assert np.array_equal(archive[name], expected)
    assert not list(tmp_path.glob(".*.partial"))


def test_a_damaged_shard_is_made_again(tmp_path, monkeypatch, capsys, refused):
    """One that cannot be read stays: it may be whole."""
    making, folder = Recipe(MAZE, 11_000, None, 3), tmp_path / "data"
    monkeypatch.setattr(Recipe, "expert", lambda self: RaisingExpert())
    with pytest.raises(RunError, match="trajectory 5 of train"):
        making.ensure(folder, progress=False)
    (shard,) = folder.glob(".*.shards/train-*.npz")
    whole = shard.read_bytes()
    monkeypatch.setattr(Recipe, "expert", lambda self: FakeExpert())
    with refused(shard, errno.EACCES), pytest.raises(RunError, match=f"{shard} cannot be read"):
        making.ensure(folder, progress=False)
    assert shard.read_bytes() == whole
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(UsageError, match=f"{shard} is damaged .*; the command makes it again"):
        shards.assemble([shards.Shard(shard, "train", 0, 4)], tmp_path / "all.npz")
    capsys.readouterr()
    making.ensure(folder, progress=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {shard} is damaged (")
    whole, other = (shards.Shard(tmp_path / name, "train", 0, 4) for name in ("a.npz", "b.npz"))
    for kind, names in (("datetime64[s]", "b.npz is damaged"), ("float64", "b.npz does not fit a")):
        for made, dtype in ((whole, "float32"), (other, kind)):
            np.savez(made.path, terminals=np.zeros(3).astype(dtype))
        with pytest.raises(UsageError, match=names):
            shards.assemble([whole, other], tmp_path / "all.npz")
    assert not other.path.with_name("all.npz").exists()
    assert whole.is_made()
    for odd in ({}, {"actions": np.zeros(2)}, {"actions": np.zeros(0)}, {"actions": np.float32(1)}):
        np.savez(other.path, **({"terminals": np.zeros(3)} | odd if odd else {}))
        capsys.readouterr()
        assert (
            not other.is_made() and f"warning: {other.path} is damaged" in capsys.readouterr().err
        )
    making.ensure(tmp_path / "undisturbed", progress=False)
    found, expected = contents(folder), contents(tmp_path / "undisturbed")
    assert len(expected) == 2 and found == expected


def test_the_second_of_two_generations_waits(tmp_path, monkeypatch, capsys):
    made = []

    class Slow(FakeExpert):
        def episode(self, stream, index):
            time.sleep(0.05)
            made.append((stream, index))
            return super().episode(stream, index)

    monkeypatch.setattr(Recipe, "expert", lambda self: Slow())
    recipes = [Recipe("cube-single-play-v0", 10_000, None, 0) for _ in range(3)]
    threads = [threading.Thread(target=r.ensure, args=(tmp_path, True)) for r in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [("train", i) for i in range(10)] + [("val", 0)]
    assert capsys.readouterr().err.count("waiting for another process") == 2


def test_recipe_names(tmp_path):
    assert len(GENERATED_NAMES) == 18
    play = Recipe("cube-double-play-v0", 1500, None, 0)
    assert play == Recipe("cube-double-play-v0", 2000, 0.1, 0)
    name = f"cube-double-play-v0-generated{GENERATOR_VERSION}-2000-noise0.1-seed0"
    assert play.path(Path("/data")) == Path("/data") / name / "cube-double-play-v0.npz"
    assert not play.is_stored(tmp_path)
    play.path(tmp_path).with_suffix(".flat").mkdir(parents=True)  # alone, it is enough
    assert play.is_stored(tmp_path)
    assert play.val_path(Path("/data")).name == "cube-double-play-v0-val.npz"
    assert Recipe("cube-double-play-v0", 100_000, None, 0).val_episodes == 10
    assert Recipe(MAZE, 1, None, 0).noise == 0.5


def test_the_noise_is_told_in_full(monkeypatch, capsys):
    """So that the flags name these data, and a card those that were trained on."""
    monkeypatch.setattr(Recipe, "ensure", lambda self, folder, **options: self.path(folder))
    assert command.main(["generate", MAZE, "--noise", "0.123456789"]) == 0
    assert "--generated-noise 0.123456789 " in capsys.readouterr().out
    config = make_config(generated=True, generated_noise=0.123456789)
    assert "action noise 0.123456789," in data_in_words(config, "")


def test_bad_recipes(tmp_path):
    with pytest.raises(UsageError, match="trained network that this package does not have"):
        Recipe("antmaze-large-navigate-v0", 1000, None, 0)
    with pytest.raises(UsageError, match="did you mean cube-double-play-v0?"):
        Recipe("cube-duoble-play-v0", 1000, None, 0)
    for values in ((0, None, 0), (1, -0.1, 0), (1, float("nan"), 0), (1, None, -1)):
        with pytest.raises(UsageError, match="cannot be generated"):
            Recipe(MAZE, *values)
    with pytest.raises(UsageError, match="--workers is 0; use 1 or more"):
        Recipe(MAZE, 1000, None, 0).ensure(tmp_path, workers=0)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="cannot write"):
        Recipe(MAZE, 1000, None, 0).ensure(tmp_path / "file", progress=False)


def test_health_of_a_scene():
    qpos = np.zeros((3, 20))
    qpos[:, 14:17] = [0.4, 0.0, 0.02]
    assert is_healthy(qpos)
    for position, healthy in (
        ([0.4, 0.29, 0.02], False),
        ([0.33, -0.31, 0.066], True),
        ([0.33, -0.31, 0.02], False),
        ([0.33, -0.31, 0.2], False),
    ):
        qpos[1, 14:17] = position
        assert is_healthy(qpos) == healthy


def test_an_unhealthy_scene_is_repeated(monkeypatch):
    verdicts = iter([False, False, True])
    monkeypatch.setattr(manipspace, "is_healthy", lambda qpos: next(verdicts))
    with episode_steps(20):
        episode = Recipe("scene-play-v0", 1, None, 0).expert().episode("train", 0)
    assert len(episode["observations"]) == 21
    assert next(verdicts, None) is None
