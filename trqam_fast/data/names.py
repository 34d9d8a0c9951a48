"""OGBench names: tasks, environments, datasets, and what is published."""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass

from trqam_fast.errors import UsageError
from trqam_fast.simulator.environment import registered


@dataclass(frozen=True)
class Published:
    """A published dataset.

    Attributes:
        trajectories: For training; a -val file has a tenth as many.
        steps: Transitions of each trajectory.
    """

    trajectories: int
    steps: int

    @property
    def transitions(self) -> int:
        """Transitions for training."""
        return self.trajectories * self.steps


def _published() -> dict[str, Published]:
    """Return the sizes of the authors' commands, by name."""
    mazes = {
        "navigate": {"medium": (1000, 1000), "large": (1000, 1000), "giant": (500, 2000),
                     "teleport": (1000, 1000)},
        "stitch": dict.fromkeys(("medium", "large", "giant", "teleport"), (5000, 200)),
    }  # fmt: skip
    explore = {"explore": dict.fromkeys(("medium", "large", "teleport"), (10_000, 500))}
    humanoid = {
        "navigate": {"medium": (1000, 2000), "large": (1000, 2000), "giant": (1000, 4000)},
        "stitch": {"medium": (5000, 400), "large": (5000, 400), "giant": (10_000, 400)},
    }
    soccer = {
        "navigate": {"arena": (1000, 1000), "medium": (4000, 1000)},
        "stitch": {"arena": (5000, 200), "medium": (8000, 500)},
    }
    domains = {
        "pointmaze": mazes, "antmaze": mazes | explore, "humanoidmaze": humanoid,
        "antsoccer": soccer,
    }  # fmt: skip
    scripted = {
        "cube-single": 1000, "cube-double": 1000, "cube-triple": 3000, "cube-quadruple": 5000,
        "scene": 1000, "puzzle-3x3": 1000, "puzzle-4x4": 1000, "puzzle-4x5": 3000,
        "puzzle-4x6": 5000,
    }  # fmt: skip
    sizes = {
        f"{domain}-{size}-{kind}-v0": Published(*numbers)
        for domain, kinds in domains.items()
        for kind, table in kinds.items()
        for size, numbers in table.items()
    }
    return sizes | {
        f"{env}-{kind}-v0": Published(trajectories, 1000)
        for env, trajectories in scripted.items()
        for kind in ("play", "noisy")
    }


PUBLISHED = _published()
"""Every dataset with states as observations."""


@dataclass(frozen=True)
class LargeSet:
    """A dataset of many files, ``<file>-000.npz`` and so on, in a folder of the host.

    Attributes:
        folder: Folder of the host.
        dataset_name: What the files begin with.
        files: Number of files.
        transitions: Of all files together.
    """

    folder: str
    dataset_name: str
    files: int
    transitions: int

    @property
    def file_names(self) -> list[str]:
        """Names of the files, in order."""
        return [f"{self.dataset_name}-{number:03d}.npz" for number in range(self.files)]


def _large_sets() -> dict[str, LargeSet]:
    """Return the sets of 100M transitions, and their first tenths."""
    heads = [
        "humanoidmaze-giant-navigate", "cube-double-play", "cube-triple-play",
        "cube-quadruple-play", "cube-quadruple-noisy", "cube-octuple-play", "scene-play",
        "puzzle-3x3-play", "puzzle-4x4-play", "puzzle-4x5-play", "puzzle-4x6-play",
    ]  # fmt: skip
    sets = {}
    for head in heads:
        # A file holds 1000 trajectories: of 4000 steps in humanoidmaze-giant, of 1000 elsewhere.
        files, steps = (25, 4_000_000) if head.startswith("humanoid") else (100, 1_000_000)
        folder = f"{head}-100m-v0"
        sets[folder] = LargeSet(folder, f"{head}-v0", files, files * steps)
        if files == 100:
            sets[f"{head}-10m-v0"] = LargeSet(folder, f"{head}-v0", 10, 10 * steps)
    return sets


LARGE_SETS = _large_sets()
"""By name, e.g. ``cube-triple-play-10m-v0``, the first ten files of ``...-100m-v0``."""


@dataclass(frozen=True)
class TaskName:
    """A single-task name, taken apart.

    Attributes:
        env_name: The whole name, e.g. ``cube-double-play-singletask-task1-v0``.
        env_id: The environment in gymnasium's registry, ``cube-double-singletask-task1-v0``.
        dataset_name: Stem of the dataset's file, ``cube-double-play-v0``.
    """

    env_name: str
    env_id: str
    dataset_name: str


