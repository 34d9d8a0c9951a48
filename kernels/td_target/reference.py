"""The target of temporal differences in plain PyTorch: the specification of the op."""

from __future__ import annotations

from torch import Tensor


def td_target(
    values: Tensor, rewards: Tensor, masks: Tensor, discount: float, rho: float
) -> Tensor:
    """Return y, `[S, B]`; see the package's `td_target`."""
    return rewards + discount * masks * pessimistic(values, rho)


def pessimistic(values: Tensor, rho: float) -> Tensor:
    """Return mean_e Q_e - rho std_e Q_e, `[S, B]`, of `[S, E, B]`."""
    mean = values.mean(1)
    return mean - rho * values.std(1, correction=0) if rho > 0 else mean
