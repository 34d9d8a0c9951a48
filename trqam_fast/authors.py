"""What the authors' JAX code calls our tensors, and how far two sets of numbers are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from trqam_fast.agents import Agent
from trqam_fast.networks import MLPShape, ParameterBlock, ScalarShape


def agent_tensors(agent: Agent) -> dict[str, Tensor]:
    """All weights of an agent, each with the run axis, under the authors' names."""
    names = agent.recorded.networks
    online = named_tensors(agent.online, agent.online.leaves, names)
    targets = named_tensors(agent.target, agent.target.leaves, names)
    return online | {f"target_{name}": tensor for name, tensor in targets.items()}


def named_tensors(
    block: ParameterBlock, tensors: Sequence[Tensor], names: dict[str, str]
) -> dict[str, Tensor]:
    """Return tensors laid out like the leaves of a block under the authors' names.

    Args:
        block: The networks.
        tensors: One for each of `block.leaves`: they themselves, or for instance their gradients.
        names: The authors' name of a network by ours, where it differs.
    """
    found: dict[str, Tensor] = {}
    start = 0
    for name, shape in block.shapes.items():
        end = start + len(shape.tensor_shapes)
        parts = layer_tensors(shape, list(tensors[start:end]))
        theirs = names.get(name, name)
        found |= {f"{theirs}/{path}": tensor for path, tensor in parts.items()}
        start = end
    return found


def layer_tensors(shape: MLPShape | ScalarShape, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one network, ordered as its `tensor_shapes`, by the authors' path."""
    if isinstance(shape, ScalarShape):
        return {"log_value": tensors[0].squeeze(-1)}
    module = "value_net" if shape.ensemble is not None else "mlp" if shape.heads == 1 else "MLP_0"
    weights = shape.group(tensors)
    last = len(weights.kernels) - 1
    found: dict[str, Tensor] = {}
    for layer, pair in enumerate(zip(weights.kernels, weights.biases, strict=True)):
        for kind, tensor in zip(("kernel", "bias"), pair, strict=True):
            if layer == last and shape.heads == 2:
                mean, log_std = tensor.chunk(2, dim=-1)
                found |= {f"OutputDenseMean/{kind}": mean, f"OutputDenseLogStd/{kind}": log_std}
            else:
                found[f"{module}/Dense_{layer}/{kind}"] = tensor
    for layer, pair in enumerate(zip(weights.norm_scales, weights.norm_biases, strict=True)):
        for kind, tensor in zip(("scale", "bias"), pair, strict=True):
            found[f"{module}/LayerNorm_{layer}/{kind}"] = tensor
    return found


class Deviations:
    """Worst deviation by name."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}

    def add(
        self, name: str, ours: Tensor | np.ndarray | float, recorded: np.ndarray | float
    ) -> None:
        """Compare one quantity; NaN counts as infinitely far."""
        if isinstance(ours, Tensor):
            ours = ours.detach().double().cpu().numpy()
        ours, recorded = np.asarray(ours), np.asarray(recorded, dtype=np.float64)
        if ours.shape != recorded.shape:
            deviation = float("inf")
        else:
            scale = max(1.0, float(np.abs(recorded).max(initial=0.0)))
            deviation = float(np.abs(ours - recorded).max(initial=0.0)) / scale
        if not np.isfinite(deviation):
            deviation = float("inf")
        self.worst[name] = max(self.worst.get(name, 0.0), deviation)
