"""What the campaign reads: small whole files, and the commands that read them."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch

from tests import own_tasks
from trqam_fast import convert, evaluate, export, parity, train
from trqam_fast.cli import run_command
from trqam_fast.data import __main__ as data
from trqam_fast.data.generate.recipe import Recipe, versions
from trqam_fast.data.generate.shards import plan_shards
from trqam_fast.evaluation.episodes import EpisodeResult
from trqam_fast.policy import Policy
from trqam_fast.report import __main__ as report
from trqam_fast.status import __main__ as status
from trqam_fast.sweep import __main__ as sweep
from trqam_fast.sweep.execute import execute
from trqam_fast.sweep.plan import make_plan, write_plan
from trqam_fast.sweep.spec import read_spec

DATASET = "pointmaze-medium-navigate-v0"
TASK = "pointmaze-medium-navigate-singletask-task1-v0"
AUTHORS = "trqam_pointmaze_s1_0123abcd"
SMALL = [
    "--batch-size", "4", "--actor-hidden-dims", "8", "8", "--value-hidden-dims", "8", "8",
    "--log-interval", "1", "--save-interval", "1", "--eval-interval", "0",
    "--eval-episodes", "1", "--max-episode-steps", "50", "--eval-envs", "1",
]  # fmt: skip
SWEEP = f"""\
tasks = ["{TASK}"]
algos = ["bc", "trqam"]
seeds = [0, 1]
retries = 2

[resources]
cpus = 1
memory_gb = 4.0

[flags]
preset = "smoke"
bc_steps = 2
offline_steps = 2
batch_size = 4
actor_hidden_dims = [8, 8]
value_hidden_dims = [8, 8]
eval_interval = 0
eval_episodes = 1
generated_transitions = 300
generated_dir = "GENERATED"

[algo.trqam]
lr = 1e-3

[grid.trqam]
kl_budget = [0.5, 1.0]
"""


@dataclass(frozen=True)
class Reader:
    """A command and the files that it reads.

    Attributes:
        name: In the table.
        folder: Folder of the whole files, which each case copies.
        files: Patterns of those that are mutated, one at a time.
        main: The command.
        words: Its arguments; ``{}`` stands for the copy.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    main: Callable[[list[str]], int]
    words: tuple[str, ...]


def load_policy(words: list[str]) -> int:
    """Stands for a command that acts with what was exported."""
    Policy.load(words[0])
    return 0


