"""The sampler in memory and on disk, and names."""

import shutil
from pathlib import Path

import numpy as np
import ogbench
import pytest
import torch

from tests.datasets import MAZE, TASK, raw_arrays
from tests.helpers import DEVICE, NEEDS_TRITON, poisoned_memory
from trqam_fast.data import dataset as dataset_module
from trqam_fast.data import flat_dataset as flat_dataset_module
from trqam_fast.data.dataset import FIELDS, Dataset
from trqam_fast.data.flat import FlatSet
from trqam_fast.data.flat_dataset import FlatDataset, has_room
from trqam_fast.data.flatten import convert
from trqam_fast.data.generate.recipe import GENERATED_DIR
from trqam_fast.data.load import OFFICIAL_DIR, load_arrays, load_task
from trqam_fast.data.names import (
    LARGE_SETS,
    PUBLISHED,
    DatasetName,
    known_tasks,
    parse_dataset,
    parse_task,
)
from trqam_fast.errors import UsageError
from trqam_fast.randomness import Randomness
from trqam_fast.simulator.environment import task_env

DATA = Path(__file__).parent / "data"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **raw_arrays())
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The flat form of `archive`; making it starts six environments."""
    path = tmp_path_factory.mktemp("converted") / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **raw_arrays())
    return convert([path], MAZE, path.with_suffix(".flat"), progress=False)


@pytest.fixture
def both_forms(archive, converted):
    flat = archive.with_suffix(".flat")
    shutil.copytree(converted, flat, copy_function=shutil.copyfile)
    task = FlatDataset(FlatSet.open(flat), 1)
    return Dataset.from_arrays(load_arrays(archive, parse_task(TASK).env_id)), task


@pytest.fixture(scope="module")
def recorded():
    with np.load(DATA / "sample_sequence.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=NEEDS_TRITON)])
@pytest.mark.parametrize("horizon", [1, 2, 5, 10])
@pytest.mark.parametrize("part", [7, 1_000_000])
def test_recorded_sequences(recorded, horizon, part, backend, monkeypatch):
    """A batch is what the authors' sampler has at its last step; parts do not change it."""
    monkeypatch.setattr(dataset_module, "ROWS_AT_A_TIME", part)
    arrays = {k.removeprefix("data/"): v for k, v in recorded.items() if k.startswith("data/")}
    dataset = Dataset.from_arrays(arrays, DEVICE if backend == "triton" else "cpu")
    starts = torch.from_numpy(recorded[f"h{horizon}/indices"])
    with poisoned_memory():
        found = dataset.gather(
            starts.to(dataset.device), horizon, float(recorded["discount"]), backend
        )
    for name, value in found._asdict().items():
        expected = torch.from_numpy(recorded[f"h{horizon}/{name}"])
        if name not in ("observations", "actions"):
            expected = expected.select(starts.dim(), horizon - 1)
        assert value.shape == expected.shape, name
        assert torch.equal(value.cpu(), expected.to(value.dtype)), name


def test_a_sequence_crosses_the_end_of_a_trajectory():
    n = 6
    arrays = {
        "observations": np.arange(n)[:, None],
        "actions": np.arange(n)[:, None],
        "rewards": -np.ones(n),
        "masks": np.array([1, 1, 1, 0, 1, 1]),
        "terminals": np.array([0, 0, 1, 0, 0, 1]),
        "next_observations": np.arange(n)[:, None] + 0.5,
    }
    dataset = Dataset.from_arrays(arrays)
    found = dataset.gather(torch.tensor([[1, 0]]), 4, 0.5)
    assert found.observations[..., 0].tolist() == [[1, 0]]
    assert found.actions[..., 0].tolist() == [[[1, 2, 3, 4], [0, 1, 2, 3]]]
    assert found.rewards.tolist() == [[-1.5, -1.75]]
    assert found.masks.tolist() == [[1, 1]]  # the 0 lies in the next trajectory
    assert found.valid.tolist() == [[0, 0]]
    assert found.next_observations[..., 0].tolist() == [[2.5, 2.5]]
    found = dataset.gather(torch.tensor([[1, 2]]), 2, 0.5)
    assert found.valid.tolist() == [[1, 0]]
    assert found.next_observations[..., 0].tolist() == [[2.5, 2.5]]


