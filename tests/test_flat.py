"""Conversion to flat sets, verification, and the commands on files."""

import hashlib
import json
import os
import shutil
import threading
import time
import weakref

import numpy as np
import pytest

from benchmarks import large_data
from tests.datasets import MAZE, TASK, raw_arrays
from trqam_fast.data import __main__ as command
from trqam_fast.data import flatten
from trqam_fast.data.flat import FlatSet, problems_of_flat
from trqam_fast.data.flatten import convert
from trqam_fast.data.load import load_arrays, load_task
from trqam_fast.data.names import parse_dataset
from trqam_fast.data.npz import Layout, checksum, layout_of, problems_of
from trqam_fast.errors import RunError, UsageError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A set of three files, converted."""
    folder = tmp_path_factory.mktemp("set")
    for number, trajectories in enumerate((3, 1, 2)):
        path = folder / f"pointmaze-medium-navigate-v0-{number:03d}.npz"
        np.savez(path, **raw_arrays(trajectories, seed=number))
    np.savez(folder / "pointmaze-medium-navigate-v0-000-val.npz", **raw_arrays(1))
    assert command.main(["convert", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "set")


@pytest.fixture
def flat(folder):
    return folder / "pointmaze-medium-navigate-v0.flat"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **raw_arrays())
    return path


def test_a_set_of_files_becomes_one(folder, flat):
    dataset, found = load_task(TASK, dataset_dir=folder)
    assert found == flat and len(dataset) == 60
    ours = dataset.tail(60)
    theirs = [
        load_arrays(path, "pointmaze-medium-singletask-task1-v0")
        for path in sorted(folder.glob("*-00?.npz"))
    ]
    assert len(theirs) == 3
    for name, array in ours.items():
        assert np.array_equal(array, np.concatenate([part[name] for part in theirs])), name


def test_every_task_has_its_rewards(flat):
    opened = FlatSet.open(flat)
    for task in range(1, 6):
        env_id = f"pointmaze-medium-singletask-task{task}-v0"
        assert opened.task_number(env_id) == task
        parts = [load_arrays(path, env_id) for path in sorted(flat.parent.glob("*-00?.npz"))]
        rewards, masks, _ = opened.read_task(task, 0, 60)
        assert np.array_equal(rewards, np.concatenate([part["rewards"] for part in parts]))
        assert np.array_equal(masks, np.concatenate([part["masks"] for part in parts]))
    assert opened.task_number("pointmaze-medium-singletask-v0") == 1
    with pytest.raises(UsageError, match="holds data of pointmaze-medium-v0, not of cube-double"):
        opened.task_number("cube-double-singletask-task1-v0")


def test_manifest(flat):
    manifest = json.loads((flat / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["dataset"] == "pointmaze-medium-navigate-v0"
    assert (manifest["transitions"], manifest["trajectories"]) == (60, 6)
    archives = sorted(flat.parent.glob("*-00?.npz"))
    assert [tuple(source.values()) for source in manifest["sources"]] == [
        (path.name, path.stat().st_size, checksum(path), transitions)
        for path, transitions in zip(archives, (30, 10, 20), strict=True)
    ]
    assert set(manifest["versions"]) >= {"ogbench", "mujoco", "numpy", "trqam_fast"}
    assert {path.stem for path in flat.glob("*.npy")} == manifest["arrays"].keys()
    for name, entry in manifest["arrays"].items():
        content = (flat / f"{name}.npy").read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        array = np.load(flat / f"{name}.npy", mmap_mode="r")
        assert (list(array.shape), str(array.dtype)) == (entry["shape"], entry["dtype"])
    records = np.load(flat / "records.npy")
    assert records.shape == (61, 4)  # no observation twice but the padding
    assert np.array_equal(records[-1, :2], np.load(flat / "finals.npy")[-1])
    assert problems_of_flat(flat) == []


def test_one_file_is_in_memory_at_a_time(folder, monkeypatch):
    alive = []
    read = flatten.read_raw

    class Arrays(dict):
        def __del__(self):
            alive.remove(id(self))

    def count(*args):
        arrays = Arrays(read(*args))
        alive.append(id(arrays))
        assert len(alive) == 1
        return arrays

    monkeypatch.setattr(flatten, "read_raw", count)
    monkeypatch.setattr(type(MAZE), "single_tasks", lambda name: {})
    convert(sorted(folder.glob("*-00?.npz")), MAZE, folder / "again.flat", progress=False)
    assert not alive


def test_a_failing_conversion_leaves_the_old_set(folder, flat, monkeypatch):
    before = sorted(path.name for path in folder.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flatten.Writer, "write", full)
    with pytest.raises(RunError, match="cannot write .*No space left"):
        command.main(["convert", str(folder)])
    assert sorted(path.name for path in folder.iterdir()) == before
    assert problems_of_flat(flat) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failing_rename_leaves_the_old_set(folder, flat, monkeypatch, failing):
    """The old set makes room and comes back; if even that fails, the next conversion helps."""
    before = sorted(path.name for path in folder.iterdir())
    content = (flat / "manifest.json").read_text()
    rename, calls = os.rename, []

    def fail(*paths):
        calls.append(paths)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        rename(*paths)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(RunError, match="cannot write .*Input/output error"):
        convert(sorted(folder.glob("*-00?.npz")), MAZE, flat, progress=False)
    assert len(calls) == 2 * failing - 1
    assert sorted(path.name for path in folder.iterdir()) == before
    assert (flat / "manifest.json").read_text() == content
    assert problems_of_flat(flat) == []


def test_leftovers_of_killed_conversions(tmp_path):
    """Parts go, the old set comes back if it is the only one, and other sets stay."""
    target = tmp_path / "a.flat"

    def make(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    for name in ("a.flat.1.partial", "a.flat.2.old", "b.flat.1.partial"):
        make(name)
    with pytest.raises(KeyError), flatten.new_folder(target):
        assert (target / "file").read_text() == "a.flat.2.old"
        raise KeyError
    make("a.flat.3.old")
    with flatten.new_folder(target) as new:
        (new / "file").write_text("new")
    assert (target / "file").read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"a.flat", "b.flat.1.partial", ".a.flat.lock"}


def test_two_conversions_do_not_meet(tmp_path):
    """The second waits for the first, and neither removes the other's part."""
    target, order = tmp_path / "a.flat", []

    def write(name):
        with flatten.new_folder(target) as new:
            order.append(name)
            time.sleep(0.1)
            (new / "file").write_text(name)
            order.append(name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "".join(order) in ("aabb", "bbaa")
    assert (target / "file").read_text() == order[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"a.flat", ".a.flat.lock"}


def test_terminals_of_one_file_are_in_memory_at_a_time(folder, monkeypatch):
    read, alive, most = flatten.read_terminals, weakref.WeakSet(), []

    class Terminals(np.ndarray):
        __hash__ = object.__hash__

    def count(*args):
        rows = read(*args).view(Terminals)
        alive.add(rows)
        most.append(len(alive))
        return rows

    monkeypatch.setattr(flatten, "read_terminals", count)
    monkeypatch.setattr(type(MAZE), "single_tasks", lambda name: {})
    convert(sorted(folder.glob("*-00?.npz")), MAZE, folder / "again.flat", progress=False)
    assert most == [1, 1, 1]


def test_the_last_file_is_bad(folder):
    terminals = raw_arrays(2)["terminals"]
    terminals[-1] = False
    path = folder / "pointmaze-medium-navigate-v0-002.npz"
    np.savez(path, **{**raw_arrays(2), "terminals": terminals})
    with pytest.raises(UsageError, match="002.npz: the last row is not terminal"):
        command.main(["convert", str(folder), "--dataset-dir", str(folder / "new")])
    assert not (folder / "new").exists()


def test_sources_of_a_conversion(folder, archive, tmp_path):
    other = tmp_path / "cube-double-play-v0.npz"
    other.write_bytes(b"")
    with pytest.raises(UsageError, match="2 datasets, cube-double-play-v0, pointmaze"):
        command.main(["convert", str(other), str(archive)])
    with pytest.raises(UsageError, match="'cube-single-play-v0' is no dataset in"):
        command.main(["convert", "cube-single-play-v0", "--dataset-dir", str(tmp_path)])
    with pytest.raises(UsageError, match="has no npz file to convert"):
        command.main(["convert", str(folder / "pointmaze-medium-navigate-v0.flat")])


class TestVerify:
    LAYOUT = Layout(2, 2, ("qpos",), equal=True)

    def problems(self, path, **changes):
        np.savez(path, **{k: v for k, v in {**raw_arrays(), **changes}.items() if v is not None})
        return problems_of(path, self.LAYOUT)

    def test_whole(self, archive):
        assert problems_of(archive, layout_of(MAZE)) == []
        assert layout_of(MAZE) == self.LAYOUT

    def test_checksum(self, archive):
        content = bytearray(archive.read_bytes())
        content[400] ^= 1
        archive.write_bytes(content)
        (problem,) = problems_of(archive, self.LAYOUT)
        assert "the checksum of observations.npy is wrong" in problem
        archive.write_bytes(content[:-30])
        assert "no npz file" in problems_of(archive, self.LAYOUT)[0]

    def test_all_that_is_wrong_is_listed(self, archive):
        broken = raw_arrays()["observations"]
        broken[7, 1] = np.inf
        found = self.problems(
            archive, observations=broken, actions=np.zeros((66, 2), int), qpos=None
        )
        assert len(found) == 3
        assert "actions has dtype int64" in found[0]
        assert "no array 'qpos'" in found[1]
        assert "observations has non-finite values (1, the first at [7, 1])" in found[2]

    def test_terminals(self, archive):
        def with_ends(*ends):
            terminals = np.zeros(66, bool)
            terminals[list(ends)] = True
            return self.problems(archive, terminals=terminals)

        assert with_ends(10, 21, 32, 43, 54, 65) == []
        (problem,) = with_ends(10, 21, 43, 54, 65)
        assert (
            "1 of 5 trajectories do not have 11 rows; the first is trajectory 2 with 22" in problem
        )
        assert "last row is not terminal" in with_ends(10, 21, 32, 43, 54)[0]
        assert "last row is not terminal" in with_ends()[0]
        assert "trajectory 1 has one row, so no transition" in with_ends(10, 11, 65)[0]
        (problem,) = self.problems(archive, terminals=2.0 * raw_arrays()["terminals"])
        assert "terminals has values other than 0 and 1" in problem

    def test_pickled_object(self, archive):
        found = self.problems(archive, actions=np.array([[{}, {}]] * 66, dtype=object))
        assert "no npz file" in found[0] and "pickle" in found[0]

    def test_command(self, archive, folder, capsys):
        flat = folder / "pointmaze-medium-navigate-v0.flat"
        here = ["--dataset-dir", str(archive.parent)]
        assert command.main(["verify", "pointmaze-medium-navigate-v0", str(flat), *here]) == 0
        assert capsys.readouterr().out == f"{archive} is whole\n{flat} is whole\n"
        archive.write_bytes(archive.read_bytes()[:-30])
        assert command.main(["verify", str(flat), str(archive)]) == 1
        whole, damaged = capsys.readouterr().out.splitlines()
        assert whole == f"{flat} is whole" and "truncated" in damaged
        assert command.main(["verify", str(archive.parent / "missing.npz")]) == 1
        assert "missing.npz cannot be read (No such file" in capsys.readouterr().out
        with pytest.raises(UsageError, match="is no dataset in"):
            command.main(["verify", "cube-single-play-v0", "--dataset-dir", str(archive.parent)])


def test_list(archive, folder, capsys):
    (archive.parent / "antmaze-giant-navigate-v0.npz").write_bytes(b"")
    large = archive.parent / "cube-triple-play-10m-v0"
    large.mkdir()
    for number in range(2):
        shutil.copy(archive, large / f"cube-triple-play-v0-{number:03d}.npz")
    assert command.main(["list", "--dataset-dir", str(archive.parent)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["antmaze-giant-navigate-v0"].endswith("archive (damaged)")
    assert lines["cube-triple-play-10m-v0"].endswith(" 10,000,000  2 archives")
    assert lines["cube-triple-play-v0"].split() == ["cube-triple-play-v0", "3,000,000"]
    assert lines["pointmaze-medium-navigate-v0"].split()[1] == "1,000,000"
    assert "archive" in lines["pointmaze-medium-navigate-v0"]


def test_generate(monkeypatch, tmp_path, capsys):
    """The command passes its flags on; what is generated is tested elsewhere."""
    calls = []

    def ensure(recipe, folder, **options):
        calls.append((recipe, folder, options))
        return folder / "file.npz"

    monkeypatch.setattr(command.Recipe, "ensure", ensure)
    words = ["generate", "pointmaze-medium-navigate-v0", "--transitions", "2000", "--seed", "3"]
    assert command.main([*words, "--workers", "2", "--generated-dir", str(tmp_path)]) == 0
    ((recipe, folder, options),) = calls
    assert (recipe.dataset_name, recipe.transitions, recipe.seed) == (words[1], 2000, 3)
    assert folder == tmp_path and options["workers"] == 2
    printed = capsys.readouterr().out  # flags of the trainer, the folder's by the same name
    assert "--generated-transitions 2000" in printed and f"--generated-dir {tmp_path}" in printed


def test_parse_dataset_of_a_file_name():
    assert parse_dataset("pointmaze-medium-navigate-v0-000-val") == MAZE


def test_benchmark_of_large_sets(tmp_path, monkeypatch):
    """It measures what it says on sets of another size, and leaves nothing behind."""

    def train(path, args):
        return large_data.train(path, args.updates, args.width)

    monkeypatch.setattr(large_data, "train_apart", train)
    sizes = ["--transitions", "4000", "--small", "2000", "--updates", "1", "--batches", "3"]
    words = ["--folder", str(tmp_path / "data"), *sizes, "--width", "8"]
    assert large_data.main([*words, "--json", str(tmp_path / "out.json")]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["disk_over_memory"] > 0 and len(record["batch"]) == 4
    assert {path.suffix for path in (tmp_path / "data").iterdir()} == {".lock"}
