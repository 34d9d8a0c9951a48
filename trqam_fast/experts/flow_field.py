"""An action expert in the conventions of this project's ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trqam_fast.kernels import AffinePath, Context, NoiseSchedule


class FlowField(nn.Module):
    """The velocity field of a flow-matching model, whatever its times, sign and shapes.

    Here X_t goes from noise at t = 0 to an action at t = 1, and v points to the action. With u for
    the module and c for what it is conditioned on::

        v(c, X, t) = sign * u(c, X, max(t, t_min))            time = "noise_at_0"
        v(c, X, t) = sign * u(c, X, max(1 - t, t_min))        time = "noise_at_1"

    pi0 and SmolVLA have noise at 1 and u = noise - action, so sign = -1, and are trained on times
    from 0.001; GR00T has this project's convention. `check_field` tells which one a field has.

    Args:
        module: `u(c, x, time)`, a module or a function: x `[B, *action_shape]` of the data's type,
            time `[B]`, returns the shape of x. c is the value of the
            `Context`, or the observations `[1, B, O]`, as the op's caller passed them.
        time: Where the module's time has the noise.
        sign: Of u; None for 1 with noise at 0 and -1 with noise at 1.
        t_min: Smallest time that the module is asked for. The sweep evaluates at our t = 1, which
            with noise at 1 is 0.
        action_shape: (H, A) of a chunk; None for a flat `[D]`.
        path: The path that the module was trained on, in our time; None for the linear one.
        prepare: Computes c from a batch of observations, such as a prefix's cache; see `context`.

    Raises:
        TypeError: `path` is no `AffinePath`.
        ValueError: an argument is not one of its values.
    """

    def __init__(
        self,
        module: Callable[[Any, Tensor, Tensor], Tensor],
        time: Literal["noise_at_0", "noise_at_1"] = "noise_at_0",
        sign: int | None = None,
        t_min: float = 0.0,
        path: AffinePath | None = None,
        *,
        action_shape: tuple[int, ...] | None = None,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        if time not in ("noise_at_0", "noise_at_1"):
            raise ValueError(f"FlowField: time is {time!r}; choose 'noise_at_0' or 'noise_at_1'")
        if sign not in (None, 1, -1):
            raise ValueError(f"FlowField: sign is {sign}; it must be 1 or -1")
        if not 0.0 <= t_min < 1.0:
            raise ValueError(f"FlowField: t_min is {t_min}; it must be in [0, 1)")
        if path is not None and not isinstance(path, AffinePath):
            raise TypeError(f"FlowField: path is a {type(path).__name__}; pass an AffinePath")
        self.module, self.time, self.t_min = module, time, t_min
        self.sign = (1 if time == "noise_at_0" else -1) if sign is None else sign
        self.path = AffinePath.linear() if path is None else path
        self.action_shape, self.prepare = action_shape, prepare

    def context(self, observations: Any) -> Context:
        """Return what the module is conditioned on, computed once for a batch, no gradient."""
        if self.prepare is None:
            return Context(observations)
        with torch.no_grad():
            return Context(self.prepare(observations))

    def noise_schedule(self, steps: int) -> NoiseSchedule:
        """Return K steps of the SDE of the module's path."""
        return self.path.noise_schedule(steps)

    def forward(self, context: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return v, `[1, B, D]`, from x `[1, B, D]` and t `[1, B, 1]`.

        Raises:
            TypeError: the module returned no tensor.
            ValueError: there are several runs, or the module returned another shape.
        """
        if x.shape[0] != 1:
            raise ValueError(
                f"FlowField: x has {x.shape[0]} runs; a module has weights for one: pass "
                "[1, B, D], the actions of a chunk in one row"
            )
        shape = x.shape[2:] if self.action_shape is None else self.action_shape
        if torch.Size(shape).numel() != x.shape[2]:
            raise ValueError(
                f"FlowField: x has {x.shape[2]} dimensions; action_shape is {tuple(shape)}"
            )
        time = t[0, :, 0] if self.time == "noise_at_0" else 1.0 - t[0, :, 0]
        rows = x[0].unflatten(-1, shape)
        found = self.module(context, rows, time.clamp(self.t_min, 1.0))
        if not isinstance(found, Tensor):
            raise TypeError(f"FlowField: module returned a {type(found).__name__}, not a tensor")
        if found.shape != rows.shape:
            raise ValueError(
                f"FlowField: module returned {list(found.shape)}; expected {list(rows.shape)}"
            )
        return self.sign * found.reshape(x.shape)
