"""Modules of a user's own, which ``--algo`` and ``--env-id`` name."""

import sys

import pytest

from trqam_fast.agents import BCAgent, algorithm
from trqam_fast.errors import UsageError
from trqam_fast.simulator.own import find_factory

ASKED = {"--algo": algorithm, "--env-id": find_factory}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, which is not on the path, as of a console script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        del sys.modules[name]


@pytest.mark.parametrize("flag", ASKED)
def test_a_module_of_the_current_folder_is_found(flag, folder):
    (folder / "mine.py").write_text(
        "from trqam_fast.agents import BCAgent\n\n\nclass Mine(BCAgent):\n    pass\n"
    )
    assert issubclass(ASKED[flag]("mine:Mine"), BCAgent)


@pytest.mark.parametrize("flag", ASKED)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class Mine(:", "SyntaxError: "),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that"),
        ("from trqam_fast.agents import Nothing", "ImportError: cannot import name 'Nothing'"),
        ("{}['there']", "KeyError: 'there' is missing"),
        ("from trqam_fast.agents import BCAgent; BCAgent.Config(lr=-1.0)", "UsageError: --lr is"),
    ],
)
def test_a_module_that_fails_is_named_with_the_line(flag, text, reason, folder):
    (folder / "mine.py").write_text(f"x = 1\n{text}\n")
    with pytest.raises(UsageError) as error:
        ASKED[flag]("mine:Mine")
    said = str(error.value)
    start = f"{flag} is 'mine:Mine', but importing mine fails at {folder / 'mine.py'}:2 ({reason}"
    assert said.startswith(start) and said.endswith("; mend it") and "\n" not in said


@pytest.mark.parametrize("flag", ASKED)
@pytest.mark.parametrize("name", ["mine.py", "./mine.py", "../there/mine.py", ".mine"])
def test_a_files_name_is_told_from_a_modules(flag, name):
    with pytest.raises(UsageError) as error:
        ASKED[flag](f"{name}:Mine")
    said = f"{flag} is '{name}:Mine'; write mine:Mine, in the folder of mine.py"
    assert str(error.value) == said
