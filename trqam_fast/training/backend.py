"""What computes a run: the backend and the precision that ``auto`` stands for."""

from __future__ import annotations

import dataclasses
import sys

import torch

from trqam_fast.errors import RunError
from trqam_fast.kernels import BackendError
from trqam_fast.kernels.dispatch import check_backend, load_extension, unavailable
from trqam_fast.networks import MLPShape
from trqam_fast.self_test import triton_problems
from trqam_fast.training.config import TrainConfig


def check_asked(config: TrainConfig) -> None:
    """Raise `BackendError` if the backend or precision asked for cannot run on the device.

    It needs neither data nor a GPU's time, so it comes first.
    """
    precision = "ieee" if config.precision == "auto" else config.precision
    check_backend(config.backend, torch.device(config.device), precision)


def settle_backend(config: TrainConfig, act_dim: int) -> TrainConfig:
    """Replace ``auto`` by what will run.

    On a GPU that is Triton, once its kernels have passed their self-test there, else the reference
    after a warning. Both multiply in TF32 then, as the authors' JAX code does on a GPU; for the
    reference this function allows it to the whole process.

    Args:
        config: What was asked for.
        act_dim: Width of one action of the task.

    Raises:
        BackendError: the precision asked for needs kernels that cannot run.
        RunError: the self-test left the GPU unusable for this process.
    """
    device, backend, precision = torch.device(config.device), config.backend, config.precision
    if backend == "auto" and device.type == "cpu" and load_extension()[0] is None:
        print(
            "note: there is no compiled extension here, so the reference computes: 1.4 to 5 times "
            "as long an update (README.md, The ops)",
            file=sys.stderr,
        )
    if backend == "auto" and device.type == "cuda":
        backend = "triton"
        problem = find_problem(config, act_dim)
        if problem is not None and precision != "auto":
            raise BackendError(f"--precision {precision} needs the Triton kernels: {problem}")
        if problem is not None:
            print(
                f"warning: the Triton kernels cannot be used on {config.device}: {problem}; "
                "training with --backend reference, in TF32",
                file=sys.stderr,
            )
            backend, precision = "reference", "tf32"
            torch.set_float32_matmul_precision("high")
    if precision == "auto":
        precision = "tf32" if backend == "triton" else "ieee"
    return dataclasses.replace(config, backend=backend, precision=precision)


def running_backend(config: TrainConfig) -> str:
    """Return what computes the networks' passes of a settled configuration."""
    if config.backend != "auto":
        return config.backend
    problem = unavailable("mlp", "cpp", torch.device(config.device), precision=config.precision)
    return "cpp" if problem is None else "reference"


def find_problem(config: TrainConfig, act_dim: int) -> str | None:
    """Return why the Triton kernels must not train this run, or None."""
    agent, device = config.agent, torch.device(config.device)
    for dims in (agent.actor_hidden_dims, agent.value_hidden_dims):
        shape = MLPShape(1, dims, agent.chunk_length * act_dim)
        problem = unavailable("mlp", "triton", device, networks=[shape])
        if problem is not None:
            return problem
    precision = "tf32" if config.precision == "auto" else config.precision
    problems = triton_problems(config.device, precision)
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise RunError(
            f"the self-test of the Triton kernels broke the connection to {config.device} "
            f"({str(error).splitlines()[0]}); run again with --backend reference"
        ) from None
    return problems[0] if problems else None
