"""The experiments of docs/protocol.md: their sweeps, scores and comparisons, without their runs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import e1, estimate, sweeps
from benchmarks.evidence.figures import drawing
from benchmarks.evidence.scores import read_scores, score_of
from benchmarks.evidence.statistics import compare
from benchmarks.evidence.tables import LINES
from tests.run_folders import ONE, Sweep
from trqam_fast.errors import RunError
from trqam_fast.report.collect import Result
from trqam_fast.runs.values import tomllib
from trqam_fast.sweep.plan import make_plan
from trqam_fast.sweep.spec import parse_spec, read_spec

BEST = {"qam": {"a": 0.1, "b": 1.0, "c": 10.0}, "trqam": 0.5}
"""Setting that solves a cell; of TRQAM it is the same everywhere."""


def methods_of(spec, folder):
    return {job.method for job in make_plan(spec, folder)} - {None}


@pytest.mark.parametrize("cell", e1.CELLS)
def test_sweeps_name_methods_as_they_are_looked_up(cell, tmp_path):
    selected = {e1.method(algo, v) for algo in e1.SETTINGS for v in e1.values_of(cell, algo)}
    assert methods_of(read_spec(e1.FOLDER / f"{cell}.toml"), tmp_path) == selected
    assert {name for name, _ in e1.selection_runs(cell)} == selected
    best = {"qam": 3.0, "trqam": 0.5}
    chosen = {r: {algo: {cell: best[algo]} for algo in best} for r in e1.READINGS}
    chosen["tuned per cell"]["qam"][cell] = 10.0
    text = e1.to_toml(e1.confirm_file(cell, e1.chosen_in(cell, chosen)))
    spec = parse_spec(tomllib.loads(text))
    assert spec.seeds == tuple(range(8)) and spec.flags["eval_interval"] in (1000, 1500)
    confirmed = {e1.method(*one) for one in best.items()} | {e1.method("qam", 10.0)}
    assert methods_of(spec, tmp_path) == confirmed


def test_of_equal_settings_the_one_in_the_middle_is_best():
    assert e1.best_setting([{1.0: 0.2, 2.0: 0.4, 3.0: 0.3}, {1.0: 0.2, 2.0: 0.0, 3.0: 0.3}]) == 3.0
    assert e1.best_setting([dict.fromkeys((1.0, 2.0, 3.0, 4.0, 5.0), 0.5)]) == 3.0


def test_a_run_is_judged_by_its_last_evaluations():
    curves = {
        "success": [(0, 1.0), (1, 0.1), (2, 0.8), (3, 0.5), (4, 0.6), (5, 0.7)],
        "path_kl": list(enumerate([9.0] * 18 + [1.0, 2.0])),
        "value_gap": [(1, 0.25)],
    }
    result = Result("QAM", "qam", ONE, "0", "done")
    assert score_of(result, curves)[:5] == pytest.approx((0.6, 0.7, 0.3, 0.54, 1.5))
    assert np.isnan(score_of(result, curves).adjoint_gain)
    assert score_of(result, curves).value_gap == 0.25
    result.status = "diverged"
    assert score_of(result, curves)[:4] == (0, 0, 0, 0)


def test_differences_are_paired():
    found = compare([np.full(4, 0.25), np.full(4, 0.75)])
    assert (found.mean, found.low, found.high, found.pairs) == (0.5, 0.25, 0.75, 8)
    # Of the 256 ways to flip the signs, two are as extreme.
    assert found.p == pytest.approx(2 / 256, abs=4e-3) and found.detectable == 0
    rng = np.random.default_rng(0)
    noise = compare([rng.normal(size=50)])
    assert noise.low < 0 < noise.high and noise.p > 0.05
    assert noise.detectable == pytest.approx(2.8 / 50**0.5, rel=0.3)
    assert compare([np.ones(3), np.ones(1)]).detectable is None


def write_cell(folder, cell, settings, seeds, *, solved=1.0):
    """Write a cell's sweep; a run solves every episode at its end if its setting is the best."""
    sweep = Sweep(folder)
    for algo, values in settings.items():
        best = BEST[algo][cell] if algo == "qam" else BEST[algo]
        for value in values:
            success = [solved if value == best else 0.0] * len(seeds)
            sweep.job(ONE, algo, e1.method(algo, value), success, seeds=seeds)


