"""How an update is computed on a GPU: the plans are timed at a run's own sizes, the fastest wins.

Which plan is the fastest depends on the GPU, the widths and the number of runs, so it is measured:
a few seconds at the start of a run, once for each GPU, version and size. All plans compute the same
update within the precision's error; a resumed run keeps its plan, and so its bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import os
import statistics
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

import trqam_fast
from trqam_fast.agents import ALGORITHMS, algorithm
from trqam_fast.damage import is_damage, reading
from trqam_fast.data.dataset import Transitions
from trqam_fast.errors import RunError
from trqam_fast.files import expanded, read_bytes, write_json
from trqam_fast.kernels import Precision
from trqam_fast.runs.versions import versions
from trqam_fast.self_test import launch_errors
from trqam_fast.streams import say
from trqam_fast.training.backend import (
    PLANS,
    allow_tf32,
    make_agent,
    settle_backend,
    takes_plan,
    working_plans,
)
from trqam_fast.training.config import Plan, PrecisionOrAuto, TrainConfig
from trqam_fast.training.estimate import work_of
from trqam_fast.training.history import History
from trqam_fast.training.seeding import make_randomness
from trqam_fast.training.updater import UPDATES_PER_REPLAY, WARMUP, Updater

ROUNDS, UPDATES = 5, 3 * UPDATES_PER_REPLAY
"""Times that are taken of a plan, and the updates of each."""

PACKAGE = Path(trqam_fast.__file__).parent
TIMED = (
    "kernels", "agents", "networks.py", "randomness.py", "data/dataset.py", "training/updater.py",
    "training/history.py",
)  # fmt: skip
"""Sources of what is timed, an update with its batch, random numbers and metrics."""

LARGEST_FILE = 2**20
"""Bytes of a file of plans that are read at the most."""

Timer = Callable[[TrainConfig, Transitions], float]
"""Milliseconds of an update of a settled configuration."""


class Choice(NamedTuple):
    """The plan of a run.

    Attributes:
        plan: Its name.
        precision: Operands of the products.
        how: ``measured``, ``remembered`` (measured by an earlier run), ``asked`` or ``alone``.
        times_ms: Milliseconds of an update by plan, of those that were measured.
    """

    plan: Plan
    precision: PrecisionOrAuto
    how: str
    times_ms: dict[str, float]

    def in_words(self) -> str:
        """Return a line that says what was chosen and why."""
        times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in self.times_ms.items())
        reason = {"asked": "as asked", "alone": "the only one that works here"}.get(self.how, times)
        if self.how == "remembered":
            reason += " an update, by an earlier run"
        elif self.how == "measured":
            reason += " an update"
        return f"plan: {self.plan}, {self.precision} ({reason})"


def settle_plan(
    config: TrainConfig,
    dataset: Transitions,
    kept: Choice | None = None,
    timer: Timer | None = None,
) -> tuple[TrainConfig, Choice | None]:
    """Replace ``auto`` by what will run, on a GPU by the plan with the fastest update.

    Args:
        config: What was asked for.
        dataset: The transitions that batches come from.
        kept: The plan of the run that is continued.
        timer: How to time a plan; `measure` unless given.

    Returns:
        The settled configuration; the choice, None where there is no plan.

    Raises:
        BackendError: the precision or plan asked for cannot run.
        RunError: a plan left the GPU unusable, or no update of any plan runs.
    """
    if not takes_plan(config):
        return settle_backend(config, dataset.act_dim), None
    if kept is not None and config.plan == "auto":
        config = dataclasses.replace(config, plan=kept.plan)
        if config.precision == "auto":
            config = dataclasses.replace(config, precision=kept.precision)
        settled = settle_backend(config, dataset.act_dim)
        return settled, kept._replace(precision=settled.precision)
    if config.plan != "auto":
        settled = settle_backend(config, dataset.act_dim)
        return settled, Choice(settled.plan, settled.precision, "asked", {})
    plans = {settled.plan: settled for settled in working_plans(config, dataset.act_dim)}
    how = "alone"
    times: dict[str, float] = {}
    if len(plans) > 1:
        how, times = measured_times(plans, dataset, timer or measure)
    name = min(plans, key=lambda plan: times.get(plan, math.inf))
    settled = plans[name]
    allow_tf32(settled)
    return settled, Choice(name, settled.precision, how, times)


def measured_times(
    plans: Mapping[Plan, TrainConfig], dataset: Transitions, timer: Timer
) -> tuple[str, dict[str, float]]:
    """Return ``measured`` or ``remembered``, and the milliseconds of an update by plan.

    A plan whose update fails is left out with its reason on standard error.

    Raises:
        RunError: no plan's update runs.
    """
    cache, key = read_cache(), case_of(plans, dataset)
    if cache is not None and set(cache.get(key, {})) == set(plans):
        return "remembered", cache[key]
    expected: tuple[type[Exception], ...] = (RunError, *launch_errors())
    times: dict[str, float] = {}
    reason = ""
    for name, settled in plans.items():
        try:
            times[name] = round(timer(settled, dataset), 4)
        except expected as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            say(f"warning: plan {name} is left out: {reason}", "stderr")
    if not times:
        raise RunError(f"an update runs with no plan on {settled.device}: {reason}")
    if cache is not None and len(times) == len(plans):
        write_cache(cache | {key: times})
    return "measured", times


def measure(settled: TrainConfig, dataset: Transitions) -> float:
    """Return the median milliseconds of an update, on an agent that is thrown away afterwards."""
    before = torch.get_float32_matmul_precision()
    allow_tf32(settled)
    try:
        agent = make_agent(settled, settled.algo, dataset.obs_dim, dataset.act_dim)
        randomness = make_randomness(settled.seeds, "offline", agent.device, agent.backend)
        history = History(UPDATES)
        updater = Updater(
            agent, dataset, randomness, history, graph=settled.graph, streams=settled.streams
        )
        updater.run(WARMUP + UPDATES_PER_REPLAY)
        seconds = []
        for _ in range(ROUNDS):
            history.collect()  # which waits for the device
            start = time.perf_counter()
            updater.run(UPDATES)
            torch.cuda.synchronize(agent.device)
            seconds.append((time.perf_counter() - start) / UPDATES)
    finally:
        torch.set_float32_matmul_precision(before)
    del agent, updater
    torch.cuda.empty_cache()
    return 1e3 * statistics.median(seconds)


def case_of(plans: Mapping[Plan, TrainConfig], dataset: Transitions) -> str:
    """Return what the times depend on: GPU, versions, sources, algorithm, sizes."""
    config = next(iter(plans.values()))
    known = versions()
    case: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(config.device), "cuda": torch.version.cuda,
        **{name: known[name] for name in ("trqam_fast", "torch", "triton")},
        "code": code_digest(), "plans": list(plans), "precision": config.precision,
        "graph": config.graph, "streams": config.streams, "capturable": dataset.capturable,
        "algo": config.algo, "algo_code": own_digest(config.algo),
        "runs": len(config.seeds), "obs_dim": dataset.obs_dim, "act_dim": dataset.act_dim,
        "agent": work_of(config.agent),
    }  # fmt: skip
    return json.dumps(case, sort_keys=True)


def code_digest(package: Path = PACKAGE) -> str:
    """Return a digest of an update's sources, which change between versions while in work."""
    digest = hashlib.sha256()
    for path in (package / name for name in TIMED):
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def own_digest(algo: str) -> str | None:
    """Return a digest of the file of an algorithm of one's own, None of those of the package."""
    if algo in ALGORITHMS:
        return None
    try:
        source = Path(inspect.getsourcefile(algorithm(algo)) or "")
        return hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):  # it is in no file, as in a notebook: never the same again
        return uuid.uuid4().hex


