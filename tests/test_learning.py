"""The comparison of what the authors' code and ours learn, with agents in the place of theirs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare_learning
from benchmarks.evidence.statistics import compare_unpaired
from benchmarks.learning_curves import AUTHORS, OURS, Curve, summarise
from tests import own_tasks
from trqam_fast.errors import UsageError

FAKE = Path(__file__).parent / "fake_authors"
FLAGS = [
    "--reference", str(FAKE), "--env-name", "tests.own_tasks:Reach", "--max-episode-steps", "20",
    "--preset", "default", "--bc-steps", "7", "--log-interval", "2", "--eval-interval", "4",
    "--eval-episodes", "6", "--save-interval", "4", "--lr", "0.005", "--batch-size", "4",
    "--actor-hidden-dims", "8", "8", "--value-hidden-dims", "8", "--horizon-length", "2",
    "--discount", "0.9",
]  # fmt: skip


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    path = own_tasks.write_data(tmp_path_factory.mktemp("own") / "reach.npz")
    return [*FLAGS, "--dataset", str(path)]


def compare(flags, folder, updates, *more):
    """Run the comparison; return its record, and the authors' curves by algorithm and seed."""
    path = folder / "found.json"
    words = ["--updates", str(updates), "--out", str(folder / "runs"), "--json", str(path)]
    assert compare_learning.main([*flags, *words, *more]) == 0
    record = json.loads(path.read_text())
    curves = {(c["algo"], c["side"], c["seed"]): c for c in record["curves"]}
    return record, curves


def test_both_sides_are_trained_and_compared(flags, tmp_path, capsys):
    record, curves = compare(flags, tmp_path, 8, "--seeds", "0", "9")
    assert curves.keys() == {
        (algo, side, seed) for algo in ("qam", "trqam") for side in (AUTHORS, OURS)
        for seed in (0, 9)
    }  # fmt: skip
    theirs = curves["trqam", AUTHORS, 0]
    # They stand still until five updates are done, then reach the goal.
    assert theirs["success"]["0"] == theirs["success"]["4"] < 0.5 and theirs["success"]["8"] == 1
    assert [theirs["rows"][step]["path_kl"] for step in "2468"] == [1.5, 3.5, 5.5, 7.5]
    assert [theirs["rows"][step]["lam"] for step in "2468"] == [1.5, 3.5, 5.5, 7.5]
    assert theirs["rows"]["8"]["bc_loss"] == 7  # the flow that seven updates of cloning left
    # The stub lies in this checkout and is none of its own.
    assert theirs["versions"] == {"jax": "0", "device": "cpu: none", "commit": "unknown"}
    failed = curves["qam", AUTHORS, 9]
    assert failed["failure"] == "not finite between updates 4 and 6"
    assert failed["success"].keys() == {"0", "4"}
    ours = curves["trqam", OURS, 9]
    assert ours["success"].keys() == {"0", "4", "8"} and ours["rows"].keys() == {*"2468"}
    # The same episodes: a policy's success at the start is that of standing still or of cloning.
    still = theirs["success"]["0"]
    assert record["settled"][f"TRQAM, {AUTHORS}"]["success"]["by_seed"] == pytest.approx(
        [(still + 1) / 2, still / 2]
    )
    assert record["settled"][f"TRQAM, {AUTHORS}"]["path_kl"]["by_seed"][0] == 6.5
    assert record["tests"].keys() == {
        f"QAM: {AUTHORS} - ours", f"TRQAM: {AUTHORS} - ours",
        f"{AUTHORS}: TRQAM - QAM", "ours: TRQAM - QAM",
    }  # fmt: skip
    assert "path_kl" not in record["tests"][f"QAM: {AUTHORS} - ours"]  # theirs does not report it
    shown = capsys.readouterr().out
    assert "success, %, by update" in shown and f"TRQAM, {AUTHORS}" in shown


def test_a_run_goes_on_where_it_was(flags, tmp_path, capsys):
    once = ["--algos", "trqam", "--seeds", "0"]
    compare(flags, tmp_path / "two", 4, *once)
    folder = tmp_path / "two" / "runs" / "authors" / "trqam-seed_0"
    assert [path.name for path in folder.glob("*.npz")] == ["state_4.npz"]
    _, more = compare(flags, tmp_path / "two", 8, *once)
    _, whole = compare(flags, tmp_path / "one", 8, *once)
    tests = capsys.readouterr().out.rpartition("[95 % bootstrap]")[2]
    assert "path KL" in tests and "[" not in tests  # of one seed there is nothing to resample
    for side in (AUTHORS, OURS):
        # The batches' mean is among the rows, so it went on with the same random numbers.
        assert more["trqam", side, 0]["rows"] == whole["trqam", side, 0]["rows"]
        assert more["trqam", side, 0]["success"] == whole["trqam", side, 0]["success"]
    with pytest.raises(UsageError, match="another eval_episodes; name another --out"):
        compare([*flags, "--eval-episodes", "3"], tmp_path / "two", 8, *once)


@pytest.mark.parametrize(
    "more, words",
    [
        (["--critic-warmup", "5"], "--critic-warmup is 5, which has no counterpart"),
        (["--best-of-n", "4"], "--best-of-n is 4, which has no counterpart"),
        (["--online-steps", "9000"], "--online-steps is 9000, which has no counterpart"),
        (["--updates", "0"], "--updates is 0; use 1 or more"),
        (["--reference", "/"], "has no agents/trqam.py; give a checkout"),
        (["--budgte", "1"], "there is no flag --budgte"),
    ],
)
def test_what_cannot_be_compared_is_refused(flags, tmp_path, more, words):
    with pytest.raises(UsageError, match=words):
        compare_learning.main([*flags, "--out", str(tmp_path), "--algos", "trqam", *more])


def test_groups_are_compared_exactly():
    found = compare_unpaired(np.array([5.0, 6.0, 7.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.mean == 4 and found.p == found.least_p == pytest.approx(2 / math.comb(8, 4))
    assert 2 < found.low < 4 < found.high < 6
    # Of the ten ways to take two of 1, 2, 3, 4, 6, only {4, 6} is as far from the other three.
    found = compare_unpaired(np.array([4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert found.p == found.least_p == pytest.approx(1 / 10)
    rng = np.random.default_rng(0)
    many = compare_unpaired(rng.normal(size=12), rng.normal(size=12) + 1.5)
    assert many.p < 0.02 and many.sizes == (12, 12)
    assert compare_unpaired(np.ones(3), np.ones(3)).p == 1


def test_settled_is_the_second_half():
    curve = Curve({0: 0.9, 4: 0.2, 8: 0.4}, {4: {"lam": 1.0}, 6: {"lam": 2.0}, 8: {"lam": 4.0}})
    groups = {("trqam", side): {0: curve, 1: curve} for side in (AUTHORS, OURS)}
    found = summarise(groups, [4, 8])["settled"]["TRQAM, ours"]
    assert found["success"]["mean"] == pytest.approx(0.3) and found["lam"]["mean"] == 3
    assert found.keys() == {"success", "lam"}