def small_arrays(n=50):
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(n, 3)),
        "actions": rng.uniform(-1, 1, size=(n, 2)),
        "rewards": -np.ones(n),
        "masks": np.ones(n),
        "terminals": np.zeros(n),
        "next_observations": rng.normal(size=(n, 3)),
    }


def test_batches_depend_on_the_seed_alone(both_forms):
    def batches(dataset, seeds):
        randomness = Randomness(seeds)
        return [dataset.sample(randomness, 8, 3, 0.9) for _ in range(3)]

    for dataset in (Dataset.from_arrays(small_arrays()), *both_forms):
        together, alone = batches(dataset, [5, 6, 7]), batches(dataset, [6])
        for many, one in zip(together, alone, strict=True):
            for a, b in zip(many, one, strict=True):
                assert torch.equal(a[1:2], b)


def test_starts_are_drawn_as_ever():
    """A run's batches must not change with a version of this package."""
    arrays = small_arrays()
    arrays["observations"][:, 0] = np.arange(50)
    batch = Dataset.from_arrays(arrays).sample(Randomness([5, 6]), 8, 3, 0.9)
    assert batch.observations[..., 0].long().tolist() == [
        [26, 9, 44, 12, 14, 16, 33, 13],
        [26, 46, 7, 36, 22, 40, 12, 23],
    ]


@pytest.mark.parametrize("horizon", [1, 3, 10])
@pytest.mark.parametrize(("part", "resident"), [(7, 0), (1_000_000, 500), (60, 2**20)])
def test_the_same_batches_from_memory_and_disk(both_forms, horizon, part, resident, monkeypatch):
    """Whatever is read at a time, and whether nothing, some or all of the records are mapped."""
    monkeypatch.setattr(dataset_module, "ROWS_AT_A_TIME", part)
    monkeypatch.setattr(flat_dataset_module, "ROWS_AT_A_TIME", part)
    monkeypatch.setattr(flat_dataset_module, "RESIDENT", resident)
    memory, disk = both_forms
    disk = FlatDataset(disk.flat, 1)
    copied = Dataset.from_flat(disk.flat, 1)
    assert len(memory) == len(disk) == len(copied) == 60
    assert (disk.obs_dim, disk.act_dim) == (memory.obs_dim, memory.act_dim) == (2, 2)
    every = torch.arange(memory.start_count(horizon))[None]
    drawn = [d.sample(Randomness([0, 1]), 32, horizon, 0.9) for d in (memory, disk, copied)]
    whole = [d.gather(every, horizon, 0.9) for d in (memory, disk, copied)]
    assert 0 < whole[0].valid.mean() <= 1
    assert 0 < whole[0].masks.mean() < 1
    for first, *others in (drawn, whole):
        for other in others:
            for name, a, b in zip(first._fields, first, other, strict=True):
                assert torch.equal(a, b) and a.dtype == b.dtype, name
                assert b.is_contiguous() or a.stride() == b.stride(), name


def test_batches_do_not_share_memory(both_forms):
    """The buffer of reads is used again by the next batch."""
    _, disk = both_forms
    first = disk.gather(torch.tensor([[0]]), 1, 0.9)
    kept = [tensor.clone() for tensor in first]
    disk.gather(torch.tensor([[30]]), 1, 0.9)
    for a, b in zip(first, kept, strict=True):
        assert torch.equal(a, b)


def test_no_observation_is_stored_twice(both_forms, archive):
    memory, disk = both_forms
    assert memory.pool.shape == (66, 2)  # 60 transitions, 6 trajectories
    assert memory.own.tolist() == disk.ends.tolist() == [9, 19, 29, 39, 49, 59]
    zeros = {**small_arrays(2), "observations": np.array([[1.0], [0.0]])}
    zeros["next_observations"] = np.array([[-0.0], [2.0]])
    dataset = Dataset.from_arrays(zeros)
    assert torch.signbit(torch.from_numpy(dataset.tail(2)["next_observations"]))[0]