def all_settings(cell):
    return {algo: e1.values_of(cell, algo) for algo in e1.SETTINGS}


def stand_in(argv):
    """Leave what a sweep would: argv is that of trqam_fast.sweep."""
    spec, folder = read_spec(Path(argv[0])), Path(argv[2])
    settings = {algo: spec.grid[algo][name] for algo, name in e1.SETTINGS.items()}
    write_cell(folder, folder.name, settings, spec.seeds)


def test_e1_from_its_first_run_to_its_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(e1, "sweep", stand_in)
    out = tmp_path / "e1"
    json_file, figure = tmp_path / "e1.json", tmp_path / "plots" / "e1.svg"
    words = ["e1", "--out", str(tmp_path), "--json", str(json_file), "--figure", str(figure)]
    assert evidence.main(words) == 0
    found = json.loads(json_file.read_text())
    assert found["complete"] and found["progress"]["cell a, selection"] == "20 of 20 runs"
    # Every cell wants a temperature of its own, so that of the others never solves it, and that of
    # the middle solves one of three. A budget solves all.
    scores = {r: found["readings"][r]["differences"]["TRQAM - QAM"] for r in e1.READINGS}
    assert scores["tuned per cell"]["mean"] == 0 and scores["tuned per cell"]["pairs"] == 24
    # A run's two evaluations are 0.2 and 1 or 0.
    assert scores["leave one cell out"]["mean"] == pytest.approx(0.5)
    assert scores["one for all"]["mean"] == pytest.approx(1 / 3)
    shown = capsys.readouterr().out
    assert "PARTIAL" not in shown and "Confirmation, leave one cell out, primary" in shown
    assert re.search(r"60 \[\d+, \d+\] \(0.5; 8\)", shown) and "PARTIAL" not in figure.read_text()
    assert figure.read_text().count("#0072b2") > 4  # TRQAM's colour

    shutil.rmtree(next((out / "confirm" / "b" / "runs").glob("*/trqam_kl-budget_0.5")))
    (state,) = (out / "confirm" / "b" / "jobs").glob("*/trqam_kl-budget_0.5/*")
    state.unlink()
    assert evidence.main([*words, "--read-only"]) == 0
    shown = capsys.readouterr().out
    assert "PARTIAL" in shown and "PARTIAL" in figure.read_text()
    found = json.loads(json_file.read_text())
    assert not found["complete"]
    assert found["progress"]["cell b, confirmation"] == "16 of 24 runs"
    primary = found["readings"]["leave one cell out"]["differences"]["TRQAM - QAM"]
    assert primary["pairs"] == 16 and primary["cells"].keys() == {"a", "c"}
    assert "TRQAM - QAM: without cell b" in shown and "- (0.5; 0)" in shown


def test_e1_before_its_selection_is_over(tmp_path):
    out = tmp_path / "e1"
    write_cell(out / "select" / "a", "a", all_settings("a"), (100, 101))
    write_cell(out / "select" / "b", "b", {"qam": [0.1, 1.0]}, (100, 101))
    sweep = Sweep(out / "select" / "c")
    sweep.job(ONE, "qam", e1.method("qam", 3.0), [None], seeds=(100,), state="running")
    sweep.job(ONE, "qam", e1.method("qam", 3.0), [0.5], seeds=(101,))
    with pytest.raises(RunError, match="not over in cell b, c; the same command goes on"):
        e1.select(out)
    found = e1.analyse(out)
    assert not found["complete"] and found["readings"] == {}
    assert found["progress"]["cell b, selection"] == "4 of 20 runs"
    assert found["progress"]["cell c, selection"] == "1 of 20 runs"
    text = "\n".join(LINES["e1"](found))
    assert "PARTIAL" in text and "its settings are selected once the selection is over" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("  cell b  ")][:1]
    assert row == ["cell", "b", "10", "-", "60", "-", "-"]
    assert "35*" in text  # one seed of two
    assert "PARTIAL" in drawing("e1", found)