def cache_path() -> Path:
    """Return the file of the times in the user's cache folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return expanded(folder) / "trqam_fast" / "plans.json"


def read_cache() -> dict[str, dict[str, float]] | None:
    """Return the times of earlier runs by case, None if the system refuses.

    There are none if the file is missing or damaged.
    """
    try:
        found = json.loads(read_bytes(cache_path(), LARGEST_FILE))
        return {
            str(case): {str(name): float(ms) for name, ms in times.items()}
            for case, times in found.items()
        }
    except FileNotFoundError:
        return {}
    except Exception as error:
        if is_damage(error):
            return {}
        if isinstance(error, OSError | MemoryError):
            return None
        raise


def write_cache(times: dict[str, dict[str, float]]) -> None:
    """Keep the times for later runs, where the user's cache folder can be written."""
    path = cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, times)
    except OSError:  # the next run measures again
        return


def kept_choice(path: Path, config: TrainConfig) -> Choice | None:
    """Return the choice that a continued run keeps, None where it has none, or needs none.

    Args:
        path: What `write_choice` wrote.
        config: What is asked for.

    Raises:
        Damaged: another plan would give other bits, so none is measured in the place of it.
        Unreadable: the system refuses.
    """
    return read_choice(path) if takes_plan(config) and config.plan == "auto" else None


def read_choice(path: Path) -> Choice | None:
    """Return the choice that `write_choice` stored, None if there is none that is known here.

    Raises:
        Damaged: it is another.
        Unreadable: the system refuses.
    """
    with reading(
        path, "is damaged", "name the run's plan with --plan, or delete it to measure them again"
    ):
        try:
            found = json.loads(read_bytes(path, LARGEST_FILE))
        except FileNotFoundError:  # begun without a GPU, or by a version without plans
            return None
        times = {str(name): float(ms) for name, ms in found["times_ms"].items()}
        choice = Choice(found["plan"], found["precision"], found["how"], times)
        if not all(isinstance(name, str) for name in choice[:3]):
            raise ValueError("its names are no text")
        if choice.precision not in get_args(Precision):
            raise ValueError(f"its precision is {choice.precision!r}")
    return choice if choice.plan in PLANS else None


def write_choice(path: Path, choice: Choice) -> None:
    """Store a run's choice.

    Raises:
        RunError: it cannot be written.
    """
    try:
        write_json(path, choice._asdict())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error}") from None
