"""The configuration of a run: every flag of the trainer, in groups."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from trqam_fast.agents import ALGORITHMS, TRQAMConfig, algorithm
from trqam_fast.agents.config import CloningConfig, Group, names_of, select
from trqam_fast.data.generate.recipe import GENERATED_DIR, Recipe
from trqam_fast.data.load import OFFICIAL_DIR
from trqam_fast.data.names import parse_task
from trqam_fast.data.readers import parse_source
from trqam_fast.devices import check_device
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded
from trqam_fast.kernels import Backend, Precision
from trqam_fast.kinds import is_a, kind_in_words

OFFICIAL_ALONE = "it is for OGBench's data, not for --dataset"
PATHS = ("dataset_dir", "generated_dir", "pretrained", "run_dir")
"""Flags that are paths."""
MOST_THREADS = 1024
DEFAULT_ENV = "pointmaze-medium-navigate-singletask-task1-v0"
MAX_EPISODES = 1_000_000
"""Most episodes of an evaluation, whose outcomes are all kept."""

Plan = Literal["auto", "tiles", "tiles-pdl", "layers"]
PrecisionOrAuto = Literal["auto", Precision]


@dataclass(frozen=True)
class TaskConfig(Group):
    """What is trained."""

    preset: str = "default"
    """Named set of values that the other flags override: default, smoke or paper. Another task of
    OGBench than the default one implies paper."""
    env_name: str = DEFAULT_ENV
    """OGBench single task, e.g. cube-double-play-singletask-task1-v0, or an environment of your
    own: a gymnasium id or MODULE:FACTORY, with its data as --dataset. --env-id is the same flag."""
    success_return: float | None = None
    """Undiscounted return from which an episode counts as success; none: what the environment
    calls success in its info, or else that the episode terminated."""
    max_episode_steps: int | None = None
    """Steps after which an episode is cut off. It takes the place of the limit that a gymnasium id
    is registered with; a shorter one of the environment's own stays."""
    algo: str = "trqam"
    """Algorithm: {algorithms}, or a class of your own as PACKAGE.MODULE:CLASS. bc is the
    pretraining stage alone. Flags of the algorithm follow those of the run."""
    seeds: tuple[int, ...] = (0,)
    """Independent runs trained together in one process, one for each seed."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require("seeds", len(self.seeds) > 0, "name at least one seed")
        self.require("seeds", len(set(self.seeds)) == len(self.seeds), "name every seed only once")
        fits = min(self.seeds) >= 0 and max(self.seeds) < 2**63
        self.require("seeds", fits, "use seeds from 0 to 2^63 - 1")
        limit = self.max_episode_steps
        self.require("max_episode_steps", limit is None or limit >= 1, "use 1 or more")

    @property
    def env_options(self) -> dict[str, Any]:
        """Arguments of `make_env` besides the environment's name."""
        names = ("success_return", "max_episode_steps")
        return {n: value for n in names if (value := getattr(self, n)) is not None}


