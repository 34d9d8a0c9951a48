"""Actions between an environment's own units and [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHOWN = 8
"""Dimensions whose bounds a message shows."""


def unscaled(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return actions `[..., A]` in [-1, 1] in an environment's own units, float64."""
    share = (np.asarray(action, np.float64) + 1.0) / 2.0
    return np.clip(low + share * (high - low), low, high)


def scaled(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return actions `[..., A]` in an environment's own units scaled to [-1, 1], not clipped."""
    return (np.asarray(action, np.float64) - low) / (high - low) * 2.0 - 1.0


def float32_bounds(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the outermost float32 bounds `[A]` within bounds in float64."""
    inner, outer = np.float32(low), np.float32(high)
    return (
        np.where(inner < low, np.nextafter(inner, np.float32(np.inf)), inner),
        np.where(outer > high, np.nextafter(outer, np.float32(-np.inf)), outer),
    )


def bounds_in_words(low: np.ndarray | Sequence[float], high: np.ndarray | Sequence[float]) -> str:
    """Return bounds `[A]` as a message shows them."""
    if len(set(low)) == 1 and len(set(high)) == 1:
        return f"[{low[0]:g}, {high[0]:g}]"
    ends = [f"[{a:g}, {b:g}]" for a, b in zip(low[:SHOWN], high[:SHOWN], strict=True)]
    return " x ".join(ends) + (" ..." if len(low) > SHOWN else "")
