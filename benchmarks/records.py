"""What every file in benchmarks/results/ says about its origin."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from trqam_fast.kernels.dispatch import load_extension
from trqam_fast.packages import commit_of
from trqam_fast.runs.versions import cpu_model, versions

ROOT = Path(__file__).resolve().parent.parent


def machine() -> str:
    """Return processor and memory, and the GPU if there is one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{len(os.sched_getaffinity(0))} cores of {cpu_model()}, {memory:.0f} GiB"
    if torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def commit(root: Path = ROOT) -> str:
    """Return the commit of the code, or of another checkout, with + if files differ from it."""
    return commit_of(root) or "unknown"


def command() -> str:
    """Return the command line of this process, programs and folders without their path."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(
        word if not word.startswith("/") else Path(word).name.upper() for word in words
    )


def describe(what: str) -> dict[str, Any]:
    """Return the head of a record."""
    module, _ = load_extension()
    return {
        "what": what,
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "instruction_sets": module.instruction_sets() if module else [],
        "threads": torch.get_num_threads(),
    }


def save(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
