"""Self-test of the ops: every backend in float32 against the float64 reference on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trqam_fast.kernels import (
    MLPWeights,
    adjoint_matching,
    lean_adjoint,
    mlp,
    path_kl,
    sde_rollout,
    velocity_along,
)
from trqam_fast.kernels.dispatch import TRITON_OPS
from trqam_fast.networks import MLPShape, ParameterBlock

TOLERANCE = {"ieee": 1e-4, "tf32": 1e-2, "bf16": 1e-1}
"""Largest deviation from the reference by precision, relative to the scale of a tensor."""

Call = Callable[..., list[Tensor]]


def cases(dtype: torch.dtype, device: str) -> dict[str, Call]:
    """Return a small call of each op: backend and precision to outputs and gradients."""
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
    inputs = torch.cat([observations, x0, x0[..., :1]], -1)

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

    return {
        "mlp": lambda **options: with_gradients([mlp(field, inputs, **options)], field.tensors),
        "sde_rollout": rollout,
        "lean_adjoint": lambda **options: [
            lean_adjoint(base, observations, points, terminal, **options),
            velocity_along(base, observations, points[:, :-1], **options),
        ],
        "adjoint_matching": loss,
        "path_kl": kl,
    }


def deviation(op: str, backend: str, device: str, precision: str = "ieee") -> float:
    """Return the deviation of an op in float32 from the float64 reference on the CPU.

    It is relative to each tensor's largest element, or absolute where that is below 1; infinite if
    the op returned something that is not finite.
    """
    expected = cases(torch.float64, "cpu")[op](backend="reference")
    found = cases(torch.float32, device)[op](backend=backend, precision=precision)
    worst = 0.0
    for ours, reference in zip(found, expected, strict=True):
        scale = reference.detach().abs().max().clamp(min=1.0)
        difference = (ours.detach().cpu().double() - reference.detach()).abs() / scale
        worst = max(worst, float(difference.nan_to_num(nan=torch.inf).max()))
    return worst


def problem(op: str, backend: str, device: str, precision: str = "ieee") -> tuple[str, str]:
    """Run one self-test; return the verdict to print and the problem, empty if there is none."""
    name = f"{op} with backend {backend} on {device}"
    if precision != "ieee":
        name += f" in {precision}"
    try:
        found = deviation(op, backend, device, precision)
    except (RuntimeError, ValueError, TypeError) as failure:
        return "FAILS", f"{name} fails: {failure}"
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