@dataclass(frozen=True)
class MachineConfig(Group):
    """What computes."""

    device: str = "cpu"
    """Torch device, e.g. cpu or cuda."""
    backend: Backend = "auto"
    """Implementation of the ops; auto takes the fastest one that works."""
    plan: Plan = "auto"
    """On a GPU, how an update is computed: tiles (Triton kernels), tiles-pdl (the same, each
    launched while the one before it ends; compute capability 9.0 or higher) or layers (PyTorch's
    products). auto measures them for this run's sizes at its start and takes the fastest; a resumed
    run keeps its own."""
    precision: PrecisionOrAuto = "auto"
    """Operands of matrix products: ieee (float32), tf32 (on a GPU), fp16 (Triton kernels) or bf16
    (compiled passes); auto is tf32 on a GPU, as in the authors' JAX code there, and ieee
    elsewhere."""
    graph: bool = True
    """On a GPU, replay updates and policy as captured graphs; the numbers are the same without."""
    streams: bool = True
    """On a GPU, let parts of an update that need not wait for each other run side by side; the
    numbers are the same without."""
    threads: int = 0
    """CPU threads; 0 leaves the number to torch. Narrow networks run fastest with one."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require("threads", 0 <= self.threads <= MOST_THREADS, f"use 0 to {MOST_THREADS}")
        check_device(self.device)


@dataclass(frozen=True)
class DataConfig(Group):
    """The transitions that are trained on."""

    dataset: str | None = None
    """Data of your own: an npz, robomimic or D4RL file, a LeRobotDataset's folder, or minari:NAME
    (docs/data.md), instead of OGBench's."""
    dataset_dir: Path = OFFICIAL_DIR
    """Folder of the official OGBench files."""
    generated: bool = False
    """Train on data generated by this package instead of the official file."""
    generated_dir: Path = GENERATED_DIR
    """Folder of generated data."""
    generated_transitions: int = 100_000
    """Transitions to generate, rounded up to whole trajectories of a thousand."""
    generated_noise: float | None = None
    """Standard deviation of the action noise in generated data; none: as docs/data.md says."""
    generated_seed: int = 0
    """Seed of the generated data."""
    generated_corners: bool = False
    """Let half of the expert's goals in mazes lie in corners, where dead ends trap a policy."""
    sparse: bool = False
    """Use reward 0 where the task is solved and -1 elsewhere; for OGBench's tasks."""

    @property
    def without_use(self) -> set[str]:
        """Flags of this group that say nothing of a run: those of OGBench's data, beside others."""
        return set() if self.dataset is None else OGBENCH_DATA


OGBENCH_DATA = {*names_of(DataConfig)} - {"dataset"}
"""Flags that say which data of OGBench's tasks are trained on."""


