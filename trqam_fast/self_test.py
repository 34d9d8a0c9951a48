"""Self-test of the ops: every backend in float32 against the float64 reference on the CPU."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trqam_fast.kernels import (
    MLPWeights,
    adam_step,
    adjoint_matching,
    lean_adjoint,
    mlp,
    path_kl,
    sde_rollout,
    velocity_along,
)
from trqam_fast.kernels.dispatch import NETWORK_OPS, TRITON_OPS
from trqam_fast.networks import MLPShape, ParameterBlock

TOLERANCE = {"ieee": 1e-4, "tf32": 1e-2, "bf16": 1e-1}
"""Largest deviation from the reference by precision, relative to a tensor's largest element."""

Call = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Size:
    """Sizes of a self-test."""

    runs: int
    batch: int
    obs: int
    dim: int
    hidden: tuple[int, ...]
    layer_norm: bool
    steps: int = 4


SMALL = Size(2, 7, 3, 2, (16, 24), True)
# Several tiles of rows, blocks of columns and steps of a product, as in training.
WIDE = (Size(2, 150, 28, 25, (256,) * 3, False), Size(1, 150, 28, 25, (256,) * 3, True))
REPEATS = 10
"""Calls whose results must be equal: the kernels add in a fixed order, so a change is a race."""


def cases(dtype: torch.dtype, device: str, size: Size = SMALL) -> dict[str, Call]:
    """Return a call of each op: backend and precision to outputs and gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(device, dtype)

    runs, steps, batch, obs, dim = size.runs, size.steps, size.batch, size.obs, size.dim
    shape = MLPShape(obs + dim + 1, size.hidden, dim, size.layer_norm)
    critic = MLPShape(obs + dim, size.hidden, 1, layer_norm=True, ensemble=2)
    block = ParameterBlock(
        {"a": shape, "b": shape, "critic": critic}, runs, dtype=dtype, device=device
    )
    block.initialise([torch.Generator().manual_seed(seed) for seed in range(runs)])
    field: MLPWeights = block.networks["a"].map(lambda tensor: tensor.requires_grad_())
    critics = block.networks["critic"].map(lambda tensor: tensor.requires_grad_())
    base = block.networks["b"]
    observations, x0 = draw(runs, batch, obs), draw(runs, batch, dim)
    noise = draw(runs, steps - 1, batch, dim)
    points, terminal = draw(runs, steps + 1, batch, dim), draw(runs, batch, dim)
    velocity = draw(runs, steps, batch, dim).requires_grad_()
    other, adjoint, lam = draw(*velocity.shape), draw(*velocity.shape), draw(runs).abs()
    inputs = torch.cat([observations, x0], -1).requires_grad_()
    params, gradient, moment = (draw(runs, 37) for _ in range(3))

    def with_gradients(outputs: list[Tensor], wanted: tuple[Tensor, ...]) -> list[Tensor]:
        total = sum(output.sum() for output in outputs if output.requires_grad)
        return [*outputs, *torch.autograd.grad(total, wanted)]

    def rollout(**options: str) -> list[Tensor]:
        result = sde_rollout(
            field, base, observations, x0, noise, ode_observations=observations, ode_x0=x0,
            **options,
        )  # fmt: skip
        return with_gradients(list(result), field.tensors)

    def loss(backend: str, precision: str = "ieee") -> list[Tensor]:
        found = adjoint_matching(velocity, other, adjoint, lam, backend=backend)
        return with_gradients(list(found), (velocity,))

    def kl(backend: str, precision: str = "ieee") -> list[Tensor]:
        return with_gradients([path_kl(velocity, other, backend=backend)], (velocity,))

    def optimiser(backend: str, precision: str = "ieee") -> list[Tensor]:
        state = [tensor.clone() for tensor in (params, moment, moment.square(), params[:, 5:])]
        step = torch.zeros((), device=device)
        norm = adam_step(
            state[0], gradient, *state[1:3], step, lr=1e-3, max_norm=1.0, targets=state[3],
            tau=0.1, backend=backend,
        )  # fmt: skip
        return [norm, *state]

    return {
        "adam_step": optimiser,
        "mlp": lambda **options: with_gradients(
            [mlp(critics, inputs, **options)], (inputs, *critics.tensors)
        ),
        "sde_rollout": rollout,
        "lean_adjoint": lambda **options: [
            lean_adjoint(base, observations, points, terminal, **options),
            velocity_along(base, observations, points[:, :-1], **options),
        ],
        "adjoint_matching": loss,
        "path_kl": kl,
    }


def deviation(
    op: str, backend: str, device: str, precision: str = "ieee", size: Size = SMALL
) -> float:
    """Return the deviation of an op in float32 from the float64 reference on the CPU.

    It is relative to each tensor's largest element; infinite if the op returned something that is
    not finite, or on a GPU something else when called again.
    """
    expected = cases(torch.float64, "cpu", size)[op](backend="reference")
    call = cases(torch.float32, device, size)[op]
    found = call(backend=backend, precision=precision)
    worst = 0.0
    for ours, reference in zip(found, expected, strict=True):
        scale = reference.detach().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        difference = (ours.detach().cpu().double() - reference.detach()).abs() / scale
        worst = max(worst, float(difference.nan_to_num(nan=torch.inf).max()))
    if backend == "triton" and torch.device(device).type == "cuda":
        for _ in range(REPEATS):
            again = call(backend=backend, precision=precision)
            if not all(torch.equal(a, b) for a, b in zip(found, again, strict=True)):
                return float("inf")
    return worst


def launch_errors() -> tuple[type[Exception], ...]:
    """Return what compiling and launching a kernel can raise."""
    known = (
        RuntimeError, ValueError, TypeError, LookupError, AssertionError, OSError,
        subprocess.SubprocessError,
    )  # fmt: skip
    if importlib.util.find_spec("triton") is None:
        return known
    from triton.errors import TritonError

    return (*known, TritonError)


def problem(op: str, backend: str, device: str, precision: str = "ieee") -> tuple[str, str]:
    """Run one self-test; return the verdict to print and the problem, empty if there is none."""
    name = f"{op} with backend {backend} on {device}"
    if precision != "ieee" and op in NETWORK_OPS:
        name += f" in {precision}"
    sizes = [SMALL]
    if backend == "triton" and torch.device(device).type == "cuda":
        sizes += WIDE
    try:
        found = max(deviation(op, backend, device, precision, size) for size in sizes)
    except launch_errors() as failure:
        reason = (str(failure) or type(failure).__name__).splitlines()[0]
        return "FAILS", f"{name} fails: {reason}"
    limit = TOLERANCE[precision]
    if found <= limit:
        return f"ok, deviation {found:.1e}", ""
    return (
        f"WRONG, deviation {found:.1e}",
        f"{name} deviates by {found:.1e}, more than {limit:g}; use --backend reference",
    )


def triton_problems(device: str, precision: str) -> list[str]:
    """Return what is wrong with the Triton kernels of an update on `device`."""
    found = (problem(op, "triton", device, precision)[1] for op in TRITON_OPS)
    return [text for text in found if text]
