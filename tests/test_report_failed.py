import csv
import re

import matplotlib.pyplot as plt
import pytest

from tests.run_folders import ONE, TWO, Sweep, report
from trqam_fast.report.comparison import Comparison
from trqam_fast.report.comparison_figures import (
    TAUS,
    ZEROED,
    draw_intervals,
    draw_pairs,
    draw_profiles,
)
from trqam_fast.report.comparison_tables import latex_table, measured_rates
from trqam_fast.report.find import collect
from trqam_fast.report.published import read_published
from trqam_fast.runs.looks import PAPER

NAN = "critic_loss is not finite at step 3500"
SEEDS = (0, 1, 2, 3)


def diverged(out):
    """TRQAM wins with the one seed that is left of four; QAM is solid, BC has not failed."""
    sweep = Sweep(out)
    clone = sweep.job(ONE, "bc", "BC", [0.1] * 4, seeds=SEEDS)
    sweep.job(ONE, "qam", "QAM", [0.5, 0.6, 0.7, 0.8], seeds=SEEDS, after=clone)
    sweep.job(ONE, "trqam", "TRQAM", [0.9, None, None, None], seeds=SEEDS, after=clone,
              failures={str(seed): NAN for seed in SEEDS[1:]})  # fmt: skip
    return collect([out])[0]


def test_pairs_stand_beside_those_with_failed_runs_as_0(tmp_path):
    c = Comparison(diverged(tmp_path))
    pair = {pair.second: pair for pair in c.pairs if pair.first == "TRQAM"}["QAM"]
    assert (pair.runs, pair.failed, pair.tasks, pair.tasks_zeroed) == ((1, 4), (3, 0), 1, 1)
    assert pair.probability.value == 1.0 and pair.zeroed.value == 0.25
    assert pair.zeroed.low < 0.25 < pair.zeroed.high
    (other,) = [pair for pair in c.pairs if pair.first != "TRQAM"]
    assert other.failed == (0, 0) and other.zeroed == other.probability


def test_long_names_of_a_pair_stand_in_two_lines(tmp_path):
    sweep = Sweep(tmp_path)
    for name, score in (("TRQAM kl-budget 0.5", 0.5), ("TRQAM kl-budget 2.0", 0.7)):
        sweep.job(ONE, "trqam", name, [score] * 2, seeds=(0, 1))
    picture = draw_pairs(Comparison(collect([tmp_path])[0]))
    (label,) = picture.figure.axes[0].get_yticklabels()
    assert set(label.get_text().split(" >\n")) == {"TRQAM kl-budget 0.5", "TRQAM kl-budget 2.0"}
    plt.close(picture.figure)


def test_csv_page_and_latex_have_both(tmp_path):
    diverged(tmp_path / "sweep")
    page = report(tmp_path / "sweep", out=tmp_path / "out")
    with open(tmp_path / "out" / "improvement.csv", newline="") as file:
        found = {(row["x"], row["y"]): row for row in csv.DictReader(file)}["TRQAM", "QAM"]
    assert (found["probability"], found["probability_failed_as_0"]) == ("1", "0.25")
    assert (found["x_runs"], found["x_failed"], found["y_failed"]) == ("1", "3", "0")
    assert re.search(r"TRQAM > QAM 1\.00 \[0\.21, 1\.00\] failed as 0: 0\.25", page.text)
    beside = page.text[page.text.index("Beside the published") : page.text.index("By task")]
    assert re.search(r"TRQAM, failed runs as 0 .*? 22\.5 \[0\.0, 67\.5\]", beside)
    assert "TRQAM 1 1 of 4" in beside and beside.count("failed runs as 0") == 1
    lines = (tmp_path / "out" / "success.tex").read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines) if line.startswith("TRQAM & 1 & 1 of 4")]
    assert lines[number + 1].startswith("TRQAM, failed runs as 0 & 1 & 4 (3 failed) &  & 22.5 ")
    assert lines[number + 1].count(" & ") == lines[number].count(" & ")
    assert sum("failed runs as 0" in line for line in lines) == 1


