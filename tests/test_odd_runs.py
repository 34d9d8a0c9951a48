"""Runs whose files hold odd values: they cost themselves alone, whoever reads them."""

import errno
import json
import os
import shutil

import pytest

from trqam_fast.cli import run_command
from trqam_fast.report.__main__ import main as report
from trqam_fast.runs.read import read_run
from trqam_fast.status.__main__ import main as status

CONFIG = {
    "env_name": "pointmaze-medium-navigate-singletask-task1-v0", "algo": "trqam", "seeds": [1, 2],
    "bc_steps": 10, "offline_steps": 10, "online_steps": 0, "kl_budget": 1.0, "generated": True,
    "generated_transitions": 3000, "mine": "of no algorithm here",
}  # fmt: skip
SUMMARY = {
    "seconds": {"offline": 2.0, "online": 1.0, "evaluate": 1.0}, "failures": {},
    "updates_per_second": {"offline": 5.0}, "online_seconds": {"acting": 0.5},
}  # fmt: skip
HUGE, DEEP, LONG = "1" + 400 * "0", 100_000 * "[" + 100_000 * "]", 5000 * "9"


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Pictures take most of a report's time; one test draws them."""
    if "pictures" not in request.node.name:
        svg = '<svg viewBox="0 0 1 1"></svg>'
        monkeypatch.setattr("trqam_fast.report.page.draw_all", lambda *_: {})
        monkeypatch.setattr("trqam_fast.report.page.draw_picture", lambda *_, **__: None)
        monkeypatch.setattr("trqam_fast.report.page.svg_of", lambda *_: svg)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two whole runs, "good" and "odd"."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("good", "odd"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(CONFIG | {"kl_budget": len(name)}))
        (folder / name / "summary.json").write_text(json.dumps(SUMMARY))
        (folder / name / "versions.json").write_text('{"torch": "2"}')
        logs = {
            "metrics.csv": "stage,step,seed,path_kl,lam\noffline,20,{0},1.5,0.5\n",
            "eval.csv": "step,success,stage,seed,episodes\n20,0.5,offline,{0},10\n",
            "timing.csv": "stage,step,updates_per_second,seconds\noffline,20,5,2\n",
        }
        for log, text in logs.items():
            head, row, _ = text.split("\n")
            rows = [row.format(seed) for seed in (1, 2)]
            (folder / name / log).write_text("\n".join([head, *rows, ""]))
    return folder


@pytest.fixture
def folder(runs, tmp_path):
    return shutil.copytree(runs, tmp_path / "runs")


def run(main, *words):
    return run_command(lambda: main([str(word) for word in words]))


def check(folder, capsys):
    """Run every reader of runs: each ends well, and the good run is in what it shows."""
    assert run(report, folder, "--out", folder / "page") == 0
    assert (folder / "page/index.html").exists()
    assert run(report, folder / "good", folder / "odd", "--out", folder / "both") == 0
    assert run(report, folder / "odd", "--out", folder / "alone") == 0
    capsys.readouterr()
    assert run(status, folder) == 0
    said = capsys.readouterr().out
    assert " good " in said.replace("\n", " ") and "20/20" in said and "odd" in said


def odd_json(folder, file, **raw):
    """Put raw JSON in the place of values."""
    path = folder / "odd" / file
    values = {name: json.dumps(value) for name, value in json.loads(path.read_text()).items()}
    words = ", ".join(f'"{name}": {value}' for name, value in (values | raw).items())
    path.write_text(f"{{{words}}}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", "5"), ("seeds", "true"), ("seeds", "null"), ("seeds", '[[1], {"a": 2}]'),
        ("offline_steps", HUGE), ("offline_steps", LONG), ("bc_steps", '"x"'),
        ("kl_budget", HUGE), ("kl_budget", "NaN"), ("kl_budget", "[]"), ("kl_budget", DEEP),
        ("env_name", "3"), ("algo", "[1]"), ("algo", '"\\u001b[2J"'),
        ("generated_transitions", HUGE),
    ],
)  # fmt: skip
def test_odd_settings(name, value, folder, capsys):
    odd_json(folder, "config.json", **{name: value})
    check(folder, capsys)


@pytest.mark.parametrize("value", ["null", '"x"', "NaN", "Infinity", HUGE, "[1]", "{}", DEEP])
@pytest.mark.parametrize("name", ["seconds", "updates_per_second", "online_seconds", "failures"])
def test_odd_summaries(name, value, folder, capsys):
    odd_json(folder, "summary.json", **{name: value})
    if value != DEEP:
        part = "offline" if name != "online_seconds" else "acting"
        both = f'{{"{part}": {value}, "online": 1}}'
        check(folder, capsys)
        odd_json(folder, "summary.json", **{name: both})
    check(folder, capsys)


