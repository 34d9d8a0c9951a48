"""What a step of the dual variable is told besides tensors."""

from __future__ import annotations

from typing import NamedTuple


class Settings(NamedTuple):
    """Numbers of a step; their order is that of the op's schema."""

    eta: float
    ema: float
    clip: float
    lowest: float
    highest: float
    log: bool
