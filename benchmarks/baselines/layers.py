"""Stacks of multi-layer perceptrons in plain PyTorch, one by one or as batched products."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trqam_fast.kernels import MLPWeights

NORM_EPS = 1e-6

Tape = list[tuple[Tensor, ...]]
"""What `pull_back` needs of every hidden layer."""


class Layers(NamedTuple):
    """One network, or M of them that each product evaluates as a batch.

    Attributes:
        kernels: `[in, out]` or `[M, in, out]`.
        biases: `[out]` or `[M, 1, out]`.
        scales: Of the LayerNorms, like `biases`, or empty.
        shifts: Likewise.
    """

    kernels: list[Tensor]
    biases: list[Tensor]
    scales: list[Tensor]
    shifts: list[Tensor]


def split(weights: MLPWeights, batched: bool) -> list[Layers]:
    """Return views of stacked networks: one by one, or together along the last leading axis.

    Critics of S runs stay S batches, as one batch of S E members would be a copy.
    """
    batched = batched and weights.lead[-1] > 1
    parts = (weights.kernels, weights.biases, weights.norm_scales, weights.norm_biases)
    groups = [Layers(*parts)]
    for _ in range(len(weights.lead) - batched):
        unbound = [[[t.unbind(0) for t in tensors] for tensors in group] for group in groups]
        groups = [
            Layers(*([views[member] for views in tensors] for tensors in group))
            for group in unbound
            for member in range(len(group[0][0]))
        ]
    if batched:
        groups = [
            Layers(g[0], *([t.unsqueeze(-2) for t in tensors] for tensors in g[1:])) for g in groups
        ]
    return groups


def by_group(groups: list[Layers], *tensors: Tensor) -> list[tuple]:
    """Return every group with its run's part of tensors `[S, ...]`, or all if it holds all runs.

    The members of an ensemble share that part; it gets their axis where they are batched.
    """
    runs = tensors[0].shape[0]
    if len(groups) < runs:
        return [(groups[0], *tensors)]
    pairs, each = [], len(groups) // runs
    for run, parts in enumerate(zip(*(t.unbind(0) for t in tensors), strict=True)):
        for group in groups[run * each : (run + 1) * each]:
            members = group.kernels[0].shape[:-2]
            pairs.append((group, *(t.expand(*members, *t.shape) for t in parts)))
    return pairs


def dense(layers: Layers, layer: int, y: Tensor) -> Tensor:
    """Apply one Dense layer to `[N, in]` or `[M, N, in]`."""
    return add_product(layers.biases[layer], y, layers.kernels[layer])


def add_product(
    start: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """Return beta start + alpha a b of matrices or batches of them.

    Where alpha is not 1, `torch.add` would not do for the sum: Inductor of torch 2.13 makes one
    product of it and `mm`, and loses alpha.
    """
    function = torch.addmm if a.dim() == 2 else torch.baddbmm
    return function(start, a, b, beta=beta, alpha=alpha)


def hidden(layers: Layers, y: Tensor, tape: Tape | None = None) -> Tensor:
    """Return the last hidden layer's output."""
    for layer in range(len(layers.kernels) - 1):
        z = dense(layers, layer, y)
        y = F.gelu(z, approximate="tanh")
        kept: tuple[Tensor, ...] = (z,)
        if layers.scales:
            activation, width = y, y.shape[-1:]
            scale, shift = layers.scales[layer], layers.shifts[layer]
            if y.dim() == 2:
                y, *moments = torch.native_layer_norm(y, width, scale, shift, NORM_EPS)
            else:
                y, *moments = torch.native_layer_norm(y, width, None, None, NORM_EPS)
                y = torch.addcmul(shift, y, scale)
            kept = (z, activation, *moments)
        if tape is not None:
            tape.append(kept)
    return y


def forward(groups: list[Layers], lead: torch.Size, inputs: Tensor) -> Tensor:
    """Return `[*lead, N, out]` for inputs `[S, N, in]`."""
    outputs = []
    for layers, y in by_group(groups, inputs):
        outputs.append(dense(layers, len(layers.kernels) - 1, hidden(layers, y)))
    output = outputs[0] if len(outputs) == 1 else torch.stack(outputs)
    return output.view(*lead, *output.shape[-2:])


def pull_back(layers: Layers, tape: Tape, cotangent: Tensor) -> Tensor:
    """Return the cotangent of the first layer's outputs for that of the last one's."""
    y = cotangent
    for layer in range(len(tape) - 1, -1, -1):
        y = y @ layers.kernels[layer + 1].mT
        z, *norm = tape[layer]
        if norm:
            scale = layers.scales[layer]
            if y.dim() == 3:
                y, scale = y * scale, None
            activation, mean, rstd = (t.contiguous() for t in norm)
            y, _, _ = torch.ops.aten.native_layer_norm_backward(
                y, activation, y.shape[-1:], mean, rstd, scale, None, [True, False, False]
            )
        y = torch.ops.aten.gelu_backward(y, z, approximate="tanh")
    return y