@dataclass(frozen=True)
class StageConfig(Group):
    """Pretraining, offline and online fine-tuning, one after another."""

    bc_steps: int = 300_000
    """Updates of behaviour cloning; 0 with --pretrained unless it is given."""
    offline_steps: int = 1_000_000
    """Updates of offline fine-tuning."""
    online_steps: int = 0
    """Environment steps of online fine-tuning; 500000 in the paper."""
    pretrained: Path | None = None
    """Checkpoint, run folder or export to start from. One that ends pretraining gives its cloned
    field to all fields; a fine-tuned one also gives critics, targets and lambda."""
    pretrained_seed: int | None = None
    """Seed of the one run in --pretrained that all seeds start from. By default --seeds must name
    as many as --pretrained has, if it has several; they go on in order."""
    start_training: int = 5_000
    """Environment steps before the first online update."""
    utd_ratio: int = 1
    """Online updates for each environment step."""
    balanced_sampling: bool = False
    """Take half of each online batch from the offline data and half from the online transitions;
    otherwise all transitions are equally likely."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_at_least(0, "bc_steps", "offline_steps", "online_steps", "start_training")
        self.require_at_least(1, "utd_ratio")
        named = self.pretrained_seed is None or self.pretrained is not None
        self.require("pretrained_seed", named, "it chooses from --pretrained; give that too")
        if max(self.stage_ends.values()) == 0:
            raise UsageError(
                "--bc-steps, --offline-steps and --online-steps are 0, so there is nothing to do; "
                "set one of them"
            )
        if 0 < self.online_steps <= self.start_training:
            raise UsageError(
                f"--online-steps is {self.online_steps}, but updates begin after --start-training "
                f"{self.start_training}, so none would happen; use fewer steps to start or more"
            )

    @property
    def stage_ends(self) -> dict[str, int]:
        """Step at which each stage ends; steps count on from stage to stage."""
        offline = self.bc_steps + self.offline_steps
        return {
            "pretrain": self.bc_steps,
            "offline": offline,
            "online": offline + self.online_steps,
        }


@dataclass(frozen=True)
class LogConfig(Group):
    """Logs, evaluations, checkpoints and trackers."""

    log_interval: int = 5_000
    """Steps between rows of metrics.csv; values are means over the interval."""
    eval_interval: int = 50_000
    """Fine-tuning steps between evaluations; 0 evaluates at the ends of the stages only."""
    eval_episodes: int = 50
    """Episodes of an evaluation."""
    eval_envs: int = 16
    """Environments that play at the same time; 16 share one call of the policy."""
    eval_workers: int = 0
    """Processes that step these environments; 0 steps them in the trainer's own process."""
    save_interval: int = 50_000
    """Steps between checkpoints; the end of a stage is always saved."""
    keep: int = 3
    """Newest checkpoints kept, besides those that end a stage."""
    tensorboard: bool = False
    """Also log to TensorBoard, in the run folder (pip install 'trqam_fast[tensorboard]')."""
    wandb: bool = False
    """Also log to Weights & Biases, offline without a login (pip install 'trqam_fast[wandb]')."""
    wandb_project: str | None = None
    """Project there; by default WANDB_PROJECT, or else trqam_fast."""
    wandb_group: str | None = None
    """Group of the seeds' runs there; by default WANDB_RUN_GROUP, or else one for each process."""
    wandb_name: str | None = None
    """Name of the runs there, which the seed follows; by default algorithm and task."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the runs there, besides algorithm and task."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_at_least(0, "eval_interval", "eval_workers")
        self.require_at_least(1, "log_interval", "eval_episodes", "eval_envs", "save_interval")
        self.require_at_least(1, "keep")
        fits = self.eval_episodes <= MAX_EPISODES
        self.require("eval_episodes", fits, f"use 1 to {MAX_EPISODES}")


@dataclass(frozen=True)
class FolderConfig(Group):
    """The run folder."""

    run_dir: Path | None = None
    """Run folder; runs/<env>/<algo>/<time> by default."""
    resume: Literal["no", "yes", "auto"] = "no"
    """yes (or --resume alone) continues the run in --run-dir, or the newest one of this task and
    algorithm; auto does so if there is one and starts it otherwise."""
    overwrite: bool = False
    """Replace a run that is already in --run-dir."""


@dataclass(frozen=True)
class TrainConfig(TaskConfig, MachineConfig, DataConfig, StageConfig, LogConfig, FolderConfig):
    """Pretrain a flow policy by behaviour cloning and fine-tune it on one task, offline and online.

    Without arguments: generates pointmaze data, pretrains, evaluates, fine-tunes offline with
    TRQAM, evaluates, and prints pretrained against fine-tuned success.
    """

    agent: CloningConfig = field(default_factory=TRQAMConfig)
    """Hyperparameters of `algo`; `trqam_fast.training.presets.make_config` builds both from flags
    by name."""

    def __post_init__(self) -> None:
        """Take text for paths, which become absolute, and lists for tuples; check all values."""
        for name in run_flags():
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            if name in (*PATHS, "dataset") and value == "":
                raise UsageError(f"--{name.replace('_', '-')} is empty; name a path")
            if name in PATHS and isinstance(value, str | Path):
                path = Path(value)
                # A run is continued from other folders. The defaults keep their ~, which is
                # another folder on another machine.
                if path != getattr(TrainConfig, name):
                    path = Path(os.path.abspath(expanded(path)))
                object.__setattr__(self, name, path)
        super().__post_init__()
        if self.dataset is not None:
            object.__setattr__(self, "dataset", parse_source(self.dataset).absolute)

    def check(self) -> None:
        """Raise `UsageError` if values do not go together."""
        kind = algorithm(self.algo)
        if not isinstance(self.agent, kind.Config):
            raise UsageError(
                f"--algo is {self.algo}, but agent is a {type(self.agent).__name__}; give a "
                f"{kind.Config.__name__}"
            )
        if self.dataset is not None:
            self.require("generated", not self.generated, OFFICIAL_ALONE)
            self.require("sparse", not self.sparse, OFFICIAL_ALONE)
        if self.eval_workers > 0:
            check_shared(self.env_name, "--eval-workers", self.eval_workers)
        _ = self.recipe  # refuses data that cannot be generated
        if not kind.fine_tunes and self.bc_steps == 0:
            raise UsageError(
                f"--bc-steps is 0, so --algo {self.algo} has nothing to do; use 1 or more"
            )
        if not kind.fine_tunes and self.online_steps > 0:
            able = " or ".join(name for name, other in ALGORITHMS.items() if other.fine_tunes)
            raise UsageError(
                f"--online-steps is {self.online_steps}, but --algo {self.algo} has no critic to "
                f"fine-tune with; use --algo {able}"
            )
        if self.balanced_sampling and self.start_training < self.agent.horizon_length:
            raise UsageError(
                f"--start-training is {self.start_training}, but half of a balanced batch needs "
                f"--horizon-length {self.agent.horizon_length} online steps; use more"
            )

    @property
    def end(self) -> int:
        """Step at which the run ends."""
        return self.stage_ends["online" if algorithm(self.algo).fine_tunes else "pretrain"]

    @property
    def sequences(self) -> dict[str, Any]:
        """Flags that say what a sequence of actions is; a policy is made for one value of them."""
        agent = self.agent
        return {
            "horizon_length": agent.horizon_length, "action_chunking": agent.action_chunking,
        }  # fmt: skip

    @property
    def recipe(self) -> Recipe | None:
        """How to generate the data, or None for the official file."""
        if not self.generated:
            return None
        name = parse_task(self.env_name).dataset_name
        return Recipe(
            name, self.generated_transitions, self.generated_noise, self.generated_seed,
            self.generated_corners,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values by flag name, the agent's hyperparameters among them."""
        values = {name: getattr(self, name) for name in run_flags()}
        values |= dataclasses.asdict(self.agent)
        del values["resume"], values["overwrite"]
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Rebuild a configuration from `to_dict`, or from its JSON.

        A value that is missing takes its default; one that only other algorithms have is dropped,
        as configurations of earlier versions hold the values of all.

        Raises:
            KeyError: no algorithm is named.
            ValueError: there is no such flag.
            TypeError: a value of another type.
            UsageError: an impossible value.
        """
        if not isinstance(values["algo"], str):
            raise TypeError(f"algo is {values['algo']!r}")
        kind = algorithm(values["algo"]).Config
        known = {*run_flags(), *names_of(kind), *setting_names()}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"it has the flag {unknown[0]}, which this version does not know")
        hints = get_type_hints(cls) | get_type_hints(kind)
        for name, value in values.items():
            if name in hints and not is_a(value, hints[name]):
                raise TypeError(f"{name} is {value!r}, not {kind_in_words(hints[name])}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        own = {name: values[name] for name in run_flags() if name in values}
        return cls(**own, agent=kind(**select(kind, values)))


def check_shared(env_name: str, flag: str, workers: int) -> None:
    """Raise `UsageError` if worker processes are to make an environment that this one alone has."""
    if env_name.startswith("__main__:"):
        raise UsageError(
            f"{flag} is {workers}; use 0 with {env_name}, which other processes lack, or move it "
            "to a module"
        )


def flag_hints(algo: str) -> dict[str, Any]:
    """Return the type hints of all flags by name, those of every algorithm among them.

    Args:
        algo: An algorithm, possibly of one's own; where two have a flag of one name, its own.

    Raises:
        UsageError: there is no such algorithm.
    """
    hints = get_type_hints(TrainConfig)
    for kind in (*ALGORITHMS.values(), algorithm(algo)):
        hints |= get_type_hints(kind.Config)
    del hints["agent"]
    return hints


def run_flags() -> list[str]:
    """Return the names of a run's flags, without those of its algorithm."""
    return [name for name in names_of(TrainConfig) if name != "agent"]


def setting_names() -> set[str]:
    """Return the names of the hyperparameters of all algorithms of this package."""
    return {name for kind in ALGORITHMS.values() for name in names_of(kind.Config)}
