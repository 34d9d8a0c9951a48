"""Runs, checkpoints and plans that version 0.1.0 wrote can still be used."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.runs import rows, run
from trqam_fast.agents import ALGORITHMS
from trqam_fast.report.find import collect
from trqam_fast.runs import checkpoint
from trqam_fast.status.lines import read_lines
from trqam_fast.sweep.plan import read_plan
from trqam_fast.training.load_run import load_run

OLD = Path(__file__).parent / "data" / "version_0_1"
RUNS = OLD / "runs" / "pointmaze-medium-navigate-singletask-task1-v0"
NAMES = ["bc", "qam", "qam-e", "trqam"]


@pytest.mark.parametrize("algo", NAMES)
def test_a_run_can_be_loaded_and_acts(algo):
    loaded = load_run(RUNS / algo / "seeds_3")
    assert type(loaded.agent) is ALGORITHMS[algo] and loaded.config.seeds == (3,)
    agent = loaded.agent
    noise = torch.zeros(1, 2, agent.candidates, agent.noise_dim)
    assert agent.act(torch.zeros(1, 2, agent.obs_dim), noise).isfinite().all()


@pytest.mark.parametrize("algo", ["qam", "qam-e", "trqam"])
def test_a_run_goes_on(algo, generated, tmp_path):
    """From the end of its offline stage, with random numbers that are others since."""
    folder = tmp_path / "run"
    shutil.copytree(RUNS / algo / "seeds_3", folder)
    last = folder / "checkpoints/step_000000030.pt"
    before, logged = checkpoint.load(last)["agent"], rows(folder / "metrics.csv")
    last.unlink()
    assert run(["--generated-dir", str(generated)], folder, "--resume") == 0
    after, again = checkpoint.load(last)["agent"], rows(folder / "metrics.csv")
    assert [row["step"] for row in again] == [row["step"] for row in logged]
    assert all(value.isfinite().all() for value in after.values())
    assert set(before) - set(after) <= {"lam", "kl_ema"}


@pytest.mark.parametrize(
    ("source", "algo"), [("bc", "trqam"), ("trqam", "trqam"), ("qam", "trqam"), ("qam-e", "qam-e")]
)
def test_a_checkpoint_serves_as_pretrained(source, algo, flags, tmp_path):
    path = RUNS / source / "seeds_3/checkpoints"
    sizes = ["--actor-hidden-dims", "4", "4", "--value-hidden-dims", "4", "4"]
    flags = [*flags, *sizes, "--algo", algo, "--pretrained", str(checkpoint.newest(path))]
    assert run([*flags, "--bc-steps", "0", "--offline-steps", "5"], tmp_path / "run") == 0


def test_a_sweep_is_read():
    jobs = {job.algo: job for job in read_plan(OLD)}
    assert list(jobs) == NAMES and jobs["trqam"].config["offline_steps"] == 20
    assert jobs["trqam"].train_config().agent.lr == 2e-3
    lines, _ = read_lines(OLD)
    assert {line.method for line in lines} == {"BC", "QAM", "QAM-E", "TRQAM"}
    results, notes = collect([OLD / "runs"])
    assert {(result.method, result.status) for result in results} >= {
        ("BC", "done"), ("QAM", "done"), ("QAM-E", "done"), ("TRQAM", "done"),
    }  # fmt: skip
    (tracked,) = (r for r in results if r.method == "TRQAM")
    assert tracked.tracking[0].budget == 1.0 and len(tracked.tracking[0].lam) > 0
    assert notes == []