@pytest.mark.parametrize("file", ["metrics.csv", "eval.csv", "timing.csv", "episodes.csv"])
@pytest.mark.parametrize("step", [400 * "9", LONG, "-1", "²", "1e3", "\x00"])
def test_odd_rows(file, step, folder, capsys):
    path = folder / "odd" / file
    if not path.exists():
        path.write_text("step,seed,success\n1,1,1\n")
    cells = path.read_text().splitlines()[1].split(",")
    where = path.read_text().split("\n")[0].split(",").index("step")
    cells[where] = step
    with open(path, "a") as log:
        log.write(",".join(cells) + "\n")
    check(folder, capsys)


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e308"])
def test_odd_numbers_of_episodes(value, folder, capsys):
    (folder / "odd/eval.csv").write_text(
        f"step,success,stage,seed,episodes\n20,0.5,offline,1,{value}\n"
    )
    check(folder, capsys)


def test_rows_of_no_stage_are_left_out(folder):
    """Thousands of names in the column `stage` took half a minute."""
    rows = "".join(f"{n},0.5,s{n},1,10\n" for n in range(20_000))
    (folder / "odd/eval.csv").write_text(f"step,success,stage,seed,episodes\n{rows}")
    (problem, *_) = (p for p in read_run(folder / "odd").problems if "damaged rows" in p)
    assert problem.endswith("20000")


@pytest.mark.parametrize("file", ["config.json", "summary.json", "metrics.csv", "eval.csv"])
@pytest.mark.parametrize("what", ["pipe", "folder", "sparse", "binary"])
def test_what_is_no_text(what, file, folder, capsys):
    path = folder / "odd" / file
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    elif what == "folder":
        path.mkdir()
    else:
        path.write_bytes(bytes(range(256)) * 50)
    if (what, file) == ("folder", "config.json"):  # such a folder is no run's
        assert run(report, folder, "--out", folder / "page") == 0
    else:
        check(folder, capsys)


def test_pictures_of_odd_runs(folder, capsys):
    odd_json(folder, "config.json", algo='"\\u001b[2J$x"', kl_budget="1e308")
    with open(folder / "odd/metrics.csv", "a") as log:
        log.write(f"offline,{2**53 - 1},1,1e308,-1e308\noffline,30,1,nan,inf\n")
    check(folder, capsys)


@pytest.mark.parametrize("refuse", [False, True], ids=["damaged", "refused"])
@pytest.mark.parametrize("file", ["summary.json", "metrics.csv", "timing.csv", "eval.csv"])
def test_status_names_the_file_that_it_cannot_use(file, refuse, folder, refused, capsys):
    """A run that is done is done all the same."""
    path = folder / "odd" / file
    if refuse:
        with refused(path, errno.EIO):
            assert run(status, folder) == 0
    else:
        path.write_bytes(path.read_bytes()[:-7] + b"\xff\0\n")
        assert run(status, folder) == 0
    good, odd = capsys.readouterr().out.splitlines()[1:3]
    assert good.endswith("done") and f"done; {file}" in odd
    assert ("cannot be read (Input/output error)" in odd) == refuse


def test_report_names_a_damaged_evaluation(folder, capsys):
    path = folder / "odd/evaluation/x/summary.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    run(report, folder / "odd", "--out", folder / "page")
    assert "evaluation/x/summary.json is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("refuse", [False, True], ids=["damaged", "refused"])
@pytest.mark.parametrize("file", ["flags.json", "eval.csv", "offline_agent.csv"])
def test_report_names_the_authors_file_that_it_cannot_use(file, refuse, folder, refused, capsys):
    theirs = folder / "trqam_pointmaze_s1_0123abcd"
    theirs.mkdir()
    (theirs / "flags.json").write_text('{"agent": {"agent_name": "trqam"}, "seed": 1}')
    (theirs / "eval.csv").write_text("success,step\n0.5,20\n")
    (theirs / "offline_agent.csv").write_text("actor/path_kl,dual/lambda,step\n1,2,20\n")
    if refuse:
        with refused(theirs / file, errno.EIO):
            assert run(report, folder, "--out", folder / "page") == 0
    else:
        text = (theirs / file).read_bytes()
        (theirs / file).write_bytes(text.replace(b"20", b"\xff0").replace(b"1}", b"1"))
        assert run(report, folder, "--out", folder / "page") == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if file in line]
    assert ("cannot be read (Input/output error)" in note) == refuse
    assert ("damaged" in note) != refuse


