"""Runs that are killed, stopped by a scheduler, or out of disk space, and what a run starts from.

Longer than 400 lines, as all of them look at the same whole run.
"""

import dataclasses
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch

from tests.kill_run import compare_runs, differences, reached, start, wait_for_line
from tests.runs import run
from trqam_fast import train
from trqam_fast.agents import BCAgent
from trqam_fast.agents.fql import FQLAgent
from trqam_fast.cli import run_command
from trqam_fast.data.dataset import Dataset
from trqam_fast.data.generate.recipe import Recipe
from trqam_fast.data.replay import ReplayBuffer
from trqam_fast.errors import UsageError
from trqam_fast.export import write_export
from trqam_fast.runs import checkpoint
from trqam_fast.runs.read import read_run
from trqam_fast.status.lines import read_lines
from trqam_fast.training.flags import parse_config
from trqam_fast.training.online import OnlineDriver
from trqam_fast.training.pretrained import differences_in_words, of_one_seed, read_start
from trqam_fast.training.start import field_of
from trqam_fast.training.updater import Updater

STEPS = {"pretrain": 300, "offline": 60, "online": 60}
END = sum(STEPS.values())


@pytest.fixture(scope="module")
def flags(generated):
    return [
        "--preset", "smoke", "--generated-dir", str(generated), "--generated-transitions", "3000",
        "--bc-steps", "300", "--offline-steps", "60", "--online-steps", "60",
        "--start-training", "10", "--utd-ratio", "2", "--kl-budget-online", "2",
        "--log-interval", "20", "--eval-interval", "40", "--save-interval", "15",
        "--eval-episodes", "1", "--eval-envs", "1", "--max-episode-steps", "50",
        "--seeds", "3", "5", "--batch-size", "16",
        "--actor-hidden-dims", "16", "16", "--value-hidden-dims", "16", "16",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(flags, folder) == 0
    return folder


def test_what_a_stage_held_is_gone_in_the_next_one_and_all_of_it_at_the_end(
    flags, whole, tmp_path, monkeypatch
):
    """Graphs, copies and replay buffers are gigabytes at the published sizes."""
    made, alive = [], []
    for kind in (Updater, ReplayBuffer, Dataset):
        begin = kind.__init__

        def noted(self, *args, begin=begin, **options):
            made.append(weakref.ref(self))
            begin(self, *args, **options)

        monkeypatch.setattr(kind, "__init__", noted)
    drive = OnlineDriver.run

    def looked(self, *args):
        alive.append([type(ref()) for ref in made if ref() is not None])
        return drive(self, *args)

    monkeypatch.setattr(OnlineDriver, "run", looked)
    gc.collect()
    gc.disable()
    try:
        assert run([*flags, "--pretrained", str(whole), "--bc-steps", "0"], tmp_path / "run") == 0
        assert [ref() for ref in made if ref() is not None] == []
    finally:
        gc.enable()
    assert alive and all(kinds.count(Updater) == 1 for kinds in alive)


@pytest.mark.slow
def test_sigkill_in_every_stage(flags, whole, tmp_path):
    """tests/kill_run.py does this at more, random, moments."""
    folder, seen = tmp_path / "cut", []
    for marker in ("pretrain 20", "offline 320", "online"):
        process = start([*flags, "--run-dir", str(folder), "--resume", "auto"])
        assert wait_for_line(process, marker)
        time.sleep(0.05)
        assert process.poll() is None
        process.kill()
        process.communicate()
        seen.append(reached(folder))
    assert seen[1:] == ["offline", "online"]
    assert run(flags, folder, "--resume", "auto") == 0
    assert compare_runs(whole, folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "marker"), [("SIGTERM", "pretrain "), ("SIGUSR1", "online 380")])
def test_a_scheduler_stops_the_run(name, marker, flags, whole, tmp_path):
    folder = tmp_path / "cut"
    process = start([*flags, "--run-dir", str(folder)])
    assert wait_for_line(process, marker)
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    assert process.returncode == 75
    saved = checkpoint.load(checkpoint.newest(folder / "checkpoints"))
    assert 0 < saved["step"] < END
    assert run([], folder, "--resume") == 0
    assert compare_runs(whole, folder) == []


