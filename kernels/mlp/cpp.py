"""Calls of the compiled passes: descriptions of networks, scratch memory, tapes.

A tape is one flat tensor; csrc/mlp_weights.h has its layout. Scratch memory is kept from call to
call, one buffer for each thread that calls, so that an update allocates none.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from trqam_fast.kernels.dispatch import extension, passes_problem
from trqam_fast.kernels.mlp.constants import aligned
from trqam_fast.kernels.mlp.weights import MLPWeights

instruction_set = ""
"""One of the extension's `instruction_sets()`; empty for the fastest. For tests and benchmarks."""


class _Scratch(threading.local):
    buffer = torch.empty(0, dtype=torch.uint8)


_scratch = _Scratch()


def compiled_problem(
    device: torch.device, dtype: torch.dtype, precision: str, *networks: MLPWeights
) -> str | None:
    """Return why the compiled passes cannot run such networks, or None if they can."""
    problem = passes_problem(device, dtype, precision)
    depth = max(len(network.kernels) - 1 for network in networks)
    if problem is None and depth > extension().max_layers:
        return (
            f"its passes take up to {extension().max_layers} hidden layers, and the network has "
            f"{depth}"
        )
    return problem


def _dense(tensor: Tensor, lead: int) -> Tensor:
    """Return `tensor` with the part of every network contiguous."""
    if tensor.is_contiguous() or tensor[(0,) * lead].is_contiguous():
        return tensor
    return tensor.contiguous()


def describe(weights: MLPWeights) -> tuple[list[int], list[Tensor]]:
    """Return the numbers that csrc/bindings.cpp reads, and the tensors that they point to."""
    lead = len(weights.lead)
    tensors = [_dense(tensor, lead) for tensor in weights.tensors]
    numbers = [
        weights.lead[0], weights.lead[1] if lead == 2 else 1, len(weights.kernels) - 1,
        int(weights.layer_norm), weights.in_features,
    ]  # fmt: skip
    numbers += [kernel.shape[-1] for kernel in weights.kernels]
    for tensor in tensors:
        numbers += (tensor.data_ptr(), tensor.stride(0), tensor.stride(1) if lead == 2 else 0)
    return numbers, tensors


def call(name: str, like: Tensor, precision: str, *arguments: int | list[int]) -> None:
    """Run a pass on tensors of the dtype of `like` with torch's number of threads."""
    module = extension()
    dtype = "float64" if like.dtype == torch.float64 else "float32"
    function = getattr(module, f"{name}_{dtype}")
    for _ in range(2):
        buffer = _scratch.buffer
        needed = function(
            *arguments,
            module.How(
                instruction_set, precision == "bf16", torch.get_num_threads(), buffer.data_ptr(),
                buffer.numel(),
            ),
        )  # fmt: skip
        if needed == 0:
            return
        _scratch.buffer = torch.empty(needed, dtype=torch.uint8)
    raise RuntimeError(f"{name}: asked for {needed} bytes of scratch memory and refused them")


def scratch_bytes() -> int:
    """Return the size of the calling thread's scratch memory."""
    return _scratch.buffer.numel()


def tape_elements(weights: MLPWeights, rows: int) -> int:
    """Return the elements of a tape that keeps `rows` rows of every network."""
    norm = int(weights.layer_norm)
    per_row = sum(2 * aligned(kernel.shape[-1]) + norm for kernel in weights.kernels[:-1])
    return per_row * rows * weights.lead.numel()
