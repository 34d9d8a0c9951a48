"""Noise schedules of the sampling SDE: where a field is evaluated, step sizes, diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_counts


@dataclass(frozen=True)
class NoiseSchedule:
    """K steps of a memoryless SDE; hashable.

    Attributes:
        times: t_k, at which the velocity field is evaluated.
        step_sizes: h_k.
        g_squared: g_k^2, the squared diffusion coefficients, positive.
        decay_times: c_k of the drift 2 v(s, X_k, t_k) - X_k / c_k, which a rollout and a sweep
            need, positive or infinite; None for a schedule of the losses alone.
    """

    times: tuple[float, ...]
    step_sizes: tuple[float, ...]
    g_squared: tuple[float, ...]
    decay_times: tuple[float, ...] | None = None
    _tables: ClassVar[dict[Any, Any]]  # each schedule's own, but no field: equality is of the steps

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tables", {})
        lengths = {len(self.times), len(self.step_sizes), len(self.g_squared)}
        if len(lengths) != 1 or not self.times:
            raise ValueError(
                f"NoiseSchedule: {len(self.times)} times, {len(self.step_sizes)} step sizes and "
                f"{len(self.g_squared)} g_squared; pass one of each for every step"
            )
        if self.decay_times is not None and len(self.decay_times) != len(self.times):
            raise ValueError(
                f"NoiseSchedule: {len(self.decay_times)} decay_times for {len(self.times)} times; "
                "pass one for every step"
            )
        for name in ("step_sizes", "g_squared"):
            if not all(0 < value < math.inf for value in getattr(self, name)):
                raise ValueError(
                    f"NoiseSchedule: {name} is {getattr(self, name)}; all must be positive"
                )
        if not all(value > 0 for value in self.decay_times or ()):
            raise ValueError(
                f"NoiseSchedule: decay_times is {self.decay_times}; all must be positive"
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

        Raises:
            TypeError: `steps` is no integer.
            ValueError: it is below 1.
        """
        check_counts("NoiseSchedule", steps=steps)
        found = _made.get((steps, first))
        if found is None:
            h, times = 1.0 / steps, tuple((k + first) / steps for k in range(steps))
            g_squared = tuple(2.0 * (1.0 - t + h) / (t + h) for t in times)
            ahead = tuple(t + h for t in times)
            found = _made[steps, first] = cls(times, (h,) * steps, g_squared, ahead)
        return found

    def step(self, k: int) -> NoiseSchedule:
        """Return step k alone."""
        found = self._tables.get(k)
        if found is None:
            values = ((self.times[k],), (self.step_sizes[k],), (self.g_squared[k],))
            decay = None if self.decay_times is None else (self.decay_times[k],)
            found = self._tables[k] = NoiseSchedule(*values, decay)
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