def stop_at(step, monkeypatch, where="evaluate"):
    """Let SIGTERM arrive as the evaluation, or the log row, of a step begins."""
    original = getattr(train.Trainer, where)

    def interrupted(self, *args):
        if step in args or step in [getattr(arg, "step", None) for arg in args]:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(train.Trainer, where, interrupted)


@pytest.mark.parametrize(("where", "step"), [("evaluate", 340), ("check_finite", 320)])
def test_a_signal_beside_the_updates(where, step, flags, whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cut"
    stop_at(step, monkeypatch, where)
    assert run(flags, folder) == 75
    message = capsys.readouterr().err
    assert f"stopped by SIGTERM after step {step}; continue with --resume" in message
    assert checkpoint.load(checkpoint.newest(folder / "checkpoints"))["step"] == step
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run([], folder, "--resume") == 0
    assert compare_runs(whole, folder) == []


def test_comparison_of_runs_can_fail(whole, tmp_path):
    state = checkpoint.load(checkpoint.newest(whole / "checkpoints"))
    changed = {**state, "agent": {**state["agent"], "lam": state["agent"]["lam"] + 1e-7}}
    assert differences(state, changed) == ["/agent/lam"]
    assert differences(state, {**state, "seconds": {}}) == []


def test_auto_starts_then_continues(flags, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    only = [*flags, "--algo", "bc", "--online-steps", "0", "--resume", "auto"]
    assert run_command(lambda: train.main(only)) == 0
    (folder,) = (tmp_path / "runs").glob("*/bc/*")
    assert run_command(lambda: train.main(only)) == 0
    assert "resuming from step_000000300.pt" in capsys.readouterr().out
    assert list((tmp_path / "runs").glob("*/bc/*")) == [folder]


@pytest.mark.parametrize(
    ("flag", "steps", "stage", "fits"),
    [
        ("--bc-steps", "200", "pretrain", "300"), ("--offline-steps", "70", "offline", "60"),
        ("--online-steps", "50", "online", "60 or more"),
    ],
)  # fmt: skip
def test_what_is_done_cannot_be_planned_anew(flag, steps, stage, fits, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert run([], folder, "--resume", flag, steps) == 2
    said = capsys.readouterr().err
    assert f"the flags end stage {stage} at step" in said and f"; pass {flag} {fits}\n" in said
    assert run([], folder, "--resume", flag, fits.split()[0]) == 0
    assert compare_runs(whole, folder) == []


def test_other_data_are_refused(flags, whole, tmp_path, capsys):
    folder, other = tmp_path / "run", tmp_path / "data"
    shutil.copytree(whole, folder)
    recipe = Recipe("pointmaze-medium-navigate-v0", 3000, 0.5, 0, True)
    made = dataclasses.replace(recipe, seed=1).ensure(tmp_path, progress=False)
    recipe.path(other).parent.mkdir(parents=True)
    shutil.copy(made, recipe.path(other))
    assert run([], folder, "--resume", "--generated-dir", str(other)) == 2
    message = capsys.readouterr().err
    assert "was trained on 3000 transitions with hash" in message and "--generated-dir" in message


def test_the_plan_of_stages_ahead_may_change(flags, whole, tmp_path):
    folder = tmp_path / "run"
    assert run(flags, folder, "--offline-steps", "0", "--online-steps", "0") == 0
    assert run([], folder, "--resume", "--offline-steps", "60", "--online-steps", "60") == 0
    # The row of the end of pretraining came before the others in both.
    assert compare_runs(whole, folder) == []


def test_intervals_may_change(flags, whole, tmp_path, monkeypatch):
    """Stopped at step 340, continued with other intervals: the same weights."""
    folder = tmp_path / "run"
    stop_at(340, monkeypatch)
    assert run(flags, folder) == 75
    monkeypatch.undo()
    more = ("--log-interval", "7", "--eval-interval", "9", "--save-interval", "11")
    assert run([], folder, "--resume", *more, "--eval-episodes", "2", "--eval-envs", "2") == 0
    assert json.loads((folder / "config.json").read_text())["log_interval"] == 7
    ours, theirs = (checkpoint.load(checkpoint.newest(f / "checkpoints")) for f in (folder, whole))
    assert differences(ours["agent"], theirs["agent"]) == []
    assert differences(ours["online"], theirs["online"]) == []
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[-2:]] == ["420", "420"]


def test_a_finished_run_that_goes_on_has_not_ended(whole, tmp_path, monkeypatch):
    folder, seen, begin = tmp_path / "run", [], train.Trainer.run_stages
    shutil.copytree(whole, folder)

    def looked_at(self, state):
        (line,), _ = read_lines(folder)
        seen.append(line.kind)
        return begin(self, state)

    monkeypatch.setattr(train.Trainer, "run_stages", looked_at)
    assert run([], folder, "--resume") == 0
    stop_at(440, monkeypatch, "check_finite")
    assert run([], folder, "--resume", "--online-steps", "100") == 75
    (line,), _ = read_lines(folder)
    assert [*seen, line.kind] == ["done", "running", "interrupted"]
    assert not (folder / "curves.png").exists()
    monkeypatch.undo()
    assert run([], folder, "--resume") == 0
    (line,), _ = read_lines(folder)
    assert line.kind == "done" and (folder / "curves.png").exists()


@pytest.mark.parametrize("ended", [True, False])
def test_logs_without_a_checkpoint_are_not_erased(ended, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints")
    if not ended:
        (folder / "summary.json").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run([], folder, "--resume", "auto") == 2
    message = f"{folder} has logs up to step 420 but no checkpoint; put one back, start again"
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_run_goes_on_with_is_kept_account_of(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for name, change in (
        ("versions.json", lambda values: values.update(torch="1.0", cpu="another one")),
        ("config.json", lambda values: values.pop("utd_ratio")),
    ):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))
    more = ["--resume", "--eval-interval", "0", "--utd-ratio", "1", "--online-steps"]
    assert run([], folder, *more, "61") == 0
    said = capsys.readouterr().err
    assert "note: config.json lacks these flags, which from now on are: --utd-ratio 1" in said
    assert f"note: this run had torch 1.0; it goes on with torch {torch.__version__}" in said
    assert run([], folder, *more, "62") == 0
    assert "note" not in capsys.readouterr().err
    later = {"step": 420, "torch": torch.__version__}
    assert json.loads((folder / "versions.json").read_text())["later"] == [later]
    found = read_run(folder)
    assert found.versions["from step 420 on"] == f"torch {torch.__version__}"
    assert found.versions["torch"] == "1.0" and found.problems == []


@pytest.mark.parametrize("source", ["step_000000300.pt", "step_000000360.pt", ""])
def test_starting_from_a_checkpoint(source, flags, whole, tmp_path, capsys):
    path = whole / "checkpoints" / source if source else whole
    more = ["--pretrained", str(path), "--offline-steps", "0", "--online-steps", "20"]
    bc = flags.index("--bc-steps")
    assert run([*flags[:bc], *flags[bc + 2 :], *more], tmp_path / "run") == 0
    stage = {"step_000000300.pt": "pretrain", "step_000000360.pt": "offline"}.get(source, "online")
    assert f", stage {stage}\n" in capsys.readouterr().out
    state = checkpoint.load(checkpoint.newest(tmp_path / "run/checkpoints"))
    assert state["step"] == 20 and state["stage"] == "online"
    assert set(state["success"]) == {"pretrain", "online"}


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("stage", ["pretrain", "offline"])
def test_weights_that_a_run_starts_from(stage, exported, flags, whole, tmp_path, monkeypatch):
    """Stopped before its first checkpoint and resumed, it starts from them again."""
    source = whole / f"checkpoints/step_{300 if stage == 'pretrain' else 360:09d}.pt"
    saved, seen = checkpoint.load(source), []
    if exported:  # which has all but the optimiser's state
        source = write_export(whole, tmp_path / "export", checkpoint=source)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            saved["agent"][name].zero_()
    before = train.Trainer.train

    def looked_at(self, stage):
        seen.append(stage.agent.state_dict())
        return before(self, stage)

    monkeypatch.setattr(train.Trainer, "train", looked_at)
    stop_at(0, monkeypatch)
    flags = [*flags, "--pretrained", str(source), "--bc-steps", "0", "--offline-steps", "10"]
    flags += ["--online-steps", "0", "--resume", "auto"]
    assert run(flags, tmp_path / "run") == 75 and seen == []
    monkeypatch.setattr(train.Trainer, "evaluate", train.Trainer.evaluate)
    monkeypatch.undo()
    monkeypatch.setattr(train.Trainer, "train", looked_at)
    assert run(flags, tmp_path / "run") == 0
    if stage == "offline":
        assert differences(seen[0], saved["agent"]) == []
    else:
        field = field_of(saved)
        width = field.shape[1]
        assert torch.equal(seen[0]["online"][:, :width], field)
        assert torch.equal(seen[0]["online"][:, width : 2 * width], field)
        assert torch.equal(seen[0]["target"][:, :width], field)
    rows = (tmp_path / "run/eval.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "0", "10", "10"]


def short(flags, source, *more):
    """Flags of a run of ten updates of fine-tuning alone."""
    return [
        *flags, "--pretrained", str(source), "--bc-steps", "0", "--offline-steps", "10",
        "--online-steps", "0", *more,
    ]  # fmt: skip


def test_the_end_of_pretraining_is_evaluated_as_pretraining_does(
    flags, whole, tmp_path, monkeypatch
):
    """By the cloned field, where the algorithm acts with something that has learned nothing yet."""
    source, seen = whole / "checkpoints/step_000000300.pt", []

    def looked_at(self, stage, agent, step):
        seen.append((stage, step, type(agent), agent.online.span("actor_slow").clone()))
        self.ledger.success[stage], self.ledger.evaluated = [0.0, 0.0], step

    monkeypatch.setattr(train.Trainer, "evaluate", looked_at)
    assert run(short(flags, source, "--algo", "fql", "--eval-interval", "0"), tmp_path / "run") == 0
    assert [entry[:3] for entry in seen] == [("pretrain", 0, BCAgent), ("offline", 10, FQLAgent)]
    assert torch.equal(seen[0][3], field_of(checkpoint.load(source)))


def test_one_seed_of_several_may_go_on(flags, whole, tmp_path, monkeypatch, capsys):
    """For all seeds of the new run; what its weights mean otherwise there is told."""
    source, seen = whole / "checkpoints/step_000000360.pt", []
    monkeypatch.setattr(train.Trainer, "train", lambda _, s: seen.append(s.agent.state_dict()))
    again = short(flags, source, "--discount", "0.9", "--flow-steps", "5", "--seeds", "7", "8")
    chosen, folder = [*again, "--pretrained-seed", "5"], tmp_path / "run"
    assert run(chosen, folder) == 0
    said = capsys.readouterr().out
    assert f"starting from {source}, stage offline, seed 5\n" in said
    assert "note: its run had --discount 0.99 (here 0.9), --flow-steps 10 (here 5)\n" in said
    saved = checkpoint.load(source)["agent"]
    for name, tensor in saved.items():
        assert torch.equal(seen[0][name], tensor[1].expand_as(tensor)), name
    assert run([*again, "--pretrained-seed", "3", "--resume"], folder) == 2
    assert "with --pretrained-seed 3 (the run has 5)" in capsys.readouterr().err
    assert run(again, tmp_path / "both") == 0
    assert "stage offline; its seeds go on as others: 3 as 7, 5 as 8\n" in capsys.readouterr().out
    assert torch.equal(seen[1]["online"], saved["online"])


@pytest.mark.parametrize("exported", [False, True])
def test_the_seeds_of_what_a_run_starts_from(exported, flags, whole, tmp_path):
    source = whole / "checkpoints/step_000000360.pt"
    config = parse_config(short(flags, source, "--pretrained-seed", "3"))
    if exported:
        source = write_export(whole, tmp_path / "export", checkpoint=source)
    state, settings = read_start(source, config)
    assert settings["seeds"] in ([3, 5], (3, 5)) and len(state["agent"]["online"]) == 1
    other = dataclasses.replace(config, pretrained_seed=4)
    with pytest.raises(UsageError, match="--pretrained-seed is 4, but .* has the seeds 3, 5; name"):
        read_start(source, other)
    with pytest.raises(UsageError, match="is 4; it chooses from --pretrained; give that too"):
        dataclasses.replace(other, pretrained=None)
    with pytest.raises(UsageError, match="is 3, which diverged in .* .it was lost.; name another"):
        of_one_seed({"agent": {"online": torch.zeros(2, 1)}, "failures": {0: "it was lost"}},
                    settings, 3, source)  # fmt: skip
    if not exported:
        alone = shutil.copy(source, tmp_path / source.name)
        with pytest.raises(UsageError, match="no sound config.json of its run beside it to tell"):
            read_start(alone, config)
        settings = {"env_name": "pointmaze-medium-navigate-singletask-task2-v0", "discount": 0.5}
        assert differences_in_words(settings, config, cloned_alone=True) == ""
        assert differences_in_words(settings, config, cloned_alone=False) == (
            "--env-name pointmaze-medium-navigate-singletask-task2-v0 (here "
            "pointmaze-medium-navigate-singletask-task1-v0), --discount 0.5 (here 0.99)"
        )
        settings = {"env_name": "antmaze-large-navigate-singletask-task2-v0"}
        assert "--env-name" in differences_in_words(settings, config, cloned_alone=True)


def test_a_run_and_what_it_started_from_may_move_together(flags, whole, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(whole, first / "start")
    assert run(short(flags, first / "start"), first / "run") == 0
    first.rename(second)
    more = ["--resume", "--offline-steps", "20", "--pretrained"]
    assert run([], second / "run", *more, str(second / "start")) == 0
    shutil.copytree(whole, tmp_path / "other")
    assert run([], second / "run", *more, str(tmp_path / "other")) == 2
    assert "cannot resume" in capsys.readouterr().err


def test_a_checkpoint_that_contradicts_the_flags(flags, whole, tmp_path, capsys):
    kept = f"--pretrained {whole}/checkpoints/step_000000300.pt, which ends pretraining"
    for more, message in (
        (["--action-chunking"], "was made with --action-chunking False"),
        (["--actor-hidden-dims", "16", "8"], "has shape [16, 16], but the flags ask for [16, 8]"),
        (["--seeds", "1", "2", "3"], "holds 2 runs, but --seeds names 3"),
        (["--horizon-length", "4"], "was made with --horizon-length 5, but the flags ask for 4"),
        (["--bc-steps", "9"], "is fine-tuned, and of that only the cloned field would be left"),
        (["--algo", "qam-e"], f"use the algorithm of the checkpoint, or {kept}"),
        (["--critic-warmup", "9"], f"use --critic-warmup 0, or {kept}"),
        (["--algo", "sqam", "--budget-ramp", "9"], "--budget-ramp is 9, which is for the first"),
        (["--init-lambda", "10"], "--init-lambda is 10.0, which is for the first updates"),
        (["--lambda-start", "closed-form"], f"use --lambda-start value, or {kept}"),
    ):
        more = ["--pretrained", str(whole), "--bc-steps", "0", *more]
        assert run([*flags, *more], tmp_path / "run") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_pretraining_is_skipped_unless_asked_for():
    assert parse_config(["--pretrained", "a.pt"]).bc_steps == 0
    assert parse_config(["--pretrained", "a.pt", "--bc-steps", "7"]).bc_steps == 7


def test_a_full_disk_is_reported_and_the_run_goes_on(flags, whole, tmp_path):
    """A limit on the size of files makes the kernel refuse the larger checkpoints."""
    folder = tmp_path / "run"
    limit = (whole / "checkpoints/step_000000300.pt").stat().st_size + 4000
    script = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))\n"
        "from trqam_fast.cli import run_command\nfrom trqam_fast import train\n"
        "sys.exit(run_command(train.main))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *flags, "--run-dir", str(folder)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "cannot write the checkpoint" in done.stderr and "the run goes on" in done.stderr
    assert "step 420" in done.stdout
    assert checkpoint.load(checkpoint.newest(folder / "checkpoints"))["step"] == 300
    assert done.returncode == 1 and "the end of the run could not be saved" in done.stderr
    # With room again, the run ends as if nothing had happened.
    assert run([], folder, "--resume") == 0
    assert compare_runs(whole, folder) == []
