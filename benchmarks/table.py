"""Write the README's table of results from benchmarks/results/: python -m benchmarks.table."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.records import ROOT
from trqam_fast.cli import run_command

BEGIN = "<!-- benchmarks: written by python -m benchmarks.table -->"
END = "<!-- end of benchmarks -->"
CASES = {
    "fp32": "paper scale (width 512 x 4, E = 10, K = 10, B = 256), float32",
    "bf16": "paper scale, ours with bf16 operands",
    "fp32_small": "width 128 x 4, B = 64, float32",
}
COMPARISONS = ("compare_cpu", "compare_amd_cpu", "compare_amd_avx512_cpu")
SIZES = ("w128-b64-s1", "w512-b256-s1")
OPS = (
    "path_kl with gradient", "adjoint_matching with gradient", "sde_rollout",
    "sde_rollout with gradient", "lean_adjoint", "velocity_along", "critics with gradient",
    "action gradient", "adam_step", "update trqam", "update qam",
)  # fmt: skip


@dataclass(frozen=True)
class TableArgs:
    """Write the README's table of results."""

    check: bool = False
    """Write nothing; exit with 1 if the README is not up to date."""


def comparison(records: list[dict]) -> list[str]:
    """Rows: one update of the authors' code over ours, a column for each machine."""
    lines = [
        "One TRQAM update, times as fast as the authors' JAX code, alternating on the same cores",
        "(the median of the turns; in brackets a quarter of them below and above):",
        "",
        "| | " + " | ".join(map(machine, records)) + " |",
        "|---|" + "---|" * len(records),
    ]
    for name, text in CASES.items():
        lines.append(f"| {text} | " + " | ".join(times(record, name) for record in records) + " |")
    return lines


def machine(record: dict) -> str:
    """Return where a comparison ran, with what."""
    best, versions = record["instruction_sets"][0].upper().replace("_", "-"), record["versions"]
    return (
        f"{record['machine']}, {best}; JAX {record['reference']['jax']}, "
        f"trqam_fast {versions['trqam_fast']}, torch {versions['torch']}"
    )


def times(record: dict, case: str) -> str:
    """Return the ratio of a case and its quartiles."""
    turns = sorted(record["cases"][case]["ratio_of_each_turn"])
    low, high = turns[len(turns) // 4], turns[-1 - len(turns) // 4]
    return f"{record['ratios'][case]:.2f} [{low:.2f}, {high:.2f}]"


def ratio(groups: dict, op: str, size: str, backend: str) -> str:
    """Reference's median over that of `backend`, or a dash."""
    group = groups.get(f"{op} {size} cpu", {})
    if f"cpu-{backend}" not in group or "cpu-reference-ieee" not in group:
        return "-"
    theirs, ours = group["cpu-reference-ieee"], group[f"cpu-{backend}"]
    return f"{theirs['median_ms'] / ours['median_ms']:.1f}"


def ops(record: dict) -> list[str]:
    """Rows: every op's reference over cpp, and the baselines' update."""
    groups = record["groups"]
    lines = [
        "Times as fast as `reference` (plain PyTorch with autograd)",
        f"({record['machine']}, trqam_fast {record['versions']['trqam_fast']}):",
        "",
        "| | width 128, B 64 | width 512, B 256 | width 512, bf16 |",
        "|---|---|---|---|",
    ]
    for op in OPS:
        small, paper = (ratio(groups, op, size, "cpp-ieee") for size in SIZES)
        lines.append(f"| {op} | {small} | {paper} | {ratio(groups, op, SIZES[1], 'cpp-bf16')} |")
    for name, text in (("eager", "written for speed, eager"), ("compiled", "and torch.compile")):
        small, paper = (ratio(groups, "update trqam", size, f"{name}-ieee") for size in SIZES)
        if {small, paper} != {"-"}:
            lines.append(f"| update trqam, PyTorch {text} | {small} | {paper} | |")
    return lines


def read(path: Path) -> dict:
    """Return a committed result."""
    return json.loads(path.read_text())


def table() -> str:
    """Return the text between the markers."""
    results = ROOT / "benchmarks" / "results"
    lines = [BEGIN, "", *comparison([read(results / f"{name}.json") for name in COMPARISONS])]
    lines += ["", *ops(read(results / "ops_cpu.json"))]
    return "\n".join([*lines, "", END])


def main(argv: list[str] | None = None) -> int:
    """Write or check."""
    args = tyro.cli(TableArgs, args=argv, prog="python -m benchmarks.table")
    readme = ROOT / "README.md"
    text = readme.read_text()
    start, end = text.index(BEGIN), text.index(END) + len(END)
    new = text[:start] + table() + text[end:]
    if args.check:
        print("up to date" if new == text else "not up to date; run python -m benchmarks.table")
        return int(new != text)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
