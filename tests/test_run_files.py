"""What a damaged or odd file of one run costs: that run, named, and no other."""

import json
import math
import os
import shutil
import time

import pytest

from tests.run_folders import CONFIG, ONE, SUMMARY, make_run, report, write_authors, write_run
from trqam_fast.report.comparison import Comparison
from trqam_fast.report.find import collect
from trqam_fast.runs.read import fault_of, read_run, read_sound
from trqam_fast.runs.values import load_json, number
from trqam_fast.status.lines import read_lines
from trqam_fast.status.table import render

HUGE = 10**400
ODD = [
    None, True, 5, -1, 1.5, HUGE, float("nan"), float("inf"), 1e308, "x", "", [], [HUGE], ["x"],
    [[1]], {}, {"a": "x"}, {"a": HUGE}, {"a": None}, {"a": {}},
]  # fmt: skip
DEEP = "[" * 100_000 + "]" * 100_000


def look_at(folder):
    """The comparison's numbers and notes, and the status table, of the runs in a folder."""
    results, notes = collect([folder])
    Comparison(results)
    lines, runs = read_lines(folder)
    render(lines, runs, 80)
    return results, notes


@pytest.mark.parametrize(
    ("file", "values"),
    [("config.json", CONFIG), ("summary.json", SUMMARY)],
    ids=["config", "summary"],
)
def test_an_odd_value_costs_that_run_alone(tmp_path, file, values):
    write_run(tmp_path / "good", ONE, "qam", (0, 1), [0.5, 0.7])
    run = write_run(tmp_path / "odd", ONE, "trqam", (0, 1), [0.5, 0.7])
    path = run / file
    whole = json.loads(path.read_text()) | values | {"env_name": ONE, "versions": {"a": 1}}
    for name in whole:
        for value in ODD:
            path.write_text(json.dumps(whole | {name: value}))
            results, _ = look_at(tmp_path)
            good = [r.success for r in results if r.folder.endswith("good") and r.seed]
            assert good == [0.5, 0.7], (name, value)


@pytest.mark.parametrize("name", ["seeds", "offline_steps", "kl_budget", "kl_budget_online"])
def test_an_odd_value_is_named(tmp_path, name):
    run = write_run(tmp_path / "run", ONE, "trqam", (0, 1), [0.5, 0.7])
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {name: {"a": 1}}))
    problem = f"config.json has odd values, left out: {name}"
    assert problem in read_run(run).problems and look_at(tmp_path)[1] == [f"run: {problem}"]


@pytest.mark.parametrize("text", ["", "{half", DEEP, '{"seeds": ' + DEEP + "}", "[]", "1" * 5000])
@pytest.mark.parametrize("file", ["config.json", "summary.json", "versions.json", "algorithm.json"])
def test_a_damaged_file_costs_that_run_alone(tmp_path, file, text):
    write_run(tmp_path / "good", ONE, "qam", (0, 1), [0.5, 0.7])
    run = write_run(tmp_path / "odd", ONE, "trqam", (0, 1), [0.5, 0.7])
    (run / file).write_text(text)
    results, notes = look_at(tmp_path)
    assert [r.success for r in results if r.folder.endswith("good") and r.seed] == [0.5, 0.7]
    assert any(file in problem for problem in read_run(run).problems)
    if file in ("config.json", "summary.json"):
        assert any(file in note for note in notes)


@pytest.mark.parametrize("step", ["9" * 400, "9" * 5000, "-1", "1.5", "inf", "٣x"])
def test_an_odd_step_is_a_damaged_row(tmp_path, step):
    write_run(tmp_path / "good", ONE, "qam", (0, 1), [0.5, 0.7])
    run = write_run(tmp_path / "odd", ONE, "trqam", (0, 1), [0.5, 0.7])
    with open(run / "eval.csv", "a") as file:
        file.write(f"{step},0.5,offline,0,50,-1,9\n")
    with open(run / "metrics.csv", "a") as file:
        file.write(f"offline,{step},0,0.5,0.5,0.5\n")
    (run / "timing.csv").write_text(
        f"stage,step,updates_per_second,seconds\noffline,{step},1,1\noffline,9,1e300,inf\n"
    )
    results, _ = look_at(tmp_path)
    assert [r.success for r in results if r.seed] == [0.5, 0.7] * 2
    assert "eval.csv has damaged rows, left out: 1" in read_run(run).problems