@dataclass(frozen=True)
class DatasetName:
    """A dataset's name, taken apart.

    Attributes:
        dataset_name: E.g. ``cube-double-play-v0``.
        env_id: Its goal-conditioned environment, ``cube-double-v0``.
    """

    dataset_name: str
    env_id: str

    def single_task(self, task: int | None) -> str:
        """Return the environment of a single task, or of the default one."""
        head, _, version = self.env_id.rpartition("-")
        return f"{head}-singletask-{'' if task is None else f'task{task}-'}{version}"

    def single_tasks(self) -> dict[int, str]:
        """Return the environment of every single task by its number."""
        found, task = {}, 1
        while (env_id := self.single_task(task)) in registered():
            found[task] = env_id
            task += 1
        return found


@functools.cache  # a plan of many tasks asks a million times
def kinds_of(env_head: str) -> tuple[str, ...]:
    """Dataset kinds that are published for an environment, e.g. for ``cube-double``."""
    names = [*PUBLISHED, *(large.dataset_name for large in LARGE_SETS.values())]
    heads = [name.removesuffix("-v0").rpartition("-") for name in names]
    return tuple(sorted({kind for head, _, kind in heads if head == env_head}))


def known_tasks() -> list[str]:
    """Every single-task name whose observations are states."""
    names = []
    for env_id in registered():
        head, separator, tail = env_id.partition("-singletask")
        if separator:
            names += [f"{head}-{kind}-singletask{tail}" for kind in kinds_of(head)]
    return names


SYNONYMS = {
    "lr": ("learning_rate", "step_size"), "discount": ("gamma",), "device": ("gpu",),
    "tau": ("polyak", "target_update_rate"), "env_name": ("env", "environment", "task"),
    "run_dir": ("out", "out_dir", "output", "output_dir", "logdir", "log_dir", "save_dir"),
    "bc_steps": ("pretrain_steps",), "eval_interval": ("eval_freq",),
    "offline_steps": ("total_timesteps", "num_steps", "train_steps", "max_steps"),
    "online_steps": ("total_timesteps",), "utd_ratio": ("utd", "replay_ratio"),
    "actor_hidden_dims": ("hidden_dims", "hidden_sizes", "net_arch"),
    "value_hidden_dims": ("hidden_dims", "hidden_sizes", "net_arch", "critic_hidden_dims"),
    "num_qs": ("num_critics", "n_critics"), "horizon_length": ("chunk_size", "action_horizon"),
}  # fmt: skip
"""What others call the trainer's flags."""
LISTED = "'python -m trqam_fast.data list' names all datasets"


def nearest(name: str, names: list[str], otherwise: str = "") -> str:
    """Return the names most like `name`, or what is said where there are none, to end a message."""

    def plain(flag: str) -> str:
        return flag.removeprefix("--").replace("-", "_")

    spelled = {plain(own): own for own in names}
    near = [own for own, others in SYNONYMS.items() if plain(name) in others and own in spelled]
    near = near or difflib.get_close_matches(plain(name), spelled)
    found = f"nearest: {', '.join(spelled[own] for own in near)}" if near else otherwise
    return f"; {found}" if found else ""


def parse_task(env_name: str) -> TaskName:
    """Take a single-task name apart.

    Raises:
        UsageError: OGBench has no such single task; the message names the nearest ones.
    """
    names = known_tasks()
    if env_name not in names:
        hint = nearest(env_name, names, LISTED)
        raise UsageError(f"--env-name {env_name!r} is not an OGBench single task{hint}")
    head, _, tail = env_name.partition("-singletask")
    head, _, kind = head.rpartition("-")
    version = tail.rpartition("-")[2]
    return TaskName(env_name, f"{head}-singletask{tail}", f"{head}-{kind}-{version}")


def parse_dataset(name: str) -> DatasetName:
    """Take the name of a dataset, a single task or a file of it apart.

    Args:
        name: E.g. ``cube-double-play-v0``, ``cube-triple-play-10m-v0``,
            ``cube-triple-play-v0-007`` or ``cube-double-play-singletask-task1-v0``.

    Raises:
        UsageError: OGBench has no such dataset; the message names the nearest ones.
    """
    if name in LARGE_SETS:
        name = LARGE_SETS[name].dataset_name
    plain = re.sub(r"-singletask(-task\d+)?", "", name)
    found = re.fullmatch(r"(.+)-([a-z]+)-(v\d+)(-\d+)?(-val)?", plain)
    if found is None or found[2] not in kinds_of(found[1]):
        hint = nearest(name, [*PUBLISHED, *LARGE_SETS], LISTED)
        raise UsageError(f"{name!r} is not a dataset of OGBench{hint}")
    head, kind, version = found.group(1, 2, 3)
    return DatasetName(f"{head}-{kind}-{version}", f"{head}-{version}")