@dataclass(frozen=True)
class AffinePath:
    """A probability path X_t = beta_t X_0 + alpha_t a from noise X_0 at t = 0 to actions at t = 1.

    Its velocity is E[alpha'_t a + beta'_t X_0 | X_t], and its memoryless SDE has the drift
    2 v - (alpha'/alpha) X and g^2 = 2 beta (beta alpha'/alpha - beta'). The linear path, alpha = t
    and beta = 1 - t, is this project's.

    Source: docs/your_own_policy.md, "Other paths".

    Attributes:
        alpha: Of a float64 tensor of times, differentiable by autograd; 0 at 0, 1 at 1, growing.
        beta: Likewise, positive before 1, falling.
        is_linear: Whether alpha = t and beta = 1 - t, to rounding.
    """

    alpha: Callable[[Tensor], Tensor]
    beta: Callable[[Tensor], Tensor]
    is_linear: bool = field(init=False, repr=False, compare=False)
    _schedules: dict[int, NoiseSchedule] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        t = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
        apart = torch.stack([self.alpha(t) - t, self.beta(t) - (1.0 - t)])
        object.__setattr__(self, "is_linear", bool(apart.abs().max() < 1e-12))

    @classmethod
    def linear(cls) -> AffinePath:
        """Return alpha = t, beta = 1 - t: rectified flow, pi0, SmolVLA, GR00T, and this project."""
        return cls(lambda t: t, lambda t: 1.0 - t)

    @classmethod
    def cosine(cls) -> AffinePath:
        """Return alpha = sin(pi t / 2), beta = cos(pi t / 2), which preserves variance."""
        return cls(lambda t: torch.sin(0.5 * math.pi * t), lambda t: torch.cos(0.5 * math.pi * t))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha' and beta' at times of any shape."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            values = (self.alpha(t) + 0.0 * t, self.beta(t) + 0.0 * t)
            up, down = (torch.autograd.grad(value.sum(), t)[0] for value in values)
            return up, down

    def noise_schedule(self, steps: int) -> NoiseSchedule:
        """Return K steps of the memoryless SDE of this path, h = 1/K and t_k = k h; made once.

        Of the linear path that is the flow's own, `NoiseSchedule.flow`.

        g^2 = 2 (beta/alpha)(beta alpha' - beta' alpha) is 2 (1 - t)/t on the linear path, infinite
        at 0 and zero at 1. As TRQAM's schedule does there, alpha is taken one step ahead and beta
        one step back; the rest, which is 1 there, in the middle of the step::

            g_k^2 = 2 (beta(t_k - h) / alpha(t_k + h)) (beta alpha' - beta' alpha)(t_k + h/2)
            c_k   = (alpha / alpha')(t_k + h)

        Args:
            steps: K; alpha and beta are evaluated from -h to 1.

        Raises:
            TypeError: `steps` is no integer.
            ValueError: it is below 1, or a g_k^2 is not positive and finite.
        """
        check_counts("AffinePath", steps=steps)
        if self.is_linear:
            return NoiseSchedule.flow(steps)
        if steps not in self._schedules:
            self._schedules[steps] = self._noise_schedule(steps)
        return self._schedules[steps]

    def _noise_schedule(self, steps: int) -> NoiseSchedule:
        h = 1.0 / steps
        t = torch.arange(steps, dtype=torch.float64) / steps
        middle, ahead = t + 0.5 * h, t + h
        up, down = self.slopes(middle)
        rest = self.beta(middle) * up - self.alpha(middle) * down
        g_squared = 2.0 * self.beta(t - h) / self.alpha(ahead) * rest
        decay = self.alpha(ahead) / self.slopes(ahead)[0]
        times, h_k = tuple(t.tolist()), (h,) * steps
        return NoiseSchedule(times, h_k, tuple(g_squared.tolist()), tuple(decay.tolist()))


def check_schedule(
    op: str, schedule: NoiseSchedule | None, steps: int, name: str = "velocity"
) -> None:
    """Raise ValueError unless `schedule` has `steps` steps, or is None: the flow's own."""
    if schedule is not None and len(schedule) != steps:
        raise ValueError(
            f"{op}: schedule has {len(schedule)} steps, but {name} has {steps}; pass a "
            "NoiseSchedule for these steps"
        )


def curved_path(velocity: Any) -> AffinePath | None:
    """Return what a field has as its `path`, if that is a path other than the linear one."""
    path = getattr(velocity, "path", None)
    return path if isinstance(path, AffinePath) and not path.is_linear else None


def default_schedule(op: str, steps: int, **fields: Any) -> NoiseSchedule:
    """Return the flow's own schedule, that of fields of the linear path.

    Raises:
        ValueError: one of `fields` has another path.
    """
    for name, velocity in fields.items():
        if curved_path(velocity) is not None:
            raise ValueError(
                f"{op}: {name} has a path other than the linear one, and schedule is None; pass "
                f"schedule={name}.path.noise_schedule({steps})"
            )
    return NoiseSchedule.flow(steps)


def sde_schedule(
    op: str, schedule: NoiseSchedule | None, steps: int, **fields: Any
) -> NoiseSchedule:
    """Return the schedule of an SDE of `steps` steps, for None the flow's own.

    Raises:
        ValueError: the number of steps differs, the schedule is of the losses alone, or it is None
            and one of `fields` has another path.
    """
    if schedule is None:
        return default_schedule(op, steps, **fields)
    check_schedule(op, schedule, steps, "the chain")
    if schedule.decay_times is None:
        raise ValueError(
            f"{op}: schedule has no decay_times, which the drift needs; AffinePath makes them"
        )
    return schedule


def is_own(schedule: NoiseSchedule | None) -> bool:
    """Whether a schedule is the flow's own, which compiled rollouts and sweeps have built in."""
    return schedule is None or schedule == NoiseSchedule.flow(len(schedule))


def has_own_times(schedule: NoiseSchedule | None) -> bool:
    """Whether a schedule is at the times of the flow's own, which is all a velocity reads of it."""
    return schedule is None or schedule.times == NoiseSchedule.flow(len(schedule)).times


def schedule_table(
    schedule: NoiseSchedule | None, steps: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the table of `schedule`, or of the flow's own with `steps` steps."""
    schedule = NoiseSchedule.flow(steps) if schedule is None else schedule
    return schedule.table(dtype, device)
