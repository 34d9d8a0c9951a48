"""Sets of many files: where they go, what is missing of them, how to train on them."""

import re
import shutil

import numpy as np
import pytest

from tests.datasets import MAZE, TASK, raw_arrays
from trqam_fast.data import __main__ as command
from trqam_fast.data.load import load_task
from trqam_fast.data.names import LARGE_SETS, LargeSet
from trqam_fast.errors import UsageError

SET = "pointmaze-medium-navigate-10m-v0"
FILES = [f"pointmaze-medium-navigate-v0-00{number}.npz" for number in range(3)]
FLAT = "pointmaze-medium-navigate-v0.flat"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a large set of three files, and the set of 1M of the same name."""
    monkeypatch.setitem(LARGE_SETS, SET, LargeSet(SET, "pointmaze-medium-navigate-v0", 3, 60))
    (tmp_path / SET).mkdir()
    for number, file in enumerate(FILES):
        np.savez(tmp_path / SET / file, **raw_arrays(number + 1))
    np.savez(tmp_path / "pointmaze-medium-navigate-v0.npz", **raw_arrays(9))
    monkeypatch.setattr(type(MAZE), "single_tasks", lambda name: {1: name.single_task(1)})
    return tmp_path


def test_sets_of_one_name_stay_apart(folder):
    """By its name, by its folder, and into another folder: always in a folder of the set's name."""
    small = folder / "pointmaze-medium-navigate-v0.npz"
    there = ["--dataset-dir", str(folder)]
    assert command.main(["convert", SET, *there]) == 0
    assert not (folder / FLAT).exists() and (folder / SET / FLAT / "manifest.json").exists()
    assert load_task(TASK, dataset_dir=folder)[1] == small
    data, found = load_task(TASK, dataset_dir=folder / SET)
    assert found == folder / SET / FLAT and len(data) == 60
    shutil.rmtree(folder / SET / FLAT)
    assert command.main(["convert", str(folder / SET)]) == 0
    assert (folder / SET / FLAT).exists()
    for target in ("other", f"other/{SET}"):
        argv = ["convert", str(folder / SET), "--dataset-dir", str(folder / target)]
        assert command.main(argv) == 0
        assert [path.name for path in folder.glob("other/*")] == [SET]
        assert (folder / "other" / SET / FLAT).exists()
        shutil.rmtree(folder / "other")
    assert command.main(["convert", small.stem, *there]) == 0
    assert load_task(TASK, dataset_dir=folder)[1] == folder / FLAT
    with pytest.raises(UsageError, match="2 datasets"):
        command.main(["convert", SET, small.stem, *there])


@pytest.mark.parametrize("verb", ["verify", "convert"])
def test_missing_files_are_named(folder, verb):
    (folder / SET / FILES[1]).unlink()
    for source in (SET, str(folder / SET)):
        with pytest.raises(UsageError, match=f"lacks 1 of 3 files, {FILES[1]}; get") as error:
            command.main([verb, source, "--dataset-dir", str(folder)])
        assert "\n" not in str(error.value)
    assert not (folder / SET / FLAT).exists()


def test_many_missing_files(tmp_path):
    name = "cube-double-play-100m-v0"
    (tmp_path / name).mkdir()
    (tmp_path / name / LARGE_SETS[name].file_names[3]).touch()
    last = LARGE_SETS[name].file_names[10]
    with pytest.raises(UsageError, match=f"lacks 99 of 100 files, .*{last} and 89 more; get"):
        command.main(["verify", name, "--dataset-dir", str(tmp_path)])


def test_files_of_a_larger_set_are_left_out(folder):
    np.savez(folder / SET / "pointmaze-medium-navigate-v0-003.npz", **raw_arrays(5))
    command.main(["convert", SET, "--dataset-dir", str(folder)])
    assert len(load_task(TASK, dataset_dir=folder / SET)[0]) == 60


def test_verify_looks_at_everything_in_a_folder(folder, capsys):
    command.main(["convert", SET, "--dataset-dir", str(folder)])
    val = folder / SET / "pointmaze-medium-navigate-v0-000-val.npz"
    np.savez(val, **raw_arrays(1))
    capsys.readouterr()
    assert command.main(["verify", str(folder / SET)]) == 0
    checked = {line.split()[0].rpartition("/")[2] for line in capsys.readouterr().out.splitlines()}
    assert checked == {*FILES, FLAT, val.name}
    records = folder / SET / FLAT / "records.npy"
    records.write_bytes(records.read_bytes()[:-1])
    val.write_bytes(val.read_bytes()[:-30])
    assert command.main(["verify", str(folder / SET)]) == 1
    printed = capsys.readouterr().out
    assert "records.npy has" in printed and "val.npz is truncated" in printed
    # The archives may be deleted after a conversion.
    for file in (*FILES, val.name):
        (folder / SET / file).unlink()
    assert command.main(["verify", SET, "--dataset-dir", str(folder)]) == 1
    assert FLAT in capsys.readouterr().out


def test_a_missing_file_that_is_there_as_a_large_set(tmp_path):
    """The hint tells how to train on what there is, and names no file that does not exist."""
    task = "cube-octuple-play-singletask-task1-v0"
    with pytest.raises(UsageError) as error:
        load_task(task, dataset_dir=tmp_path)
    assert "get cube-octuple-play-v0" not in str(error.value)
    assert "cube-octuple-play-100m-v0 and cube-octuple-play-10m-v0" in str(error.value)
    for name in ("cube-octuple-play-10m-v0", "cube-triple-play-10m-v0"):
        folder = tmp_path / name
        folder.mkdir()
        archive = folder / f"{LARGE_SETS[name].dataset_name}-000.npz"
        archive.touch()
        task = f"{LARGE_SETS[name].dataset_name.removesuffix('-v0')}-singletask-task1-v0"
        ways = f"'python -m trqam_fast.data convert {folder}' and train with --dataset-dir {folder}"
        for where in (tmp_path, folder):
            with pytest.raises(UsageError, match=re.escape(ways)):
                load_task(task, dataset_dir=where)
        (folder / f"{LARGE_SETS[name].dataset_name}.flat").mkdir()
        with pytest.raises(UsageError, match=f"train with --dataset-dir {folder}") as error:
            load_task(task, dataset_dir=tmp_path)
        assert "convert" not in str(error.value)
