"""Choice of a backend: which ops each of them has, and why it cannot run one.

``auto`` takes the fastest implementation that the device and the installation offer. A backend
asked for by name either runs or raises `BackendError`; it never falls back.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, get_args

import torch

Backend = Literal["auto", "reference", "cpp", "triton", "triton_pdl"]
BACKENDS: tuple[str, ...] = get_args(Backend)

DEPENDENT: Final = "triton_pdl"
"""The Triton kernels with programmatic dependent launch: each begins while the one before ends."""

TRITON = ("triton", DEPENDENT)
"""Backends of Triton kernels."""

Precision = Literal["ieee", "tf32", "fp16", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
"""Operands of matrix products: float32, TF32, float16 or bfloat16; sums are always float32."""

PRECISIONS_OF = {
    "reference": ("ieee",), "cpp": ("ieee", "bf16"), **dict.fromkeys(TRITON, PRECISIONS),
}  # fmt: skip
"""Precisions of the passes through networks by backend; see also `precisions_of`."""


class Implementations(NamedTuple):
    """Compiled implementations of an op.

    Attributes:
        cpp: Types of the devices for which there is C++ code.
        triton: Whether there are Triton kernels.
        networks: Whether the op passes through networks, with a choice of precision.
    """

    cpp: tuple[str, ...]
    triton: bool
    networks: bool = False

    def runs_by(self, backend: str) -> bool:
        """Whether a backend of Triton kernels has some of its own for the op."""
        return self.triton and (self.networks or backend != DEPENDENT)


OPS = {
    "mlp": Implementations(("cpu",), triton=True, networks=True),
    "sde_rollout": Implementations(("cpu",), triton=True, networks=True),
    "ode_rollout": Implementations(("cpu",), triton=True, networks=True),
    "lean_adjoint": Implementations(("cpu",), triton=True, networks=True),
    "velocity_along": Implementations(("cpu",), triton=True, networks=True),
    "action_gradient": Implementations(("cpu",), triton=True, networks=True),
    "adjoint_matching": Implementations(("cpu", "cuda"), triton=True),
    "path_kl": Implementations(("cpu", "cuda"), triton=False),
    "adjoint_sizes": Implementations((), triton=True),
    "flow_matching_inputs": Implementations((), triton=True),
    "squared_error": Implementations((), triton=True),
    "td_loss": Implementations((), triton=True),
    "td_target": Implementations((), triton=False),
    "adam_step": Implementations(("cpu",), triton=True),
    "philox": Implementations(("cpu",), triton=True),
    "dual_update": Implementations((), triton=True),
    "record_metrics": Implementations((), triton=True),
    "gather_sequences": Implementations((), triton=True),
}
"""Every op."""

MAX_WIDTH, MAX_DEPTH, MAX_OUT = 1024, 6, 128
"""Largest hidden width, hidden layers and outputs of a network in the Triton kernels."""


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
        raise BackendError(_no_extension())
    return EXTENSION


def _no_extension() -> str:
    return f"trqam_fast._C does not import ({EXTENSION_ERROR}); run 'pip install -e .'"


def unavailable(
    op: str,
    backend: str,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    precision: str = "ieee",
    networks: Sequence[Any] = (),
    own_schedule: bool = True,
) -> str | None:
    """Return why a backend cannot run an op, or None if it can.

    Args:
        op: One of `OPS`.
        backend: ``reference``, ``cpp`` or one of `TRITON`.
        device: Device of the data.
        dtype: Type of the data.
        precision: Operands of matrix products.
        networks: Networks of the call: `MLPWeights`, or anything else with `hidden_dims`,
            `out_features` and `tensor_shapes`; callables for fields that are not ours.
        own_schedule: Whether a chain is that of the flow's own schedule.
    """
    has = OPS[op]
    for network in networks:
        if backend != "reference" and not hasattr(network, "hidden_dims"):
            return "it needs the field as MLPWeights; a callable runs with 'reference'"
    if backend != "reference" and not own_schedule:
        return "its chains have the flow's own schedule; another one runs with 'reference'"
    match backend:
        case "cpp":
            return _cpp_unavailable(has, device, dtype, precision, networks)
        case "triton_pdl" if not has_dependent_launches(device):
            return "its dependent launches need a GPU of compute capability 9.0 or higher"
        case "triton" | "triton_pdl":
            return _triton_unavailable(has, device, dtype, networks)
        case _:
            return None


def has_dependent_launches(device: torch.device) -> bool:
    """Whether a kernel on `device` may be launched before the one before it has ended."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _cpp_unavailable(
    has: Implementations,
    device: torch.device,
    dtype: torch.dtype,
    precision: str,
    networks: Sequence[Any],
) -> str | None:
    if not has.cpp:
        return "it has no C++ code; use 'auto'"
    if device.type not in has.cpp:
        return f"its code runs on the {' and '.join(has.cpp)}, not on {device.type}; use 'auto'"
    if EXTENSION is None:
        return _no_extension()
    if device.type == "cuda" and not EXTENSION.with_cuda:
        return "trqam_fast._C was built without CUDA; reinstall with TRQAM_CUDA=1 and nvcc"
    if precision == "bf16" and dtype != torch.float32:
        return "its bf16 operands need float32 tensors"
    for network in networks:
        depth, most = len(network.hidden_dims), EXTENSION.max_layers
        if depth > most:
            return f"its passes take up to {most} hidden layers, and the network has {depth}"
    return None


