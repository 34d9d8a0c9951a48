"""A fine-tuned copy of a module that shares its memory: low-rank updates of linear layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


class LowRank(nn.Module):
    """Low-rank updates beside the frozen linear layers of a module.

    Every chosen layer computes W x + b + scale * B (A x), with A `[rank, in]` random and B
    `[out, rank]` zero, so that the copy starts as the module. The module's own parameters stop
    requiring gradients. The parameters and the `state_dict` of this object are the A and B alone,
    in float32 beside weights of fewer bits.

    The update is on: the module is the fine-tuned policy. `base` is the policy before, the same
    module with the update off; nothing clones it, and nothing moves it but buffers that its own
    evaluations write, as batch normalisation in training mode does. A deep copy and a pickle of the
    module have updates of their own.

    Source: LoRA, Hu et al., arXiv 2106.09685, equation 3.

    Args:
        module: Whose layers are updated, by hooks; its class and its parameters stay as they are.
        rank: Of every update.
        scale: Factor on every update.
        choose: Whether a layer, by its name in the module, gets an update; None for all. The output
            layer of `nn.MultiheadAttention` gets none: it is never called.
        generator: Source of A; None for PyTorch's own.

    Raises:
        ValueError: no linear layer is chosen, `rank` is below 1, or the module has updates already.
    """

    def __init__(
        self,
        module: nn.Module,
        rank: int = 8,
        *,
        scale: float = 1.0,
        choose: Callable[[str], bool] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"LowRank: rank is {rank}; it must be at least 1")
        layers = {
            name: layer
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear)
            and not isinstance(layer, NonDynamicallyQuantizableLinear)
            and (choose is None or choose(name))
        }
        if not layers:
            raise ValueError("LowRank: no linear layer of the module is chosen")
        if any(
            isinstance(hook, Update)
            for layer in layers.values()
            for hook in layer._forward_hooks.values()
        ):
            raise ValueError("LowRank: the module has low-rank updates already; remove them first")
        _warn_of_chance(module)
        self._trained = [each for each in module.parameters() if each.requires_grad]
        module.requires_grad_(False)
        self.scale, self.active = scale, True
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self._hooks, self._layers = [], {}  # not modules of its own, which would be saved
        for name, layer in layers.items():
            # A prefix, as names of layers may be those of a dictionary's methods, or empty.
            key, like = f"/{name.replace('.', '/')}", layer.weight
            # In bfloat16 a usual step is below half a unit in the last place, and A stays as it is.
            dtype = torch.promote_types(like.dtype, torch.float32)
            down = torch.empty(rank, layer.in_features).normal_(generator=generator)
            self.down[key] = nn.Parameter((down / layer.in_features**0.5).to(like.device, dtype))
            self.up[key] = nn.Parameter(like.new_zeros(layer.out_features, rank, dtype=dtype))
            self._layers[key] = layer
            self._hooks.append(layer.register_forward_hook(Update(self, key)))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Have the module be the base inside of this context."""
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before

    def base(self, field: Callable[..., Tensor]) -> Base:
        """Return a field of the module as it was before: its update is off in every evaluation."""
        return Base(self, field)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the module's weights, in their own type, and `remove` them.

        The module's `state_dict` then is the fine-tuned policy's. The base is gone.

        Raises:
            RuntimeError: the updates are off the module already.
            TypeError: weights are of no floating type, as packed ones are, computed, as those of
                `torch.nn.utils.parametrizations`, or of two layers.
        """
        if not self._hooks:
            raise RuntimeError("LowRank: merge has no updates to add; they are off the module")
        weights = [id(layer.weight) for layer in self._layers.values()]
        for key, layer in self._layers.items():
            own, kind = layer._parameters.get("weight"), layer.weight.dtype
            fault = "" if kind.is_floating_point else f"of {kind}"
            fault = fault or ("that are computed" if own is None else "")
            fault = fault or ("of another layer too" if weights.count(id(own)) > 1 else "")
            if fault:
                raise TypeError(
                    f"LowRank: {key[1:].replace('/', '.')} has weights {fault}, to which merge "
                    "cannot add; save the state_dict of the updates"
                )
        for key, layer in self._layers.items():
            layer.weight.copy_(layer.weight + self.scale * self.up[key] @ self.down[key])
        self.remove()

    def remove(self) -> None:
        """Take the updates off the module for good; what it trained before requires gradients."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for parameter in self._trained:
            parameter.requires_grad_(True)


class Update:
    """The hook of one layer; an object, which goes along with a deep copy and a pickle."""

    def __init__(self, low_rank: LowRank, key: str) -> None:
        self.low_rank, self.key = low_rank, key

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Return the layer's output with the update, in the layer's own type; None if it is off."""
        if not self.low_rank.active:
            return None
        x, low_rank = inputs[0], self.low_rank
        down, up = (side[self.key].to(x.dtype) for side in (low_rank.down, low_rank.up))
        low = nn.functional.linear(x, down)
        return output + low_rank.scale * nn.functional.linear(low, up)


class Base:
    """A field with a `LowRank` update off, also in a backward pass within an op."""

    def __init__(self, update: LowRank, field: Callable[..., Tensor]) -> None:
        self.update, self.field = update, field
        self.path = getattr(field, "path", None)

    def scope(self) -> Any:
        """Return the context of an evaluation and of what autograd does of it."""
        return self.update.off()

    def __call__(self, context: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return v_base; see `Velocity`."""
        with self.update.off():
            return self.field(context, x, t)


def _warn_of_chance(module: nn.Module) -> None:
    """Warn of a layer in training mode that answers by chance, or by what it saw before."""
    for name, layer in module.named_modules():
        chance = isinstance(layer, _DropoutNd) and layer.p > 0
        if layer.training and (chance or isinstance(layer, _BatchNorm)):
            warnings.warn(
                f"LowRank: {name or 'module'} is a {type(layer).__name__} in training mode, so "
                "that the base moves, or differs from its own copy; call .eval() on the module",
                stacklevel=3,
            )
            return
