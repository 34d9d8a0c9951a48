"""What computes a run: the backend and the precision that ``auto`` or a plan stands for."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import torch

from trqam_fast.agents import Agent, algorithm
from trqam_fast.errors import RunError, UsageError
from trqam_fast.kernels import Backend, BackendError, Precision
from trqam_fast.kernels.dispatch import (
    DEPENDENT,
    TRITON,
    check_backend,
    has_dependent_launches,
    load_extension,
    unavailable,
)
from trqam_fast.networks import MLPShape
from trqam_fast.self_test import triton_problems
from trqam_fast.training.config import Plan, TrainConfig

PLANS: dict[Plan, Backend] = {"tiles": "triton", "tiles-pdl": DEPENDENT, "layers": "reference"}
"""Backends of the plans of an update on a GPU, those without need of a self-test last."""

OF_KERNELS = ("fp16", "bf16")
"""Precisions that the plan without kernels of ours lacks."""


def make_agent(config: TrainConfig, algo: str, obs_dim: int, act_dim: int) -> Agent:
    """Return an agent of an algorithm with initial weights, as a settled configuration wants it.

    Behaviour cloning clips its gradient, whatever the default of the algorithm that it is for.
    """
    assert config.precision != "auto"  # as it is settled
    kind, settings = algorithm(algo), config.agent
    if not kind.fine_tunes and settings.clip_grad == type(settings).clip_grad:
        settings = dataclasses.replace(settings, clip_grad=kind.Config.clip_grad)
    agent = kind(
        settings, obs_dim, act_dim, list(config.seeds), device=config.device,
        backend=config.backend, precision=config.precision,
    )  # fmt: skip
    if not config.graph:
        agent.policy_graphs = None
    return agent


def check_asked(config: TrainConfig) -> None:
    """Raise unless the backend or plan and the precision asked for can run on the device.

    It needs neither data nor a GPU's time, so it comes first.

    Raises:
        BackendError: they cannot run there.
        UsageError: the plan contradicts another flag.
    """
    precision = "ieee" if config.precision == "auto" else config.precision
    if config.plan == "auto":
        check_backend(config.backend, torch.device(config.device), precision)
        return
    if config.backend != "auto":
        raise UsageError(
            f"--plan {config.plan} and --backend {config.backend} exclude each other; pass one"
        )
    if not takes_plan(config):
        raise UsageError(
            f"--plan {config.plan} is of a GPU, and --device is {config.device}; drop it"
        )
    backend = PLANS[config.plan]
    if backend == "reference" and precision in OF_KERNELS:
        raise BackendError(
            f"plan {config.plan} has no precision '{precision}'; use 'tf32' or 'ieee'"
        )
    if backend != "reference":
        check_backend(backend, torch.device(config.device), precision)


def takes_plan(config: TrainConfig) -> bool:
    """Whether an update of this run is computed by a plan: on a GPU, unless a backend is named."""
    return config.backend == "auto" and torch.device(config.device).type == "cuda"


def settle_backend(config: TrainConfig, act_dim: int) -> TrainConfig:
    """Replace ``auto`` by what will run, without measuring anything.

    On a GPU that is the first plan that works there; `trqam_fast.training.plan` takes the fastest.

    Args:
        config: What was asked for.
        act_dim: Width of one action of the task.

    Raises:
        BackendError: the precision or plan asked for needs kernels that cannot run.
        RunError: the self-test left the GPU unusable for this process.
    """
    device, backend, precision = torch.device(config.device), config.backend, config.precision
    if backend == "auto" and device.type == "cpu" and load_extension()[0] is None:
        print(
            "note: there is no compiled extension here, so the reference computes, which is slower "
            "(README.md, Benchmarks)",
            file=sys.stderr,
        )
    if takes_plan(config):
        settled = next(working_plans(config, act_dim))
        allow_tf32(settled)
        return settled
    if precision == "auto":
        precision = "tf32" if backend in TRITON else "ieee"
    return dataclasses.replace(config, backend=backend, precision=precision)


def working_plans(config: TrainConfig, act_dim: int) -> Iterator[TrainConfig]:
    """Yield the configuration settled on each plan that works here, in the order of `PLANS`.

    A plan that does not is left out with a warning, that of dependent launches on a GPU without
    them in silence. All multiply in TF32 unless a precision is asked for, as the authors' JAX code
    does on a GPU.

    Raises:
        BackendError: the plan asked for does not work, or none has the precision asked for.
        RunError: a self-test left the GPU unusable for this process.
    """
    precision = "tf32" if config.precision == "auto" else config.precision
    names = list(PLANS) if config.plan == "auto" else [config.plan]
    if config.plan == "auto" and not has_dependent_launches(torch.device(config.device)):
        names = [name for name in names if PLANS[name] != DEPENDENT]
    found = False
    problem: str | None = "no plan has it"
    for name in names:
        backend = PLANS[name]
        if backend == "reference":
            if precision in OF_KERNELS:
                continue
        else:
            problem = find_problem(config, act_dim, backend, precision)
            if problem is not None and config.plan != "auto":
                raise BackendError(f"--plan {name} cannot be used: {problem}; take another one")
            if problem is not None:
                if precision not in OF_KERNELS:
                    print(
                        f"warning: plan {name} cannot be used on {config.device}: {problem}",
                        file=sys.stderr,
                    )
                continue
        found = True
        yield dataclasses.replace(config, plan=name, backend=backend, precision=precision)
    if not found:
        raise BackendError(f"--precision {precision} needs the Triton kernels: {problem}")


def allow_tf32(settled: TrainConfig) -> None:
    """Let PyTorch multiply in TF32, in the whole process, if that is how the run is settled."""
    if settled.backend == "reference" and settled.precision == "tf32":
        torch.set_float32_matmul_precision("high")


def running_backend(config: TrainConfig) -> Backend:
    """Return what computes the networks' passes of a settled configuration."""
    if config.backend != "auto":
        return config.backend
    problem = unavailable("mlp", "cpp", torch.device(config.device), precision=config.precision)
    return "cpp" if problem is None else "reference"


def find_problem(
    config: TrainConfig, act_dim: int, backend: Backend, precision: Precision
) -> str | None:
    """Return why the Triton kernels of a backend must not train the run, or None."""
    device = torch.device(config.device)
    for shape in algorithm(config.algo).network_shapes(config.agent, 1, act_dim).values():
        networks = [shape] if isinstance(shape, MLPShape) else []
        problem = unavailable("mlp", backend, device, networks=networks)
        if problem is not None:
            return problem
    dim = act_dim * config.agent.chunk_length
    problems = triton_problems(config.device, precision, backend, dim)
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise RunError(
            f"the self-test of the Triton kernels broke the connection to {config.device} "
            f"({str(error).splitlines()[0]}); run again with --plan layers"
        ) from None
    return problems[0] if problems else None