def _triton_unavailable(
    has: Implementations, device: torch.device, dtype: torch.dtype, networks: Sequence[Any]
) -> str | None:
    if not has.triton:
        return "it has no Triton kernel; use 'auto'"
    if not TRITON_INSTALLED:
        return "triton is not installed; run \"pip install 'trqam_fast[triton]'\""
    if dtype != torch.float32:
        return f"its kernels compute in float32, not {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
            return "its kernels need an NVIDIA GPU of compute capability 8.0 or higher"
    elif os.environ.get("TRITON_INTERPRET") != "1":
        return f"its kernels need a GPU, and the data are on {device.type}; use 'auto'"
    for network in networks:
        for limited, value, limit in (
            ("hidden layers of up to {} units", max(network.hidden_dims), MAX_WIDTH),
            ("up to {} hidden layers", len(network.hidden_dims), MAX_DEPTH),
            ("up to {} outputs", network.out_features, MAX_OUT),
        ):
            if value > limit:
                return f"its kernels take {limited.format(limit)}, and the network has {value}"
    if len({tuple(network.tensor_shapes) for network in networks}) > 1:
        return "its kernels need fields of one architecture"
    return None


def precisions_of(backend: str, device: torch.device) -> tuple[str, ...]:
    """Return the precisions of the passes through networks of `backend` on `device`.

    The reference multiplies as PyTorch does, on a GPU in TF32 once
    `torch.set_float32_matmul_precision("high")` allows it.
    """
    has = PRECISIONS_OF[backend]
    # The question breaks a compiler's graph, so it is put for the reference alone.
    if backend == "reference" and device.type == "cuda":
        has += ("tf32",) if torch.get_float32_matmul_precision() != "highest" else ()
    return has


def choose_backend(
    op: str,
    backend: str,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    precision: str = "ieee",
    networks: Sequence[Any] = (),
    own_schedule: bool = True,
) -> str:
    """Resolve `backend` to an implementation of `op` that can run.

    Args:
        op: One of `OPS`.
        backend: One of `BACKENDS`; ``auto`` takes Triton on a GPU only.
        device: Device of the data.
        dtype: Type of the data.
        precision: One of `PRECISIONS`; `precisions_of` has those of a backend.
        networks: As `unavailable` takes them.
        own_schedule: As `unavailable` takes it.

    Raises:
        ValueError: `backend` or `precision` is not one of the names.
        BackendError: `backend` was asked for by name and cannot run, or lacks the precision.
    """
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")

    call: dict[str, Any] = {
        "dtype": dtype,
        "precision": precision,
        "networks": networks,
        "own_schedule": own_schedule,
    }
    chosen, why = backend, ""
    if backend == "auto":
        chosen = "reference"
        for candidate in ("triton", "cpp") if device.type == "cuda" else ("cpp",):
            problem = unavailable(op, candidate, device, **call)
            if problem is None:
                chosen = candidate
                break
    else:
        problem = unavailable(op, backend, device, **call)
        if problem is not None:
            raise BackendError(f"{op}: backend '{backend}' is not available: {problem}")
    if chosen == DEPENDENT and not OPS[op].networks:
        chosen = "triton"  # There is no chain of launches.
    has = precisions_of(chosen, device)
    if precision not in has:
        if backend == "auto":
            for name in ("cpp", "triton"):
                if precision in PRECISIONS_OF[name]:
                    problem = unavailable(op, name, device, **call)
                    why += f"; '{name}' has it, but {problem}".removesuffix("; use 'auto'")
        names = "' or '".join(has)
        raise BackendError(
            f"{op}: backend '{chosen}' has no precision '{precision}'; use '{names}'{why}"
        )
    return chosen


def check_backend(backend: str, device: torch.device, precision: str = "ieee") -> None:
    """Raise `BackendError` unless every op that `backend` has can run with it on `device`."""
    for op, has in OPS.items():
        if has.triton if backend in TRITON else has.cpp or backend != "cpp":
            choose_backend(op, backend, device, precision=precision if has.networks else "ieee")
