"""The experiments of docs/protocol.md: their sweeps, scores and comparisons, without their runs."""

import numpy as np
import pytest

from benchmarks.evidence import e1, sweeps
from benchmarks.evidence.scores import read_scores, score_of
from benchmarks.evidence.statistics import compare
from tests.run_folders import ONE, Sweep
from trqam_fast.errors import UsageError
from trqam_fast.report.collect import Result, Tracking
from trqam_fast.sweep.plan import make_plan
from trqam_fast.sweep.spec import parse_spec, read_spec, tomllib


def methods_of(spec, folder):
    return {job.method for job in make_plan(spec, folder)} - {None}


@pytest.mark.parametrize("cell", e1.CELLS)
def test_sweeps_name_methods_as_they_are_looked_up(cell, tmp_path):
    selected = {e1.method(algo, v) for algo in e1.SETTINGS for v in e1.values_of(cell, algo)}
    assert methods_of(read_spec(e1.FOLDER / f"{cell}.toml"), tmp_path) == selected
    best = {"qam": 3.0, "trqam": 0.5, "sqam": 0.25}
    chosen = {r: {algo: {cell: best[algo]} for algo in best} for r in e1.READINGS}
    chosen["tuned per cell"]["qam"][cell] = 30.0
    text = e1.to_toml(e1.confirm_file(cell, chosen))
    spec = parse_spec(tomllib.loads(text))
    assert spec.seeds == tuple(range(12)) and spec.flags["eval_interval"] in (1400, 2000)
    confirmed = {e1.method(*one) for one in best.items()} | {e1.method("qam", 30.0)}
    assert methods_of(spec, tmp_path) == confirmed


def test_of_equal_settings_the_one_in_the_middle_is_best():
    assert e1.best_setting([{1.0: 0.2, 2.0: 0.4, 3.0: 0.3}, {1.0: 0.2, 2.0: 0.0, 3.0: 0.3}]) == 3.0
    assert e1.best_setting([dict.fromkeys((1.0, 2.0, 3.0, 4.0, 5.0), 0.5)]) == 3.0


def test_a_run_is_judged_by_its_last_evaluations():
    curve = [(0, 1.0), (1, 0.1), (2, 0.8), (3, 0.5), (4, 0.6), (5, 0.7)]
    track = Tracking("offline", None, list(range(20)), [9.0] * 18 + [1.0, 2.0])
    result = Result("QAM", "qam", ONE, "0", "done", curve=curve, tracking=[track])
    assert score_of(result) == pytest.approx((0.6, 0.7, 0.3, 0.54, 1.5))
    result.status = "diverged"
    assert score_of(result)[:4] == (0, 0, 0, 0)


def test_differences_are_paired():
    found = compare([np.full(4, 0.25), np.full(4, 0.75)])
    assert (found.mean, found.low, found.high, found.pairs) == (0.5, 0.25, 0.75, 8)
    # Of the 256 ways to flip the signs, two are as extreme.
    assert found.p == pytest.approx(2 / 256, abs=4e-3) and found.detectable == 0
    rng = np.random.default_rng(0)
    noise = compare([rng.normal(size=50)])
    assert noise.low < 0 < noise.high and noise.p > 0.05
    assert noise.detectable == pytest.approx(2.8 / 50**0.5, rel=0.3)


def test_what_is_not_over_has_no_score(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.job(ONE, "trqam", "TRQAM paper kl-budget 1.0", [0.5, 0.5], seeds=(0, 1))
    sweep.job(ONE, "trqam", "TRQAM ramp kl-budget 1.0", [0.75, 1.0], seeds=(0, 1))
    found = sweeps.analyse_e3(tmp_path)
    difference = found["differences"]["TRQAM ramp kl-budget 1.0"]
    assert list(found["differences"]) == ["TRQAM ramp kl-budget 1.0"]
    # Each run has two evaluations, the first of them alike.
    assert difference["mean"] == pytest.approx(0.1875) == difference["area"]
    sweep.job(ONE, "qam", "QAM", [None], seeds=(0,), state="running")
    with pytest.raises(UsageError, match="seed 0 of QAM is running; run the experiment"):
        read_scores(tmp_path)
