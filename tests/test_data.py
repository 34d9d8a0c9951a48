from pathlib import Path

import numpy as np
import pytest
import torch

from trqam_fast.data.dataset import Dataset
from trqam_fast.data.names import known_tasks, parse_task
from trqam_fast.data.pointmaze import generate
from trqam_fast.data.recipe import GENERATED_DIR, Recipe
from trqam_fast.data.sources import OFFICIAL_DIR, load_arrays, load_task
from trqam_fast.errors import UsageError

DATA = Path(__file__).parent / "data"
TASK = "pointmaze-medium-navigate-singletask-task1-v0"


@pytest.fixture(scope="module")
def recorded():
    with np.load(DATA / "sample_sequence.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.mark.parametrize("horizon", [1, 2, 5, 10])
def test_sequence_sampler(recorded, horizon):
    arrays = {k.removeprefix("data/"): v for k, v in recorded.items() if k.startswith("data/")}
    dataset = Dataset.from_arrays(arrays)
    found = dataset.sequences(
        torch.from_numpy(recorded[f"h{horizon}/indices"]), horizon, float(recorded["discount"])
    )
    for name, value in found._asdict().items():
        expected = torch.from_numpy(recorded[f"h{horizon}/{name}"])
        assert value.shape == expected.shape, name
        tolerance = 1e-6 if name == "rewards" else 0
        torch.testing.assert_close(value.double(), expected.double(), atol=tolerance, rtol=1e-6)


def test_sequences_cross_the_end_of_a_trajectory():
    n = 6
    arrays = {
        "observations": np.arange(n)[:, None],
        "actions": np.arange(n)[:, None],
        "rewards": -np.ones(n),
        "masks": np.array([1, 1, 1, 0, 1, 1]),
        "terminals": np.array([0, 0, 1, 0, 0, 1]),
        "next_observations": np.arange(n)[:, None] + 0.5,
    }
    found = Dataset.from_arrays(arrays).sequences(torch.tensor([1]), 4, 0.5)
    assert found.valid.tolist() == [[1, 1, 0, 0]]
    assert found.rewards.tolist() == [[-1, -1.5, -1.5, -1.5]]
    assert found.masks.tolist() == [[1, 1, 1, 1]]  # the 0 lies in the next trajectory
    assert found.terminals.tolist() == [[0, 1, 1, 1]]
    assert found.next_observations[0, :, 0].tolist() == [1.5, 2.5, 2.5, 2.5]
    assert found.actions[0, :, 0].tolist() == [1, 2, 3, 4]


def small_dataset(n=50):
    rng = np.random.default_rng(0)
    return Dataset.from_arrays(
        {
            "observations": rng.normal(size=(n, 3)),
            "actions": rng.uniform(-1, 1, size=(n, 2)),
            "rewards": -np.ones(n),
            "masks": np.ones(n),
            "terminals": np.zeros(n),
            "next_observations": rng.normal(size=(n, 3)),
        }
    )


def test_batches_depend_on_the_seed_alone():
    def batches(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return [small_dataset().sample(generators, 8, 3, 0.9) for _ in range(3)]

    together, alone = batches([5, 6, 7]), batches([6])
    for many, one in zip(together, alone, strict=True):
        for a, b in zip(many, one, strict=True):
            assert torch.equal(a[1:2], b)


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_batch_is_the_last_step_of_its_sequences(horizon, monkeypatch):
    """Episodes end and tasks are solved at random; the outcomes are computed in three parts."""
    monkeypatch.setattr("trqam_fast.data.dataset.OUTCOMES_AT_A_TIME", 19)
    rng = np.random.default_rng(1)
    dataset = Dataset.from_arrays(
        {
            "observations": np.arange(50)[:, None],
            "actions": rng.uniform(-1, 1, size=(50, 2)),
            "rewards": rng.normal(size=50),
            "masks": rng.random(50) < 0.7,
            "terminals": rng.random(50) < 0.3,
            "next_observations": rng.normal(size=(50, 3)),
        }
    )
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    for discount in (0.9, 0.5):
        batch = dataset.sample(generators, 200, horizon, discount)
        starts = batch.observations[..., 0].long()
        expected = dataset.sequences(starts, horizon, discount)
        assert torch.equal(batch.actions, expected.actions)
        for ours, whole in (
            (batch.rewards, expected.rewards),
            (batch.masks, expected.masks),
            (batch.valid, expected.valid),
        ):
            assert torch.equal(ours, whole[..., -1])
        assert torch.equal(batch.next_observations, expected.next_observations[..., -1, :])


def test_start_indices_cover_all_of_zero_to_n_minus_h():
    dataset = small_dataset(8)
    batch = dataset.sample([torch.Generator().manual_seed(0)], 4000, 3, 0.9)
    starts = {tuple(row) for row in batch.observations[0].tolist()}
    assert starts == {tuple(row) for row in dataset.observations[:6].tolist()}
    with pytest.raises(UsageError, match="8 transitions, fewer than --horizon-length 9"):
        dataset.check_length(9)
    dataset.terminals[4] = 1
    with pytest.raises(UsageError, match="longest trajectory has 5 transitions"):
        dataset.check_length(6)
    dataset.check_length(5)


def test_names():
    task = parse_task(TASK)
    assert task.env_id == "pointmaze-medium-singletask-task1-v0"
    assert task.dataset_name == "pointmaze-medium-navigate-v0"
    assert parse_task("cube-double-play-singletask-v0").env_id == "cube-double-singletask-v0"
    for name in (
        "antmaze-large-navigate-singletask-task3-v0",
        "humanoidmaze-medium-navigate-singletask-task1-v0",
        "cube-quadruple-play-singletask-task5-v0",
        "scene-play-singletask-task2-v0",
        "puzzle-4x4-play-singletask-task4-v0",
    ):
        assert name in known_tasks()
    with pytest.raises(UsageError, match="cube-double-play-singletask"):
        parse_task("cube-duoble-play-singletask-task1-v0")
    with pytest.raises(UsageError, match="not an OGBench single task"):
        parse_task("visual-cube-double-play-singletask-task1-v0")


@pytest.fixture(scope="module")
def generated():
    return generate("pointmaze-medium-v0", 1500, 0.5, seed=3, progress=False)


def test_generated_data(generated):
    assert generated["observations"].shape == (2002, 2)  # two whole trajectories of 1001 rows
    assert generated["terminals"].nonzero()[0].tolist() == [1000, 2001]
    assert np.abs(generated["actions"]).max() <= 1
    # The recorded transitions are the environment's: the point moves by 0.2 a where it is free.
    moved = np.diff(generated["observations"][:1000], axis=0)
    free = np.isclose(moved, 0.2 * generated["actions"][:999], atol=1e-3).all(1)
    assert free.mean() > 0.5
    again = generate("pointmaze-medium-v0", 1000, 0.5, seed=3, progress=False)
    for name, array in again.items():
        assert np.array_equal(array, generated[name][:1001])
    other = generate("pointmaze-medium-v0", 1000, 0.5, seed=4, progress=False)
    assert not np.array_equal(other["actions"], again["actions"])


def test_generation_leaves_the_global_generator_alone():
    np.random.seed(1)
    expected = np.random.get_state()[1].copy()
    generate("pointmaze-medium-v0", 1, 0.5, seed=3, progress=False)
    assert np.array_equal(np.random.get_state()[1], expected)


def test_ogbench_reads_the_generated_file(tmp_path):
    import ogbench

    path = Recipe("pointmaze-medium-navigate-v0", 1000, 0.5, 0).ensure(tmp_path, progress=False)
    assert path.name == "pointmaze-medium-navigate-v0-generated1-1000-noise0.5-seed0.npz"
    path.with_name(path.name.replace(".npz", "-val.npz")).symlink_to(path)
    _, train, _ = ogbench.make_env_and_datasets(TASK, dataset_path=str(path))
    ours, found = load_task(
        TASK,
        recipe=Recipe("pointmaze-medium-navigate-v0", 1000, 0.5, 0),
        generated_dir=tmp_path,
        progress=False,
    )
    assert found == path
    for name in ("observations", "next_observations", "rewards", "masks", "terminals"):
        assert np.array_equal(getattr(ours, name).numpy(), train[name]), name
    assert float(ours.actions.abs().max()) <= 1 - 1e-5 + 1e-7
    assert not list(tmp_path.glob("*.partial"))


def test_generated_data_stay_away_from_official_names():
    assert GENERATED_DIR != OFFICIAL_DIR
    recipe = Recipe("pointmaze-medium-navigate-v0", 1000, 0.5, 0)
    assert recipe.file_name != "pointmaze-medium-navigate-v0.npz"
    with pytest.raises(UsageError, match="'cube-double-play-v0' cannot be generated"):
        Recipe("cube-double-play-v0", 1000, 0.5, 0)
    with pytest.raises(UsageError, match="noise nan"):
        Recipe("pointmaze-medium-navigate-v0", 1000, float("nan"), 0)


def test_sparse_reward(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "cube-double-play-v0.npz"
    arrays = {
        "observations": rng.normal(size=(20, 37)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(20, 5)).astype(np.float32),
        "terminals": np.arange(20) % 10 == 9,
        "qpos": rng.normal(size=(20, 28)).astype(np.float32),
    }
    np.savez(path, **arrays)
    name = "cube-double-play-singletask-task1-v0"
    dense, _ = load_task(name, dataset_dir=tmp_path)
    sparse, _ = load_task(name, dataset_dir=tmp_path, sparse=True)
    assert len(dense) == 18
    assert set(dense.rewards.tolist()) <= {-2.0, -1.0, 0.0}
    assert torch.equal(sparse.rewards, -(dense.rewards != 0).float())


class TestBadFiles:
    def write(self, tmp_path, generated, **changes):
        path = tmp_path / "pointmaze-medium-navigate-v0.npz"
        arrays = {**generated, **changes}
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        return path

    def load(self, path):
        return load_arrays(path, "pointmaze-medium-singletask-task1-v0")

    def test_missing_file_names_the_command(self, tmp_path):
        with pytest.raises(UsageError, match="python -m trqam_fast.data pointmaze-medium-navig"):
            load_task(TASK, dataset_dir=tmp_path)
        with pytest.raises(UsageError, match="ogbench.download_datasets"):
            load_task("cube-double-play-singletask-task1-v0", dataset_dir=tmp_path)

    def test_truncated(self, tmp_path, generated):
        path = self.write(tmp_path, generated)
        content = path.read_bytes()
        for size in (0, 100, len(content) // 2, len(content) - 10):
            path.write_bytes(content[:size])
            with pytest.raises(UsageError, match="truncated"):
                self.load(path)

    def test_flipped_bit(self, tmp_path, generated):
        path = self.write(tmp_path, generated)
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
        with pytest.raises(UsageError, match="truncated or damaged"):
            self.load(path)

    def test_missing_key(self, tmp_path, generated):
        path = self.write(tmp_path, generated, qpos=None)
        with pytest.raises(UsageError, match=r"no array 'qpos' \[\?, \?\]"):
            self.load(path)

    def test_wrong_shape(self, tmp_path, generated):
        path = self.write(tmp_path, generated, actions=np.zeros((2002, 3), np.float32))
        with pytest.raises(UsageError, match=r"actions has shape \[2002, 3\], expected \[\?, 2\]"):
            self.load(path)
        path = self.write(tmp_path, generated, actions=np.zeros((2001, 2), np.float32))
        with pytest.raises(UsageError, match=r"actions has shape \[2001, 2\]"):
            self.load(path)
        path = self.write(tmp_path, generated, terminals=np.zeros((2002, 1), bool))
        with pytest.raises(UsageError, match=r"terminals has shape \[2002, 1\], expected \[\?\]"):
            self.load(path)

    def test_pickled_object(self, tmp_path, generated):
        path = self.write(tmp_path, generated, actions=np.array([[{}, {}]] * 2002, dtype=object))
        with pytest.raises(UsageError, match="damaged|truncated"):
            self.load(path)

    def test_non_finite(self, tmp_path, generated):
        broken = generated["observations"].copy()
        broken[7, 1] = np.nan
        path = self.write(tmp_path, generated, observations=broken)
        with pytest.raises(UsageError, match="observations has non-finite values"):
            self.load(path)
