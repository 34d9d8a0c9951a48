"""Whether a field follows this project's conventions, judged by demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trqam_fast.kernels import AffinePath, Context, Velocity, lean_adjoint
from trqam_fast.kernels.checks import check_action_mask, check_counts, check_tensor
from trqam_fast.kernels.fields import as_function, check_observations, check_velocity, scope_of
from trqam_fast.kernels.noise_schedule import curved_path

CONVENTIONS = {
    "as it should": (False, False),
    "time-reversed": (True, True),
    "with the wrong sign": (False, True),
    "time-reversed but for its sign": (True, False),
}
"""What would have to be turned for a field to fit: its time, its sign."""

USELESS = 0.9
"""Error, as a share of the velocity's mean square, from which a field is taken to know nothing."""

KNOWING = 0.7
"""Larger of two errors up to which a field is taken to know the data, whatever its time is."""

REPEATED = 1e-4
"""Deviation of a second answer, as a share likewise, from which it is taken to be another one."""

CLEAR = 0.95
"""Largest share of the second smallest error that the smallest may be, to be told from it."""


@dataclass(frozen=True)
class FieldCheck:
    """What `check_field` found.

    Attributes:
        ok: Whether the field fits best as it is, clearly so, and answers one input once.
        message: One sentence; where it fits, also what a sweep does to the sign of adjoints.
        errors: Mean squared error by convention, as a share of the velocity's own mean square.
    """

    ok: bool
    message: str
    errors: dict[str, float]


def check_field(
    field: Velocity,
    observations: Tensor | Context,
    actions: Tensor,
    *,
    path: AffinePath | None = None,
    action_mask: Tensor | None = None,
    times: int = 8,
    seed: int = 0,
    flow_steps: int | None = 10,
) -> FieldCheck:
    """Compare a field with the velocities of demonstrations, in each convention it might have.

    At X_t = beta_t X_0 + alpha_t a with X_0 ~ N(0, I), a trained field comes closest to
    alpha'_t a + beta'_t X_0 in mean square. A field whose time runs backwards does so as
    -v(s, X_t, 1 - t), and is called time-reversed. Every X_t is evaluated once more: a field with
    dropout in training mode has another answer.

    A field that fits is then tried as the base of a sweep of K steps, at the same X_t. Step k
    multiplies an adjoint by I + h (2 dv/dX - I / (t_k + h)); the message names the step with the
    smallest mean of that diagonal where it is below zero, so that adjoints change their sign. Step
    0 is left out: its factor 2 h dv/dX is below zero in any trained field.

    Args:
        field: As an op would get it.
        observations: `[S, B, O]`, or a `Context` of B rows.
        actions: Demonstrated actions in the policy's own units, `[S, B, D]`.
        path: The field's path, in our time; None for its own `path`, as a `FlowField` has one, or
            the linear one.
        action_mask: True for the D dimensions that count, a bool `[D]`; None for all.
        times: Points of the whole batch, at times in the middle of as many steps.
        seed: Of the noise.
        flow_steps: K; None for a field that is never swept, such as SQAM's.

    Returns:
        The `FieldCheck`.

    Raises:
        TypeError: an argument is no tensor, of an unsupported dtype, no field, or no integer.
        ValueError: shapes do not fit, nothing is left by the mask, or a count is below 1.
        RuntimeError: as `lean_adjoint` raises, of a field without a gradient with respect to x.
    """
    op = "check_field"
    runs, batch = check_observations(op, observations, actions, "actions", field=field)
    check_tensor(op, "actions", actions, (runs, batch, "D"))
    check_velocity(op, "field", field, observations, actions.shape[-1])
    check_action_mask(op, action_mask, actions)
    if action_mask is not None and not action_mask.any():
        raise ValueError(f"{op}: action_mask is false everywhere; keep at least one dimension")
    check_counts(op, times=times)
    if flow_steps is not None:
        check_counts(op, flow_steps=flow_steps)
    path = curved_path(field) if path is None else path
    path = AffinePath.linear() if path is None else path
    velocity, generator = as_function(field, op, "field"), torch.Generator().manual_seed(seed)
    counts = torch.ones_like(actions[0, 0]) if action_mask is None else action_mask.to(actions)

    def mean(value: Tensor) -> float:
        return float((value * counts).sum() / (counts.sum() * runs * batch))

    def normal() -> Tensor:
        return torch.randn(actions.shape, generator=generator, dtype=torch.float64).to(actions)

    def between(noise: Tensor, t: Tensor) -> Tensor:
        return float(path.beta(t)) * noise + float(path.alpha(t)) * actions

    errors = dict.fromkeys(CONVENTIONS, 0.0)
    size = apart = 0.0
    with torch.no_grad(), scope_of(field):
        for point in range(times):
            t = torch.tensor((point + 0.5) / times, dtype=torch.float64)
            noise = normal()
            x = between(noise, t)
            up, down = (float(slope) for slope in path.slopes(t))
            target = up * actions + down * noise
            ahead, behind, again = (
                velocity(observations, x, torch.full_like(x[..., :1], time))
                for time in (float(t), 1.0 - float(t), float(t))
            )
            apart += mean((again - ahead).square())
            size += mean(target.square())
            for name, found in zip(errors, (ahead, -behind, -ahead, behind), strict=True):
                errors[name] += mean((found - target).square())
    errors = {name: error / size for name, error in errors.items()}
    fault = fault_of(field, errors, apart / size)
    message = fault
    if not fault:
        error = errors["as it should"]
        message = f"looks as it should (error {error:.2f} of the velocity's mean square)"
        factors = {}
        if flow_steps is not None:
            schedule = path.noise_schedule(flow_steps)
            for k in range(1, flow_steps):
                x = between(normal(), torch.tensor(schedule.times[k], dtype=torch.float64))
                signs, points = normal().sign(), torch.stack([x, x], 1)
                step = schedule.step(k)
                swept = lean_adjoint(field, observations, points, signs, schedule=step)
                factors[k] = mean(signs * swept[:, 0])
        turns = [k for k, factor in factors.items() if factor < 0]
        if turns:
            k = min(turns, key=factors.__getitem__)
            message += (
                f"; step {k} of a sweep of {flow_steps} multiplies adjoints by {factors[k]:.2f} "
                "and so turns their sign: take more steps, or match_sqam"
            )
    return FieldCheck(not fault, message, errors)


