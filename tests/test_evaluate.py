import csv
import errno
import importlib.util
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from trqam_fast import evaluate, train
from trqam_fast.agents import BCAgent, TRQAMAgent, TRQAMConfig
from trqam_fast.cli import run_command
from trqam_fast.evaluation import Evaluator
from trqam_fast.evaluation.statistics import success_interval, widened, wilson_interval
from trqam_fast.evaluation.video import RENDER_OPTIONS, VideoWriter, find_renderer
from trqam_fast.export import write_export
from trqam_fast.kernels import BackendError
from trqam_fast.training.load_run import load_run
from trqam_fast.training.loop import EVALUATION_SEED

SEEDS = (3, 5)
EPISODES = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two seeds, and what its policies saw in each evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    flags = [
        "--preset", "smoke", "--generated-dir", str(folder / "data"), "--generated-transitions",
        "3000", "--bc-steps", "10", "--offline-steps", "10", "--online-steps", "0",
        "--eval-interval", "0", "--eval-episodes", str(EPISODES), "--eval-envs", "2",
        "--batch-size", "8", "--actor-hidden-dims", "16", "16", "--value-hidden-dims", "16",
        "--action-chunking", "--seeds", *map(str, SEEDS), "--run-dir", str(folder / "run"),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        seen = record(patch)
        assert run_command(lambda: train.main(flags)) == 0
    return folder / "run", seen


def record(patch):
    """Collect the observations of each evaluation, bit for bit, in the order of evaluations."""
    seen, original = [], Evaluator.evaluate

    def recording(self, agent, *arguments, **options):
        act, rows = agent.act, set()
        seen.append(rows)

        def noting(observations, noise, run=None):
            rows.update(row.tobytes() for row in observations[0].numpy())
            return act(observations, noise, run=run)

        agent.act = noting
        try:
            return original(self, agent, *arguments, **options)
        finally:
            del agent.act

    patch.setattr(Evaluator, "evaluate", recording)
    return seen


def run(*flags) -> int:
    return run_command(lambda: evaluate.main([str(flag) for flag in flags]))


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("workers, envs", [(0, 1), (2, 2)])
def test_plays_the_episodes_of_the_trainer(trained, tmp_path, capsys, monkeypatch, workers, envs):
    folder, before = trained
    seen = record(monkeypatch)
    flags = ["--episodes", EPISODES, "--workers", workers, "--envs", envs, "--out", tmp_path]
    assert run(folder, *flags) == 0
    assert len(before) == 2 * len(SEEDS)  # after pretraining and at the end, seed by seed
    assert seen == before[len(SEEDS) :] and seen[0] != seen[1]
    printed = capsys.readouterr().out
    assert "pooled" in printed and "Wilson" in printed and "bootstrap" in printed

    episodes = rows(tmp_path / "episodes.csv")
    assert [(r["seed"], r["episode"]) for r in episodes] == [
        (str(seed), str(episode)) for seed in SEEDS for episode in range(EPISODES)
    ]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stage"] == "offline" and summary["step"] == 20
    for row in rows(folder / "eval.csv")[-len(SEEDS) :]:
        of_seed = [r for r in episodes if r["seed"] == row["seed"]]
        for name in ("success", "return", "length"):
            mean = np.mean([float(r[name]) for r in of_seed])
            assert float(row[name]) == pytest.approx(mean, rel=1e-5)
            assert summary["by_seed"][row["seed"]][name] == mean
    assert summary["pooled"]["episodes"] == EPISODES * len(SEEDS)
    assert summary["over_seeds"]["seeds"] == len(SEEDS)


def test_another_checkpoint_and_the_default_folder(trained, monkeypatch):
    folder, before = trained
    seen = record(monkeypatch)
    path = folder / "checkpoints/step_000000010.pt"
    assert run(folder, "--checkpoint", path, "--episodes", EPISODES) == 0
    assert seen == before[: len(SEEDS)]
    name = f"step_000000010-seed_{EVALUATION_SEED}-episodes_{EPISODES}"
    assert len(rows(folder / "evaluation" / name / "episodes.csv")) == 4
    seen.clear()
    assert run(folder, "--checkpoint", path, "--episodes", 1, "--seed", 0) == 0
    assert not seen[0] & before[0]  # another seed, other episodes


def test_an_export_is_evaluated_as_its_run_is(trained, tmp_path, capsys):
    """Into a folder that is named, as its own is published."""
    pytest.importorskip("safetensors")
    folder, export = trained[0], write_export(trained[0], tmp_path / "export")
    before = sorted(export.iterdir())
    for more in ([], ["--out", export], ["--out", export / "evaluation"]):
        assert run(export, *more) == 2
        assert "name another folder with --out" in capsys.readouterr().err
    for number, source in enumerate((folder, export)):
        assert run(source, "--episodes", EPISODES, "--out", tmp_path / str(number)) == 0
    ours, theirs = (json.loads((tmp_path / n / "summary.json").read_text()) for n in "01")
    assert ours | {"checkpoint": "model.safetensors"} == theirs
    assert len({(tmp_path / n / "episodes.csv").read_text() for n in "01"}) == 1
    assert load_run(export).step == 20 and sorted(export.iterdir()) == before


def test_workers_lack_an_environment_of_a_notebook(trained, tmp_path, capsys):
    folder = shutil.copytree(trained[0], tmp_path / "copy")
    own = {"env_name": "__main__:Mine", "dataset": "x.npz", "generated": False}
    values = json.loads((folder / "config.json").read_text()) | own
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "task.json").write_text('{"obs_dim": 2, "low": [-1, -1], "high": [1, 1]}')
    assert run(folder, "--workers", 2) == 2
    assert "--workers is 2; use 0 with __main__:Mine, which other" in capsys.readouterr().err


