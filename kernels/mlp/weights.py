"""Packed weights of stacked MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.dispatch import check_same, check_tensor

MAX_WIDTH, MAX_DEPTH, MAX_OUT = 1024, 6, 128
"""Largest hidden width, hidden layers and outputs of a network in the Triton kernels."""


class GradientMemory:
    """Memory for the gradients of a network, which one backward pass may fill.

    Until `release` a second pass gets none and allocates its own, so that gradients which autograd
    is to add never share memory.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.free = True

    def take(self) -> list[Tensor] | None:
        """Return the memory, ordered as `MLPWeights.tensors`, or None if it is in use."""
        taken, self.free = self.free, False
        return self.tensors if taken else None

    def release(self) -> None:
        """Offer the memory again."""
        self.free = True


class MLPWeights(NamedTuple):
    """Packed weights of a stack of equal MLPs; `lead` is (S,) or (S, E).

    Hidden layer: Dense, GELU (tanh approximation), LayerNorm if `norm_scales` is not empty (after
    the activation, eps 1e-6). Output layer: Dense alone.

    Attributes:
        kernels: One per layer, `[*lead, in, out]`.
        biases: One per layer, `[*lead, out]`.
        norm_scales: One per hidden layer, `[*lead, width]`, or empty.
        norm_biases: Likewise.
        memory: Where the compiled backward pass puts the gradients; None for new tensors.
    """

    kernels: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    norm_scales: tuple[Tensor, ...] = ()
    norm_biases: tuple[Tensor, ...] = ()
    memory: GradientMemory | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors: kernels, biases, norm scales, norm biases, each in layer order."""
        return (*self.kernels, *self.biases, *self.norm_scales, *self.norm_biases)

    @property
    def layer_norm(self) -> bool:
        """Whether the hidden layers have LayerNorm."""
        return len(self.norm_scales) > 0

    @property
    def lead(self) -> torch.Size:
        """Leading axes: (runs,) for a field, (runs, ensemble) for critics."""
        return self.kernels[0].shape[:-2]

    @property
    def in_features(self) -> int:
        """Input width."""
        return self.kernels[0].shape[-2]

    @property
    def out_features(self) -> int:
        """Output width."""
        return self.kernels[-1].shape[-1]

    def detach(self) -> MLPWeights:
        """Return the same weights without gradients."""
        return self.map(Tensor.detach)

    def map(self, function) -> MLPWeights:
        """Return weights, without gradient memory, with `function` applied to every tensor."""
        return MLPWeights(*(tuple(function(tensor) for tensor in group) for group in self[:4]))

    def check(self, op: str, name: str) -> None:
        """Raise ValueError or TypeError unless the shapes form an MLP of one dtype and device."""
        layers = len(self.kernels)
        if layers < 2 or len(self.biases) != layers:
            raise ValueError(
                f"{op}: {name} has {layers} kernels and {len(self.biases)} biases; an MLP needs "
                "one of each per layer and at least one hidden layer"
            )
        lead = tuple(self.lead)
        if len(lead) not in (1, 2):
            raise ValueError(
                f"{op}: {name}.kernels[0] has shape {list(self.kernels[0].shape)}; expected "
                "[runs, in, out] or [runs, ensemble, in, out]"
            )
        width: int | None = None
        for layer, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            check_tensor(op, f"{name}.kernels[{layer}]", kernel, (*lead, width, None))
            width = kernel.shape[-1]
            check_tensor(op, f"{name}.biases[{layer}]", bias, (*lead, width))
        for group in ("norm_scales", "norm_biases"):
            tensors = getattr(self, group)
            if self.norm_scales and len(tensors) != layers - 1:
                raise ValueError(
                    f"{op}: {name}.{group} has {len(tensors)} entries; LayerNorm needs one for "
                    f"each of the {layers - 1} hidden layers"
                )
            for layer, tensor in enumerate(tensors):
                check_tensor(
                    op, f"{name}.{group}[{layer}]", tensor, (*lead, self.kernels[layer].shape[-1])
                )
        check_same(op, **{f"{name}[{i}]": tensor for i, tensor in enumerate(self.tensors)})


def group(tensors: list[Tensor], norm: bool) -> MLPWeights:
    """Arrange a flat list, ordered as `MLPWeights.tensors`."""
    layers = (len(tensors) + 2) // 4 if norm else len(tensors) // 2
    hidden = layers - 1 if norm else 0
    ends = [layers, 2 * layers, 2 * layers + hidden, 2 * layers + 2 * hidden]
    starts = [0, *ends[:-1]]
    return MLPWeights(*(tuple(tensors[a:b]) for a, b in zip(starts, ends, strict=True)))


def limits_problem(hidden: Sequence[int], out: int) -> str | None:
    """Return why a network is too large for the Triton kernels, or None if it is not."""
    for name, value, limit in (
        ("hidden layers of up to {} units", max(hidden), MAX_WIDTH),
        ("up to {} hidden layers", len(hidden), MAX_DEPTH),
        ("up to {} outputs", out, MAX_OUT),
    ):
        if value > limit:
            return f"its kernels take {name.format(limit)}, and the network has {value}"
    return None


def size_problem(weights: MLPWeights) -> str | None:
    """Return `limits_problem` of packed weights."""
    *hidden, out = (kernel.shape[-1] for kernel in weights.kernels)
    return limits_problem(hidden, out)
