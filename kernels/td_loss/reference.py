"""The critics' loss in plain PyTorch: the specification of the op."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.checks import refusing
from trqam_fast.kernels.squared_error.reference import squared_error
from trqam_fast.kernels.td_target.reference import td_target


def td_loss(
    values: Tensor,
    next_values: Tensor,
    rewards: Tensor,
    masks: Tensor,
    valid: Tensor,
    policy_values: Tensor | None,
    discount: float,
    rho: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return loss, mean, smallest and largest value, and gap; see the package's `td_loss`."""
    constants = {
        "next_values": next_values, "rewards": rewards, "masks": masks, "valid": valid,
    }  # fmt: skip
    target = td_target(next_values.detach(), rewards.detach(), masks.detach(), discount, rho)
    loss = squared_error(values.unsqueeze(-1), target.unsqueeze(-1), valid.detach())
    flat, gap = values.detach().flatten(1), None
    mean = flat.mean(1)
    smallest, largest = flat.aminmax(dim=1)
    if policy_values is not None:
        gap = policy_values.detach().mean((1, 2)) - mean
    return refusing("td_loss", loss, **constants), mean, smallest, largest, gap
