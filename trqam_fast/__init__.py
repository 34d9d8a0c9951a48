"""TRQAM: fine-tune flow policies off-policy under an exact path-space KL budget.

What is named here is imported when it is first used, so `import trqam_fast` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from trqam_fast.agents import DualController
    from trqam_fast.evaluate import Evaluation, evaluate
    from trqam_fast.experts import FlowField, LowRank, check_field, match_sqam, match_trqam
    from trqam_fast.kernels import (
        AffinePath,
        Context,
        Draws,
        MLPWeights,
        NoiseSchedule,
        adjoint_matching,
        adjoint_matching_steps,
        lean_adjoint,
        mlp,
        ode_rollout,
        path_kl,
        philox,
        sde_rollout,
        velocity_along,
    )
    from trqam_fast.policy import Policy
    from trqam_fast.train import Result, train
    from trqam_fast.training.config import TrainConfig
    from trqam_fast.training.load_run import load_run
    from trqam_fast.training.presets import make_config

_HOMES = {
    "train": "train",
    "Result": "train",
    "TrainConfig": "training.config",
    "make_config": "training.presets",
    "evaluate": "evaluate",
    "Evaluation": "evaluate",
    "load_run": "training.load_run",
    "Policy": "policy",
    "DualController": "agents",
    "FlowField": "experts",
    "LowRank": "experts",
    "check_field": "experts",
    "match_sqam": "experts",
    "match_trqam": "experts",
    "AffinePath": "kernels",
    "Context": "kernels",
    "Draws": "kernels",
    "MLPWeights": "kernels",
    "NoiseSchedule": "kernels",
    "adjoint_matching": "kernels",
    "adjoint_matching_steps": "kernels",
    "lean_adjoint": "kernels",
    "mlp": "kernels",
    "ode_rollout": "kernels",
    "path_kl": "kernels",
    "philox": "kernels",
    "sde_rollout": "kernels",
    "velocity_along": "kernels",
}
"""Module of each name."""


def __getattr__(name: str) -> Any:
    """Import a name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    # A command's module is what its name stands for: run it, or call it.
    found = module if _HOMES[name] == name else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the names of the package."""
    return sorted({*globals(), *_HOMES})


__all__ = [
    "AffinePath",
    "Context",
    "Draws",
    "DualController",
    "Evaluation",
    "FlowField",
    "LowRank",
    "MLPWeights",
    "NoiseSchedule",
    "Policy",
    "Result",
    "TrainConfig",
    "adjoint_matching",
    "adjoint_matching_steps",
    "check_field",
    "evaluate",
    "lean_adjoint",
    "load_run",
    "make_config",
    "match_sqam",
    "match_trqam",
    "mlp",
    "ode_rollout",
    "path_kl",
    "philox",
    "sde_rollout",
    "train",
    "velocity_along",
]