def test_an_authors_run_that_has_just_begun(folder, capsys):
    theirs = folder / "trqam_pointmaze_s1_0123abcd"
    theirs.mkdir()
    (theirs / "flags.json").write_text('{"agent": {"agent_name": "trqam"}, "seed": 1}')
    assert run(report, folder, "--out", folder / "page") == 0
    assert "1 unfinished" in capsys.readouterr().out


def test_a_refusal_is_named_as_such(folder, refused):
    with refused(folder / "odd/eval.csv", 13):
        problems = read_run(folder / "odd").problems
    assert any("eval.csv cannot be read (Permission denied)" in text for text in problems)


@pytest.mark.parametrize("name", ["kl_budget", "edit_scale", "lam_scale"])
@pytest.mark.parametrize("value", ['"x"', HUGE, "[1]", "null", "NaN", "0"])
def test_odd_flags_of_the_authors(name, value, folder, capsys):
    theirs = folder / "trqam_pointmaze_s1_0123abcd"
    theirs.mkdir()
    agent = f'{{"agent_name": "trqam", "kl_budget": 1, "{name}": {value}}}'
    (theirs / "flags.json").write_text(
        f'{{"agent": {agent}, "seed": 1, "env_name": "{CONFIG["env_name"]}", '
        '"offline_steps": 20, "online_steps": 0}'
    )
    (theirs / "eval.csv").write_text("success,step\n0.5,20\n1,1e300\n")
    (theirs / "offline_agent.csv").write_text("actor/path_kl,dual/lambda,step\n1,2,20\n")
    assert run(report, folder, "--out", folder / "page") == 0
    assert "(authors' code)" in (folder / "page/scores.csv").read_text()


def test_names_in_files_move_no_cursor(folder, capsys):
    odd_json(folder, "summary.json", failures='{"1": "\\u001b[2J\\u001b[31mowned"}')
    check(folder, capsys)
    run(report, folder / "odd", "--out", folder / "page")
    run(report, folder, "--out", folder / "page")
    run(status, folder)
    assert "\x1b" not in capsys.readouterr().out


TEXT = json.dumps("\x1b[31m\u202e" + 3000 * "y")
"""Red, backwards, and longer than a page shows."""


def shown_of(folder, capsys, *runs):
    """All that a report of some runs says, on the terminal and in its files."""
    capsys.readouterr()
    assert run(report, *runs, "--out", folder / "page") == 0
    files = [path.read_text(encoding="utf-8") for path in (folder / "page").iterdir()]
    return "\n".join([*files, capsys.readouterr().out])


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("config.json", "env_name", TEXT), ("config.json", "algo", TEXT),
        ("config.json", "mine", TEXT), ("config.json", "mine", f"[{TEXT}]"),
        ("config.json", "kl_budget", TEXT), ("config.json", "dataset", TEXT),
        ("versions.json", "torch", TEXT),
        ("summary.json", "backend", TEXT), ("summary.json", "failures", f'{{"1": {TEXT}}}'),
    ],
)  # fmt: skip
def test_texts_of_files_are_spelled_out_and_cut(file, name, value, folder, capsys):
    odd_json(folder, file, **{name: value})
    for runs in ((folder,), (folder / "odd",), (folder / "good", folder / "odd")):
        shown = shown_of(folder, capsys, *runs)
        assert "\x1b" not in shown and "\u202e" not in shown
        assert 2000 * "y" not in shown


@pytest.mark.parametrize("name", ["env_name", "seed", "agent_name", "kl_budget"])
def test_texts_of_the_authors_flags_are_spelled_out_and_cut(name, folder, capsys):
    theirs = folder / "trqam_pointmaze_s1_0123abcd"
    theirs.mkdir()
    flags = {"env_name": '"a task"', "seed": "1", "agent_name": '"trqam"', "kl_budget": "1"}
    flags[name] = TEXT
    agent = ", ".join(f'"{each}": {flags.pop(each)}' for each in ("agent_name", "kl_budget"))
    rest = ", ".join(f'"{each}": {value}' for each, value in flags.items())
    (theirs / "flags.json").write_text(f'{{"agent": {{{agent}}}, {rest}}}')
    (theirs / "eval.csv").write_text("success,step\n0.5,20\n")
    shown = shown_of(folder, capsys, folder)
    assert "(authors' code)" in shown and "\x1b" not in shown and 2000 * "y" not in shown


def test_names_of_folders_move_no_cursor(folder, capsys):
    named = (folder / "odd").rename(folder / "o\x1b[31md")
    (named / "metrics.csv").unlink()
    for runs in ((folder,), (named,)):
        capsys.readouterr()
        assert run(report, *runs, "--out", folder / "page") == 0
        said = capsys.readouterr().out
        assert r"o\x1b[31md: metrics.csv" in said and "\x1b" not in said