def test_tail(both_forms, archive):
    memory, disk = both_forms
    arrays = load_arrays(archive, parse_task(TASK).env_id)
    for dataset in (memory, disk):
        for count in (0, 1, 15, 60, 99):
            tail = dataset.tail(count)
            assert tuple(tail) == FIELDS
            for name in FIELDS:
                assert np.array_equal(tail[name], arrays[name][max(60 - count, 0) :]), name


def test_a_start_is_never_beyond_the_last_sequence():
    arrays = small_arrays(8)
    arrays["observations"] = np.arange(8)[:, None]
    arrays["next_observations"] = np.arange(8)[:, None] + 1
    dataset = Dataset.from_arrays(arrays)
    batch = dataset.sample(Randomness([0]), 500, 3, 0.9)
    assert set(batch.observations.flatten().tolist()) == set(range(6))
    with pytest.raises(UsageError, match="8 transitions, fewer than --horizon-length 9"):
        dataset.check_length(9)
    dataset.terminals[4] = 1
    with pytest.raises(UsageError, match="longest trajectory has 5 transitions"):
        dataset.check_length(6)
    (note,) = dataset.check_length(5)
    assert note.startswith("the trajectory of 75% of the starts ends before --horizon-length 5")
    assert dataset.check_length(3) == []


def test_lengths_on_disk(both_forms):
    assert len(both_forms[1].check_length(10)) == 1
    with pytest.raises(UsageError, match="longest trajectory has 10 transitions"):
        both_forms[1].check_length(11)


