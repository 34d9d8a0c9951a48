"""What the critics' loss is computed from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TDInputs(NamedTuple):
    """Values, and what they are to learn; all but the first are constants.

    Attributes:
        values: Q, `[S, E, B]`.
        next_values: Q', `[S, E', B]`.
        rewards: R, `[S, B]`.
        masks: m, `[S, B]`.
        valid: Weights of the rows, `[S, B]`.
        policy_values: Values of the policy's actions, `[S, E'', B]`, or None.
    """

    values: Tensor
    next_values: Tensor
    rewards: Tensor
    masks: Tensor
    valid: Tensor
    policy_values: Tensor | None

    @property
    def constants(self) -> dict[str, Tensor]:
        """What has no gradient, by name."""
        given = self._asdict()
        return {name: t for name, t in given.items() if name != "values" and t is not None}
