import csv
import json
import math

import pytest

from tests.run_folders import ONE, OTHER, TWO, Sweep, report, write_authors, write_run
from trqam_fast.report import comparison_tables, run_tables
from trqam_fast.report.comparison import Comparison
from trqam_fast.report.find import collect
from trqam_fast.report.settings import FINE_TUNING, FREE
from trqam_fast.runs.read import read_runs
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.presets import make_config


def means(results):
    c = Comparison(results)
    return {name: c.summaries[name, "all"].mean.value for name in c.methods}


def two_sweeps(tmp_path, **second):
    """Two sweeps of the same methods, the other one with other settings and other seeds."""
    for name, seeds, success, config in (
        ("a", (0, 1), 0.8, {}), ("b", (2, 3), 0.2, second),
    ):  # fmt: skip
        sweep = Sweep(tmp_path / name)
        clone = sweep.job(ONE, "bc", "BC", [0.1, 0.1], seeds=seeds, **config)
        for algo, method in (("qam", "QAM"), ("trqam", "TRQAM")):
            sweep.job(ONE, algo, method, [success] * 2, seeds=seeds, after=clone, **config)
    return collect([tmp_path])


def test_sweeps_with_the_same_settings_are_one_method(tmp_path):
    results, notes = two_sweeps(tmp_path, eval_episodes=10, device="cuda", pretrained="elsewhere")
    assert means(results) == pytest.approx({"BC": 0.1, "QAM": 0.5, "TRQAM": 0.5}) and notes == []


def test_sweeps_with_other_settings_are_other_methods(tmp_path):
    """A setting counts for the algorithms that use it."""
    results, notes = two_sweeps(tmp_path, kl_budget=50.0)
    assert means(results) == pytest.approx(
        {"BC": 0.1, "QAM": 0.5, "TRQAM kl-budget 0.5": 0.8, "TRQAM kl-budget 50.0": 0.2}
    )
    assert notes == []


def test_data_are_a_setting_of_every_algorithm(tmp_path):
    results, _ = two_sweeps(tmp_path, generated_transitions=20_000)
    assert set(means(results)) == {
        f"{name} generated-transitions {size}"
        for name in ("BC", "QAM", "TRQAM") for size in (100_000, 20_000)
    }  # fmt: skip


def test_a_sweep_and_a_loose_run_are_told_apart(tmp_path):
    sweep = Sweep(tmp_path / "sweep")
    sweep.job(ONE, "trqam", "TRQAM", [0.8, 0.8], seeds=(0, 1))
    write_run(tmp_path / "loose", ONE, "trqam", (2, 3), [0.2, 0.2], kl_budget=50.0)
    assert set(means(collect([tmp_path / "sweep", tmp_path / "loose" / ".."])[0])) == {
        "TRQAM kl-budget 0.5", "TRQAM kl-budget 50.0",
    }  # fmt: skip


def test_a_sweep_with_a_value_for_each_task_stays_one_method(tmp_path):
    for name, budgets, success in (("a", (0.5, 1.0), 0.8), ("b", (50.0, 50.0), 0.2)):
        sweep = Sweep(tmp_path / name)
        for task, budget in zip((ONE, TWO), budgets, strict=True):
            sweep.job(task, "trqam", "TRQAM", [success], seeds=(0,), kl_budget=budget)
    results, notes = collect([tmp_path])
    assert means(results) == {"TRQAM kl-budget by task": 0.8, "TRQAM kl-budget 50.0": 0.2}
    assert notes == [] and all(result.status == "done" for result in results)


def test_a_new_name_that_others_have_is_compared_again(tmp_path):
    """A grid's method already has the name that the other sweeps' get, but another batch size."""
    for name, method, budget, size in (
        ("grid", "TRQAM kl-budget 0.5", 0.5, 8), ("b", "TRQAM", 0.5, 16), ("c", "TRQAM", 50.0, 16),
    ):  # fmt: skip
        Sweep(tmp_path / name).job(ONE, "trqam", method, [0.5], seeds=(0,), kl_budget=budget,
                                   batch_size=size)  # fmt: skip
    assert set(means(collect([tmp_path])[0])) == {
        "TRQAM kl-budget 0.5 batch-size 8", "TRQAM kl-budget 0.5 batch-size 16",
        "TRQAM kl-budget 50.0",
    }  # fmt: skip