def test_a_method_that_failed_altogether_is_in_every_table(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.job(ONE, "qam", "QAM", [0.5, 0.6], seeds=(0, 1))
    sweep.job(ONE, "trqam", "TRQAM", [], seeds=(0, 1), state="failed", run=False)
    c, published = Comparison(collect([tmp_path])[0]), read_published()
    (pair,) = c.pairs
    assert (pair.tasks, pair.tasks_zeroed, pair.zeroed.value) == (0, 1, 0.0)
    assert "cube-double" not in measured_rates(c, published)["TRQAM"]
    assert measured_rates(c, published, zeroed=True)["TRQAM"]["cube-double"].value == 0.0
    assert "TRQAM, failed runs as 0 & 1 & 2 (2 failed) &  & 0.0 " in latex_table(c, published)
    for draw in (draw_intervals, draw_pairs, draw_profiles):
        plt.close(draw(c).figure)


def test_pictures_have_both(tmp_path):
    c = Comparison(diverged(tmp_path))
    figure, _ = draw_profiles(c)
    (axis,) = figure.axes
    (dashed,) = [line for line in axis.lines if is_zeroed(line) and len(line.get_xdata())]
    assert list(dashed.get_xdata()) == list(TAUS) and dashed.get_ydata()[0] == 0.25
    assert "failed runs as 0" in [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)
    figure, _ = draw_intervals(c)
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == PAPER]
    assert [line.get_xdata()[0] for line in hollow if len(line.get_xdata())] == [
        c.summaries["TRQAM", group].iqm_zeroed.value for group in c.groups
    ]
    plt.close(figure)
    figure, _ = draw_pairs(c)
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert sorted(line.get_xdata()[0] for line in marks) == [0.0, 0.25, 0.25, 1.0, 1.0]
    plt.close(figure)


def is_zeroed(line):
    return line.get_linestyle() == "--" and line._unscaled_dash_pattern[1] == ZEROED[1]


def test_a_seed_whose_pretraining_diverged_has_diverged(tmp_path):
    sweep = Sweep(tmp_path)
    why = "its pretraining diverged: bc_loss is not finite at step 20"
    clone = sweep.job(ONE, "bc", "BC", [0.1, None], seeds=(0, 1), reason=f"seed 1: {why[25:]}",
                      failures={"1": "bc_loss is not finite at step 20"})  # fmt: skip
    sweep.job(ONE, "trqam", "TRQAM", [0.9, 0.0], seeds=(0, 1), after=clone, failures={"1": why})
    found = {(r.method, r.seed): (r.status, r.reason) for r in collect([tmp_path])[0]}
    assert found["TRQAM", "1"] == ("diverged", why)
    assert found["BC", "1"] == ("diverged", "bc_loss is not finite at step 20")
    assert found["TRQAM", "0"] == found["BC", "0"] == ("done", "")  # of no other seed


@pytest.mark.parametrize("state", ["running", "stopped", "failed", "stale", "damaged", None])
def test_a_run_with_a_summary_is_over(tmp_path, state):
    """Whatever its state file says: the process may have died before it wrote that."""
    sweep = Sweep(tmp_path)
    name = sweep.job(
        ONE, "bc", "BC", [0.4, None], seeds=(0, 1), ended=True, failures={"1": NAN},
        state="running" if state in ("stale", "damaged", None) else state, reason="killed",
        age=500.0 if state == "stale" else 0.0,
    )  # fmt: skip
    path = tmp_path / "jobs" / f"{name}.json"
    if state == "damaged":
        path.write_text("{half")
    if state is None:
        path.unlink()
    sweep.job(ONE, "qam", "QAM", [], seeds=(0, 1), after=name, state=None)
    bc, lost, *waiting = collect([tmp_path])[0]
    assert (bc.status, bc.reason, bc.success) == ("done", "", 0.4)
    assert (lost.status, lost.reason) == ("diverged", NAN)
    assert {(r.status, r.reason) for r in waiting} == {("queued", "has not begun")}


@pytest.mark.parametrize("summary", ["", "{half"])
def test_done_without_a_summary_is_not_done(tmp_path, summary):
    name = Sweep(tmp_path).job(TWO, "bc", "BC", [0.4], seeds=(0,), ended=False)
    if summary:
        (tmp_path / "runs" / name / "summary.json").write_text(summary)
    results, notes = collect([tmp_path])
    assert [result.status for result in results] == ["unfinished"]
    assert "summary.json" in results[0].reason
    assert bool(notes) == bool(summary)
