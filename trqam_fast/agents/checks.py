"""What an algorithm of one's own must be, in one sentence each where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from trqam_fast.errors import UsageError
from trqam_fast.networks import MLPShape, ScalarShape

if TYPE_CHECKING:
    from trqam_fast.agents.base import Agent, Shapes


def mistake(kind: type[Agent], what: str, remedy: str) -> UsageError:
    """Return the error of an algorithm that is not as docs/your_own_algorithm.md says."""
    return UsageError(
        f"--algo is {kind.__module__}:{kind.__qualname__}, but {what}; {remedy} "
        "(docs/your_own_algorithm.md)"
    )


def form_of(value: Any) -> str:
    """Return what kind of thing a value is that should be another."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple ({', '.join(type(each).__name__ for each in value)})"
    return f"of type {type(value).__name__}"


def check_numbers(kind: type[Agent], what: str, values: dict[str, Any], runs: int) -> None:
    """Raise `UsageError` unless an algorithm's values are one number of each run."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.shape != (runs,):
            raise mistake(
                kind, f"its {what} {name!r} is {form_of(value)}",
                f"give a tensor [{runs}], one number for each run",
            )  # fmt: skip


def check_draws(kind: type[Agent], draws: Any) -> None:
    """Raise `UsageError` unless what `draws` of an algorithm returned is shapes by name."""
    remedy = "give shapes without the run axis by name, such as (self.config.batch_size, self.dim)"
    if not isinstance(draws, dict):
        raise mistake(kind, f"what its draws returned is {form_of(draws)}", remedy)
    for name, shape in draws.items():
        if not isinstance(shape, tuple | list) or not all(isinstance(n, int) for n in shape):
            raise mistake(kind, f"its draw {name!r} is {shape!r}", remedy)


def check_networks(kind: type[Agent], shapes: Shapes, field: MLPShape) -> None:
    """Raise `UsageError` unless all networks are architectures, and those that a class names exist.

    Args:
        kind: The algorithm.
        shapes: Architecture of its online networks by name.
        field: That of the field which behaviour cloning trains.
    """
    for name, shape in shapes.items():
        if not isinstance(shape, MLPShape | ScalarShape):
            raise mistake(
                kind, f"its network {name!r} is {form_of(shape)}",
                "give its architecture, MLPShape(in_features, hidden_dims, out_features)",
            )  # fmt: skip
    acting = (*shapes, *(f"target_{name}" for name in kind.targets))
    for attribute, names, known in (
        ("targets", kind.targets, shapes),
        ("cloned", kind.cloned, shapes),
        ("acting_field", (kind.acting_field,), acting),
    ):
        for name in names:
            if name not in known:
                raise mistake(
                    kind, f"its {attribute} names {name!r}, which is no network it has",
                    f"name one of {', '.join(known)}",
                )  # fmt: skip
    for name in kind.cloned:
        if shapes[name] != field:
            raise mistake(
                kind, f"its network {name!r} cannot start from a cloned field",
                "give it field_shape(config, obs_dim, act_dim)",
            )  # fmt: skip