def test_names_that_would_not_tell_apart_become_variants(tmp_path):
    """Two sweeps with a value for each task, the other way round."""
    for name, budgets in (("a", (0.5, 1.0)), ("b", (1.0, 0.5))):
        sweep = Sweep(tmp_path / name)
        for task, budget in zip((ONE, TWO), budgets, strict=True):
            sweep.job(task, "trqam", "TRQAM", [0.5], seeds=(0,), kl_budget=budget)
    results, notes = collect([tmp_path])
    assert set(means(results)) == {"TRQAM variant 1", "TRQAM variant 2"} and len(results) == 4
    assert len(notes) == 2 and f"{tmp_path}/b/runs" in notes[1] and "by task" in notes[1]


def test_many_settings_become_variants_that_the_page_explains(tmp_path):
    other = {"lr": 0.1, "batch_size": 8, "rho": 0.0, "tau": 0.5}
    write_run(tmp_path / "runs" / "1", ONE, "trqam", (0,), [0.9],
              lr=0.2, batch_size=16, rho=0.5, tau=0.1)  # fmt: skip
    write_run(tmp_path / "runs" / "2", ONE, "trqam", (0,), [0.1], **other)
    write_run(tmp_path / "runs" / "3", ONE, "trqam", (1,), [0.3], **other)
    page = report(tmp_path / "runs", out=tmp_path / "out")
    assert "To be known" in page.text
    assert "runs/2: lr 0.1, batch-size 8, rho 0.0, tau 0.5" in page.text
    found = means(collect([tmp_path / "runs"])[0])
    assert found == pytest.approx({"TRQAM variant 1": 0.9, "TRQAM variant 2": 0.2})