def test_load_run(trained, tmp_path):
    folder, _ = trained
    loaded = load_run(folder)
    assert isinstance(loaded.agent, TRQAMAgent) and loaded.step == 20
    assert loaded.path.name == "step_000000020.pt" and loaded.config.seeds == SEEDS
    assert (loaded.agent.obs_dim, loaded.agent.act_dim) == (2, 2)
    state = torch.load(loaded.path, weights_only=True)["agent"]
    assert torch.equal(loaded.agent.online.flat, state["online"])
    pretrained = load_run(folder, folder / "checkpoints/step_000000010.pt", backend="reference")
    assert isinstance(pretrained.agent, BCAgent) and pretrained.stage == "pretrain"
    assert pretrained.agent.backend == "reference"
    # A run of a GPU can be evaluated without one.
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | {"device": "cuda"}
    for precision, backend, expected in (
        ("tf32", "auto", "ieee"),
        ("fp16", "auto", "ieee"),
        ("bf16", "reference", "ieee"),
        ("bf16", "cpp", "bf16"),
    ):
        (tmp_path / "copy/config.json").write_text(json.dumps(config | {"precision": precision}))
        loaded = load_run(tmp_path / "copy", backend=backend)
        assert torch.equal(loaded.agent.online.flat, state["online"])
        assert loaded.config.precision == expected
    with pytest.raises(BackendError, match="backend 'triton' is not available"):
        load_run(tmp_path / "copy", backend="triton")


def test_a_damaged_newest_checkpoint_is_passed_over(trained, tmp_path, capsys):
    """With a warning; if none is whole, there is one sentence."""
    folder, copy = trained[0], tmp_path / "copy"
    shutil.copytree(folder, copy)
    newest, before = (copy / f"checkpoints/step_{step:09d}.pt" for step in (20, 10))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert run(copy, "--episodes", 1, "--out", tmp_path / "out") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and newest.name in line
    assert json.loads((tmp_path / "out/summary.json").read_text())["checkpoint"] == before.name
    before.write_bytes(b"")
    assert run(copy) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "holds no whole checkpoint" in last


def test_a_disk_that_takes_no_results(trained, tmp_path, capsys, monkeypatch):
    """Said before the episodes are played, or else after the table is shown."""
    file = tmp_path / "file"
    file.write_text("mine")
    seen = record(monkeypatch)
    for out in (file, file / "out"):
        assert run(trained[0], "--episodes", 1, "--out", out) == 2 and seen == []
        printed = capsys.readouterr()
        assert f"error: the results cannot be written to {out} (" in printed.err
        assert "name another folder with --out" in printed.err and printed.out == ""
    assert file.read_text() == "mine"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evaluate, "write_text", full)
    assert run(trained[0], "--episodes", 1, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "No space left" in printed.err and "pooled" in printed.out


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/a", "logs"])
def test_results_replace_nothing_of_a_run(place, trained, tmp_path, capsys, monkeypatch):
    folder, seen = tmp_path / "run", record(monkeypatch)
    shutil.copytree(trained[0], folder)
    (folder / "logs").mkdir()
    (folder / "logs/episodes.csv").write_text("step,seed,episode\n")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(folder, "--episodes", 1, "--out", folder / place) == 2 and seen == []
    assert "name another folder" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_unusable_runs_end_with_one_sentence(trained, tmp_path, capsys):
    folder, _ = trained

    def error(*flags):
        assert run(*flags) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        return message

    assert "config.json" in error(tmp_path)
    assert "is not a file" in error(folder, "--checkpoint", tmp_path / "none.pt")
    assert "use 1 or more" in error(folder, "--episodes", 0)
    assert "use 1 to 1000000" in error(folder, "--episodes", 10**40)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    newest = copy / "checkpoints/step_000000020.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    message = error(copy, "--checkpoint", newest)
    assert "step_000000020.pt" in message and "name another one with --checkpoint" in message
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"actor_hidden_dims": [24]}))
    other = copy / "checkpoints/step_000000010.pt"
    assert "does not fit" in error(copy, "--checkpoint", other)
    another = tmp_path / "another/checkpoints"
    shutil.copytree(copy / "checkpoints", another)
    message = error(copy, "--checkpoint", another / other.name)
    assert "is none of this run; name one of" in message
    (copy / "config.json").write_text(json.dumps(config | {"lrr": 1}))
    assert "it has the flag lrr, which this version does not know); use the version" in error(copy)
    (copy / "config.json").write_text(json.dumps({"env_name": 3}))
    assert "another version" in error(copy)
    (copy / "config.json").write_text("{")
    assert "damaged" in error(copy)
    shutil.rmtree(copy / "checkpoints")
    shutil.copy(folder / "config.json", copy)
    assert "no checkpoint" in error(copy)