TRAIN = ("--env-name", TASK, "--preset", "smoke", "--algo", "bc", "--bc-steps", "1", *SMALL)
RUN_FILES = ("*.json", "*.csv")
READERS = (
    Reader("npz: data verify", "data", ("*.npz",), data.main, ("verify", "{}/" + DATASET + ".npz")),
    Reader("npz: data list", "data", ("*.npz",), data.main, ("list", "--dataset-dir", "{}")),
    Reader("npz: data convert", "data", ("*.npz",), data.main,
           ("convert", "{}/" + DATASET + ".npz", "--dataset-dir", "{}/out")),
    Reader("shards: data generate", "shards", (".*.shards/*.npz",), data.main,
           ("generate", DATASET, "--transitions", "300", "--corners", "--generated-dir", "{}")),
    Reader("npz: train", "data", (DATASET + ".npz",), train.main,
           (*TRAIN, "--no-generated", "--dataset-dir", "{}", "--run-dir", "{}/run")),
    Reader("flat set: data verify", "flat", ("*.flat/*",), data.main,
           ("verify", "{}/" + DATASET + ".flat")),
    Reader("flat set: train", "flat", ("*.flat/*",), train.main,
           (*TRAIN, "--no-generated", "--dataset-dir", "{}", "--run-dir", "{}/run")),
    Reader("own npz: data verify", "own", ("*.npz",), data.main, ("verify", "{}/reach.npz")),
    Reader("robomimic: data verify", "own", ("*.hdf5",), data.main, ("verify", "{}/low_dim.hdf5")),
    Reader("LeRobotDataset: data verify", "own", ("lerobot_v3/**/*.*",), data.main,
           ("verify", "lerobot:{}/lerobot_v3")),
    Reader("TOML: train --config", "own", ("*.toml",), train.main,
           ("--config", "{}/run.toml", *TRAIN, "--dataset", "{}/reach.npz",
            "--env-id", "tests.own_tasks:Reach", "--run-dir", "{}/run")),
    Reader("checkpoint: evaluate", "run", ("checkpoints/step_000000006.pt",), evaluate.main,
           ("{}", "--checkpoint", "{}/checkpoints/step_000000006.pt")),
    Reader("checkpoint: train --resume", "run", ("checkpoints/*.pt",), train.main,
           ("--resume", "--run-dir", "{}")),
    Reader("checkpoint: train --pretrained", "bc", ("checkpoints/step_000000002.pt",), train.main,
           ("--env-name", TASK, "--preset", "smoke", "--offline-steps", "1",
            "--online-steps", "0", *SMALL,
            "--generated-dir", "GENERATED", "--generated-transitions", "300",
            "--pretrained", "{}", "--run-dir", "{}/new")),
    Reader("run folder: train --resume", "run", RUN_FILES, train.main,
           ("--resume", "--run-dir", "{}")),
    Reader("run folder: evaluate", "run", ("config.json", "task.json"), evaluate.main, ("{}",)),
    Reader("run folder: report RUN", "run", RUN_FILES, report.main, ("{}", "--out", "{}/page")),
    Reader("run folder: report DIR", "runs", ("*/*.json", "*/*.csv"), report.main,
           ("{}", "--out", "{}/page")),
    Reader("run folder: status", "runs", ("*/*.json", "*/*.csv"), status.main, ("{}",)),
    Reader("evaluation: export", "run", ("evaluation/*/summary.json",), export.main,
           ("{}", "--out", "{}/export")),
    Reader("export: Policy.load", "export", ("model.safetensors", "config.json"), load_policy,
           ("{}",)),
    Reader("sweep folder: report", "sweep", ("plan.json", "jobs/**/*.json", "runs/**/*.json"),
           report.main, ("{}", "--out", "{}/page")),
    Reader("sweep folder: status", "sweep", ("plan.json", "jobs/**/*.json"), status.main, ("{}",)),
    Reader("TOML: sweep --dry-run", "toml", ("sweep.toml",), sweep.main,
           ("{}/sweep.toml", "--out", "{}/out", "--dry-run")),
    Reader("pickle: convert", "pickle", ("*.pkl",), convert.main,
           ("{}/reference_checkpoint.pkl", "{}/out.pt")),
    Reader("pickle: convert --check", "pickle", ("*.npz",), convert.main,
           ("{}/reference_checkpoint.pkl", "{}/out.pt", "--check",
            "{}/reference_checkpoint_expected.npz")),
    Reader("recording: parity", "recording", ("*.npz",), parity.main,
           ("{}/trqam_single_step.npz",)),
    Reader("trackers' log: train --resume", "tracked", ("trackers/*",), train.main,
           ("--resume", "--run-dir", "{}", "--tensorboard")),
)  # fmt: skip


