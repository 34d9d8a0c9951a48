"""A small campaign against every reader; `python -m tests.campaign --cases 10000` is large."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign import __main__ as campaign
from tests.campaign.mutate import mutate
from tests.campaign.readers import READERS, Reader


@pytest.mark.slow
def test_three_hundred_cases():
    """In a process of its own, as one that has used threads cannot be forked."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", "--cases", "300"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 cases" in done.stdout


def test_mutations_follow_from_the_seed(tmp_path):
    from random import Random

    made = []
    for _ in range(2):
        path = tmp_path / "a.json"
        path.write_text('{"a": [1, 2.5, "x"], "b": {"c": null}}')
        said = [mutate(path, random) for random in [Random("0/4")]]
        made.append((said, path.read_bytes()))
    assert made[0] == made[1]


def failing(words):
    """A command that fails in the ways that the campaign must see."""
    kind = words[0]
    if kind == "traceback":
        raise NotImplementedError
    while kind == "hang":
        pass
    if kind == "cursor":
        print("\x1b[2J")
        return 0
    return {"fine": 0, "handled": 2, "died": 139}[kind]


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("fine", "accepted"), ("handled", "handled"), ("traceback", "tracebacks"),
     ("hang", "hangs"), ("died", "tracebacks"), ("cursor", "tracebacks")],
)  # fmt: skip
def test_failures_are_seen(kind, outcome, tmp_path, monkeypatch, capfd):
    (tmp_path / "whole/data").mkdir(parents=True)
    (tmp_path / "whole/data/a.json").write_text("{}")
    reader = Reader("a reader", "data", ("*.json",), failing, (kind,))
    monkeypatch.setattr(campaign, "READERS", (reader,))
    args = campaign.Args(limit=0.5)
    (tmp_path / "cases").mkdir()
    counts, _ = campaign.run_cases(args, tmp_path / "whole", tmp_path / "cases", [-1])
    assert dict(counts) == {("a reader", outcome): 1}
    assert ("case -1" in capfd.readouterr().out) == (outcome in campaign.FAILURES)


def failing_at_changes(words):
    """A command that fails at anything but the whole file."""
    path = Path(words[0])
    if not path.is_file() or path.stat().st_size != 2:
        raise NotImplementedError
    return 0


def test_a_failure_is_an_exit_status(monkeypatch, capfd):
    def build(whole):
        (whole / "data").mkdir()
        (whole / "data/a.json").write_text("{}")

    command = failing_at_changes
    reader = Reader("a reader", "data", ("*.json",), command, ("{}/a.json",))
    monkeypatch.setattr(campaign, "READERS", (reader,))
    monkeypatch.setattr(campaign, "build", build)
    monkeypatch.setattr(campaign, "shorten", lambda: None)
    assert campaign.main(["--cases", "0"]) == 0
    assert campaign.main(["--cases", "4"]) == 1
    assert "4 cases in " in capfd.readouterr().out


def test_every_reader_is_named_once():
    assert len({reader.name for reader in READERS}) == len(READERS) > 20