def fault_of(field: Velocity, errors: dict[str, float], apart: float) -> str:
    """Return why a field does not look as it should, from its errors and its second answers."""
    if apart > REPEATED:
        return (
            f"gives two answers for one input ({apart:.2g} of the velocity's mean square apart): "
            "call .eval() on its model, because of dropout, and do not let it change its context"
        )
    best, second = sorted(errors, key=errors.__getitem__)[:2]
    nearest = (
        f"the two nearest, '{best}' and '{second}', leave {errors[best]:.2f} and "
        f"{errors[second]:.2f} of the velocity's mean square"
    )
    if errors[best] <= USELESS and errors[best] <= CLEAR * errors[second]:
        if best == "as it should":
            return ""
        shares = f"errors {errors['as it should']:.2f} as it is, {errors[best]:.2f} so"
        return f"looks {best} ({shares}); wrap its module as {remedy(field, best)}"
    same_sign = CONVENTIONS[best][1] == CONVENTIONS[second][1]
    if same_sign and errors[second] <= KNOWING:
        return (
            "knows these data, but hardly depends on t, so that the direction of its time cannot "
            f"be told ({nearest}): take it from the code that trained it"
        )
    return (
        f"fits no convention clearly ({nearest}): it is untrained, or these are not its "
        "observations or units of actions"
    )


def remedy(field: Velocity, found: str) -> str:
    """Return the `FlowField` that turns a field to this project's conventions."""
    reversed_time = getattr(field, "time", "noise_at_0") == "noise_at_1"
    sign = getattr(field, "sign", 1)
    turn_time, turn_sign = CONVENTIONS[found]
    time = "noise_at_1" if reversed_time != turn_time else "noise_at_0"
    return f"FlowField(module, time={time!r}, sign={-sign if turn_sign else sign})"