class QuietTracker:
    """Stands for TensorBoard, which need not be installed."""

    def __init__(self, folder: Path, _: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def shorten() -> None:
    """Leave out what takes time and reads no file: episodes, pictures, measurements."""
    torch.set_num_threads(1)

    def evaluate_nothing(self: Any, agent: Any, run: int, episodes: int, *_: Any) -> list:
        return [EpisodeResult(0.0, 0.0, 1)] * episodes

    from trqam_fast.data.generate.pointmaze import MazeExpert
    from trqam_fast.evaluation import Evaluator
    from trqam_fast.report import page
    from trqam_fast.sweep import estimate
    from trqam_fast.training import trackers

    rolled_out, made = MazeExpert.episode, {}

    def remembered(self: Any, stream: str, index: int) -> Any:
        if (stream, index) not in made:
            made[stream, index] = rolled_out(self, stream, index)
        return made[stream, index]

    MazeExpert.episode = remembered  # A damaged shard is made again.
    Evaluator.evaluate = evaluate_nothing
    train.write_overview = lambda folder, path: None
    page.draw_picture = lambda *_, **__: None
    page.svg_of = lambda *_: '<svg viewBox="0 0 1 1"></svg>'
    page.draw_all = lambda *_: {}
    estimate.PROBE_SECONDS = 1e-3
    trackers.TensorBoardTracker = QuietTracker
    trackers.check_packages = train.check_packages = lambda *_: None


def build(folder: Path) -> None:
    """Make the whole files of every reader.

    Args:
        folder: Empty; gets a folder for each `Reader.folder`, and `generated`.
    """
    tests = Path(__file__).parents[1] / "data"
    generated = folder / "generated"
    recipe = Recipe(DATASET, 300, 0.5, 0, True)
    archive = recipe.ensure(generated, progress=False)

    def do(main: Callable[[list[str]], int], *words: object) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = run_command(lambda: main([str(word) for word in words]))
        assert code == 0, said.getvalue()

    (folder / "data").mkdir()
    for name in (f"{DATASET}.npz", f"{DATASET}-val.npz"):
        shutil.copy(archive, folder / "data" / name)
    # As a generation leaves them that is killed before it joins them.
    shards = folder / f"shards/.{recipe.folder_name}-{versions()}.shards"
    shards.mkdir(parents=True)
    for part, stream in zip((archive, recipe.val_path(generated)), ("train", "val"), strict=True):
        (shard,) = plan_shards(shards, stream, 1)
        shutil.copy(part, shard.path)
    (folder / "own").mkdir()
    own_tasks.write_data(folder / "own/reach.npz", episodes=3)
    with h5py.File(folder / "own/low_dim.hdf5", "w") as file:
        for name, width in (("obs/object", 2), ("next_obs/object", 2), ("actions", 1)):
            file[f"data/demo_0/{name}"] = [[0.5] * width] * 3
        file["data/demo_0/rewards"], file["data/demo_0/dones"] = [0.0, 0.0, 1.0], [0, 0, 1]
    shutil.copytree(tests / "lerobot_v3", folder / "own/lerobot_v3")
    (folder / "own/run.toml").write_text("lr = 1e-3\nhorizon_length = 2\nseeds = [0, 1]\n")
    do(data.main, "convert", folder / f"data/{DATASET}.npz", "--dataset-dir", folder / "flat")
    flags = ["--preset", "smoke", "--generated-dir", generated, "--generated-transitions", 300]
    flags += [*SMALL, "--bc-steps", 2]
    fine = ["--offline-steps", 2, "--online-steps", 2, "--start-training", 0, "--seeds", 3, 5]
    do(train.main, *flags, *fine, "--run-dir", folder / "run")
    (folder / "run/update_plan.json").write_text(
        '{"plan": "tiles", "precision": "tf32", "how": "measured", "times_ms": {"tiles": 1.5}}'
    )
    do(evaluate.main, folder / "run")
    do(export.main, folder / "run", "--out", folder / "export")
    do(train.main, *flags, "--algo", "bc", "--run-dir", folder / "bc")
    do(train.main, *flags, "--algo", "bc", "--tensorboard", "--run-dir", folder / "tracked")
    (folder / "tracked/trackers/wandb_id").write_text("0123456789ab\n")
    for name in ("run", "bc"):
        shutil.copytree(folder / name, folder / "runs" / name)
        shutil.rmtree(folder / "runs" / name / "checkpoints")
    theirs = folder / "runs" / AUTHORS
    theirs.mkdir()
    (theirs / "flags.json").write_text(
        f'{{"agent": {{"agent_name": "trqam", "kl_budget": 1.0, "lam_scale": 2.0}}, "seed": 1,'
        f' "env_name": "{TASK}", "offline_steps": 20, "online_steps": 0}}'
    )
    (theirs / "eval.csv").write_text("success,episode.return,step\n0.25,-3.5,10\n0.5,-2,20\n")
    (theirs / "offline_agent.csv").write_text("actor/path_kl,dual/lambda,step\n1,2,10\n1,2,20\n")
    (folder / "toml").mkdir()
    (folder / "toml/sweep.toml").write_text(SWEEP.replace("GENERATED", str(generated)))
    jobs = make_plan(read_spec(folder / "toml/sweep.toml"), folder / "sweep")
    write_plan(jobs, folder / "sweep")
    for job in jobs[:2]:
        assert execute(folder / "sweep", job).state == "done"
    for name, files in (
        ("pickle", ("reference_checkpoint.pkl", "reference_checkpoint_expected.npz")),
        ("recording", ("trqam_single_step.npz",)),
    ):
        (folder / name).mkdir()
        for file in files:
            shutil.copy(tests / file, folder / name)
