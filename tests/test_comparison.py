import csv
import math
import re
import shutil
import subprocess

import pytest

from tests.run_folders import (
    METRICS,
    ONE,
    OTHER,
    TWO,
    Sweep,
    report,
    troubled,
    write_authors,
    write_run,
)
from trqam_fast.cli import run_command
from trqam_fast.files import locked
from trqam_fast.report.__main__ import main
from trqam_fast.report.collect import domain_name
from trqam_fast.report.comparison import COMMON, Comparison, each_once, settled_at, short_task
from trqam_fast.report.comparison_tables import headline, measured_rates, path_kl_of_methods
from trqam_fast.report.find import collect
from trqam_fast.report.published import read_published
from trqam_fast.report.table import DASH, escape_latex
from trqam_fast.runs.folder import LOCK
from trqam_fast.runs.read import read_run


def statuses(results, method, task):
    return [r.status for r in results if (r.method, r.task) == (method, task)]


def test_a_budget_is_compared_after_so_many_updates():
    """The online stage counts steps of the simulator, of which the first have no update."""
    online = {"start_training": 5000, "utd_ratio": 4}
    assert settled_at("offline", online) == 2000 and settled_at("online", online) == 5500
    assert settled_at("online", {"utd_ratio": "odd"}) == 2000


def test_what_became_of_every_seed(tmp_path):
    sweep = troubled(tmp_path)
    sweep.job(OTHER, "bc", None, [0.4], seeds=(0,), state="stopped", reason="stopped by SIGUSR1")
    sweep.job(OTHER, "qam", "QAM", [], seeds=(0,), state=None, after=sweep.jobs[-1]["name"])
    sweep.job(OTHER, "trqam", "TRQAM", [0.8], seeds=(0,))
    shutil.rmtree(tmp_path / "runs" / sweep.jobs[-1]["name"])
    results, notes = collect([tmp_path])
    assert statuses(results, "QAM", ONE) == ["done"] * 3
    assert statuses(results, "QAM", TWO) == ["failed"] * 3
    assert statuses(results, "TRQAM", ONE) == ["done", "done", "diverged"]
    assert statuses(results, "TRQAM", TWO) == ["running", "running", "stale"]
    reasons = {(r.method, r.task, r.seed): (r.status, r.reason) for r in results}
    assert reasons[None, OTHER, "0"] == ("stopped", "stopped by SIGUSR1")
    assert reasons["QAM", OTHER, "0"] == ("queued", "waits for its pretraining")
    assert reasons["TRQAM", OTHER, "0"][0] == "unfinished"
    assert "gone" in reasons["TRQAM", OTHER, "0"][1]
    assert reasons["BC", OTHER, ""][0] == "missing"
    by_seed = {(r.method, r.task, r.seed): r.success for r in results}
    assert by_seed["TRQAM", ONE, "0"] == 0.9
    for key in (("TRQAM", ONE, "2"), ("TRQAM", TWO, "0"), ("QAM", TWO, "0")):
        assert math.isnan(by_seed[key])
    assert notes == []


def test_numbers(tmp_path):
    troubled(tmp_path)
    c = Comparison(collect([tmp_path])[0])
    assert c.methods == ["BC", "QAM", "TRQAM"] and c.reference == "TRQAM"
    assert c.groups[COMMON] == [ONE]
    s = c.summaries["TRQAM", "all"]
    assert (s.tasks, s.tasks_expected, s.runs, s.runs_expected, s.failed) == (1, 2, 2, 6, 1)
    assert s.mean.value == pytest.approx(0.85)
    assert s.mean_zeroed.value == pytest.approx((0.9 + 0.8 + 0.0) / 3)
    s = c.summaries["QAM", "cube-double"]
    assert s.failed == 3 and s.mean.value == pytest.approx(0.6)
    assert s.mean_zeroed.value == pytest.approx(0.3)  # the task that failed counts as 0
    bc = c.summaries["BC", "all"]
    assert bc.mean.value == pytest.approx(0.1) and bc.mean == bc.mean_zeroed
    assert (bc.updates, s.updates) == ("300", "6k")
    assert s.data == "100k generated"
    pair = c.pairs[0]
    assert (pair.first, pair.second, pair.tasks) == ("TRQAM", "BC", 1)
    assert pair.probability.value == 1.0
    assert c.starts[ONE, "1"] == [0.1]


