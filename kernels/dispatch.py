"""Choice of a backend, and what every op checks before it runs.

``auto`` takes the fastest implementation that the device and the installation offer. A backend
asked for by name either runs or raises `BackendError`; it never falls back.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "cpp", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)


class BackendError(RuntimeError):
    """The requested backend cannot run this op on this machine."""


def load_extension() -> tuple[ModuleType | None, str]:
    """Return the compiled extension, or None and the reason why it does not import."""
    try:
        return importlib.import_module("trqam_fast._C"), ""
    except ImportError as error:
        return None, str(error)


EXTENSION, EXTENSION_ERROR = load_extension()


def extension() -> ModuleType:
    """Return the compiled extension; raise `BackendError` if it is missing."""
    if EXTENSION is None:
        raise BackendError(extension_problem(torch.device("cpu")))
    return EXTENSION


def extension_problem(device: torch.device) -> str | None:
    """Return why the compiled extension cannot work on `device`, or None if it can."""
    if EXTENSION is None:
        return f"trqam_fast._C does not import ({EXTENSION_ERROR}); run 'pip install -e .'"
    if device.type == "cuda" and not EXTENSION.with_cuda:
        return "trqam_fast._C was built without CUDA; reinstall with TRQAM_CUDA=1 and nvcc"
    if device.type not in ("cpu", "cuda"):
        return f"it has no code for {device.type} tensors"
    return None


def choose_backend(op: str, backend: str, cpp_problem: str | None) -> str:
    """Resolve `backend` for `op` to an implementation that can run.

    Args:
        op: Name of the op, for the message.
        backend: One of `BACKENDS`.
        cpp_problem: Why the ``cpp`` implementation cannot run here; None if it can.

    Raises:
        ValueError: `backend` is not a backend's name.
        BackendError: `backend` was asked for by name and cannot run.
    """
    match backend:
        case "auto":
            return "cpp" if cpp_problem is None else "reference"
        case "reference":
            return "reference"
        case "cpp":
            if cpp_problem is not None:
                raise BackendError(f"{op}: backend 'cpp' is not available: {cpp_problem}")
            return "cpp"
        case "triton":
            raise BackendError(f"{op}: backend 'triton' is not part of this release; use 'auto'")
    raise ValueError(f"{op}: backend is {backend!r}; choose one of {', '.join(BACKENDS)}")


EXTENSION_OPS = ("adjoint_matching", "path_kl")
"""Ops whose ``cpp`` backend is compiled; those of the network passes run on ATen's kernels."""


def check_backend(backend: str, device: torch.device) -> None:
    """Raise `BackendError` unless every op can run with `backend` on `device`."""
    for op in EXTENSION_OPS:
        choose_backend(op, backend, extension_problem(device))


def check_tensor(op: str, name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise unless `tensor` is floating point and has `shape` (None matches any size).

    Raises:
        TypeError: `tensor` is not a float32 or float64 tensor.
        ValueError: the shape differs.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} is a {type(tensor).__name__}; pass a torch.Tensor")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; use float32 or float64")
    expected = "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
    if tensor.dim() != len(shape) or any(
        wanted is not None and size != wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    ):
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}; expected {expected}")


def check_same(op: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all `tensors` share the dtype and device of the first."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} is {tensor.dtype} on {tensor.device}, but {first_name} is "
                f"{first.dtype} on {first.device}; move or convert one of them"
            )


def check_horizon(op: str, horizon: int) -> None:
    """Raise ValueError unless `horizon` is a positive number of action steps."""
    if horizon < 1:
        raise ValueError(f"{op}: horizon is {horizon}; it must be at least 1")


def call_extension(name: str, like: Tensor, *arguments: int) -> None:
    """Call a function of the extension in the precision, on the device and stream of `like`.

    Args:
        name: Function name without its precision.
        like: A tensor of the call; on the CPU torch's number of threads is used.
        arguments: Addresses and sizes, in the order of csrc/bindings.cpp.
    """
    precision = "float64" if like.dtype == torch.float64 else "float32"
    call = getattr(extension(), f"{name}_{precision}")
    if not like.is_cuda:
        call(False, *arguments, torch.get_num_threads())
        return
    with torch.cuda.device(like.device):
        call(True, *arguments, torch.cuda.current_stream().cuda_stream)


def refuse_gradient(op: str, **inputs: bool) -> None:
    """Raise if any of `inputs` (name: needs a gradient) is set."""
    wanted = [name for name, needed in inputs.items() if needed]
    if wanted:
        raise RuntimeError(
            f"{op}: no gradient with respect to {', '.join(wanted)}; detach it before the call"
        )
