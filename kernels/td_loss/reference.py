"""The critics' loss in plain PyTorch: the specification of the op."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.checks import refusing
from trqam_fast.kernels.squared_error.reference import squared_error
from trqam_fast.kernels.td_loss.inputs import TDInputs
from trqam_fast.kernels.td_target.reference import td_target


def td_loss(
    inputs: TDInputs, discount: float, rho: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return loss, mean, smallest and largest value, and gap; see the package's `td_loss`."""
    values, constants = inputs.values, {k: t.detach() for k, t in inputs.constants.items()}
    target = td_target(
        constants["next_values"], constants["rewards"], constants["masks"], discount, rho
    )
    loss = squared_error(values.unsqueeze(-1), target.unsqueeze(-1), constants["valid"])
    flat, gap = values.detach().flatten(1), None
    mean = flat.mean(1)
    smallest, largest = flat.aminmax(dim=1)
    if inputs.policy_values is not None:
        gap = constants["policy_values"].mean((1, 2)) - mean
    return refusing("td_loss", loss, **inputs.constants), mean, smallest, largest, gap