def test_path_kl_is_held_against_its_budget(tmp_path):
    troubled(tmp_path)
    c = Comparison(collect([tmp_path])[0])
    trqam = [d for d in c.deviations if d.result.method == "TRQAM"]
    qam = [d for d in c.deviations if d.result.method == "QAM"]
    first = trqam[0]
    assert (first.budget, first.first, first.last, first.lam) == (0.5, 0.1, 0.4, 7.0)
    assert first.mean == pytest.approx(0.475)  # the row at step 1000 is not settled
    assert first.mean_deviation == pytest.approx((0.1 + 0.2) / 2)
    assert first.largest_deviation == pytest.approx(0.2)
    assert qam[0].budget is None and qam[0].drift == pytest.approx(4.0)
    assert math.isnan(qam[0].mean_deviation) and math.isnan(qam[0].lam)
    table = {
        name.lines[0][0].text: [one.lines[0][0].text for _, one in others]
        for (_, name), *others in path_kl_of_methods(c).rows
    }
    assert table == {
        "QAM, offline": ["3", "none", DASH, DASH, "0.1", "0.4", "4", DASH],
        "TRQAM, offline": ["6", "0.5", "15.0 %", "20.0 %", "0.1", "0.4", "4", "7"],
    }


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_and_the_files(tmp_path):
    troubled(tmp_path / "sweep")
    out = tmp_path / "out"
    page = report(tmp_path / "sweep", out=out)
    html = (out / "index.html").read_text(encoding="utf-8")
    assert "script" not in page.tags and not re.search(r"https?:|url\((?!#)|@import|<link", html)
    assert page.refers_to_itself_alone()
    for expected in (
        "3 methods on 2 tasks", "P(TRQAM > QAM) = 1.00 [0.34, 1.00]",
        "TRQAM 85.0, QAM 60.0, BC 10.0 % on 1 common task", "All settings",
        "- - kl- budget", "episodes for each run",
        "18 runs: 11 done, 1 diverged, 3 failed, 2 still running, 1 stale",
        "critic_loss is not finite at step 3500", "--device is cuda, but there is <none>",
        "no heartbeat for 8 min, host node7", "2 of 6", "failed as 0:", "3 of 6 runs",
        "1 common task",
        "published", "measured here", "Source: authors' blog post", "81 ± 3",
        "2 of 3 seeds", "0 of 3 seeds", "TRQAM > QAM", "15.0 %", "20.0 %",
        "Path KL of each of the 9 runs",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "Settings that differ" not in page.text  # each has those that it alone has a use for
    assert html.index("Missing, failed or unfinished") < html.index("<h2>Success")
    assert {path.name for path in out.iterdir()} == {
        "index.html", "scores.csv", "summary.csv", "improvement.csv", "path_kl.csv", "success.tex",
        "intervals.svg", "profiles.svg", "improvement.svg", f"curves_{ONE}.svg",
        f"curves_{TWO}.svg", f"path_kl_{ONE}.svg", f"path_kl_{TWO}.svg",
    }  # fmt: skip
    assert len(page.images) == 7
    scores = rows(out / "scores.csv")
    assert len(scores) == 18 and sum(row["success"] != "" for row in scores) == 11
    (diverged,) = [row for row in scores if row["status"] == "diverged"]
    assert diverged["seed"] == "2" and diverged["success"] == "" and "3500" in diverged["reason"]
    summary = rows(out / "summary.csv")
    ours = [row for row in summary if row["kind"] == "measured here"]
    assert len(ours) == 3 * 3 and {row["group"] for row in ours} == {"all", COMMON, "cube-double"}
    (theirs,) = [
        row for row in summary
        if (row["kind"], row["method"], row["group"]) == ("published", "TRQAM", "cube-double")
    ]  # fmt: skip
    assert (theirs["mean"], theirs["std_over_seeds"], theirs["iqm"]) == ("0.81", "0.03", "")
    (trqam,) = [row for row in ours if (row["method"], row["group"]) == ("TRQAM", "all")]
    numbers = ("runs", "runs_expected", "failed", "mean", "iqm", "mean_failed_as_0",
               "iqm_failed_as_0")  # fmt: skip
    assert [trqam[name] for name in numbers] == [
        "2", "6", "1", "0.85", "0.85", "0.566667", "0.566667",
    ]  # fmt: skip
    assert float(trqam["mean_low"]) < 0.85 < float(trqam["mean_high"])
    kl = rows(out / "path_kl.csv")
    assert len(kl) == 9 and {row["budget"] for row in kl if row["method"] == "QAM"} == {""}
    (first,) = [r for r in kl if (r["method"], r["task"], r["seed"]) == ("TRQAM", ONE, "0")]
    assert list(first.values()) == [
        "TRQAM", ONE, "0", "done", "offline", "0.5", "0.1", "0.4", "0.475", "0.15", "0.2", "4", "7",
    ]  # fmt: skip
    for lacking in ("2 of 6", "0 of 3 seeds", "failed as 0:"):
        assert f'<span class="bad">{lacking}' in html
    assert '<span class="bad">3 seeds' not in html


def test_the_headline_has_the_best_method_first(tmp_path):
    """Also where it is not the one that all others are compared with."""
    sweep = Sweep(tmp_path)
    sweep.job(ONE, "trqam", "TRQAM", [0.1, 0.2, 0.3])
    sweep.job(ONE, "qam", "QAM", [0.8, 0.9, 1.0])
    c = Comparison(collect([tmp_path])[0])
    assert (c.pairs[0].first, c.pairs[0].probability.value) == ("TRQAM", 0)
    said = "QAM 90.0, TRQAM 20.0 % on 1 task; P(QAM > TRQAM) = 1.00 [0.44, 1.00]"
    assert headline(c) == said


def test_published_numbers_are_a_copy():
    published = read_published()
    assert len(published.domains) == 10 and len(published.rates) == 8
    assert published.rates["TRQAM"]["puzzle-4x4"] == (99.0, 1.0)
    assert published.rates["SQAM"]["all"] == (75.0, None)
    assert any("Source" in line for line in published.source)


def test_the_last_column_takes_all_published_domains_or_none(tmp_path):
    """Our mean stands under theirs only where it has the same fifty tasks."""
    envs = {name: "navigate" if "maze" in name else "play" for name in read_published().domains}
    sweep = Sweep(tmp_path / "sweep")
    for name, kind in envs.items():
        for task in range(1, 6):
            sweep.job(f"{name}-{kind}-singletask-task{task}-v0", "trqam", "TRQAM", [0.5] * 2,
                      seeds=(0, 1))  # fmt: skip
    sweep.job(OTHER, "trqam", "TRQAM", [1.0], seeds=(0,))
    c = Comparison(collect([tmp_path / "sweep"])[0])
    assert measured_rates(c, read_published())["TRQAM"]["all"].value == pytest.approx(0.5)
    assert c.summaries["TRQAM", "all"].mean.value > 0.5
    results = [r for r in collect([tmp_path / "sweep"])[0] if r.task != OTHER]
    c = Comparison(results)  # of the same tasks, so it is the same number with the same interval
    assert measured_rates(c, read_published())["TRQAM"]["all"] == c.summaries["TRQAM", "all"].mean
    results = [r for r in results if "scene" not in r.task]
    found = measured_rates(Comparison(results), read_published())["TRQAM"]
    assert "all" not in found and "scene" not in found and found["cube-double"].value == 0.5


def test_latex(tmp_path):
    """Every row has as many cells as the table has columns; published and measured are apart.

    What is opened is closed, and names are escaped.
    """
    sweep = Sweep(tmp_path / "sweep")
    sweep.job(ONE, "trqam", "TRQAM a_b & 50%", [0.5, 0.75, 0.25])
    report(tmp_path / "sweep", out=tmp_path / "out")
    text = (tmp_path / "out" / "success.tex").read_text()
    width = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    table = [line for line in text.splitlines() if re.search(r"(?<!\\)&", line)]
    assert len(table) == 1 + 8 + 1
    assert all(len(re.findall(r"(?<!\\)&", line)) == width - 1 for line in table)
    assert text.index("{published}") < text.index("{measured here}")
    assert r"TRQAM a\_b \& 50\% & 1 & 3 & 6k" in text and "50.0 {\\scriptsize [" in text
    assert table[-1].count("---") == 10  # nine domains and the mean of all
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    opened, closed = (re.findall(rf"\\{word}{{([a-z]+\*?)}}", text) for word in ("begin", "end"))
    assert opened == closed[::-1] == ["table*", "tabular"]
    assert escape_latex("a_b{c}\\") == r"a\_b\{c\}\textbackslash{}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_pdflatex_sets_the_table(tmp_path):
    Sweep(tmp_path / "sweep").job(ONE, "trqam", "TRQAM a_b & 50%", [0.5, 0.75, 0.25])
    report(tmp_path / "sweep", out=tmp_path / "out")
    (tmp_path / "a.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        r"\input{out/success.tex}\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


def test_loose_runs(tmp_path):
    """Without a plan the configurations say what ran; settings that differ make methods."""
    write_run(tmp_path / "a", ONE, "trqam", (0, 1), [0.6, 0.8])
    write_run(tmp_path / "b" / "c", ONE, "trqam", (0, 1), [0.4, 0.2], kl_budget=0.25)
    write_run(tmp_path / "d", ONE, "qam", (0,), [None], ended=False)
    write_run(tmp_path / "e", TWO, "bc", (0,), [0.3])
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "metrics.csv").write_text(METRICS + "\n")
    results, notes = collect([tmp_path])
    found = {(r.method, r.task): r for r in results if r.seed in ("0", "")}
    assert found["TRQAM kl-budget 0.5", ONE].success == 0.6
    assert found["TRQAM kl-budget 0.25", ONE].success == 0.4
    assert found["QAM", ONE].status == "unfinished" and "summary.json" in found["QAM", ONE].reason
    assert found["BC", ONE].status == "missing" == found["QAM", TWO].status
    assert any(note.startswith("f: config.json does not say") for note in notes)
    with locked(tmp_path / "d" / LOCK):
        results, _ = collect([tmp_path])
    assert "it is still running" in {r.reason for r in results if r.status == "unfinished"}


def test_the_same_run_twice_counts_once(tmp_path):
    write_run(tmp_path / "1", ONE, "qam", (0,), [0.1])
    write_run(tmp_path / "2", ONE, "qam", (0,), [0.9])
    write_run(tmp_path / "3", ONE, "qam", (0,), [None], ended=False)
    results, notes = collect([tmp_path])
    assert [r.success for r in results] == [0.9] and len(notes) == 2
    assert all("counts instead" in note for note in notes)


def test_an_evaluation_before_the_end_is_no_score(tmp_path):
    write_run(tmp_path / "run", ONE, "qam", (0,), [None])
    (result,), _ = collect([tmp_path])
    assert result.status == "unfinished"
    assert result.reason == "its last evaluation is at step 3000 of 6000"
    assert result.curve == [(0, 0.1), (3000, 0.2)]


def test_the_authors_runs(tmp_path):
    base = tmp_path / "exp" / "trqam" / "reproduce" / ONE
    write_authors(base / "TRQAM_trqam_cube_s10001_0123abcd")
    write_authors(base / "QAM_qam_cube_s10002_0123abcd", seed=10002, agent="qam", ended=False,
                  rows=((50, 0.3),))  # fmt: skip
    write_authors(base / "BC_trqam_cube_s3_0123abcd", seed=3, bc_only=True)
    write_authors(base / "tag_with_parts_fql_cube_s7_0123abcd", flags=False, ended=False)
    write_authors(base / "unnamed", flags=False)
    write_run(tmp_path / "exp" / "ours", ONE, "trqam", (0,), [0.9])
    results, notes = collect([tmp_path])
    found = {r.method: r for r in results}
    ours, theirs = found["TRQAM"], found["TRQAM (authors' code)"]
    assert ours.success == 0.9
    assert (theirs.success, theirs.seed, theirs.task) == (0.6, "10001", ONE)
    assert theirs.curve == [(50, 0.1), (100, 0.6)]
    (track,) = theirs.tracking
    assert (track.budget, track.path_kl, track.lam) == (0.5, [0.1, 0.55], [1.0, 2.0])
    assert found["QAM (authors' code)"].status == "unfinished"
    assert found["QAM (authors' code)"].reason == "its last evaluation is at step 50 of 100"
    assert found["BC (authors' code)"].algo == "bc" and not found["BC (authors' code)"].tracking
    by_name = found["FQL (authors' code)"]
    assert (by_name.success, by_name.seed, by_name.task) == (0.6, "7", ONE)
    assert (
        len(notes) == 2 and "left out" in " ".join(notes) and "whether it has ended" in str(notes)
    )
    page = report(tmp_path / "exp", out=tmp_path / "out")
    assert "TRQAM (authors' code)" in page.text


def test_domains():
    assert domain_name(ONE) == "cube-double"
    assert domain_name(ONE.replace("play", "noisy")) == "cube-double-noisy"
    assert domain_name("antmaze-large-stitch-singletask-task1-v0") == "antmaze-large-stitch"
    assert domain_name("lift-mh-low_dim") == "lift-mh-low_dim"
    assert short_task(ONE) == "cube-double-play task1"


def test_a_sweep_that_has_not_begun(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.job(ONE, "bc", None, [], state=None)
    sweep.job(ONE, "trqam", "TRQAM", [], state=None, after=sweep.jobs[0]["name"])
    page = report(tmp_path, out=tmp_path / "out")
    assert "3 runs: 0 done, 3 queued" in page.text and "has not begun" in page.text
    assert "Nothing was evaluated yet" in page.text


def test_bad_folders_are_one_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "plan.json").write_text("{half")
    (tmp_path / "nothing" / "in").mkdir(parents=True)
    (tmp_path / "nothing" / "in" / "metrics.csv").write_text("")
    for name in ("empty", "damaged", "nothing", "missing"):
        status = run_command(lambda name=name: main([str(tmp_path / name)]))
        assert status == 2, name
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)


def test_what_all_share_is_said_once():
    assert each_once(["100k generated", "", "50k generated"]) == "100k or 50k generated"
    assert each_once(["published", "50k generated"]) == "published or 50k generated"
    assert each_once(["12k", "12k", "3k"]) == "12k or 3k"


def test_the_same_data_have_the_same_interval_on_either_page(tmp_path):
    run = write_run(tmp_path / "run", ONE, "trqam", range(4), [0.98, 0.98, 0.86, 0.56])
    (interval, _) = read_run(run).success_after("offline")
    s = Comparison(collect([tmp_path])[0]).summaries["TRQAM", "all"]
    assert s.mean == pytest.approx(interval, abs=1e-12) and s.episodes == "50"
    one = write_run(tmp_path / "two" / "run", ONE, "qam", (0,), [0.0])
    s = Comparison(collect([tmp_path / "two"])[0]).summaries["QAM", "all"]
    assert s.mean == s.iqm == pytest.approx(read_run(one).success_after("offline")[0])
    assert s.mean.high == pytest.approx(0.0713, abs=1e-4)  # Wilson's of none of 50
