"""Packed parameters of the velocity fields and critics of S independent runs.

All networks of a `ParameterBlock` live in one `[S, P]` tensor, so that the optimiser, the
per-run gradient norm and the Polyak targets are a handful of operations whatever the number of
layers. Every layer's tensor is a view of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trqam_fast.kernels import GradientMemory, MLPWeights
from trqam_fast.kernels.mlp.constants import ALIGNMENT, aligned
from trqam_fast.kernels.mlp.weights import packed_size, split


@dataclass(frozen=True)
class MLPShape:
    """Architecture of one network of a run.

    Attributes:
        in_features: Input width.
        hidden_dims: Widths of the hidden layers, at least one.
        out_features: Output width.
        layer_norm: LayerNorm after every hidden activation.
        ensemble: Number of critics, or None for a single network without ensemble axis.
        heads: Layers, initialised one by one, that the outputs are divided into.
    """

    in_features: int
    hidden_dims: tuple[int, ...]
    out_features: int
    layer_norm: bool = False
    ensemble: int | None = None
    heads: int = 1

    @property
    def tensor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes without the run axis, ordered as `MLPWeights.tensors`."""
        lead = () if self.ensemble is None else (self.ensemble,)
        widths = (self.in_features, *self.hidden_dims, self.out_features)
        kernels = [(*lead, a, b) for a, b in zip(widths, widths[1:], strict=False)]
        biases = [(*lead, width) for width in widths[1:]]
        norms = [(*lead, width) for width in self.hidden_dims] if self.layer_norm else []
        return [*kernels, *biases, *norms, *norms]

    @property
    def size(self) -> int:
        """Elements of one run in a block, gaps between the tensors included."""
        return packed_size(self.tensor_shapes)

    def group(self, tensors: list[Tensor]) -> MLPWeights:
        """Arrange tensors, ordered as `tensor_shapes`, as `MLPWeights`."""
        return MLPWeights.from_tensors(tensors)


@dataclass(frozen=True)
class ScalarShape:
    """One trained number of each run, which starts at zero."""

    tensor_shapes = ((1,),)
    size = aligned(1)


class ParameterBlock:
    """Named networks and numbers of S runs in one `[S, P]` tensor.

    Attributes:
        flat: All parameters, `[S, P]`, contiguous; gaps between tensors stay zero.
        shapes: Architecture by name, in storage order.
        networks: `MLPWeights` by name; their tensors are views of `flat`.
        scalars: Numbers by name, `[S, 1]`; views of `flat`.
        leaves: All tensors in storage order.
        gradient: Memory for a gradient like `flat`; None unless trainable.
    """

    def __init__(
        self,
        shapes: Mapping[str, MLPShape | ScalarShape],
        runs: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        trainable: bool = False,
    ) -> None:
        self.shapes = dict(shapes)
        size = sum(shape.size for shape in self.shapes.values())
        self.flat = torch.zeros(runs, size, dtype=dtype, device=device)
        self._gap = torch.zeros(runs, ALIGNMENT, dtype=dtype, device=device)
        self.networks: dict[str, MLPWeights] = {}
        self.scalars: dict[str, Tensor] = {}
        tensor_shapes = [each for shape in shapes.values() for each in shape.tensor_shapes]
        self.leaves = [
            view.detach().requires_grad_(trainable) for view in split(self.flat, tensor_shapes)
        ]
        self.spans: dict[str, tuple[int, int]] = {}
        # Zero, as the gaps between its tensors must stay.
        self.gradient = torch.zeros_like(self.flat) if trainable else None
        first = start = 0
        for name, shape in self.shapes.items():
            tensors = self.leaves[first : first + len(shape.tensor_shapes)]
            if isinstance(shape, ScalarShape):
                (self.scalars[name],) = tensors
            else:
                self.networks[name] = shape.group(tensors)
            self.spans[name] = (start, start + shape.size)
            first, start = first + len(tensors), start + shape.size
        if self.gradient is not None:
            self._adopt_gradient(self.gradient)

    def _adopt_gradient(self, gradient: Tensor) -> None:
        """Offer `gradient` to the networks' backward passes, tensor by tensor."""
        self._slots = self.unflatten(gradient)
        self._memories: list[GradientMemory] = []
        start = 0
        for name, shape in self.shapes.items():
            end = start + len(shape.tensor_shapes)
            if name in self.networks:
                memory = GradientMemory(self._slots[start:end])
                self._memories.append(memory)
                self.networks[name] = replace(self.networks[name], memory=memory)
            start = end

    def span(self, name: str) -> Tensor:
        """Return the part of `flat` that holds network `name`, `[S, p]`."""
        start, end = self.spans[name]
        return self.flat[:, start:end]

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Return the tensors of a `[S, P]` laid out like `flat`, in the order of `leaves`."""
        return split(flat, [leaf.shape[1:] for leaf in self.leaves])

    @torch.no_grad()
    def initialise(self, generators: list[torch.Generator]) -> None:
        """Xavier-uniform kernels, zero biases, unit norm scales; one CPU generator per run."""
        for run, generator in enumerate(generators):
            for name, shape in self.shapes.items():
                if isinstance(shape, ScalarShape):
                    continue
                network = self.networks[name]
                for layer, kernel in enumerate(network.kernels, 1):
                    fan_in, fan_out = kernel.shape[-2:]
                    if layer == len(network.kernels):
                        fan_out //= shape.heads
                    bound = math.sqrt(6.0 / (fan_in + fan_out))
                    values = torch.rand(kernel.shape[1:], generator=generator, dtype=torch.float64)
                    kernel[run].copy_((2.0 * values - 1.0) * bound)
                for bias in (*network.biases, *network.norm_biases):
                    bias[run].zero_()
                for scale in network.norm_scales:
                    scale[run].fill_(1.0)

    @torch.no_grad()
    def flatten_gradients(self, gradients: tuple[Tensor | None, ...]) -> Tensor:
        """Return gradients of `leaves` (None is zero) as one tensor like `flat`, if trainable.

        It is valid until the next call. Gradients that a backward pass has put where they belong
        are not copied.
        """
        assert self.gradient is not None
        for memory in self._memories:
            memory.release()
        if any(map(in_place, gradients, self._slots)):
            for gradient, slot in zip(gradients, self._slots, strict=True):
                if gradient is None:
                    slot.zero_()
                elif not in_place(gradient, slot):
                    slot.copy_(gradient)
            return self.gradient
        parts = []
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            parts.append(gradient.flatten(1))
            gap = -parts[-1].shape[1] % ALIGNMENT
            if gap > 0:
                parts.append(self._gap[:, :gap])
        return torch.cat(parts, dim=1, out=self.gradient)


def in_place(gradient: Tensor | None, slot: Tensor) -> bool:
    """Whether a gradient has been put where it belongs."""
    return gradient is not None and gradient.data_ptr() == slot.data_ptr()
