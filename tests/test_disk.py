"""Reading from a flat set, with the extension and without."""

import importlib.util
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.datasets import MAZE, raw_arrays
from trqam_fast.data import flat_dataset as flat_dataset_module
from trqam_fast.data.dataset import Dataset
from trqam_fast.data.flat import FlatSet
from trqam_fast.data.flat_dataset import FlatDataset
from trqam_fast.data.flatten import convert
from trqam_fast.data.load import load_arrays
from trqam_fast.errors import RunError
from trqam_fast.kernels import dispatch
from trqam_fast.randomness import Randomness

ENV = "pointmaze-medium-singletask-task1-v0"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A flat set whose trajectories have 2, 30, 7 and 21 transitions, and the same in memory."""
    path = tmp_path_factory.mktemp("uneven") / "pointmaze-medium-navigate-v0-000.npz"
    arrays = raw_arrays(4, 16)
    arrays["terminals"] = np.isin(np.arange(64), (2, 33, 41, 63))
    np.savez(path, **arrays)
    target = path.with_name("pointmaze-medium-navigate-v0.flat")
    convert([path], MAZE, target, progress=False)
    return FlatSet.open(target), Dataset.from_arrays(load_arrays(path, ENV))


@pytest.fixture(params=["extension", "without", "short reads"])
def reading(request, monkeypatch):
    if request.param == "extension":
        if flat_dataset_module.READ_WINDOWS is None:
            pytest.skip("the extension is not built")
        return
    monkeypatch.setattr(flat_dataset_module, "READ_WINDOWS", None)
    if request.param == "short reads":
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda f, views, at: preadv(f, [views[0][:5]], at))


@pytest.mark.parametrize("resident", [0, 500, 2**20])
@pytest.mark.parametrize("horizon", [1, 3, 9])
def test_uneven_trajectories(uneven, reading, horizon, resident, monkeypatch):
    monkeypatch.setattr(flat_dataset_module, "RESIDENT", resident)
    flat, memory = uneven
    disk = FlatDataset(flat, 1)
    assert disk.trajectory_ends().tolist() == memory.trajectory_ends().tolist() == [1, 31, 38, 59]
    every = torch.arange(memory.start_count(horizon))[None]
    whole = [dataset.gather(every, horizon, 0.9) for dataset in (memory, disk)]
    drawn = [dataset.sample(Randomness([0, 1]), 32, horizon, 0.9) for dataset in (memory, disk)]
    for pair in (whole, drawn):
        for name, a, b in zip(pair[0]._fields, *pair, strict=True):
            assert torch.equal(a, b), name
    for name, array in memory.tail(60).items():
        assert np.array_equal(array, disk.tail(60)[name]), name


@pytest.fixture
def small(uneven, tmp_path, monkeypatch):
    """A set of which nothing is mapped, in files of its own."""
    monkeypatch.setattr(flat_dataset_module, "RESIDENT", 0)
    return FlatDataset(FlatSet.open(shutil.copytree(uneven[0].path, tmp_path / "set.flat")), 1)


def test_a_file_that_shrinks_is_reported(small, reading):
    with open(small.flat.file("records"), "r+b") as file:
        file.truncate(300)
    with pytest.raises(RunError, match="records.npy has become shorter"):
        small.sample(Randomness([0]), 32, 3, 0.9)


def test_another_failure_is_told_as_it_is(small, reading):
    small._file.close()
    small._file = open(os.devnull, "wb")
    with pytest.raises(RunError, match="cannot read .*records.npy: Bad file descriptor"):
        small.sample(Randomness([0]), 32, 3, 0.9)


def test_an_older_extension_is_done_without(monkeypatch):
    """The module can be loaded with an extension that lacks the function."""
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "EXTENSION", SimpleNamespace())
        spec = importlib.util.find_spec("trqam_fast.data.flat_dataset")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    assert module.READ_WINDOWS is None
