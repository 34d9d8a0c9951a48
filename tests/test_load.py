"""Which form of a dataset is loaded, what lies in a folder, and what cannot be read."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import MAZE, TASK, raw_arrays
from trqam_fast import doctor
from trqam_fast.data import __main__ as command
from trqam_fast.data.dataset import Dataset
from trqam_fast.data.flat_dataset import FlatDataset
from trqam_fast.data.flatten import convert
from trqam_fast.data.load import load_task, present, stored_form
from trqam_fast.errors import UsageError


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **raw_arrays())
    return convert([path], MAZE, path.with_suffix(".flat"), progress=False)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **raw_arrays())
    return path


@pytest.fixture
def flat(archive, converted):
    return shutil.copytree(converted, archive.with_suffix(".flat"), copy_function=shutil.copyfile)


def test_a_flat_set_is_taken_for_its_own_archive_alone(archive, flat):
    """By bytes and checksums, whatever the times are."""
    folder = archive.parent

    def taken():
        dataset, found = load_task(TASK, dataset_dir=folder)
        ends = dataset.tail(60)
        assert isinstance(dataset, FlatDataset if found == flat else Dataset)
        return found, ends

    own = taken()
    assert own[0] == flat
    os.utime(flat / "manifest.json", (1, 1))
    assert taken()[0] == flat
    np.savez(archive, **raw_arrays(seed=1))  # as large as the one before, but of an earlier date
    os.utime(archive, (0, 0))
    found, rows = taken()
    assert found == archive and not np.array_equal(rows["observations"], own[1]["observations"])
    assert [(f.path, f.problem) for f in present(folder)[0]] == [
        (flat, "made of another archive"), (archive, None),
    ]  # fmt: skip
    archive.unlink()
    assert taken()[0] == flat


@pytest.mark.parametrize("newer", [True, False])
def test_an_old_flat_set_opens(archive, flat, newer):
    """One of format 1 knows the bytes of its source, and must not be older."""
    path = flat / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"], manifest["sources"][0]["checksum"]
    path.write_text(json.dumps({**manifest, "format": 1}))
    if not newer:
        os.utime(path, (1, 1))
    dataset, found = load_task(TASK, dataset_dir=archive.parent)
    assert found == (flat if newer else archive) and len(dataset) == 60
    with open(archive, "ab") as file:
        file.write(b"PK")
    assert stored_form(archive) == archive


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(UsageError, match="data get pointmaze-medium-nav.*with --generated"):
        load_task(TASK, dataset_dir=tmp_path)
    with pytest.raises(UsageError, match="data get antmaze-large-navigate-v0 --dataset-dir"):
        load_task("antmaze-large-navigate-singletask-task1-v0", dataset_dir=tmp_path)


def test_present(archive, flat):
    folder = archive.parent
    (folder / "antmaze-large-navigate-v0.npz").write_bytes(b"")
    (folder / "foreign-v0.npz").write_bytes(b"")
    (folder / "cube-double-play-v0-val.npz").write_bytes(b"")
    (folder / "cube-double-play-v0.flat").mkdir()
    os.mkfifo(folder / "antmaze-giant-navigate-v0.npz")
    found, problems = present(folder)
    assert problems == []
    assert {(f.path.name, f.form): f.problem for f in found} == {
        ("antmaze-giant-navigate-v0.npz", "archive"): "cannot be read",
        ("antmaze-large-navigate-v0.npz", "archive"): "damaged",
        ("cube-double-play-v0.flat", "flat"): "damaged",
        ("pointmaze-medium-navigate-v0.flat", "flat"): None,
        ("pointmaze-medium-navigate-v0.npz", "archive"): None,
    }
    within = folder / "cube-triple-play-10m-v0"
    within.mkdir()
    archive.rename(within / "cube-triple-play-v0-001.npz")
    assert within / "cube-triple-play-v0-001.npz" in [found.path for found in present(folder)[0]]


def test_what_cannot_be_read_costs_itself_alone(archive, monkeypatch, refused, capsys):
    """`list` and `doctor` name it, a folder among them, and go on with the rest."""
    folder = archive.parent
    shutil.copy(archive, folder / "pointmaze-large-navigate-v0.npz")
    closed = folder / "closed\x1b[2J"
    closed.mkdir()
    listed = Path.iterdir

    def iterdir(path):
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with refused(archive, errno.EIO):
        assert command.main(["list", "--dataset-dir", str(folder)]) == 1
        printed = capsys.readouterr()
        problems = doctor.describe_folder("official", folder)
    assert "archive (cannot be read)\n" in printed.out and "  archive\n" in printed.out
    expected = f"{folder}/closed\\x1b[2J cannot be read (Permission denied)"
    assert printed.err == f"problem: {expected}\n"
    assert problems == [expected, f"dataset {archive}: cannot be read"]
    assert "archive  pointmaze-large-navigate-v0.npz\n" in capsys.readouterr().out


def test_doctor_does_not_pass_over_damaged_data(archive, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_ops", lambda device: [])
    folder, flag = str(archive.parent), "--dataset-dir"
    assert doctor.main([flag, folder, "--generated-dir", f"{folder}/none"]) == 0
    archive.write_bytes(archive.read_bytes()[:99])
    assert doctor.main([flag, folder, "--generated-dir", f"{folder}/none"]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"problem: dataset {archive}: damaged\n"
    assert printed.out.endswith("1 problem(s), see above\n")


def test_nobodys_home(tmp_path):
    for words in (["list"], ["get", MAZE.dataset_name], ["verify", "x"], ["convert", "x"]):
        with pytest.raises(UsageError, match="~nobody-at-all/x names nobody's home"):
            command.main([*words, "--dataset-dir", "~nobody-at-all/x"])
    with pytest.raises(UsageError, match="names nobody's home"):
        load_task(TASK, dataset_dir=Path("~nobody-at-all/x"))
