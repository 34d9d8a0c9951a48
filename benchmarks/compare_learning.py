"""Train the authors' JAX code and ours on the same data, and compare what they learn.

    python -m benchmarks.compare_learning --reference CHECKOUT --reference-python PYTHON \
        --seeds 0 1 2 3 --updates 12500 --generated-transitions 20000 --json OUT

CHECKOUT is a clone of `yonghdong/trqam`, PYTHON an interpreter with its requirements. Flags that
are not below are the trainer's (`python -m trqam_fast.train --help`) and hold for both sides; one
that the authors' code has no counterpart of is refused. The transitions are read once, by this
package, and given to both; each side samples its own batches, draws its own weights and noise, and
clones before it fine-tunes. Both are evaluated by this package's evaluator: the same episodes, with
the same noise for the policy.

Every run is kept in --out and continues where it was, so the command can be stopped, and repeated
with more seeds or more updates.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tyro

from benchmarks.learning_curves import (
    AUTHORS,
    OURS,
    Curve,
    Curves,
    evaluated,
    print_curves,
    print_summary,
    summarise,
)
from benchmarks.records import describe, save
from benchmarks.reference import check_checkout
from benchmarks.reference_runs import AuthorsRuns
from trqam_fast.cli import run_command
from trqam_fast.data.dataset import Transitions
from trqam_fast.data.load import load_task
from trqam_fast.errors import UsageError
from trqam_fast.runs.read import read_run
from trqam_fast.train import resolve, run
from trqam_fast.training.config import PATHS, TrainConfig
from trqam_fast.training.flags import parse_config
from trqam_fast.training.interface import own_interface

Algo = Literal["qam", "trqam"]


@dataclass(frozen=True)
class LearningArgs:
    """Train the authors' JAX code and ours on the same data, and compare what they learn.

    Further flags are those of python -m trqam_fast.train and hold for both sides.
    """

    reference: Path
    """Checkout of the authors' repository, yonghdong/trqam."""
    reference_python: Path = Path(sys.executable)
    """Interpreter that has JAX and the other requirements of the authors' code."""
    algos: tuple[Algo, ...] = ("qam", "trqam")
    """Algorithms to train."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds of each side; the two sides have no random number in common but the evaluation's."""
    updates: int = 12_500
    """Updates of fine-tuning."""
    out: Path = Path("runs/learning")
    """Folder of the runs of both sides."""
    json: Path | None = None
    """File for the result."""


def train_ours(config: TrainConfig) -> Curve:
    """Train one seed of ours, or what is left of it, and read its folder."""
    run(config)
    (seed,) = config.seeds
    found, begin = read_run(config.run_dir), config.bc_steps
    curve = Curve(failure=found.failures.get(str(seed)))
    for row in found.evaluations:
        if row.step >= begin and np.isfinite(row.success):
            curve.success[row.step - begin] = row.success
    for row in found.metrics:
        if row.stage == "offline":
            curve.rows[row.step - begin] = row.values
    return curve


def train_all(
    args: LearningArgs, flags: list[str], configs: dict[str, TrainConfig], data: Transitions
) -> Curves:
    """Train every algorithm and seed on both sides.

    Args:
        args: The command's.
        flags: The trainer's.
        configs: What they say, by algorithm.
        data: The transitions.
    """
    curves: Curves = {(algo, side): {} for algo in args.algos for side in (AUTHORS, OURS)}
    folder, config = args.out / "authors", next(iter(configs.values()))
    authors = AuthorsRuns(args.reference, args.reference_python, folder, config, data)
    with contextlib.closing(authors):
        for config in configs.values():
            authors.check(config)
        for seed in args.seeds:
            for algo in args.algos:
                folder = args.out / "ours" / f"{algo}-seed_{seed}"
                own = ["--algo", algo, "--seeds", str(seed), "--run-dir", str(folder)]
                config = resolve([*flags, *own, "--resume", "auto"])
                curves[algo, AUTHORS][seed] = authors.train(config)
                curves[algo, OURS][seed] = train_ours(config)
    return curves


def record_of(
    curves: Curves, found: dict[str, Any], configs: dict[str, TrainConfig], data: Transitions
) -> dict[str, Any]:
    """Return what is written: settings, statistics, tests and every curve."""
    return describe("what the authors' JAX code and ours learn from the same data") | {
        "settings": {
            algo: {k: v for k, v in config.to_dict().items() if k not in ("dataset", *PATHS)}
            for algo, config in configs.items()
        },
        "data": data.fingerprint(),
        "settled": found["settled"],
        "tests": {
            name: {quantity: test._asdict() for quantity, test in tests.items()}
            for name, tests in found["tests"].items()
        },
        "curves": [
            {"algo": algo, "side": side, "seed": seed} | vars(curve)
            for (algo, side), by_seed in curves.items()
            for seed, curve in by_seed.items()
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Train, print, write."""
    args, flags = tyro.cli(
        LearningArgs, args=argv, prog="python -m benchmarks.compare_learning",
        return_unknown_args=True,
    )  # fmt: skip
    check_checkout(args.reference)
    if args.updates < 1:
        raise UsageError(f"--updates is {args.updates}; use 1 or more")
    flags = [*flags, "--offline-steps", str(args.updates)]
    configs = {algo: parse_config([*flags, "--algo", algo]) for algo in args.algos}
    config = next(iter(configs.values()))
    data, path = load_task(
        config.env_name, dataset=config.dataset, interface=own_interface(config),
        dataset_dir=config.dataset_dir, recipe=config.recipe, generated_dir=config.generated_dir,
        sparse=config.sparse, device="cpu", progress=False, say=print,
    )  # fmt: skip
    print(f"data: {len(data)} transitions from {path}", flush=True)
    curves = train_all(args, flags, configs, data)
    steps = evaluated(config.eval_interval, args.updates)
    found = summarise(curves, steps)
    print(
        f"\n{config.env_name}, {len(data):,} transitions, "
        f"{config.eval_episodes} episodes an evaluation, seeds {' '.join(map(str, args.seeds))}"
    )
    print_curves(curves, steps)
    print_summary(found, args.updates)
    if args.json is not None:
        save(args.json, record_of(curves, found, configs, data))
        print(f"wrote {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
