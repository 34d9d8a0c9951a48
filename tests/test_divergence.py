"""A seed whose loss is not finite stops alone and keeps its last good weights."""

import json

import pytest
import torch

from tests.runs import rows, run
from trqam_fast import Policy, evaluate
from trqam_fast.agents import BCAgent, TRQAMAgent
from trqam_fast.errors import UsageError
from trqam_fast.export import write_export
from trqam_fast.runs import checkpoint


def poison(monkeypatch, kind, field, value):
    """Let one entry of the first seed's 13th batch be `value`."""
    update, count = kind.update, 0

    def poisoned(self, batch, noise):
        nonlocal count
        count += 1
        if count == 13:
            getattr(batch, field)[0] = value
        return update(self, batch, noise)

    monkeypatch.setattr(kind, "update", poisoned)


def test_non_finite_loss_stops_that_run_alone(flags, tmp_path, capsys, monkeypatch):
    """The other seed ends as if alone; the diverged one keeps its last good weights."""
    folder = tmp_path / "run"
    poison(monkeypatch, TRQAMAgent, "rewards", float("inf"))
    assert run(flags, folder, "--seeds", "3", "5", "--keep", "9") == 1
    captured = capsys.readouterr()
    assert "seed 3: critic_loss is not finite at step 33" in captured.err
    assert captured.err.endswith("last good checkpoint. Try a smaller --lr\n")
    monkeypatch.undo()
    last = checkpoint.load(folder / "checkpoints/step_000000040.pt")["agent"]
    good = checkpoint.load(folder / "checkpoints/step_000000030.pt")["agent"]
    for name in last:
        assert torch.equal(last[name][0], good[name][0]), name
    assert run(flags, tmp_path / "alone", "--seeds", "5") == 0
    alone = checkpoint.load(tmp_path / "alone/checkpoints/step_000000040.pt")["agent"]
    torch.testing.assert_close(last["online"][1], alone["online"][0], atol=1e-4, rtol=1e-3)
    summary = json.loads((folder / "summary.json").read_text())
    for measure in ("success", "return"):  # neither that of seed 3 at the step before
        diverged, other = summary[f"final_{measure}_by_seed"]
        assert diverged is None and other == summary[f"final_{measure}"]
    assert summary["failures"] == {"3": "critic_loss is not finite at step 33"}
    assert {r["seed"] for r in rows(folder / "metrics.csv") if r["step"] == "40"} == {"5"}
    capsys.readouterr()
    found = evaluate(folder, episodes=1)
    assert "seed 3 is not evaluated: critic_loss is not finite" in capsys.readouterr().err
    assert list(found.episodes) == [5] and list(found.summary["failures"]) == ["3"]
    assert "over_seeds" not in found.summary and found.summary["pooled"]["episodes"] == 1
    with pytest.warns(UserWarning, match="seed 3 of .* diverged: critic_loss is not finite"):
        Policy.load(folder)
    Policy.load(folder, train_seed=5)
    (folder / "summary.json").unlink()
    card = (write_export(folder, tmp_path / "out") / "README.md").read_text()
    assert "Seed 3 failed (critic_loss is not finite at step 33)" in card


def test_divergence_in_pretraining_leaves_finite_weights(flags, tmp_path, monkeypatch):
    poison(monkeypatch, BCAgent, "actions", float("nan"))
    assert run(flags, tmp_path / "run", "--seeds", "3", "5") == 1
    for path in (tmp_path / "run/checkpoints").glob("*.pt"):
        assert checkpoint.load(path)["agent"]["online"].isfinite().all(), path.name
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["failures"] == {"3": "bc_loss is not finite at step 13"}
    assert summary["final_success_by_seed"][1] is not None


def test_a_diverged_seed_keeps_its_weights_online(flags, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    poison(monkeypatch, TRQAMAgent, "rewards", float("inf"))
    online = ("--online-steps", "10", "--start-training", "3", "--keep", "1")
    assert run(flags, folder, "--seeds", "3", "5", *online) == 1
    last = checkpoint.load(folder / "checkpoints/step_000000050.pt")
    assert last["stage"] == "online" and last["agent"]["online"].isfinite().all()


def test_a_seed_that_diverged_in_pretraining_is_not_fine_tuned(
    flags, tmp_path, capsys, monkeypatch
):
    both, lost, tuned = (tmp_path / name for name in ("both", "lost", "tuned"))
    poison(monkeypatch, BCAgent, "actions", float("nan"))
    assert run(flags, both, "--algo", "bc", "--seeds", "3", "5") == 1
    poison(monkeypatch, BCAgent, "actions", float("nan"))
    assert run(flags, lost, "--algo", "bc", "--seeds", "3") == 1
    monkeypatch.undo()
    assert run(flags, tuned, "--seeds", "3", "5", "--pretrained", str(both)) == 1
    reason = "its pretraining diverged: bc_loss is not finite at step 13"
    assert f"error: seed 3: {reason}" in capsys.readouterr().err
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["failures"] == {"3": reason}
    assert {row["seed"] for row in rows(tuned / "eval.csv")} == {"5"}
    assert run(flags, tmp_path / "refused", "--seeds", "3", "5", "--pretrained", str(lost)) == 2
    assert "diverged (bc_loss is not finite at step 13); name another" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_seed_whose_actions_are_not_finite_stops_alone(flags, tmp_path, capsys):
    """Though its weights and losses are finite; no environment is stepped with such actions."""
    cloned, tuned = tmp_path / "cloned", tmp_path / "tuned"
    seeds = ("--seeds", "3", "5")
    assert run(flags, cloned, "--algo", "bc", *seeds) == 0
    path = cloned / "checkpoints/step_000000020.pt"
    state = checkpoint.load(path)
    state["agent"]["online"][0] *= 1e8
    checkpoint.save(path, state)
    assert run(flags, tuned, *seeds, "--bc-steps", "0", "--pretrained", str(path)) == 1
    reason = "its actions are not finite"
    stops = "this run stops. Name other weights with --pretrained"
    assert f"error: seed 3: {reason} at step 0; {stops}" in capsys.readouterr().err
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["failures"] == {"3": f"{reason} at step 0"}
    assert {row["seed"] for row in rows(tuned / "eval.csv")} == {"5"}
    found = evaluate(cloned, episodes=1)
    assert f"warning: seed 3 is not evaluated: {reason}\n" in capsys.readouterr().err
    assert list(found.episodes) == [5] and found.summary["failures"] == {"3": reason}
    state["agent"]["online"][1] = state["agent"]["online"][0]
    checkpoint.save(path, state)
    with pytest.raises(UsageError, match="every seed of .* diverged .its actions are not finite"):
        evaluate(cloned, episodes=1)