def test_only_a_gpu_with_room_takes_a_copy(both_forms, monkeypatch):
    flat = both_forms[1].flat
    assert not has_room(flat, torch.device("cpu"))
    for free, room in ((2**40, True), (2**20, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert has_room(flat, torch.device("cuda")) is room


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_forms_agree_on_a_gpu(both_forms):
    memory, disk = both_forms
    randomness = Randomness((1, 2), "cuda")
    batches = []
    host = FlatDataset(disk.flat, 1, device="cuda")
    for dataset in (Dataset.from_flat(disk.flat, 1, device="cuda"), host):
        randomness.seek(0)
        batches.append(dataset.sample(randomness, 64, 5, 0.9))
    for a, b in zip(*batches, strict=True):
        assert a.is_cuda and torch.equal(a, b)


def test_names():
    task = parse_task(TASK)
    assert task.env_id == "pointmaze-medium-singletask-task1-v0"
    assert task.dataset_name == "pointmaze-medium-navigate-v0"
    assert parse_task("cube-double-play-singletask-v0").env_id == "cube-double-singletask-v0"
    for name in (
        "antmaze-large-navigate-singletask-task3-v0",
        "humanoidmaze-medium-navigate-singletask-task1-v0",
        "cube-quadruple-play-singletask-task5-v0",
        "cube-octuple-play-singletask-task1-v0",
        "scene-play-singletask-task2-v0",
        "puzzle-4x4-play-singletask-task4-v0",
    ):
        assert name in known_tasks()
    assert "antmaze-giant-explore-singletask-task1-v0" not in known_tasks()
    with pytest.raises(UsageError, match="cube-double-play-singletask"):
        parse_task("cube-duoble-play-singletask-task1-v0")
    with pytest.raises(UsageError, match="not an OGBench single task"):
        parse_task("visual-cube-double-play-singletask-task1-v0")


def test_dataset_names():
    for name in (
        "cube-triple-play-v0", "cube-triple-play-v0-007", "cube-triple-play-10m-v0",
        "cube-triple-play-singletask-task2-v0", "cube-triple-play-singletask-v0",
    ):  # fmt: skip
        found = parse_dataset(name)
        assert (found.dataset_name, found.env_id) == ("cube-triple-play-v0", "cube-triple-v0")
    assert list(MAZE.single_tasks()) == [1, 2, 3, 4, 5]
    assert MAZE.single_task(None) == "pointmaze-medium-singletask-v0"
    with pytest.raises(UsageError, match="nearest: cube-triple-play-v0"):
        parse_dataset("cube-tripel-play-v0")
    with pytest.raises(UsageError, match="'bogus' is not .*; 'python -m trqam_fast.data list' nam"):
        parse_dataset("bogus")
    assert PUBLISHED["humanoidmaze-giant-navigate-v0"].transitions == 4_000_000
    assert LARGE_SETS["cube-triple-play-10m-v0"].file_names[-1] == "cube-triple-play-v0-009.npz"
    assert LARGE_SETS["humanoidmaze-giant-navigate-100m-v0"].transitions == 100_000_000


def test_every_published_dataset_has_an_environment():
    for name in PUBLISHED:
        assert parse_dataset(name).single_tasks(), name


def test_ogbench_reads_the_same(archive):
    archive.with_name(archive.name.replace(".npz", "-val.npz")).symlink_to(archive)
    _, train, _ = ogbench.make_env_and_datasets(TASK, dataset_path=str(archive))
    ours, found = load_task(TASK, dataset_dir=archive.parent)
    assert found == archive
    everything = ours.tail(len(ours))
    for name in ("observations", "next_observations", "rewards", "masks", "terminals"):
        assert np.array_equal(everything[name], train[name]), name
    assert 0 < train["masks"].mean() < 1
    assert np.abs(everything["actions"]).max() <= 1 - 1e-5 + 1e-7


def test_generated_data_stay_away_from_official_ones():
    assert GENERATED_DIR != OFFICIAL_DIR


@pytest.mark.parametrize("form", ["archive", "flat"])
def test_sparse_reward(tmp_path, form, monkeypatch):
    """Rows with no, one and both cubes at their goals; the flat form has uneven trajectories."""
    name, task = "cube-double-play-singletask-task1-v0", "cube-double-singletask-task1-v0"
    env = task_env(task)
    goals = env.unwrapped._data.mocap_pos.copy()
    env.close()
    rng = np.random.default_rng(0)
    path = tmp_path / "cube-double-play-v0-000.npz"
    arrays = {
        "observations": rng.normal(size=(20, 37)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(20, 5)).astype(np.float32),
        "terminals": np.isin(np.arange(20), (4, 19)),
        "qpos": rng.normal(size=(20, 28)).astype(np.float32),
    }
    arrays["qpos"][1::2, 14:17] = goals[0]
    arrays["qpos"][2::4, 21:24] = goals[1]
    arrays["qpos"][7:9, 14:17], arrays["qpos"][7:9, 21:24] = goals
    if form == "archive":
        path = path.with_name("cube-double-play-v0.npz")
    np.savez(path, **arrays)
    if form == "flat":
        # Each environment takes a second to make; task 2 is the default one.
        tasks = {1: task, 2: task.replace("task1", "task2")}
        monkeypatch.setattr(DatasetName, "single_tasks", lambda name: tasks)
        target = tmp_path / "cube-double-play-v0.flat"
        convert([path], parse_dataset("cube-double-play-v0"), target, False)
    dense, _ = load_task(name, dataset_dir=tmp_path)
    sparse, found = load_task(name, dataset_dir=tmp_path, sparse=True)
    assert found.suffix == {"archive": ".npz", "flat": ".flat"}[form]
    assert dense.trajectory_ends().tolist() == [3, 17]
    dense, sparse = dense.tail(18), sparse.tail(18)
    assert set(dense["rewards"].tolist()) == {-2.0, -1.0, 0.0}
    solved = np.isin(np.r_[0:4, 5:19], (7, 8))
    assert np.array_equal(sparse["rewards"], np.where(solved, 0, -1))
    assert np.array_equal(sparse["masks"], ~solved)
