"""Noise schedules of the sampling SDE: where a field is evaluated, step sizes, diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """K steps of a memoryless SDE; hashable.

    Attributes:
        times: t_k, at which the velocity field is evaluated.
        step_sizes: h_k.
        g_squared: g_k^2, the squared diffusion coefficients, positive.
    """

    times: tuple[float, ...]
    step_sizes: tuple[float, ...]
    g_squared: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tables", {})
        lengths = {len(self.times), len(self.step_sizes), len(self.g_squared)}
        if len(lengths) != 1 or not self.times:
            raise ValueError(
                f"NoiseSchedule: {len(self.times)} times, {len(self.step_sizes)} step sizes and "
                f"{len(self.g_squared)} g_squared; pass one of each for every step"
            )
        for name in ("step_sizes", "g_squared"):
            if not all(0 < value < math.inf for value in getattr(self, name)):
                raise ValueError(
                    f"NoiseSchedule: {name} is {getattr(self, name)}; all must be positive"
                )

    def __len__(self) -> int:
        return len(self.times)

    @classmethod
    def flow(cls, steps: int) -> NoiseSchedule:
        """Return the flow's own schedule: t_k = k / K for k = 0..K-1.

        Source: TRQAM section "Schedule" (docs/algorithm.md).
        """
        return cls.one_step_ahead(steps, 0)

    @classmethod
    def bridge(cls, states: int) -> NoiseSchedule:
        """Return that of J states of a bridge to the action: tau_j = j / J for j = 1..J.

        Source: SQAM (docs/algorithms.md).
        """
        return cls.one_step_ahead(states, 1)

    @classmethod
    def one_step_ahead(cls, steps: int, first: int) -> NoiseSchedule:
        """Return g^2 = 2 (1 - t + h) / (t + h), finite at t = 0, at t = (k + first) h; made once.

        Args:
            steps: Number of times, 1 / h.
            first: 0 or 1.
        """
        found = _made.get((steps, first))
        if found is None:
            h, times = 1.0 / steps, tuple((k + first) / steps for k in range(steps))
            g_squared = tuple(2.0 * (1.0 - t + h) / (t + h) for t in times)
            found = _made[steps, first] = cls(times, (h,) * steps, g_squared)
        return found

    def table(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return h_k and g_k^2 as `[2, K]`, rounded once and made once for a type and device.

        A call that ran before makes nothing, so that a CUDA graph can capture it.
        """
        found = self._tables.get((dtype, device))
        if found is None:
            found = torch.tensor([self.step_sizes, self.g_squared], dtype=dtype, device=device)
            # Not the stand-ins of a compiler that traces the call.
            if type(found) is Tensor:
                self._tables[dtype, device] = found
        return found


_made: dict[tuple[int, int], NoiseSchedule] = {}


def check_schedule(op: str, schedule: NoiseSchedule | None, steps: int) -> None:
    """Raise ValueError unless `schedule` has `steps` steps, or is None: the flow's own."""
    if schedule is not None and len(schedule) != steps:
        raise ValueError(
            f"{op}: schedule has {len(schedule)} steps, but velocity has {steps}; pass a "
            "NoiseSchedule for these steps"
        )


def schedule_table(
    schedule: NoiseSchedule | None, steps: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the table of `schedule`, or of the flow's own with `steps` steps."""
    schedule = NoiseSchedule.flow(steps) if schedule is None else schedule
    return schedule.table(dtype, device)
