"""Packed weights of stacked MLPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from trqam_fast.kernels.checks import FLOATING, check_same, check_tensor
from trqam_fast.kernels.mlp.constants import NORM_EPS, aligned


def packed_size(shapes: Sequence[Sequence[int]]) -> int:
    """Return the elements of one run's packed weights of `shapes`, gaps between them included."""
    return sum(aligned(math.prod(shape)) for shape in shapes)


def split(buffer: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the parts `[S, *shape]` of packed weights `[S, n]`."""
    parts, offset = [], 0
    for shape in shapes:
        size = math.prod(shape)
        parts.append(buffer[:, offset : offset + size].view(-1, *shape))
        offset += aligned(size)
    return parts


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


@dataclass(frozen=True, eq=False)
class MLPWeights:
    """Packed weights of a stack of equal MLPs; `lead` is (S,) or (S, E).

    Hidden layer: Dense, GELU (tanh approximation), LayerNorm if `norm_scales` is not empty (after
    the activation, eps 1e-6). Output layer: Dense alone.

    Attributes:
        kernels: One per layer, `[*lead, in, out]`.
        biases: One per layer, `[*lead, out]`.
        norm_scales: One per hidden layer, `[*lead, width]`, or empty.
        norm_biases: Likewise.
        memory: Where a compiled backward pass puts the gradients; None for new tensors.
        operands: What passes read of the weights, if it was prepared (`with_operands`).
        first: Columns of the first part of the inputs that the operands are for; None for one part.
    """

    kernels: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    norm_scales: tuple[Tensor, ...] = ()
    norm_biases: tuple[Tensor, ...] = ()
    memory: GradientMemory | None = None
    operands: tuple[Tensor, ...] = ()
    first: int | None = None

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> MLPWeights:
        """Arrange tensors that are ordered as `tensors`: those of most axes are the kernels."""
        layers = sum(tensor.dim() == tensors[0].dim() for tensor in tensors)
        norms = (len(tensors) - 2 * layers) // 2
        sizes = (layers, layers, norms, norms)
        starts = (0, layers, 2 * layers, 2 * layers + norms)
        kernels, biases, scales, shifts = (
            tuple(tensors[a : a + n]) for a, n in zip(starts, sizes, strict=True)
        )
        return cls(kernels, biases, scales, shifts)

    @classmethod
    def from_linears(
        cls, layers: nn.Sequential | Sequence[nn.Linear], norms: Sequence[nn.LayerNorm] = ()
    ) -> MLPWeights:
        """Return the weights of one network of PyTorch's layers, in their memory.

        What passes of these weights find of gradients is the layers' own.

        Args:
            layers: The network: Linear, GELU(approximate='tanh') and, behind every activation or
                none, LayerNorm, with a Linear at the end. Or its linear layers alone, in order,
                whose activations nothing here can see: they must be that GELU. Each has a bias.
            norms: Of linear layers alone, a LayerNorm behind the activation of every hidden layer;
                or none. The eps of every LayerNorm is 1e-6.

        Raises:
            ValueError: the network has another layer, a layer no bias, or a LayerNorm no scale and
                shift or another eps.
        """
        if isinstance(layers, nn.Sequential):
            if norms:
                raise ValueError("MLPWeights: layers is an nn.Sequential; put norms into it")
            linears, normed = parts_of(layers)
        else:
            linears = {f"layers[{index}]": layer for index, layer in enumerate(layers)}
            normed = {f"norms[{index}]": norm for index, norm in enumerate(norms)}
        for name, layer in linears.items():
            if not isinstance(layer, nn.Linear):
                raise ValueError(
                    f"MLPWeights: {name} is {type(layer).__name__}; pass the linear layers alone, "
                    "or the network as an nn.Sequential"
                )
            if layer.bias is None:
                raise ValueError(f"MLPWeights: {name} has no bias; give it one of zeros")
        for name, norm in normed.items():
            if norm.weight is None or norm.bias is None or norm.eps != NORM_EPS:
                raise ValueError(
                    f"MLPWeights: {name} is {norm}; use one with eps {NORM_EPS:g}, a scale and a "
                    "shift"
                )
        weights = cls(
            tuple(layer.weight.T.unsqueeze(0) for layer in linears.values()),
            tuple(layer.bias.unsqueeze(0) for layer in linears.values()),
            tuple(norm.weight.unsqueeze(0) for norm in normed.values()),
            tuple(norm.bias.unsqueeze(0) for norm in normed.values()),
        )
        weights.check("MLPWeights", "layers")
        return weights

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

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(kernel.shape[-1] for kernel in self.kernels[:-1])

    @property
    def tensor_shapes(self) -> list[torch.Size]:
        """Shapes of all tensors, leading axes included."""
        return [tensor.shape for tensor in self.tensors]

    def detach(self) -> MLPWeights:
        """Return the same weights without gradients."""
        return replace(self.map(Tensor.detach), operands=self.operands, first=self.first)

    def map(self, function: Callable[[Tensor], Tensor]) -> MLPWeights:
        """Return weights with `function` applied to every tensor, without memory and operands."""
        groups = (self.kernels, self.biases, self.norm_scales, self.norm_biases)
        kernels, biases, scales, shifts = (
            tuple(function(tensor) for tensor in group) for group in groups
        )
        return MLPWeights(kernels, biases, scales, shifts)

    def empty_gradients(self) -> list[Tensor]:
        """Return uninitialised memory for gradients of `tensors`, packed like the trainer's."""
        shapes = [tensor.shape[1:] for tensor in self.tensors]
        return split(self.kernels[0].new_empty(self.lead[0], packed_size(shapes)), shapes)

    def is_mlp(self) -> bool:
        """Whether the tensors form a stack of MLPs of one dtype and device."""
        first, tensors = self.kernels[0], self.tensors
        lead, widths = first.shape[:-2], [kernel.shape[-1] for kernel in self.kernels]
        layers = list(zip([first.shape[-2], *widths[:-1]], widths, strict=True))
        shapes = [(*lead, *layer) for layer in layers] + [(*lead, width) for width in widths]
        if self.layer_norm:
            shapes += [(*lead, width) for width in widths[:-1]] * 2
        if len(widths) < 2 or not 1 <= len(lead) <= 2 or [t.shape for t in tensors] != shapes:
            return False
        dtype, device = first.dtype, first.device
        return dtype in FLOATING and all(t.dtype == dtype and t.device == device for t in tensors)

    def check(self, op: str, name: str) -> None:
        """Raise ValueError or TypeError unless the shapes form an MLP of one dtype and device."""
        if self.is_mlp():
            return
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


def parts_of(network: nn.Sequential) -> tuple[dict[str, nn.Linear], dict[str, nn.LayerNorm]]:
    """Return the linear layers and the LayerNorms of a network by name.

    Raises:
        ValueError: a layer is none that the passes have in its place.
    """
    normed = len(network) > 2 and isinstance(network[2], nn.LayerNorm)
    kinds = (nn.Linear, nn.GELU, nn.LayerNorm) if normed else (nn.Linear, nn.GELU)
    wanted = (
        "the passes have Linear, GELU(approximate='tanh') and, behind every activation or none, "
        "LayerNorm, with a Linear at the end"
    )
    for index, layer in enumerate(network):
        right = isinstance(layer, kinds[index % len(kinds)])
        if not right or (isinstance(layer, nn.GELU) and layer.approximate != "tanh"):
            found = layer if isinstance(layer, nn.GELU) else type(layer).__name__
            raise ValueError(f"MLPWeights: layers[{index}] is {found}; {wanted}")
    if len(network) % len(kinds) != 1:
        raise ValueError(f"MLPWeights: layers has no Linear at its end; {wanted}")
    named = {f"layers[{index}]": layer for index, layer in enumerate(network)}
    linears = {name: layer for name, layer in named.items() if isinstance(layer, nn.Linear)}
    norms = {name: layer for name, layer in named.items() if isinstance(layer, nn.LayerNorm)}
    return linears, norms


# A tree of tensors to torch.export and the like.
register_dataclass(MLPWeights, serialized_type_name="trqam_fast.MLPWeights")
