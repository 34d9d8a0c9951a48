"""All commands under one name, and completion of their words."""

import importlib
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import trqam_fast
from trqam_fast import __main__ as entry
from trqam_fast import completion
from trqam_fast.cli import check_words
from trqam_fast.errors import UsageError


def call(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["trqam", *words])
    return entry.main()


def test_the_installed_script_is_this_module():
    (script,) = entry_points(group="console_scripts", name="trqam")
    assert script.load() is entry.main


def test_every_command_is_a_module_with_an_entry():
    for name in entry.COMMANDS:
        spec = importlib.util.find_spec(f"trqam_fast.{name}")
        if spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"trqam_fast.{name}.__main__")
        assert "run_command(main)" in open(spec.origin).read(), name
    assert set(completion.commands()) == set(entry.COMMANDS)


def test_version_and_help(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"trqam_fast {trqam_fast.__version__}\n"
    assert call(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in entry.COMMANDS)
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "error: there is no command 'trian'; did you mean train?"),
        (["xyz"], "choose one of train, evaluate, report"),
        ([], "usage: trqam COMMAND"),
    ],
)
def test_wrong_words(words, sentence, monkeypatch, capsys):
    assert call(monkeypatch, *words) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--out", ""], "--out"), (["--run-dir="], "--run-dir"), (["a", ""], "an argument")],
)
def test_empty_words_are_no_folder(words, named):
    """As those of variables that are not set."""
    with pytest.raises(UsageError, match=f"^{named} is empty .a variable that"):
        check_words(words)


def test_a_command_looks_for_empty_words_before_it_imports_anything():
    command = [sys.executable, "-m", "trqam_fast.status", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: an argument is empty")


@pytest.mark.parametrize(
    ("words", "status"),
    [(["data", "list", "--dataset-dir", "here"], 0), (["report", "nowhere"], 2)],
)
def test_a_command_runs_as_its_module_does(words, status, tmp_path):
    """Output, errors and exit status."""
    both = [
        subprocess.run(
            [sys.executable, "-m", module, *rest],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )
        for module, rest in (("trqam_fast", words), (f"trqam_fast.{words[0]}", words[1:]))
    ]  # fmt: skip
    assert [done.returncode for done in both] == [status, status]
    assert (both[0].stdout, both[0].stderr) == (both[1].stdout, both[1].stderr)


def test_the_self_test_names_its_command():
    with pytest.raises(SystemExit, match="run python -m trqam_fast.doctor"):
        runpy.run_path("trqam_fast/self_test.py", run_name="__main__")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_flags(tmp_path, capsys):
    with pytest.raises(SystemExit):
        completion.main(["bash"])
    script = tmp_path / "complete.sh"
    script.write_text(capsys.readouterr().out)
    ask = f"""
source {script}
function=$(complete -p trqam | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=(trqam "$@"); COMP_CWORD=$#; $function; echo "${{COMPREPLY[@]}}"
"""

    def completions(*words):
        command = ["bash", "-c", ask, "bash", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert set(completions("")) >= set(entry.COMMANDS)
    assert "--kl-budget" in completions("train", "--kl-b")
    assert set(completions("train", "--precision", "")) >= {"ieee", "bf16"}
    # What the trainer takes, each word once, and nothing that it refuses.
    assert completions("train", "--generated", "") == completions("train", "")
    assert set(completions("train", "--no-g")) >= {"--no-generated", "--no-graph"}
    words = completions("train", "--")
    assert {"--config", "--env-id", "--no-clip-grad"} <= set(words)
    assert words.count("--clip-grad") == 1 and len(words) == len(set(words))
    assert "--file" not in completions("parity", "--")
