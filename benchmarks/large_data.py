"""Training from 10 million transitions on disk: python -m benchmarks.large_data --folder F.

Makes flat sets of random numbers, as large as cube-double's observations and actions, and measures
the memory of training runs, each in a process of its own, and the time of a batch from disk and
from memory, in turns. Memory is what the system counts as resident, pages of mapped files included.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import tyro

from benchmarks.records import describe, save
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.cli import run_command
from trqam_fast.data.dataset import Dataset
from trqam_fast.data.flat import FORMAT, FlatSet
from trqam_fast.data.flat_dataset import FlatDataset
from trqam_fast.data.flatten import Writer, new_folder
from trqam_fast.errors import RunError
from trqam_fast.memory import keep_freed_memory
from trqam_fast.randomness import Randomness

OBS_DIM, ACT_DIM, STEPS, PART = 37, 5, 1000, 500_000
HORIZON, DISCOUNT, BATCH = 5, 0.995, 256


@dataclass(frozen=True)
class LargeArgs:
    """Measure memory and sampling of large data on disk."""

    folder: Path
    """Folder for the flat sets, 1.8 GB for 10 million transitions; they are deleted at the end."""
    transitions: int = 10_000_000
    """Transitions of the large set, in whole thousands."""
    small: int = 100_000
    """Transitions of the set to compare with, in whole thousands."""
    updates: int = 200
    """Updates of each training run."""
    batches: int = 2000
    """Batches that are timed of each kind."""
    width: int = 64
    """Width of the networks, small so that the data's memory shows."""
    json: Path | None = None
    """File for the result."""
    train: Path | None = None
    """Train on this flat set, print the memory and stop; used for the runs of their own."""


def make_set(path: Path, transitions: int) -> FlatSet:
    """Write a flat set of random numbers."""
    trajectories = transitions // STEPS
    manifest = {
        "format": FORMAT, "dataset": "cube-double-play-v0", "env": "cube-double-v0",
        "obs_dim": OBS_DIM, "act_dim": ACT_DIM, "transitions": transitions,
        "trajectories": trajectories, "tasks": [1], "default_task": 1, "sources": [],
        "versions": {"numpy": metadata.version("numpy")},
    }  # fmt: skip
    random = np.random.default_rng(0)
    with new_folder(path) as folder, ExitStack() as stack:
        writer = Writer(folder, manifest, stack)
        for start in range(0, transitions, PART):
            count = min(PART, transitions - start)
            records = random.standard_normal((count, OBS_DIM + ACT_DIM), dtype=np.float32)
            records[:, OBS_DIM:].clip(-1, 1, out=records[:, OBS_DIM:])
            solved = random.random(count) < 0.01
            ends = np.arange(count) % STEPS == STEPS - 1
            writer.write(
                records=records, terminals=ends, rewards_task1=-(~solved).astype(np.float32),
                masks_task1=~solved,
                finals=random.standard_normal((ends.sum(), OBS_DIM), dtype=np.float32),
            )  # fmt: skip
        writer.write(records=records[-1:])
        writer.finish()
    return FlatSet.open(path)


def train(path: Path, updates: int, width: int) -> dict[str, float]:
    """Train on a set from disk; return the memory of this process in MiB."""
    keep_freed_memory()
    config = TRQAMConfig(
        batch_size=BATCH, actor_hidden_dims=(width,) * 2, value_hidden_dims=(width,) * 2,
        num_qs=2, horizon_length=HORIZON, action_chunking=True, discount=DISCOUNT,
    )  # fmt: skip
    dataset = FlatDataset(FlatSet.open(path), 1)
    agent = TRQAMAgent(config, dataset.obs_dim, dataset.act_dim, [0])
    randomness = Randomness([0])
    now = []
    for _ in range(updates):
        batch = dataset.sample(randomness, BATCH, HORIZON, DISCOUNT)
        agent.update(batch, agent.draw_noise(randomness))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"most_while_updating_MiB": max(now), "peak_MiB": peak}


def train_apart(path: Path, args: LargeArgs) -> dict[str, float]:
    """Train in a new process; return its memory."""
    words = [
        "--folder", str(args.folder), "--train", str(path), "--updates", str(args.updates),
        "--width", str(args.width),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.large_data", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise RunError(f"the training run on {path} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_batches(datasets: dict[str, Dataset | FlatDataset], batches: int) -> dict[str, dict]:
    """Return the microseconds of a batch from each dataset, drawn in turns from the same starts."""
    seconds: dict[str, list[float]] = {name: [] for name in datasets}
    randomness = {name: Randomness([0]) for name in datasets}
    for turn in range(-20, batches):
        for name, dataset in datasets.items():
            begin = time.perf_counter()
            dataset.sample(randomness[name], BATCH, HORIZON, DISCOUNT)
            if turn >= 0:
                seconds[name].append(1e6 * (time.perf_counter() - begin))
    results = {}
    for name, values in seconds.items():
        first, median, third = statistics.quantiles(values, n=4)
        results[name] = {
            "median_us": round(median, 1), "quartile_1_us": round(first, 1),
            "quartile_3_us": round(third, 1), "mean_us": round(statistics.mean(values), 1),
        }  # fmt: skip
    return results


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = tyro.cli(LargeArgs, args=argv, prog="python -m benchmarks.large_data")
    if args.train is not None:
        print(json.dumps(train(args.train, args.updates, args.width)))
        return 0
    paths = {
        count: args.folder / f"random-{count}.flat" for count in (args.small, args.transitions)
    }
    try:
        sets = {count: make_set(path, count) for count, path in paths.items()}
        memory = {count: train_apart(path, args) for count, path in paths.items()}
        datasets = {
            f"{count} transitions {where}": make(flat, 1)
            for count, flat in sets.items()
            for where, make in (("in memory", Dataset.from_flat), ("on disk", FlatDataset))
        }
        times = time_batches(datasets, args.batches)
    finally:
        for path in paths.values():
            shutil.rmtree(path, ignore_errors=True)
    medians = {name: entry["median_us"] for name, entry in times.items()}
    more = {
        name: round(memory[args.transitions][name] - memory[args.small][name], 1)
        for name in memory[args.small]
    }
    large = str(args.transitions)
    record = {
        "memory_of_a_training_run": {str(count): found for count, found in memory.items()},
        "more_memory_of_the_large_set": more,
        "batch": times,
        "disk_over_memory": round(
            medians[f"{large} transitions on disk"] / medians[f"{large} transitions in memory"], 3
        ),
        "sizes": {
            "obs_dim": OBS_DIM, "act_dim": ACT_DIM, "batch": BATCH, "horizon": HORIZON,
            "updates": args.updates, "batches": args.batches,
        },
    }  # fmt: skip
    print(json.dumps(record, indent=1))
    if args.json is not None:
        what = "memory of training from a large set on disk, time of a batch from disk and memory"
        save(args.json, {**describe(what), **record})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
