"""A run's folder belongs to one process, and what is in it is replaced only if that was asked."""

import contextlib
import errno
import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.runs import run
from trqam_fast import train
from trqam_fast.cli import run_command
from trqam_fast.errors import UsageError
from trqam_fast.runs.folder import LOCK, RunFolder
from trqam_fast.training.config import TrainConfig


@pytest.fixture
def flags(flags):
    return [*flags, "--algo", "bc"]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_written_by_one_process_at_a_time(flags, tmp_path, capsys):
    """Also where the other one has not come further than the folder."""
    folder = tmp_path / "run"
    with RunFolder(folder).held():
        assert run(flags, folder) == 2
        assert "is being written by another process" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert not folder.exists()
    assert run(flags, folder) == 0
    before = contents(folder)
    with RunFolder(folder).held():
        assert run(flags, folder, "--resume", "--bc-steps", "30") == 2
        assert run(flags, folder, "--overwrite") == 2
    assert contents(folder) == before


def test_a_file_is_no_folder(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file/run"):
        assert run(flags, place) == 2
        assert f"--run-dir {place} is a file, or leads through one" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def refused_at(place, method):
    """A method of paths for which the system refuses one."""

    def refusing(path):
        if path == place:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return method(path)

    return refusing


def test_runs_that_cannot_be_looked_for_are_not_begun_anew(flags, tmp_path, monkeypatch, capsys):
    """The newest one, by its name, is the one to continue."""
    monkeypatch.chdir(tmp_path)
    parent = Path("runs") / TrainConfig.env_name / "bc"
    assert RunFolder.newest(TrainConfig.env_name, "bc") is None
    for name in ("20260102-000000", "20260101-000000"):
        (parent / name).mkdir(parents=True)
        (parent / name / "config.json").write_text("{}")
    (parent / "20260103-000000").mkdir()
    (parent / "notes").write_text("")
    assert RunFolder.newest(TrainConfig.env_name, "bc") == parent / "20260102-000000"
    before = sorted(parent.iterdir())
    for name, place in (("iterdir", parent), ("exists", parent / "20260101-000000/config.json")):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refused_at(place, getattr(Path, name)))
            assert run_command(lambda: train.main([*flags, "--resume", "auto"])) == 1
        assert f"error: {place} cannot be read (Permission denied)" in capsys.readouterr().err
    assert sorted(parent.iterdir()) == before


def test_the_folder_is_held_while_data_are_loaded(flags, tmp_path, monkeypatch, capsys):
    folder, load, others = tmp_path / "run", train.load_task, []

    def slowly(*arguments, **options):
        monkeypatch.setattr(train, "load_task", load)
        others.append(run(flags, folder))
        return load(*arguments, **options)

    monkeypatch.setattr(train, "load_task", slowly)
    assert run(flags, folder) == 0
    assert others == [2]
    assert "is being written by another process" in capsys.readouterr().err


@contextlib.contextmanager
def overtaken(monkeypatch, flags, folder):
    """Inside, another run comes to its end in the folder just before a run that begins holds it."""
    held, before = RunFolder.held, {}

    def late(self):
        monkeypatch.setattr(RunFolder, "held", held)
        assert run(flags, folder) == 0
        before.update(contents(folder))
        return held(self)

    monkeypatch.setattr(RunFolder, "held", late)
    yield before


def test_a_run_that_came_in_between_stays(flags, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with overtaken(monkeypatch, flags, folder) as before:
        assert run(flags, folder, "--seeds", "7") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert len(before) > 5 and contents(folder) == before


def test_a_run_that_came_in_between_is_continued(flags, tmp_path, monkeypatch, capsys):
    """By --resume auto, which had found none; if it is another one, it stays."""
    with overtaken(monkeypatch, flags, tmp_path / "same"):
        assert run(flags, tmp_path / "same", "--resume", "auto") == 0
    assert "resuming from step_000000020.pt" in capsys.readouterr().out
    with overtaken(monkeypatch, flags, tmp_path / "other") as before:
        assert run(flags, tmp_path / "other", "--resume", "auto", "--lr", "0.1") == 2
    assert "cannot resume" in capsys.readouterr().err
    assert contents(tmp_path / "other") == before


def test_what_empties_a_folder_looks_itself(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="already holds a run"):
        folder.create({}, {})
    folder.create({}, {}, overwrite=True)


def test_default_names_never_collide(tmp_path, monkeypatch):
    """Not within a second, and not among processes that begin at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-120000")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunFolder.new("task", "a:B").path, range(30)))
    assert len(set(made)) == 30
    assert min(made).as_posix() == "runs/task/a.B/20260101-120000"
    assert max(made).name == "20260101-120000-30"


def test_a_start_that_fails_takes_back_what_it_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError), RunFolder.new("task", "qam").held():
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with RunFolder(tmp_path / "runs/a").held():
        (tmp_path / "runs/a/config.json").touch()
    (tmp_path / "empty").mkdir()
    with RunFolder(tmp_path / "empty").held():
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a", "config.json", "empty", LOCK, LOCK, "runs",
    ]  # fmt: skip


def test_a_lock_that_its_holder_removed_is_none(tmp_path, monkeypatch):
    """A process that had opened it before takes the new one."""
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    lock = fcntl.flock
    holding = folder.held()
    holding.__enter__()

    def late(file, how):
        monkeypatch.setattr("fcntl.flock", lock)
        holding.__exit__(None, None, None)
        lock(file, how)

    monkeypatch.setattr("fcntl.flock", late)
    with other.held(), pytest.raises(UsageError), RunFolder(tmp_path / "run").held():
        pass
