"""Check the installation: python -m trqam_fast.doctor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from trqam_fast.cli import run_command
from trqam_fast.data.sources import GENERATED_DIR, OFFICIAL_DIR
from trqam_fast.kernels import (
    MLPWeights,
    adjoint_matching,
    lean_adjoint,
    mlp,
    path_kl,
    sde_rollout,
)
from trqam_fast.kernels.dispatch import EXTENSION_OPS, extension_problem, load_extension
from trqam_fast.networks import MLPShape, ParameterBlock
from trqam_fast.training.run_folder import versions

TOLERANCE = 1e-4
"""Largest deviation of a float32 backend from the float64 reference, relative to its scale."""


@dataclass(frozen=True)
class DoctorArgs:
    """Print versions and devices, run every op on every backend against the float64 reference.

    The exit status is 1 if anything is wrong, with one line for each problem.
    """

    dataset_dir: Path = OFFICIAL_DIR
    """Folder of the official OGBench files."""
    generated_dir: Path = GENERATED_DIR
    """Folder of generated data."""


def cases(dtype: torch.dtype, device: str) -> dict[str, Callable[[str], list[Tensor]]]:
    """Return a small call of each op: backend to outputs and gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(device, dtype)

    runs, steps, batch, obs, dim = 2, 4, 7, 3, 2
    shape = MLPShape(obs + dim + 1, (16, 24), dim, layer_norm=True)
    block = ParameterBlock({"a": shape, "b": shape}, runs, dtype=dtype, device=device)
    block.initialise([torch.Generator().manual_seed(seed) for seed in range(runs)])
    field: MLPWeights = block.networks["a"].map(lambda tensor: tensor.requires_grad_())
    base = block.networks["b"]
    observations, x0 = draw(runs, batch, obs), draw(runs, batch, dim)
    noise = draw(runs, steps - 1, batch, dim)
    points, terminal = draw(runs, steps + 1, batch, dim), draw(runs, batch, dim)
    velocity = draw(runs, steps, batch, dim).requires_grad_()
    other, adjoint, lam = draw(*velocity.shape), draw(*velocity.shape), draw(runs).abs()

    def with_gradients(outputs: list[Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
        total = sum(output.sum() for output in outputs if output.requires_grad)
        return [*outputs, *torch.autograd.grad(total, inputs)]

    return {
        "mlp": lambda backend: with_gradients(
            [mlp(field, torch.cat([observations, x0, x0[..., :1]], -1), backend=backend)],
            field.tensors,
        ),
        "sde_rollout": lambda backend: with_gradients(
            list(sde_rollout(field, base, observations, x0, noise, backend=backend)[:2]),
            field.tensors,
        ),
        "lean_adjoint": lambda backend: [
            lean_adjoint(base, observations, points, terminal, backend=backend)
        ],
        "adjoint_matching": lambda backend: with_gradients(
            list(adjoint_matching(velocity, other, adjoint, lam, backend=backend)), (velocity,)
        ),
        "path_kl": lambda backend: with_gradients(
            [path_kl(velocity, other, backend=backend)], (velocity,)
        ),
    }


def self_test(op: str, backend: str, device: str) -> float:
    """Return the deviation of an op in float32 from the float64 reference on the CPU."""
    expected = cases(torch.float64, "cpu")[op]("reference")
    found = cases(torch.float32, device)[op](backend)
    worst = 0.0
    for ours, reference in zip(found, expected, strict=True):
        scale = reference.detach().abs().max().clamp(min=1.0)
        worst = max(
            worst, float(((ours.detach().cpu().double() - reference.detach()).abs() / scale).max())
        )
    return worst


def check_ops(device: str) -> list[str]:
    """Self-test every op and backend on `device`; return the problems."""
    problems = []
    for op in cases(torch.float64, "cpu"):
        for backend in ("reference", "cpp"):
            reason = extension_problem(torch.device(device)) if op in EXTENSION_OPS else None
            if backend == "cpp" and reason is not None:
                print(f"  {op:17} {backend:10} {device:5} not available: {reason}")
                continue
            try:
                error = self_test(op, backend, device)
            except (RuntimeError, ValueError, TypeError) as failure:
                problems.append(f"{op} with backend {backend} on {device} fails: {failure}")
                continue
            verdict = "ok" if error <= TOLERANCE else "WRONG"
            print(f"  {op:17} {backend:10} {device:5} {verdict}, deviation {error:.1e}")
            if error > TOLERANCE:
                problems.append(
                    f"{op} with backend {backend} on {device} deviates by {error:.1e}, more than "
                    f"{TOLERANCE:g}; use --backend reference"
                )
    return problems


def describe_folder(label: str, folder: Path) -> None:
    """Print which datasets a folder holds."""
    folder = folder.expanduser()
    files = sorted(path.name for path in folder.glob("*.npz")) if folder.is_dir() else []
    print(f"  {label:10} {folder}: {', '.join(files) if files else 'no datasets'}")


def main(argv: list[str] | None = None) -> int:
    """Print the report; return 1 if there is a problem."""
    args = tyro.cli(DoctorArgs, args=argv, prog="python -m trqam_fast.doctor")
    problems = []
    print("versions")
    for name, version in versions().items():
        print(f"  {name:10} {version}")
    module, reason = load_extension()
    if module is None:
        problems.append(f"the extension does not import ({reason}); run 'pip install -e .'")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(f"devices\n  {', '.join(devices)}")
    print(f"  CUDA of torch: {torch.version.cuda or 'none, a CPU build'}")
    print("ops, float32 against the float64 reference")
    for device in devices:
        problems += check_ops(device)
    print("datasets")
    describe_folder("official", args.dataset_dir)
    describe_folder("generated", args.generated_dir)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print("no problem found" if not problems else f"{len(problems)} problem(s), see above")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
