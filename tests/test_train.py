"""The train command and its runs, from flags to what lies in the folder.

Longer than 400 lines, as all of it starts the same small run (`flags` in conftest.py).
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kill_run import compare_runs
from tests.runs import rows, run
from trqam_fast import train
from trqam_fast.agents import ALGORITHMS, TRQAMConfig
from trqam_fast.convert import ConvertArgs
from trqam_fast.errors import UsageError
from trqam_fast.evaluate import EvaluateArgs, evaluate
from trqam_fast.files import write_text
from trqam_fast.policy import Policy
from trqam_fast.runs import checkpoint
from trqam_fast.status.__main__ import StatusArgs
from trqam_fast.sweep.__main__ import SweepArgs
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.flags import field_help, parse_config
from trqam_fast.training.load_run import load_run
from trqam_fast.training.loop import Trainer
from trqam_fast.training.presets import DEFAULT, SMOKE, make_config

TASK = "pointmaze-medium-navigate-singletask-task1-v0"


def test_run_folder(flags, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(flags, folder, "--seeds", "3", "5") == 0
    printed = capsys.readouterr().out
    assert "pretrained" in printed and "updates/s" in printed and str(folder) in printed

    config = json.loads((folder / "config.json").read_text())
    assert config["env_name"] == TASK and config["seeds"] == [3, 5] and config["kl_budget"] > 0
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["torch"] == torch.__version__ and versions["ogbench"]

    metrics = rows(folder / "metrics.csv")
    assert [(r["stage"], r["step"], r["seed"]) for r in metrics[::4]] == [
        ("pretrain", "5", "3"), ("pretrain", "15", "3"), ("offline", "25", "3"),
        ("offline", "35", "3"),
    ]  # fmt: skip
    offline = [r for r in metrics if r["stage"] == "offline"]
    for name in ("critic_loss", "bc_loss", "adjoint_loss", "path_kl", "lam", "kl_ema", "q_mean",
                 "grad_norm"):  # fmt: skip
        assert all(float(r[name]) == float(r[name]) for r in offline), name

    evaluations = rows(folder / "eval.csv")
    assert [(r["step"], r["seed"]) for r in evaluations] == [
        (step, seed) for step in ("20", "30", "40") for seed in ("3", "5")
    ]
    assert all(0 <= float(r["success"]) <= 1 for r in evaluations)

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["backend"] == "cpp" and summary["precision"] == "ieee"
    assert 0 <= summary["pretrained_success"] <= 1 and 0 <= summary["final_success"] <= 1
    assert set(summary["seconds"]) == {"data", "pretrain", "offline", "online", "evaluate"}
    assert all(value > 0 for stage, value in summary["seconds"].items() if stage != "online")
    timing = rows(folder / "timing.csv")
    assert [row["step"] for row in timing] == [str(step) for step in range(5, 45, 5)]
    assert all(float(row["updates_per_second"]) > 0 for row in timing)
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == [
        f"step_{step:09d}.pt" for step in (20, 30, 35, 40)
    ]
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_seeds_together_equal_seeds_apart(flags, tmp_path):
    assert run(flags, tmp_path / "both", "--seeds", "3", "5") == 0
    assert run(flags, tmp_path / "one", "--seeds", "5") == 0
    both = checkpoint.load(tmp_path / "both/checkpoints/step_000000040.pt")["agent"]
    one = checkpoint.load(tmp_path / "one/checkpoints/step_000000040.pt")["agent"]
    for name, tensor in one.items():
        torch.testing.assert_close(both[name][1:], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stop", [7, 20, 21, 33])
def test_resume_ends_where_the_uninterrupted_run_ends(flags, tmp_path, stop, monkeypatch):
    assert run(flags, tmp_path / "whole") == 0

    class Killed(Exception):
        pass

    update = train.Trainer.check_finite

    def interrupt(self, stage):
        update(self, stage)
        if stage.step >= stop:
            raise Killed

    monkeypatch.setattr(Trainer, "check_finite", interrupt)
    with pytest.raises(Killed):
        train.main([*flags, "--run-dir", str(tmp_path / "cut")])
    monkeypatch.undo()
    assert run(["--run-dir", str(tmp_path / "cut"), "--resume"], tmp_path / "cut") == 0
    for name in ("metrics.csv", "eval.csv"):
        whole, cut = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()
    # Resuming a finished run changes nothing.
    before = (tmp_path / "cut/eval.csv").read_text()
    assert run(["--run-dir", str(tmp_path / "cut"), "--resume"], tmp_path / "cut") == 0
    assert (tmp_path / "cut/eval.csv").read_text() == before
    final = "checkpoints/step_000000040.pt"
    whole, cut = (checkpoint.load(tmp_path / d / final)["agent"] for d in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_existing_run_is_refused_resumed_or_overwritten(flags, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(flags, folder, "--algo", "bc") == 0
    before = (folder / "metrics.csv").read_text()
    (folder / "report").mkdir()
    for name in ("index.html", "success.svg", "notes.txt"):
        (folder / "report" / name).touch()
    assert run(flags, folder, "--algo", "bc") == 2
    message = capsys.readouterr().err
    assert "already holds a run" in message and "--resume" in message
    assert (folder / "metrics.csv").read_text() == before
    assert run(flags, folder, "--algo", "qam", "--overwrite") == 0
    assert {r["stage"] for r in rows(folder / "metrics.csv")} == {"pretrain", "offline"}
    assert [path.name for path in (folder / "report").iterdir()] == ["notes.txt"]
    assert run([], folder, "--resume") == 0  # --overwrite is not remembered
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert run(flags, other, "--overwrite") == 2
    assert (other / "thesis.tex").exists()


def test_resume_refuses_what_changes_the_mathematics(flags, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(flags, folder) == 0
    capsys.readouterr()
    assert run([], folder, "--resume", "--kl-budget", "3", "--actor-hidden-dims", "8", "8") == 2
    message = capsys.readouterr().err
    assert "--kl-budget 3.0 (the run has" in message
    assert "--actor-hidden-dims 8 8 (the run has 16 16)" in message
    assert run([], folder, "--resume", "--precision", "bf16") == 2
    assert "--precision bf16 (the run has auto)" in capsys.readouterr().err
    assert run([], folder, "--resume", "--preset", "paper") == 2
    assert "--preset paper (the run has smoke)" in capsys.readouterr().err
    more = ["--log-interval", "1000000000000", "--offline-steps", "30"]  # no memory for so many
    assert run([], folder, "--resume", *more) == 0
    assert rows(folder / "eval.csv")[-1]["step"] == "50"
    assert json.loads((folder / "config.json").read_text())["offline_steps"] == 30
    assert run([], tmp_path / "nothing", "--resume") == 2
    assert "holds no run to resume" in capsys.readouterr().err


def test_checkpoint_of_another_shape(flags, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(flags, folder) == 0
    config = json.loads((folder / "config.json").read_text())
    config["actor_hidden_dims"] = [8, 8]
    (folder / "config.json").write_text(json.dumps(config))
    assert run([], folder, "--resume") == 2
    message = capsys.readouterr().err
    assert "[5, 16]" in message and "[5, 8]" in message and "--actor-hidden-dims" in message


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickle", "empty", "random", "keys"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, flags, tmp_path, capsys):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert run(flags, folder) == 0
    shutil.copytree(folder, whole)
    path = sorted((folder / "checkpoints").glob("*.pt"))[-1]
    witness = tmp_path / "executed"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "random":
        path.write_bytes(torch.Generator().manual_seed(0).get_state().numpy().tobytes())
    elif damage == "keys":
        torch.save({"format": checkpoint.FORMAT}, path)
    else:

        class Malicious:
            def __reduce__(self):
                return (Path.touch, (witness,))

        torch.save(Malicious(), path)
    capsys.readouterr()
    assert run([], folder, "--resume") == 0
    captured = capsys.readouterr()
    assert f"{path} is no whole checkpoint of this package" in captured.err
    assert "resuming from step_000000035.pt" in captured.out
    assert not witness.exists()
    assert compare_runs(whole, folder) == []
    assert path.with_suffix(".damaged").exists()


def test_no_whole_checkpoint(flags, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(flags, folder, "--algo", "bc") == 0
    for path in (folder / "checkpoints").glob("*.pt"):
        path.write_bytes(b"")
    assert run([], folder, "--resume") == 2
    assert "holds no whole checkpoint; start again with --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--env-name", "pointmaze-medum-navigate-singletask-task1-v0"], "nearest: pointmaze-med"),
        (["--horizon-length", "0"], "--horizon-length is 0; use 1 or more"),
        (["--kl-budget", "0"], "--kl-budget is 0.0; use a positive number"),
        (["--init-lambda", "1e300"], "--init-lambda is 1e+300; use a number of 3.4e+38 or less"),
        (["--batch-size", "99999999999"], "--batch-size is 99999999999; use 1 to 1000000"),
        (["--best-of-n", "1000001"], "--best-of-n is 1000001; use 1 to 1000000"),
        (["--flow-steps", "0"], "--flow-steps is 0; use 1 or more"),
        (["--device", "cuda"], "torch sees no GPU"),
        (["--device", "tpu"], "--device is 'tpu'; use cpu, cuda or cuda:N"),
        (["--device", "meta"], "--device is 'meta'; use cpu, cuda or cuda:N"),
        (["--seeds", "99999999999999999999"], "use seeds from 0 to 2^63 - 1"),
        (["--seeds", "1", "1"], "name every seed only once"),
        (["--preset", "huge"], "--preset is 'huge'; choose one of default, smoke, paper"),
        (["--backend", "triton"], "backend 'triton' is not available: its kernels need a GPU"),
        (["--precision", "tf32"], "has no precision 'tf32'; use 'ieee'"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--online-steps", "5", "--algo", "bc"], "--algo bc has no critic to fine-tune with"),
        (["--balanced-sampling", "--start-training", "2"], "--start-training is 2, but half"),
        (["--bc-steps", "0", "--offline-steps", "0"], "so there is nothing to do; set one of them"),
        (["--online-steps", "50"], "updates begin after --start-training 50, so none would happen"),
        (["--utd-ratio", "0"], "--utd-ratio is 0; use 1 or more"),
        (["--pretrained", "/nowhere.pt"], "--pretrained /nowhere.pt does not exist"),
        (["--log-interval", "0"], "--log-interval is 0; use 1 or more"),
        (["--log-interval", f"{2**63}"], f"--log-interval is {2**63}; use a number below 2^63"),
        (["--eval-episodes", "1000001"], "--eval-episodes is 1000001; use 1 to 1000000"),
        (["--env-name", "antmaze-large-navigate-singletask-v0"], "cannot be generated"),
        (["--learning-rate", "1"], "there is no flag --learning-rate; nearest: --lr\n"),
        (["--total-timesteps=9"], "--total-timesteps; nearest: --offline-steps, --online-steps\n"),
        (["--xyz"], "no flag --xyz; 'python -m trqam_fast.train --help' names them all\n"),
        (["--resume", "RUN"], "--resume is 'RUN'; give no or yes or auto, and a run's folder as "),
        (["run.toml"], "run.toml follows no flag; write --config run.toml"),
        (["--lr=1e-3", "run.toml"], "run.toml follows no flag; write --config run.toml"),
    ],
)
def test_bad_flags(bad, message, flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run([*flags, *bad], tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_tags_may_be_called_as_files_are():
    assert parse_config(["--wandb-tags", "a.json", "b.toml"]).wandb_tags == ("a.json", "b.toml")


def test_paths_are_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    paths = {name: f"sub/{name}" for name in ("pretrained", "run_dir", "dataset_dir")}
    config = make_config(**paths, generated_dir="~/made")
    values = config.to_dict()
    assert {name: values[name] for name in paths} == {
        name: str(tmp_path / path) for name, path in paths.items()
    }
    assert values["generated_dir"] == str(tmp_path / "home/made")
    assert make_config().to_dict()["dataset_dir"] == "~/.ogbench/data"
    monkeypatch.chdir("/")
    assert TrainConfig.from_dict(values) == config
    for name in ("run_dir", "generated_dir", "dataset"):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is empty; name a path"):
            make_config(**{name: ""})


def test_every_command_takes_a_run_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train.folder_to_resume({"resume": "yes", "run_dir": "~/run"}).path == tmp_path / "run"
    args = EvaluateArgs(Path("~/run"), out=Path("~/out"))
    assert (args.run, args.out) == (tmp_path / "run", tmp_path / "out")
    home = Path("~/a")
    assert ConvertArgs(home, home, home) == ConvertArgs(*[tmp_path / "a"] * 3)
    assert SweepArgs(home, home) == SweepArgs(tmp_path / "a", tmp_path / "a")
    assert StatusArgs(home).dir == tmp_path / "a"
    for load in (load_run, Policy.load, evaluate):
        with pytest.raises(UsageError, match=f"{tmp_path}/run does not exist; name"):
            load("~/run")


def test_overwrite_keeps_the_old_run_when_the_new_one_cannot_start(flags, tmp_path, generated):
    folder, broken = tmp_path / "run", tmp_path / "broken"
    assert run(flags, folder, "--algo", "bc") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    broken.mkdir()
    (source,) = generated.glob("*/pointmaze-medium-navigate-v0.npz")
    target = broken / source.relative_to(generated)
    target.parent.mkdir()
    target.write_bytes(source.read_bytes()[:5000])
    assert run(flags, folder, "--overwrite", "--generated-dir", str(broken)) == 2
    assert run(flags, folder, "--overwrite", "--horizon-length", "5000") == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_failed_start_leaves_no_folder(flags, tmp_path, capsys):
    assert run(flags, tmp_path / "run", "--horizon-length", "5000") == 2
    assert "3000 transitions, fewer than --horizon-length 5000" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(flags, tmp_path / "run", "--generated-dir", str(blocked)) == 1
    assert "cannot write" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_interrupt_names_the_run_and_the_way_on(flags, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "evaluate", interrupt)
    assert run(flags, tmp_path / "run") == 130
    assert f"--resume --run-dir {tmp_path / 'run'}" in capsys.readouterr().err
    # The end of the stage was saved before its evaluation began.
    assert (tmp_path / "run/checkpoints/step_000000020.pt").exists()
    monkeypatch.undo()
    assert run([], tmp_path / "run", "--resume") == 0
    assert [r["step"] for r in rows(tmp_path / "run/eval.csv")] == ["20", "30", "40"]


def test_half_written_row_is_dropped_on_resume(flags, tmp_path):
    folder = tmp_path / "run"
    assert run(flags, folder, "--algo", "bc") == 0
    with open(folder / "metrics.csv", "a") as file:
        file.write("pretrain,2")
    assert run([], folder, "--resume") == 0
    assert rows(folder / "metrics.csv")[-1]["step"] == "20"


def test_missing_dataset(tmp_path, capsys):
    flags = ["--env-name", "cube-double-play-singletask-v0", "--dataset-dir", str(tmp_path)]
    assert run(flags, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "cube-double-play-v0" in error and "trqam_fast.data" in error
    assert not (tmp_path / "run").exists()


def test_bad_flag_leaves_status_two_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "trqam_fast.train", "--no-such-flag", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as status:
        parse_config(["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--env-name", "--kl-budget", "--lam-scale", "--use-target-grad",
                 "--actor-hidden-dims", "--seeds", "--resume"):  # fmt: skip
        assert flag in text
    assert "Path-KL budget" in text and "trust-region options" in text
    assert "--inv-temp" not in text
    with pytest.raises(SystemExit):
        parse_config(["--algo", "qam", "--help"])
    text = capsys.readouterr().out
    assert "--inv-temp" in text and "--kl-budget" not in text


def test_braces_below_a_flag_are_text():
    """As a user may write them; only the names of the algorithms are put in."""

    class Own:
        share: float = 0.5
        """Of the {0, 1} labels, 5 %; see {algorithms}."""

    names = ", ".join(ALGORITHMS)
    assert field_help(Own)["share"] == f"Of the {{0, 1}} labels, 5 %; see {names}."


def test_what_is_no_text_below_a_flag_explains_nothing():
    class Own:
        share: float = 0.5
        ...

    assert field_help(Own) == {}


def test_single_updates_of_the_start_are_logged(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("trqam_fast.training.logger.FIRST_UPDATES", 12)
    monkeypatch.setattr("trqam_fast.training.logger.EVERY", 4)
    folder = tmp_path / "run"
    more = ("--log-interval", "10", "--save-interval", "3", "--keep", "9", "--seeds", "0", "1")
    assert run(flags, folder, "--kl-budget-per-dim", "0.2", *more) == 0
    first = rows(folder / "first_updates.csv")
    assert [(r["step"], r["seed"]) for r in first] == [
        (str(step), seed) for step in (21, 25, 29) for seed in "01"
    ]
    # lambda falls by eta budget in the first updates, from a smoothed path KL of about zero.
    lam = float(first[0]["lam"])
    assert 1 - 0.01 * 0.4 <= lam < 1
    assert json.loads((folder / "config.json").read_text())["kl_budget"] == pytest.approx(0.4)
    # As after a kill: rows and checkpoints were written after the one to go on from.
    written = (folder / "first_updates.csv").read_bytes()
    for path in checkpoint.found(folder / "checkpoints"):
        if path.name > "step_000000026.pt":
            path.unlink()
    assert run([], folder, "--resume") == 0
    assert (folder / "first_updates.csv").read_bytes() == written


def test_flags_of_other_algorithms_are_noted_and_left_out(tmp_path, capsys):
    """Once for a file and the words after it."""
    config = parse_config(["--algo", "qam", "--kl-budget", "3", "--no-clip-adj", "--lr", "0.5"])
    assert config.agent.lr == 0.5 and not config.agent.clip_adj
    assert capsys.readouterr().err == "note: --algo qam has no use for --kl-budget\n"
    with pytest.raises(UsageError, match="there is no flag --kl-bugdet; nearest: --kl-budget"):
        parse_config(["--algo", "qam", "--kl-bugdet", "3"])
    file = tmp_path / "run.toml"
    file.write_text("algo = 'qam'\nkl_budget = 3\nlr = 0.5")
    again = parse_config(
        ["--config", str(file), "--rho", "0.25", "--kl-budget=4", "--init-lambda", "1"]
    )
    assert again.agent.lr == 0.5 and again.agent.rho == 0.25
    assert capsys.readouterr().err == "note: --algo qam has no use for --kl-budget, --init-lambda\n"


def test_cloning_alone_needs_no_other_flag():
    assert parse_config(["--preset", "smoke", "--algo", "bc"]).online_steps == 0


def test_presets():
    assert parse_config([]) == make_config()
    smoke = parse_config(["--preset", "smoke"])
    assert smoke == make_config(preset="smoke") and smoke.to_dict().items() >= SMOKE.items()
    other = parse_config(["--env-name", "cube-double-play-singletask-v0"])
    assert other.preset == "paper"
    chunks = {"horizon_length": 5, "action_chunking": True, "kl_budget": 0.5}
    assert other.agent == TRQAMConfig(**chunks)
    changed = parse_config(["--lr", "0.5", "--seeds", "0", "1"])
    assert changed.agent.lr == 0.5 and changed.seeds == (0, 1)
    assert changed.agent.kl_budget == DEFAULT["kl_budget"]


def test_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"x": 1})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trqam_fast.files.os.fsync", full)
    from trqam_fast.errors import RunError

    with pytest.raises(RunError, match="No space left on device"):
        checkpoint.save(path, {"x": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
        write_text(path, "whole")


def test_a_picture_that_fails_is_a_warning(flags, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "write_overview", full)
    assert run(flags, tmp_path / "run", "--algo", "bc") == 0
    said = capsys.readouterr()
    assert "warning: curves.png is not drawn (No space left on device)" in said.err
    assert "run folder:" in said.out and (tmp_path / "run/summary.json").exists()
