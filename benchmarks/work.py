"""Floating-point operations and bytes of an op, and what the machine could do at most.

Operations are those of the matrix products as this project does them, two for each multiply-add;
elementwise work is not counted. Bytes are those that an op without products must read and write.
"""

from __future__ import annotations

import time
from functools import cache

import torch

from benchmarks.sizes import Size


def multiply_adds(size: Size, *, critic: bool = False) -> int:
    """Multiply-adds of one row through one field, or one critic."""
    inputs = size.obs_dim + size.dim + (0 if critic else 1)
    hidden = (size.depth - 1) * size.width**2
    return size.width * (inputs + (1 if critic else size.dim)) + hidden


def first_layer(size: Size, *, critic: bool = False) -> int:
    """Multiply-adds of the first layer alone: its input gradient is not always needed."""
    return size.width * (size.obs_dim + size.dim + (0 if critic else 1))


def flops(size: Size) -> dict[str, float]:
    """Operations of each op for all S runs, backward passes beside the forward ones."""
    field, critic = multiply_adds(size), multiply_adds(size, critic=True)
    rows, chain = size.batch, size.batch * size.flow_steps
    ensemble = rows * size.ensemble
    saved = first_layer(size)
    counts = {
        "sde_rollout": (chain + rows) * field,
        "sde_rollout backward": chain * (2 * field - saved),
        "ode_rollout": chain * field,
        "lean_adjoint": chain * (2 * field - saved + size.width * size.dim),
        "velocity_along": chain * field,
        "field": rows * field,
        "field backward": rows * (2 * field - saved),
        "critics": ensemble * critic,
        "critics backward": ensemble * (2 * critic - first_layer(size, critic=True)),
        "action_gradient": 2 * ensemble * critic,
    }
    counts["update"] = (
        sum(counts.values()) + counts["critics"]  # of the targets, beside the online critics
    )
    return {name: 2.0 * size.runs * count for name, count in counts.items()}


def traffic(size: Size) -> dict[str, float]:
    """Bytes of the ops without products, forward and with gradient."""
    velocities = 4.0 * size.runs * size.flow_steps * size.batch * size.dim
    return {
        "path_kl": 2 * velocities,
        "path_kl gradient": 5 * velocities,
        "adjoint_matching": 3 * velocities,
        "adjoint_matching gradient": 6 * velocities,
    }


def least_bytes(size: Size, name: str) -> float:
    """Bytes that an op with products must move at least: weights, inputs and outputs once."""
    field = 4.0 * size.runs * multiply_adds(size)
    critics = 4.0 * size.runs * size.ensemble * multiply_adds(size, critic=True)
    row = 4.0 * size.runs * size.batch * (size.obs_dim + size.dim)
    chain = 4.0 * size.runs * size.batch * size.dim * size.flow_steps
    gradient = "gradient" in name and name != "action gradient"
    if name == "update trqam":  # Adam alone: gradient, parameters, moments, targets
        return 9 * (2 * field + critics)
    if "critic" in name or name == "action gradient":
        return row + critics * (2 if gradient else 1)
    return row + 2 * chain + field * (2 if gradient else 1)


def best_of(function, device: str, repeats: int) -> float:
    """Seconds of the fastest of some calls, fewer where they take long."""
    best, began = float("inf"), time.perf_counter()
    for _ in range(repeats):
        if best < float("inf") and time.perf_counter() - began > 2.0:
            break
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


@cache
def gemm_ceiling(device: str, precision: str) -> float:
    """GFLOP/s of the fastest library product of 2048 x 2048 matrices, measured once."""
    n = 2048
    dtype = torch.bfloat16 if precision == "bf16" and device == "cuda" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        seconds = best_of(lambda: torch.mm(a, b), device, 10)
        if device == "cpu":
            linear = torch.ops.mkldnn._linear_pointwise
            if torch.backends.mkldnn.is_available():
                call = lambda: linear(a, b, None, "none", [], "")  # noqa: E731
                seconds = min(seconds, best_of(call, device, 10))
            # Without instructions for it PyTorch takes minutes for one such product.
            if precision == "bf16" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
                a, b = a.bfloat16(), b.bfloat16()
                seconds = min(seconds, best_of(lambda: torch.mm(a, b), device, 10))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return 2e-9 * n**3 / seconds


@cache
def copy_ceiling(device: str) -> float:
    """GB/s of copying 64 MiB, bytes read and written, measured once."""
    source = torch.ones(2**24, device=device)
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / best_of(lambda: target.copy_(source), device, 10)
