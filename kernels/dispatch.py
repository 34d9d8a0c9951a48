"""Choice of a backend, and what every op checks before it runs.

``auto`` takes the fastest implementation that the device and the installation offer. A backend
asked for by name either runs or raises `BackendError`; it never falls back.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "cpp", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)

Precision = Literal["ieee", "tf32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
"""Operands of matrix products: float32, TF32 or bfloat16; sums are always float32."""

PRECISIONS_OF = {"reference": ("ieee",), "cpp": ("ieee", "bf16"), "triton": PRECISIONS}
"""Precisions of the network passes by backend; see `precisions_of` for the reference on a GPU."""


class BackendError(RuntimeError):
    """The requested backend cannot run this op on this machine."""


def load_extension() -> tuple[ModuleType | None, str]:
    """Return the compiled extension, or None and the reason why it does not import."""
    try:
        return importlib.import_module("trqam_fast._C"), ""
    except ImportError as error:
        return None, str(error)


EXTENSION, EXTENSION_ERROR = load_extension()


TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


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


def passes_problem(device: torch.device, dtype: torch.dtype, precision: str) -> str | None:
    """Return why the compiled network passes cannot run on such tensors, or None if they can."""
    if device.type != "cpu":
        return f"its passes run on the CPU, and the data are on {device.type}; use 'auto'"
    if precision == "bf16" and dtype != torch.float32:
        return "its bf16 operands need float32 tensors"
    return extension_problem(device)


def triton_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why Triton kernels cannot run on such tensors, or None if they can."""
    if not TRITON_INSTALLED:
        return "triton is not installed; run \"pip install 'trqam_fast[triton]'\""
    if dtype != torch.float32:
        return f"its kernels compute in float32, not {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        return gpu_problem(device)
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"its kernels need a GPU, and the data are on {device.type}; use 'auto'"


def gpu_problem(device: torch.device) -> str | None:
    """Return why a GPU cannot run the Triton kernels, or None if it can."""
    if torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0):
        return None
    return "its kernels need an NVIDIA GPU of compute capability 8.0 or higher"


def precisions_of(backend: str, device: torch.device) -> tuple[str, ...]:
    """Return the precisions of the network passes of `backend` on `device`.

    The reference multiplies as PyTorch does, on a GPU in TF32 once
    `torch.set_float32_matmul_precision("high")` allows it.
    """
    allowed = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return PRECISIONS_OF[backend] + (("tf32",) if backend == "reference" and allowed else ())


def choose_backend(
    op: str,
    backend: str,
    device: torch.device,
    *,
    cpp: str | None,
    triton: str | None,
    precision: str = "ieee",
) -> str:
    """Resolve `backend` for `op` to an implementation that can run.

    Args:
        op: Name of the op, for the message.
        backend: One of `BACKENDS`.
        device: Device of the data; ``auto`` takes Triton on a GPU only.
        cpp: Why the ``cpp`` implementation cannot run here; None if it can.
        triton: Why the ``triton`` implementation cannot run here; None if it can.
        precision: One of `PRECISIONS`; `precisions_of` has those of a backend.

    Raises:
        ValueError: `backend` or `precision` is not one of the names.
        BackendError: `backend` was asked for by name and cannot run, or lacks the precision.
    """
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    match backend:
        case "auto" if device.type == "cuda" and triton is None:
            chosen = "triton"
        case "auto":
            chosen = "cpp" if cpp is None else "reference"
        case "cpp" if cpp is not None:
            raise BackendError(f"{op}: backend 'cpp' is not available: {cpp}")
        case "triton" if triton is not None:
            raise BackendError(f"{op}: backend 'triton' is not available: {triton}")
        case _:
            chosen = backend
    has = precisions_of(chosen, device)
    if precision not in has:
        why = f"; Triton is not available: {triton}" if backend == "auto" else ""
        names = "' or '".join(has)
        raise BackendError(
            f"{op}: backend '{chosen}' has no precision '{precision}'; use '{names}'{why}"
        )
    return chosen


NETWORK_OPS = ("mlp", "sde_rollout", "lean_adjoint")
"""Ops that pass through networks: on the CPU with ``cpp``, with a choice of precision."""

TRITON_OPS = ("mlp", "sde_rollout", "lean_adjoint", "adjoint_matching")
"""Ops that have Triton kernels: all that an update calls."""


def check_backend(backend: str, device: torch.device, precision: str = "ieee") -> None:
    """Raise `BackendError` unless every op of an update can run with `backend` on `device`."""
    problem = triton_problem(device, torch.float32)
    choose_backend(
        "adjoint_matching", backend, device, cpp=extension_problem(device), triton=problem
    )
    passes = passes_problem(device, torch.float32, precision)
    choose_backend("mlp", backend, device, cpp=passes, triton=problem, precision=precision)


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
    if len(tensor.shape) != len(shape) or any(
        wanted is not None and size != wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    ):
        expected = "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
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