def test_what_failed_counts_as_nothing(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.job(ONE, "trqam", "TRQAM paper kl-budget 1.0", [0.5, 0.5], seeds=(0, 1))
    sweep.job(ONE, "trqam", "TRQAM ramp kl-budget 1.0", [0.75, None], seeds=(0, 1),
              failures={"1": "critic_loss is not finite"})  # fmt: skip
    sweep.job(ONE, "trqam", "TRQAM log kl-budget 1.0", [], seeds=(0, 1), state="failed", run=False,
              reason="no memory")  # fmt: skip
    sweep.job(ONE, "trqam", "TRQAM ramp kl-budget 0.25", [None], seeds=(0,), state="running")
    scores = read_scores(tmp_path)
    assert (scores.over, scores.failed, scores.waiting) == (6, 3, 1)
    assert scores.progress() == "6 of 7 runs, 3 failed"
    found = sweeps.analyse_e3(tmp_path)
    assert not found["complete"] and found["progress"] == {"e3": "6 of 56 runs, 3 failed"}
    # Each run has two evaluations, the first of them 0.2.
    ramp = found["differences"]["TRQAM ramp kl-budget 1.0"]
    assert ramp["mean"] == pytest.approx(((0.475 - 0.35) + (0 - 0.35)) / 2) == ramp["area"]
    assert found["differences"]["TRQAM log kl-budget 1.0"]["mean"] == pytest.approx(-0.35)
    text = "\n".join(LINES["e3"](found))
    assert "PARTIAL" in text and "uncorrected, 2 tests" in text
    assert "ramp kl-budget 1.0" in drawing("e3", found)


def test_the_mechanism_is_read_over_time(tmp_path):
    sweep = Sweep(tmp_path)
    name = sweep.job(ONE, "qam", "QAM inv-temp 3.0", [0.5, 0.9], seeds=(0, 1))
    metrics = ["stage,step,seed,path_kl,adjoint_gain,value_gap"]
    for seed in (0, 1):
        metrics += [f"offline,{step},{seed},{seed},{step + seed},0.5" for step in (3000, 6000)]
    (tmp_path / "runs" / name / "metrics.csv").write_text("\n".join(metrics) + "\n")
    found = sweeps.analyse_e2(tmp_path)
    curves = found["curves"]["QAM inv-temp 3.0"]
    assert curves["adjoint_gain"] == [(3000, 3000.5), (6000, 6000.5)]
    assert curves["success"] == [(0, 0.1), (3000, 0.2), (6000, pytest.approx(0.7))]
    values = found["methods"]["QAM inv-temp 3.0"]
    assert values["adjoint_gain"] == 6000.5 and values["path_kl"] == 0.5
    assert found["progress"] == {"e2": "2 of 18 runs"}
    text = "\n".join(LINES["e2"](found))
    assert "6e+03" in text and "QAM inv-temp 3.0" in drawing("e2", found)


def test_published_curves_stand_beside_the_larger_run(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.job(ONE, "qam", "QAM inv-temp 1.0", [0.9], seeds=(0,))
    found = sweeps.analyse_e4(tmp_path)
    rows = [line.split() for line in LINES["e4"](found) if line.startswith("  QAM")]
    assert rows[0] == ["QAM", "inv-temp", "1.0", "10", "20", "90", "-", "-"]
    assert rows[1] == ["QAM,", "published", "-", "-", "-", "80", "96"]
    assert "QAM, published" in drawing("e4", found)


def test_nothing_has_run_yet(tmp_path):
    for name, analyse in (
        ("e1", e1.analyse), ("e2", sweeps.analyse_e2), ("e3", sweeps.analyse_e3),
        ("e4", sweeps.analyse_e4),
    ):  # fmt: skip
        found = analyse(tmp_path / name)
        assert not found["complete"]
        assert "PARTIAL" in "\n".join(LINES[name](found)) and "PARTIAL" in drawing(name, found)


def test_time_is_estimated_from_one_job_of_each_kind(tmp_path, monkeypatch, capsys):
    measured = []

    def seconds(job):
        measured.append(job)
        return 60.0 if job.after else 0.0

    monkeypatch.setattr(estimate, "job_seconds", seconds)
    assert evidence.main(["e1", "--estimate", "--num-cpus", "1", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Ten settings; of the confirmation between one and three for each algorithm, four seeds a job.
    assert lines[0] == "  10 min  cell a, selection: 11 jobs, 0 of them over"
    assert lines[3].startswith("   4 min  cell a, confirmation of 1 setting an algorithm: 6 jobs")
    assert lines[-1].startswith("42 min to 66 min in all")
    assert len(measured) == 3 * 3 + 6 * 3  # bc and two algorithms in each sweep
