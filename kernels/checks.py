"""What every op checks of its arguments before it runs."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64)


def check_tensor(op: str, name: str, tensor: Tensor, shape: tuple[int | str | None, ...]) -> None:
    """Raise unless `tensor` is floating point and has `shape` (an axis's name or None: any size).

    Raises:
        TypeError: `tensor` is not a float32 or float64 tensor.
        ValueError: the shape differs.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} is a {type(tensor).__name__}; pass a torch.Tensor")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; use float32 or float64")
    found = tuple(tensor.shape)
    if found == shape or fits(found, shape):
        return
    expected = "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
    raise ValueError(
        f"{op}: {name} has shape {list(found)}; expected {expected}{remedy(name, found, shape)}"
    )


def fits(found: tuple[int, ...], shape: tuple[int | str | None, ...]) -> bool:
    """Whether `found` are the sizes of `shape`, where an axis's name and None are any size."""
    if len(found) != len(shape):
        return False
    for size, wanted in zip(found, shape, strict=True):
        if wanted is not None and size != wanted and not isinstance(wanted, str):
            return False
    return True


def remedy(name: str, found: tuple[int, ...], shape: tuple[int | str | None, ...]) -> str:
    """Return what to pass where a run's axis is missing, or a chunk `[H, A]` is not flat."""
    one_run = shape[:1] in ((1,), ("S",))
    if one_run and fits((1, *found), shape):
        return f"; for one run pass {name}[None]"
    if len(found) < 3:
        return ""
    flat = (*found[:-2], math.prod(found[-2:]))
    hint = ""
    if shape[-1] == "D":
        hint = f", and the module as FlowField(module, action_shape={found[-2:]})"
    if fits(flat, shape):
        return f"; pass {name}.flatten(-2){hint}"
    if one_run and fits((1, *flat), shape):
        return f"; for one run pass {name}.flatten(-2)[None]{hint}"
    return ""


def check_same(op: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all `tensors` share the dtype and device of the first."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} is {tensor.dtype} on {tensor.device}, but {first_name} is "
                f"{first.dtype} on {first.device}; move or convert one of them"
            )


def check_bool(
    op: str, name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device
) -> None:
    """Raise unless `tensor` is a bool tensor of `shape` on `device`.

    Raises:
        TypeError: it is no bool tensor.
        ValueError: its shape or device differs.
    """
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
        found = tensor.dtype if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise TypeError(f"{op}: {name} is {found}; pass a bool tensor")
    if tuple(tensor.shape) != shape or tensor.device != device:
        raise ValueError(
            f"{op}: {name} is {list(tensor.shape)} on {tensor.device}; expected {list(shape)} "
            f"on {device}"
        )


def check_action_mask(op: str, mask: Tensor | None, like: Tensor) -> None:
    """Raise unless `mask` is None, or a bool `[D]` on the device of `like`, `[..., D]`.

    Raises:
        TypeError: it is no bool tensor.
        ValueError: its shape or device differs.
    """
    if mask is not None:
        check_bool(op, "action_mask", mask, (like.shape[-1],), like.device)


def masked(mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return `tensors`, `[..., D]`, with zeros where the mask is false."""
    if mask is None:
        return tensors
    return tuple(torch.where(mask, tensor, 0.0) for tensor in tensors)


def check_not_empty(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError if an axis of `tensor`, of which the op takes a mean, has no elements."""
    if tensor.numel() == 0:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}; every size must be >= 1")


def check_integers(op: str, **numbers: int) -> None:
    """Raise TypeError unless all `numbers` are whole ones, Python's, NumPy's or a tracer's."""
    for name, number in numbers.items():
        if not isinstance(number, (Integral, torch.SymInt)):
            raise TypeError(f"{op}: {name} is {number!r}; pass an integer")


def check_integer_tensor(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype = torch.int64
) -> None:
    """Raise TypeError unless `tensor` is a tensor of `dtype`."""
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        wanted = str(dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} is {found}; pass an {wanted} tensor")


def check_written(op: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all `tensors`, which are changed in place, are contiguous."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {name} is not contiguous, and it is changed in place; pass a contiguous one"
            )


def check_counter(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    """Raise unless `tensor` is one number of `dtype` on `device`, `[1]`."""
    check_integer_tensor(op, name, tensor, dtype)
    if tensor.shape != (1,) or tensor.device != device:
        raise ValueError(
            f"{op}: {name} has shape {list(tensor.shape)} on {tensor.device}; expected [1] on "
            f"{device}"
        )


def check_counts(op: str, **counts: int) -> None:
    """Raise TypeError unless all `counts` are integers, and ValueError if one is below 1."""
    check_integers(op, **counts)
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{op}: {name} is {count}; it must be at least 1")


def refuse_gradient(op: str, **inputs: bool) -> None:
    """Raise RuntimeError if any of `inputs` (name: needs a gradient) is set."""
    wanted = [name for name, needed in inputs.items() if needed]
    if wanted:
        raise RuntimeError(
            f"{op}: no gradient with respect to {', '.join(wanted)}; detach it before the call"
        )


class _Refusing(torch.autograd.Function):
    """The first of its tensors; going back through it raises if another one needs a gradient."""

    @staticmethod
    def forward(op, names, value, *others):
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.op, ctx.names, *_ = inputs

    @staticmethod
    def backward(ctx, cotangent):
        needed = ctx.needs_input_grad[3:]
        refuse_gradient(ctx.op, **dict(zip(ctx.names, needed, strict=True)))
        return None, None, cotangent, *[None] * len(needed)


def refusing(op: str, value: Tensor, **constants: Tensor) -> Tensor:
    """Return `value`, a function of `constants` detached, so that it refuses to go back to them.

    It does as the Functions of the compiled backends do: RuntimeError in the backward pass.
    """
    if not any(tensor.requires_grad for tensor in constants.values()):
        return value
    return _Refusing.apply(op, tuple(constants), value, *constants.values())
