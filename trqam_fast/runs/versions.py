"""versions.json of a run: what its numbers depend on, at its beginning and as it went on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from trqam_fast.files import write_json
from trqam_fast.kernels.dispatch import load_extension
from trqam_fast.packages import commit_of, version_of

CHECKOUT = Path(__file__).resolve().parents[2]
"""Where the package lies: a checkout, unless it is installed."""
PACKAGES = ("torch", "triton", "numpy", "ogbench", "mujoco", "gymnasium")

MACHINE = ("platform", "cpu", "gpu", "threads")
"""Entries of `versions` that are of the machine."""
LATER = "later"
"""Entry of versions.json with what else a continued run went on with, and from which step."""


def versions() -> dict[str, str]:
    """Versions of everything that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("trqam_fast", *PACKAGES):
        found[package] = version_of(package)
    commit = commit_of(CHECKOUT)
    if commit is not None:
        found["commit"] = commit
    module, _ = load_extension()
    found["extension"] = (
        "not built" if module is None else ("CPU and CUDA" if module.with_cuda else "CPU")
    )
    found["platform"] = platform.platform()
    found["cpu"] = cpu_model()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["threads"] = str(torch.get_num_threads())
    return found


def cpu_model() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def go_on(path: Path, known: dict[str, Any], step: int) -> str:
    """Add to versions.json what a run goes on with, where that is not what it had.

    Machines are not compared: a scheduler may continue a run on any.

    Args:
        path: The file.
        known: What it holds.
        step: Step from which the run goes on.

    Returns:
        A sentence about it; empty where nothing differs.

    Raises:
        OSError: the disk refuses.
    """
    later, last = known.get(LATER, []), dict(known)
    for entry in later:
        last |= entry
    now = versions()
    names = [
        n for n in last | now if n not in (*MACHINE, LATER, "step") and last.get(n) != now.get(n)
    ]
    if not names:
        return ""
    had, has = ({name: each.get(name) for name in names} for each in (last, now))
    write_json(path, known | {LATER: [*later, {"step": step} | has]})
    return f"this run had {in_words(had)}; it goes on with {in_words(has)}"


def in_words(found: dict[str, Any]) -> str:
    """Return versions as text."""
    return ", ".join(f"{name} {version or 'unknown'}" for name, version in found.items())


def as_table(known: dict[str, Any]) -> dict[str, Any]:
    """Return versions.json with a line in words for each time that a run went on with others."""
    table = {name: version for name, version in known.items() if name != LATER}
    for entry in known.get(LATER, []):
        rest = {name: version for name, version in entry.items() if name != "step"}
        table[f"from step {entry.get('step')} on"] = in_words(rest)
    return table
