"""What a step of the dual variable is told besides tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from trqam_fast.kernels.checks import check_tensor


class Settings(NamedTuple):
    """Numbers of a step; their order is that of the op's schema."""

    eta: float
    ema: float
    clip: float
    lowest: float
    highest: float
    log: bool


def make_settings(
    op: str, *, eta: float, ema: float, clip: float, bracket: tuple[float, float], rule: str
) -> Settings:
    """Return the settings of a step; raise ValueError if one of them is impossible."""
    for name, value, possible, remedy in (
        ("eta", eta, eta >= 0, "use zero or more"),
        ("ema", ema, 0 <= ema <= 1, "use a number in [0, 1]"),
        ("clip", clip, clip > 0, "use a positive number"),
        (
            "bracket", bracket, len(bracket) == 2 and 0 <= bracket[0] <= bracket[1],
            "use (lower, upper) with 0 <= lower <= upper",
        ),
        ("rule", repr(rule), rule in ("additive", "log"), "use 'additive' or 'log'"),
    ):  # fmt: skip
        if not possible:
            raise ValueError(f"{op}: {name} is {value}; {remedy}")
    return Settings(eta, ema, clip, *bracket, rule == "log")


def check_budget(op: str, budget: Tensor | float, lam: Tensor) -> None:
    """Raise unless `budget` is a positive number, or a floating-point `[]` or `[S]` beside `lam`.

    Nothing is read of a tensor, which may lie on a GPU.

    Raises:
        TypeError: a tensor is not of a floating type.
        ValueError: a number is not positive, or a tensor's shape or device is another.
    """
    if not isinstance(budget, Tensor):
        if not budget > 0:
            raise ValueError(f"{op}: budget is {budget}; use a positive number")
        return
    check_tensor(op, "budget", budget, tuple(lam.shape) if budget.dim() else ())
    if budget.device != lam.device:
        raise ValueError(
            f"{op}: budget is on {budget.device}, lam on {lam.device}; move one of them"
        )