def test_three_thousand_stages_are_no_stages(tmp_path):
    """They are damage; and many rows take no longer than reading them."""
    run = make_run(tmp_path / "run")
    with open(run / "eval.csv", "a") as file:
        file.writelines(f"{500 + n},0.5,stage{n},0,50,-1,9\n" for n in range(3000))
    begin = time.perf_counter()
    page = report(run, out=tmp_path / "out")
    assert time.perf_counter() - begin < 10
    assert "eval.csv has damaged rows, left out: 3000" in page.text
    with open(run / "eval.csv", "a") as file:
        file.writelines(f"{500 + n},0.5,online,{n % 2},50,-1,9\n" for n in range(6000))
    begin = time.perf_counter()
    report(run, out=tmp_path / "out")
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize("name", ["kl_budget", "edit_scale", "lam_scale", "agent_name"])
def test_odd_flags_of_the_authors(tmp_path, name):
    write_run(tmp_path / "ours", ONE, "trqam", (0,), [0.9])
    run = write_authors(tmp_path / "TRQAM_trqam_cube_s1_0123abcd")
    flags = json.loads((run / "flags.json").read_text())
    for value in [*ODD, 0]:
        (run / "flags.json").write_text(
            json.dumps(flags | {"agent": flags["agent"] | {name: value}})
        )
        assert collect([tmp_path])[0][0].success == 0.9
        for other in flags:
            (run / "flags.json").write_text(json.dumps(flags | {other: value}))
            collect([tmp_path])


def test_files_that_cannot_be_opened(tmp_path):
    """A folder in the place of each file, one after the other."""
    write_run(tmp_path / "good", ONE, "qam", (0, 1), [0.5, 0.7])
    for file in ("config.json", "summary.json", "metrics.csv", "eval.csv", "timing.csv"):
        run = write_run(tmp_path / "odd", ONE, "trqam", (0, 1), [0.5, 0.7])
        (run / file).unlink(missing_ok=True)
        (run / file).mkdir()
        results, _ = look_at(tmp_path)
        assert [r.success for r in results if r.folder.endswith("good") and r.seed] == [0.5, 0.7]
        shutil.rmtree(run)


def test_a_damaged_plan_costs_its_sweep(tmp_path):
    write_run(tmp_path / "good", ONE, "qam", (0, 1), [0.5, 0.7])
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "plan.json").write_text("{half")
    results, notes = collect([tmp_path])
    assert [r.success for r in results] == [0.5, 0.7] and "plan.json is damaged" in notes[0]


def test_numbers():
    assert number("1e3") == 1000 and number(2) == 2 and number(" 3 ") == 3
    for value in (None, True, HUGE, "x", "", [1], {}):
        assert math.isnan(number(value)), value


def test_reasons(tmp_path):
    path = tmp_path / "a.json"

    def fault():
        assert not read_sound(path, [])
        with pytest.raises((ValueError, RecursionError, OSError)) as caught:
            load_json(path)
        return fault_of(caught.value)

    assert fault() == "cannot be read (No such file or directory)"
    for text, reason in (("{", "Expecting"), ("[]", "no names"), (DEEP, "recursion")):
        path.write_text(text)
        assert fault().startswith("is damaged (") and reason in fault()
    path.unlink()
    path.mkdir()
    assert fault() == "cannot be read (Is a directory)"
    with pytest.raises(AssertionError):
        fault_of(AssertionError())


def test_pipes_are_not_waited_for(tmp_path):
    write_run(tmp_path / "good", ONE, "qam", (0, 1), [0.5, 0.7])
    run = write_run(tmp_path / "run", ONE, "trqam", (0, 1), [0.5, 0.7])
    for file in ("config.json", "summary.json", "metrics.csv", "eval.csv", "timing.csv"):
        (run / file).unlink(missing_ok=True)
        os.mkfifo(run / file)
        look_at(tmp_path)
        read_run(run)