def test_intervals():
    """Wilson's of scipy.stats, and a known value: for 8 of 10."""
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)
    for trials in (1, 10, 50, 10_000):
        for successes in {0, 1, trials // 3, trials - 1, trials}:
            theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
            assert wilson_interval(successes, trials) == pytest.approx(theirs, abs=1e-12)


def test_intervals_over_seeds():
    """A bootstrap's, as scipy draws it, but never narrower than the episodes allow."""
    rates = np.random.default_rng(0).random(8)
    theirs = stats.bootstrap((rates,), np.mean, method="percentile", n_resamples=20_000)
    assert success_interval(rates, 10**6) == pytest.approx(theirs.confidence_interval, abs=0.01)
    assert success_interval([0.0, 0.0], 2) == wilson_interval(0, 2)
    assert success_interval([0.5], 50) == wilson_interval(25, 50)
    low, high = success_interval([0.6, 1.0], 100)
    assert (low, high) == (0.6, 1.0)
    low, high = success_interval([0.5, 0.52], 100)
    assert (low, high) == wilson_interval(51, 100)
    assert widened(0.5, 0.4, 0.6, 0) == (0.4, 0.6)
    assert widened(0.5, math.nan, math.nan, 10) == wilson_interval(5, 10)


def test_no_video_without_a_renderer_or_an_encoder(trained, tmp_path, capsys, monkeypatch):
    folder, _ = trained
    flags = [folder, "--episodes", 1, "--out", tmp_path, "--video", 1]
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert run(*flags) == 2
    assert "pip install" in capsys.readouterr().err
    monkeypatch.setattr(evaluate, "check_encoder", lambda: None)
    monkeypatch.setattr(evaluate, "find_renderer", lambda env_id, options: None)
    assert run(*flags) == 0
    error = capsys.readouterr().err
    assert error.count("warning") == 1 and "osmesa" in error
    assert len(rows(tmp_path / "episodes.csv")) == len(SEEDS)
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_renderer_that_fails_is_not_used():
    # Both processes fail, here because of the name.
    assert find_renderer("no-such-environment-v0") is None


FAKE_ENCODER = """
def write_frames(path, size, **options):
    with open(path, "wb") as file:
        while True:
            file.write((yield))
"""


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("pointmaze-medium-navigate-singletask-task1-v0", (2, 2)),
        ("cube-single-play-singletask-task1-v0", (28, 5)),
    ],
)
def test_rendering_does_not_change_an_episode(tmp_path, monkeypatch, name, sizes):
    renderer = find_renderer(name.replace("-navigate", "").replace("-play", ""))
    if renderer is None:
        pytest.skip("neither egl nor osmesa renders here")
    (tmp_path / "imageio_ffmpeg.py").write_text(FAKE_ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    config = TRQAMConfig(
        actor_hidden_dims=(8,), value_hidden_dims=(8,), num_qs=1, horizon_length=5,
        action_chunking=True,
    )  # fmt: skip
    agent, short = TRQAMAgent(config, *sizes, [0]), {"max_episode_steps": 6}
    seen, outcomes = record(monkeypatch), []
    plain = Evaluator(name, 1, env_options=short)
    filming = Evaluator(
        name, 1, 1, env_options=short | RENDER_OPTIONS, environment={"MUJOCO_GL": renderer}
    )
    for evaluator, options in ((plain, {}), (filming, {"video_dir": tmp_path / "videos"})):
        outcomes.append(evaluator.evaluate(agent, 0, 2, seed=1, **options))
        evaluator.close()
    assert outcomes[0] == outcomes[1] and seen[0] == seen[1]
    videos = sorted((tmp_path / "videos").iterdir())
    assert [video.name for video in videos] == [f"episode_{i:03d}.mp4" for i in range(2)]
    frames = np.frombuffer(videos[0].read_bytes(), np.uint8).reshape(7, -1)
    assert frames.std() > 0 and (frames[0] != frames[-1]).any()


@pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None,
    reason="needs imageio-ffmpeg, the extra [video]",
)
def test_videos_can_be_read(tmp_path):
    import imageio_ffmpeg

    writer = VideoWriter(tmp_path / "video.mp4", (64, 64), 10)
    for shade in range(0, 250, 25):
        writer.add(np.full((64, 64, 3), shade, np.uint8))
    writer.close()
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "video.mp4"))
    assert frames == 10 and seconds == pytest.approx(1.0, abs=0.11)
