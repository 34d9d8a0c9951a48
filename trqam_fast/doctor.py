"""Check the installation: python -m trqam_fast.doctor."""

from __future__ import annotations

import platform
import sys
import textwrap

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from trqam_fast.data.generate.recipe import GENERATED_DIR
from trqam_fast.data.load import OFFICIAL_DIR, present
from trqam_fast.files import expanded
from trqam_fast.kernels.dispatch import (
    OPS,
    PRECISIONS_OF,
    TRITON,
    load_extension,
    unavailable,
)
from trqam_fast.op_cases import CASES
from trqam_fast.runs.versions import versions
from trqam_fast.self_test import problem
from trqam_fast.text import printable


@dataclass(frozen=True)
class DoctorArgs:
    """Print versions and devices, run every op on every backend against the float64 reference.

    The exit status is 1 if anything is wrong, with one line for each problem.
    """

    dataset_dir: Path = OFFICIAL_DIR
    """Folder of the official OGBench files."""
    generated_dir: Path = GENERATED_DIR
    """Folder of generated data."""


def check_ops(device: str) -> list[str]:
    """Self-test every op and backend on `device`; return the problems."""
    problems: list[str] = []
    missing: dict[tuple[str, str], list[str]] = {}
    for name, case in CASES.items():
        has = OPS[case.op]
        for backend in ("reference", "cpp", *filter(has.runs_by, TRITON)):
            reason = unavailable(case.op, backend, torch.device(device))
            if reason is not None:
                missing.setdefault((backend, reason), []).append(name)
                continue
            for precision in PRECISIONS_OF[backend] if has.networks else ("ieee",):
                verdict, found = problem(name, backend, device, precision)
                shown = "" if precision == "ieee" else f" ({precision})"
                print(f"  {name:24} {backend:10} {device:5} {verdict}{shown}")
                problems += [found] if found else []
    for (backend, reason), names in missing.items():
        text = f"{backend} on {device} is not available for {', '.join(names)}: {reason}"
        print(textwrap.fill(text, 78, initial_indent="  ", subsequent_indent="    "))
    return problems


def describe_folder(label: str, folder: Path) -> list[str]:
    """Print which datasets a folder holds and what is wrong with them; return the problems."""
    datasets, problems = present(folder)
    print(f"  {label:10} {printable(folder, 400)}" + ("" if datasets else ": no datasets"))
    for found in datasets:
        name = printable(found.path.relative_to(expanded(folder)), 400)
        print(f"    {found.form:8} {name}" + (f" ({found.problem})" if found.problem else ""))
        if found.problem:
            problems.append(f"dataset {printable(found.path, 400)}: {found.problem}")
    return problems


def main(argv: list[str] | None = None) -> int:
    """Print the report; return 1 if there is a problem."""
    args = tyro.cli(DoctorArgs, args=argv, prog="python -m trqam_fast.doctor")
    problems = []
    print("versions")
    for name, version in versions().items():
        print(f"  {name:10} {version}")
    module, reason = load_extension()
    if module is None and (sys.platform, platform.machine()) == ("linux", "x86_64"):
        problems.append(f"the extension does not import ({reason}); run 'pip install -e .'")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(f"devices\n  {', '.join(devices)}")
    print(f"  CUDA of torch: {torch.version.cuda or 'none, a CPU build'}")
    print("ops, float32 against the float64 reference")
    for device in devices:
        problems += check_ops(device)
    print("datasets")
    problems += describe_folder("official", args.dataset_dir)
    problems += describe_folder("generated", args.generated_dir)
    for text in problems:
        print(f"problem: {text}", file=sys.stderr)
    print("no problem found" if not problems else f"{len(problems)} problem(s), see above")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