def test_a_plan_whose_flags_changed_is_two_methods(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.job(ONE, "trqam", "TRQAM", [0.8], seeds=(0,))
    sweep.job(ONE, "trqam", "TRQAM", [0.2], seeds=(1,), kl_budget=50.0)
    assert set(means(collect([tmp_path])[0])) == {"TRQAM kl-budget 0.5", "TRQAM kl-budget 50.0"}


def test_what_has_not_begun_has_the_settings_that_are_planned(tmp_path):
    for name, budget, state in (("a", 0.5, "done"), ("b", 50.0, None)):
        planned = json.loads(json.dumps(make_config(ONE, kl_budget=budget).to_dict()))
        config = {n: v for n, v in planned.items() if n not in ("env_name", "algo", "seeds")}
        sweep = Sweep(tmp_path / name)
        sweep.job(ONE, "trqam", "TRQAM", [0.8], seeds=(0,), state=state, planned=planned, **config)
    found = {r.method: r.status for r in collect([tmp_path])[0]}
    assert set(found) == {"TRQAM kl-budget 0.5", "TRQAM kl-budget 50.0"}
    assert found["TRQAM kl-budget 50.0"] == "queued"


def test_names_of_settings_are_the_trainer_s():
    assert FREE | FINE_TUNING <= set(TrainConfig().to_dict())


def test_the_length_of_pretraining_is_a_setting(tmp_path):
    for number, steps in enumerate((100, 200)):
        write_run(tmp_path / f"bc{number}", ONE, "bc", (0,), [0.1 + number], bc_steps=steps)
    results, notes = collect([tmp_path])
    assert {r.method for r in results} == {"BC bc-steps 100", "BC bc-steps 200"}
    assert len(results) == 2


def test_a_sweep_s_method_has_the_length_of_its_pretraining(tmp_path):
    for name, steps in (("a", 300), ("b", 900)):
        sweep = Sweep(tmp_path / name)
        clone = sweep.job(ONE, "bc", None, [0.1], seeds=(0,), bc_steps=steps)
        sweep.job(ONE, "qam", "QAM", [0.5], seeds=(0,), after=clone)
    results, _ = collect([tmp_path])
    assert {r.method for r in results} == {"QAM bc-steps 300", "QAM bc-steps 900", None}


def test_the_authors_settings_count_too(tmp_path):
    for seed, budget in ((1, 0.5), (2, 50.0)):
        write_authors(tmp_path / f"t_trqam_cube_s{seed}_0123abcd", seed=seed, run_group=str(seed),
                      kl_budget=budget)  # fmt: skip
        write_authors(tmp_path / f"q_qam_cube_s{seed}_0123abcd", seed=seed,
                      agent="qam", kl_budget=budget)  # fmt: skip
    write_authors(tmp_path / "b_trqam_cube_s1_0123abcd", seed=1, bc_only=True)
    write_authors(tmp_path / "b_trqam_cube_s2_0123abcd", seed=2, bc_only=True, offline_steps=50)
    c = Comparison(collect([tmp_path])[0])
    end = "(authors' code)"
    assert set(c.methods) == {
        f"BC bc-steps 50 {end}", f"BC bc-steps 100 {end}", f"QAM {end}",
        f"TRQAM kl-budget 0.5 {end}", f"TRQAM kl-budget 50.0 {end}",
    }  # fmt: skip


def test_each_run_has_its_own_start(tmp_path):
    """Two sweeps with pretraining of their own: the policies are not the same."""
    for name, start, algo in (("a", 0.2, "qam"), ("b", 0.6, "trqam")):
        sweep = Sweep(tmp_path / "sweeps" / name)
        clone = sweep.job(ONE, "bc", None, [start], seeds=(0,))
        sweep.job(ONE, algo, algo.upper(), [0.9], seeds=(0,), after=clone, start=start)
        sweep.job(OTHER, algo, algo.upper(), [0.9], seeds=(0,), start=0.3)
    page = report(tmp_path / "sweeps", out=tmp_path / "out")
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        starts = {(row["method"], row["task"]): row["start"] for row in csv.DictReader(file)}
    assert starts["QAM", ONE] == "0.2" and starts["TRQAM", ONE] == "0.6"
    assert f"{ONE}, seeds 0: the methods do not start with the same success" in page.text
    assert f"{OTHER}, seeds" not in page.text
    assert "differs" in page.text and "30.0" in page.text
    c = Comparison(collect([tmp_path / "sweeps"])[0])
    (trqam,) = c.of("TRQAM", ONE)
    trqam.start = None
    assert c.start_of(trqam) is None  # either could be its own
    (trqam,) = c.of("TRQAM", OTHER)
    trqam.start = None
    assert c.start_of(trqam) == 0.3


def test_a_repeat_from_another_start_is_told(tmp_path):
    write_run(tmp_path / "1", ONE, "qam", (0,), [0.4], start=0.2)
    write_run(tmp_path / "2", ONE, "qam", (0,), [0.9], start=0.6)
    (result,), notes = collect([tmp_path])
    assert result.success == 0.9 and len(notes) == 1 and not math.isnan(result.success)
    assert notes[0].endswith("counts instead, though its start differs (0.6 and not 0.2)")


def texts_of(table):
    """The rows of a table as people see them, by what names them."""
    rows = [[cell.lines[0][0].text for _, cell in row] for row in table.rows]
    return {name: others for name, *others in rows}


def test_what_only_one_algorithm_has_a_use_for_does_not_differ(tmp_path):
    """In a comparison of methods, and in one of runs."""
    trqam = {"tau": 0.005, "rho": 0.5, "kl_ema_coef": 0.1, "init_lambda": 1.0}
    runs = [
        write_run(tmp_path / "trqam", ONE, "trqam", (0,), [0.8], **trqam),
        write_run(tmp_path / "qam", ONE, "qam", (0,), [0.6], tau=0.01, rho=0.5, inv_temp=3.0),
    ]
    for folder in runs:  # as the trainer writes it: the values of its own algorithm
        file = folder / "config.json"
        own = {name: value for name, value in json.loads(file.read_text()).items()
               if name != "kl_budget" or folder.name == "trqam"}  # fmt: skip
        file.write_text(json.dumps(own))
    assert "Settings that differ" in report(tmp_path, out=tmp_path / "out").text
    c = Comparison(collect([tmp_path])[0])
    assert texts_of(comparison_tables.settings(c, differing=True)) == {"--tau": ["0.01", "0.005"]}
    known = texts_of(comparison_tables.settings(c, differing=False))
    assert known["--kl-budget"] == ["—", "0.5"] and known["--rho"] == ["0.5", "0.5"]
    found = texts_of(run_tables.settings(read_runs(runs), differing=True))
    assert found == {"--algo": ["trqam", "qam"], "--tau": ["0.005", "0.01"]}


def test_data_of_ones_own_leave_the_flags_of_ogbench_s_without_use(tmp_path):
    run = write_run(tmp_path / "run", ONE, "trqam", (0,), [0.8], dataset="own.npz")
    c = Comparison(collect([run])[0])
    for table in (
        comparison_tables.settings(c, differing=False), run_tables.settings(read_runs([run])),
    ):  # fmt: skip
        known = texts_of(table)
        assert known["--dataset"] == ["own.npz"] and "--generated-transitions" not in known
