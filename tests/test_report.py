import json
import os
import re
import shutil
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.run_folders import COLUMNS, SUMMARY, make_run, report
from trqam_fast.agents import ALGORITHMS, declaration
from trqam_fast.cli import run_command
from trqam_fast.errors import UsageError
from trqam_fast.report.__main__ import main
from trqam_fast.report.run_tables import success
from trqam_fast.report.svg import svg_of
from trqam_fast.runs.looks import looks
from trqam_fast.runs.plots import (
    PANELS,
    draw_panel,
    draw_picture,
    panels_of,
    points_of,
    write_overview,
)
from trqam_fast.runs.read import read_run, read_runs


def test_a_run_is_read(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert run.problems == [] and run.stages == ["pretrain", "offline", "online"]
    assert run.boundaries == {"pretrain": 200, "offline": 400}
    assert [point[:3] for point in run.curve("bc_loss")[:2]] == [
        ("pretrain", 100, 1.0),
        ("pretrain", 200, 2.0),
    ]
    kl = run.curve("path_kl")
    assert [point.step for point in kl] == [300, 400, 450, 500]
    assert kl[0][2:] == pytest.approx((1.05, 1.0, 1.1))
    (q,) = [panel for panel in PANELS if panel.column == "q_mean"]
    assert points_of(run, q)[0][2:] == (-3.0, -300.0, -1.0)
    (value, low, high), rates = run.success_after("offline")
    assert (value, rates) == (0.8, [0.6, 1.0]) and (low, high) == (0.6, 1.0)
    assert run.success_after("nothing") is None
    assert [run.budget(stage) for stage in run.stages] == [1.0, 1.0, 0.25]


def test_the_page_holds_everything_and_refers_to_nothing(tmp_path):
    one = make_run(tmp_path / "a" / "one")
    two = make_run(tmp_path / "b" / "two", seeds=(0,), stages=("pretrain",), algo="bc")
    out = tmp_path / "out"
    page = report(one, two, out=out)
    assert "script" not in page.tags
    assert page.refers_to_itself_alone()
    html = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\((?!#)|@import|<link", html)
    assert "prefers-color-scheme: dark" in html and "currentColor" in html
    panels = panels_of(read_runs([one, two]))
    assert [panel.column for panel in panels] == [
        "success", "path_kl", "lam", "q_mean", "critic_loss", "bc_loss", "updates_per_second",
    ]  # fmt: skip
    assert len(page.images) == len(panels)
    for panel, image in zip(panels, page.images, strict=True):
        assert image.startswith(f"{panel.title}: ")
        svg = ElementTree.parse(out / panel.file).getroot()  # it is well-formed alone, too
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(r"https?:(?!//www.w3.org/2000/svg)", (out / panel.file).read_text())
    assert "TRQAM, offline, step 400: 80.0 % [60.0, 100.0]" in page.text  # under the pointer
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["index.html", *(panel.file for panel in panels)]
    )
    for expected in (
        "after pretrain", "after offline", "after online", "80.0 % [60.0, 100.0]",
        "seeds: 60.0 100.0", "TRQAM, BC on pointmaze-medium-navigate task1", "Settings that differ",
        "TRQAM 95.0 % [88.8, 100.0] after online, 2 seeds of 50 episodes; BC 0.0 % [0.0, 7.1]",
        "- - kl- budget- online", "1 seed of 50 episodes",
        "2 min 33 s", "learning 80%, simulating 10%", "pretrain 600.0, offline 70.5", "cpp",
        "ieee", "2.13", "Tester", "- - algo", "0.0 % [0.0, 7.1]", "finished",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "Failed or missing" not in page.text and "--run-dir" not in page.text


def test_failures_and_missing_files_are_shown(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "versions.json").unlink()
    (run / "config.json").write_text("{half")
    summary = SUMMARY | {"failures": {"1": "critic_loss is not finite at step 350 <&>"}}
    (run / "summary.json").write_text(json.dumps(summary))
    with open(run / "metrics.csv", "a") as file:
        file.write("online,600,0,nan,,,,,,\nonline,600,1,1\nonline,six,1,1,,,,,,\nonline,70")
    other = make_run(tmp_path / "other")
    for name in ("summary.json", "eval.csv"):
        (other / name).unlink()
    (other / "metrics.csv").write_text(COLUMNS + "\n")
    page = report(run, other, out=tmp_path / "out")
    printed = capsys.readouterr().out
    for problem in (
        "versions.json is missing",
        "config.json is damaged",
        "seed 1 failed: critic_loss is not finite at step 350 <&>",
        "metrics.csv has damaged rows, left out: 3",
        "metrics.csv has values that are not finite: bc_loss of seed 0",
        "summary.json is missing",
        "eval.csv is missing",
        "metrics.csv has no rows yet",
    ):
        assert problem in page.text and problem in printed
    assert "1 of 2 seeds failed" in page.text and "not finished" in page.text


def test_a_seed_that_is_missing_from_an_evaluation_is_told(tmp_path):
    run = make_run(tmp_path / "run")
    lines = (run / "eval.csv").read_text().splitlines(keepends=True)
    (run / "eval.csv").write_text("".join(lines[:-1]))
    cell = success(read_run(run), "online")
    text = " ".join(part.text for line in cell.lines for part in line)
    assert text == "90.0 % [78.6, 95.7] 1 of 2 seeds"


def test_unknown_columns_get_a_panel(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain",))
    lines = (run / "metrics.csv").read_text().splitlines()
    lines = [lines[0] + ",simulator_share", *(line + ",0.4" for line in lines[1:])]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    page = report(run, out=tmp_path / "out")
    assert (tmp_path / "out" / "simulator_share.svg").exists() and len(page.images) == 4


def test_online_episodes(tmp_path):
    """Forty-five episodes of two seeds make two points; the rest waits for its twenty."""
    run = make_run(tmp_path / "run", stages=("online",))
    assert read_run(run).episodes == [] and read_run(run).problems == []
    rows = [f"{450 + n},{n % 2},{n},{int(n >= 20)},-1,10" for n in range(45)]
    (run / "episodes.csv").write_text("\n".join(["step,seed,episode,success,return,length", *rows]))
    first, second = read_run(run).episode_success()
    assert first[:3] == ("online", 469, 0.0) and second[:3] == ("online", 489, 1.0)
    assert first.high == pytest.approx(0.161, abs=1e-3) and second.high == 1.0
    assert "episodes" in [panel.column for panel in panels_of([read_run(run)])]


def test_what_a_panel_draws(tmp_path):
    """Lines at the means, one budget per stage, a dotted line where a stage ends."""
    run = read_run(make_run(tmp_path / "run"))
    panels = {panel.column: panel for panel in PANELS}
    figure, axis = plt.subplots()
    draw_panel(axis, panels["path_kl"], [run])
    curve, *others = axis.lines
    assert [len(line.get_xdata()) for line in others[:2]] == [4, 4]  # a line for each seed
    np.testing.assert_allclose(curve.get_ydata(), [1.05] * 4)
    dashed = [line for line in others if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert [(list(line.get_xdata()), line.get_ydata()[0]) for line in dashed] == [
        ([300, 400], 1.0),
        ([450, 500], 0.25),
    ]
    ends = [line.get_xdata()[0] for line in others if line.get_linestyle() == ":"]
    assert sorted(ends) == [200, 400] and axis.get_xlim()[0] < 0 < 500 < axis.get_xlim()[1]
    shown = {text.get_text() for text in axis.texts}
    assert {"pretrain", "offline", "online", "1", "0.25"} == shown
    named = [text.get_text() for text in axis.texts if text.get_text().isalpha()]
    assert named == sorted(named)  # and not as a set has them, which differs from time to time
    plt.close(figure)
    figure, axis = plt.subplots()
    draw_panel(axis, panels["success"], [run, run])
    first, second = (line for line in axis.lines if line.get_linewidth() == 1.6)
    assert first.get_color() == second.get_color() == "#0072b2"  # both are TRQAM's
    assert first.get_linestyle() != second.get_linestyle()
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [0.1, 0.8, 0.95])
    plt.close(figure)


def test_qam_has_no_lambda_and_no_budget(tmp_path):
    run = read_run(make_run(tmp_path / "run", algo="qam"))
    assert run.budget("offline") is None
    assert "lam" not in [panel.column for panel in panels_of([run])]


def test_names_are_told_apart_and_escaped(tmp_path):
    paths = [
        make_run(tmp_path / parent / "<b>run", stages=("pretrain",))
        for parent in ("first", "second")
    ]
    assert [run.name for run in read_runs(paths)] == ["first/<b>run", "second/<b>run"]
    page = report(*paths, out=tmp_path / "out")
    assert "b" not in page.tags and "second/ <b>run" in page.text


def test_odd_names(tmp_path):
    """Dollars, underscores and bytes that are no UTF-8: as they are, in pictures and the page."""
    names = ("cost$5", "$x^$", "$\\frac$", "_hidden", os.fsdecode(b"caf\xe9"))
    paths = [make_run(tmp_path / name, stages=("pretrain",)) for name in names]
    page = report(*paths, out=tmp_path / "out")
    (panel,) = [panel for panel in PANELS if panel.column == "bc_loss"]
    figure, _ = draw_picture(panel, read_runs(paths))
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    shown = [text.strip().replace(r"\$", "$") for text in shown]
    assert shown == [f"{name} (TRQAM)" for name in (*names[:4], r"caf\udce9")]
    figure.draw_without_rendering()
    plt.close(figure)
    assert r"caf\udce9" in page.text and "cost$5" in page.text
    write_overview(make_run(tmp_path / "run", env_name="$a^$", algo="\udce9"), tmp_path / "a.png")


def test_columns_stay_inside_the_folder(tmp_path):
    """A column's name is no path, and two that differ never share a picture."""
    run = make_run(tmp_path / "run", stages=("pretrain",))
    names = ["../../evil", "a/b", "a_b", "a b", "$x^$", "..", "n" * 300]
    lines = (run / "metrics.csv").read_text().splitlines()
    lines = [",".join([lines[0], *names]), *(line + ",0.4" * len(names) for line in lines[1:])]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "deep" / "er" / "out"
    page = report(run, out=out)
    assert len(page.images) == 3 + len(names)
    assert len(list(out.iterdir())) == 1 + len(page.images)
    assert [p for p in tmp_path.rglob("*.svg") if p.parent != out] == []


def test_many_runs(tmp_path):
    """More runs than colours, and than a picture's legend takes."""
    first = make_run(tmp_path / "run0", stages=("pretrain",))
    paths = [first, *(tmp_path / f"run{number}" for number in range(1, 10))]
    for path in paths[1:]:
        shutil.copytree(first, path)
    page = report(*paths, out=tmp_path / "out")
    assert "10 runs, 20 seeds in all" in page.text
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    lines = set(re.findall(r'stroke="(#\w+)" stroke-width="3" stroke-dasharray="([^"]*)"', html))
    assert len(lines) == 4  # dashes of one colour, TRQAM's


def test_a_method_has_its_colour_and_others_what_is_free():
    colours = [None, "#0072B2", "#0072b2", None, "#d55e00"]
    found = looks(colours)
    assert [look.colour for look in found[1:3]] == ["#0072b2"] * 2 and found[4].colour == "#d55e00"
    assert found[1].dashes != found[2].dashes
    assert len({found[0].colour, found[3].colour, "#0072b2", "#d55e00"}) == 4
    assert len({*looks([None] * 28)}) == 28
    declared = [declaration(name).colour for name in ALGORITHMS]
    assert len({*declared}) == len(declared) and None not in declared


def test_a_picture_is_the_same_each_time(tmp_path):
    runs = read_runs([make_run(tmp_path / "run")])
    (panel,) = [panel for panel in PANELS if panel.column == "path_kl"]
    one, two = (svg_of(draw_picture(panel, runs), "x", 'a "b" <c>') for _ in range(2))
    assert one == two and 'aria-label="a &quot;b&quot; &lt;c&gt;"' in one
    assert "<title>TRQAM, online, step 500: 1.05 [1, 1.1]</title>" in one
    circles = [tuple(map(float, c)) for c in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', one)]
    assert len(circles) == 4 and circles == sorted(circles)


def test_evaluations_afterwards_are_shown_with_the_same_interval(tmp_path):
    run = make_run(tmp_path / "run")
    for name, values in (
        ("good", {"pooled": {"success": 0.9, "episodes": 20}, "stage": "online", "step": 500,
                  "by_seed": {"0": {"success": 0.8, "episodes": 10},
                              "1": {"success": 1.0, "episodes": 10}}}),
        ("odd", {"pooled": {"success": "0.9", "episodes": []}}),
    ):  # fmt: skip
        (run / "evaluation" / name).mkdir(parents=True)
        (run / "evaluation" / name / "summary.json").write_text(json.dumps(values))
    page = report(run, out=tmp_path / "out")
    assert "Evaluations afterwards" in page.text and "90.0 % [69.9, 100.0]" in page.text
    assert "evaluation/good" in page.text and "evaluation/odd" not in page.text


def test_default_folders(tmp_path, monkeypatch, capsys):
    one, two = make_run(tmp_path / "one", stages=()), make_run(tmp_path / "two", stages=())
    assert main([str(one)]) == 0 and (one / "report" / "index.html").exists()
    assert "No run has logged a value yet" in (one / "report" / "index.html").read_text()
    monkeypatch.chdir(tmp_path)
    assert main([str(one), str(two)]) == 0 and (tmp_path / "report" / "index.html").exists()
    assert capsys.readouterr().out.splitlines()[-1] == "report/index.html"


def test_bad_arguments_are_one_sentence(tmp_path, capsys):
    run = make_run(tmp_path / "run", stages=())
    (tmp_path / "empty").mkdir()

    def status(*argv):
        return run_command(lambda: main([str(word) for word in argv]))

    assert status(tmp_path / "missing") == 2
    assert status(tmp_path / "empty") == 2
    assert status(run, run) == 2
    assert status() == 2
    assert status(run, "--out", run / "eval.csv") == 2
    assert status(run, "--out", run / "checkpoints") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and all(line.startswith("error: ") for line in lines)
    with pytest.raises(UsageError, match="holds no run"):
        read_run(tmp_path / "empty")
    with pytest.raises(UsageError, match="--out"):
        main([str(run), "--out", str(run / "eval.csv")])


@pytest.mark.parametrize("stages", [(), ("pretrain",), ("pretrain", "offline", "online")])
def test_overview(stages, tmp_path):
    run = make_run(tmp_path / "run", stages=stages)
    write_overview(run, run / "curves.png")
    image = plt.imread(run / "curves.png")
    assert image.shape[1] == 1540 and image.max() == 1.0
    assert plt.get_fignums() == []
