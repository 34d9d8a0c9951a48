"""The adjoint-matching loss one step at a time, for fields whose graphs are large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.adjoint_matching import adjoint_matching
from trqam_fast.kernels.checks import (
    check_action_mask,
    check_counts,
    check_not_empty,
    check_same,
    check_tensor,
)
from trqam_fast.kernels.fields import (
    Context,
    Velocity,
    as_function,
    check_observations,
    check_velocity,
    scope_of,
)
from trqam_fast.kernels.noise_schedule import NoiseSchedule, check_schedule, default_schedule


class StepLoss(NamedTuple):
    """What `adjoint_matching_steps` gives of a step.

    Attributes:
        loss: The step's share of the loss, `[S]`, differentiable in whatever the field depends on.
        path_kl: Its share of the path KL, `[S]` in nats per action step, a constant.
    """

    loss: Tensor
    path_kl: Tensor


def adjoint_matching_steps(
    velocity: Velocity,
    base_velocity: Velocity,
    observations: Tensor | Context,
    points: Tensor,
    adjoint: Tensor,
    lam: Tensor,
    *,
    horizon: int = 1,
    schedule: NoiseSchedule | None = None,
    action_mask: Tensor | None = None,
    steps: Sequence[int] | None = None,
) -> Iterator[StepLoss]:
    """Return the shares of `adjoint_matching`, one step after the other.

    The fields are evaluated here, each step when it is asked for, and a step's graph is let go when
    the caller has gone back through it. So at most one evaluation of the field is in memory,
    whatever K is, for one forward pass more at every step::

        with torch.no_grad():
            rollout = sde_rollout(field, base, context, x0, noise)
        ...
        for loss, kl in adjoint_matching_steps(field, base, context, points, adjoint, lam):
            loss.sum().backward()

    The sums over all steps are those of `adjoint_matching`. With m of the K `steps`, each share is
    multiplied by K / m: where they are drawn uniformly without replacement, the expectation of
    loss, gradient and path KL is that of all steps.

    The arguments are checked by the call itself, what a field returns when its step is asked for.

    Args:
        velocity: v_ft, a callable or `MLPWeights`.
        base_velocity: v_base, likewise; evaluated without gradients.
        observations: `[S, B, O]`, or a `Context` for callables.
        points: X_0..X_{K-1}, `[S, K, B, D]`, float32 or float64.
        adjoint: a_0..a_{K-1}, same shape.
        lam: lam_scale * lambda, `[S]`.
        horizon: As `adjoint_matching` takes it.
        schedule: t_k, h_k and g_k^2; None for the flow's own, unless a field has a `path` other
            than the linear one.
        action_mask: As `adjoint_matching` takes it.
        steps: Which k, each at most once; None for all. `torch.randperm(K)[:m].tolist()` draws m.

    Returns:
        An iterator of each step's `StepLoss`.

    Raises:
        TypeError: an argument is no tensor, of an unsupported dtype, no field, or `horizon` no
            integer.
        ValueError: shapes, dtypes, devices or steps do not fit, a size is 0, or a schedule is
            missing.
    """
    op = "adjoint_matching_steps"
    fields = {"velocity": velocity, "base_velocity": base_velocity}
    runs, batch = check_observations(op, observations, points, "points", **fields)
    check_tensor(op, "points", points, (runs, "K", batch, "D"))
    check_not_empty(op, "points", points)
    check_tensor(op, "adjoint", adjoint, tuple(points.shape))
    check_tensor(op, "lam", lam, (runs,))
    check_same(op, points=points, adjoint=adjoint, lam=lam)
    check_counts(op, horizon=horizon)
    check_action_mask(op, action_mask, points)
    for name, field in fields.items():
        check_velocity(op, name, field, observations, points.shape[-1])
    count = points.shape[1]
    check_schedule(op, schedule, count, "points")
    if schedule is None:
        schedule = default_schedule(op, count, **fields)
    chosen = list(range(count)) if steps is None else [int(k) for k in steps]
    if not chosen or len(set(chosen)) < len(chosen) or not 0 <= min(chosen) <= max(chosen) < count:
        raise ValueError(f"{op}: steps is {chosen}; pass some of 0..{count - 1}, each once")
    tuned, base = (as_function(field, op, name) for name, field in fields.items())
    share = count / len(chosen)

    def shares() -> Iterator[StepLoss]:
        for k in chosen:
            x = points[:, k].detach()
            time = torch.full_like(x[..., :1], schedule.times[k])
            with torch.no_grad(), scope_of(base_velocity):
                u = base(observations, x, time)
            with scope_of(velocity):
                v = tuned(observations, x, time)
                loss, kl = adjoint_matching(
                    v.unsqueeze(1),
                    u.unsqueeze(1),
                    adjoint[:, k : k + 1],
                    lam,
                    horizon=horizon,
                    schedule=schedule.step(k),
                    action_mask=action_mask,
                )
                del v
                result = StepLoss(loss * share, kl * share)
                del loss
                yield result
                del result

    return shares()
