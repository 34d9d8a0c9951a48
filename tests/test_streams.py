"""Outputs that are closed or refuse what is printed: no run ends for that."""

import io
import os
import subprocess
import sys

import pytest

from tests.runs import run
from trqam_fast import evaluate
from trqam_fast.cli import run_command
from trqam_fast.runs import checkpoint
from trqam_fast.streams import say


def full():
    return open("/dev/full", "w")


def unread():
    """A pipe whose reader is gone, as `head` is."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize(
    ("output", "reason"), [(full, "No space left on device"), (unread, "Broken pipe")]
)
def test_a_run_whose_output_refuses_goes_on(output, reason, flags, tmp_path, monkeypatch, capsys):
    folder, flags = tmp_path / "run", [*flags, "--algo", "bc"]
    monkeypatch.setattr(sys, "stdout", output())
    assert run(flags, folder) == 0
    said = capsys.readouterr().err
    assert said.count("warning: nothing more is printed") == 1 and reason in said
    assert checkpoint.newest(folder / "checkpoints").name == "step_000000020.pt"
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, output())
    assert run(flags, tmp_path / "both") == 0
    monkeypatch.setattr(sys, "stdout", output())
    argv = [str(folder), "--out", str(tmp_path / "found")]
    assert run_command(lambda: evaluate.main(argv)) == 0
    assert (tmp_path / "found/summary.json").exists()


def test_a_character_that_a_stream_lacks_is_spelled_out(monkeypatch):
    inner = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(inner, encoding="ascii"))
    say("runs/\u03bb")
    say("more")
    assert inner.getvalue() == b"runs/\\u03bb\nmore\n"


def test_closed_streams_are_no_files_of_a_run(flags, tmp_path):
    """As a scheduler may start a command; a library's lines would be written to the run's files."""
    words = [sys.executable, "-m", "trqam_fast.train", *flags, "--algo", "bc"]
    words += ["--run-dir", str(tmp_path / "run")]
    script = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words]
    assert subprocess.run(script, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == 0
    assert (tmp_path / "run/summary.json").exists()
