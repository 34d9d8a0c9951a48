"""Calls of the compiled extension.

A call is a NamedTuple whose fields are those of a struct in csrc, in its order; csrc/bindings.cpp
refuses other names. Arrays are addresses. Scratch memory is kept from call to call, one buffer for
each thread that calls, so that an update allocates none.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.dispatch import extension

instruction_set = ""
"""One of the extension's `instruction_sets()`; empty for the fastest. For tests and benchmarks."""


class Execution(NamedTuple):
    """csrc/bindings.cpp: Execution; a GPU needs the stream alone."""

    instruction_set: str = ""
    bf16: bool = False
    threads: int = 1
    scratch: int | None = None
    scratch_bytes: int = 0
    cuda: bool = False
    stream: int | None = None


class _Thread(threading.local):
    """Scratch memory of a thread that calls, and how its calls run, by their settings."""

    def __init__(self) -> None:
        self.scratch = torch.empty(0, dtype=torch.uint8)
        self.executions: dict[tuple[str, bool, int], Execution] = {}


_thread = _Thread()


def call(name: str, fields: tuple[Any, ...], like: Tensor, precision: str = "ieee") -> None:
    """Run a function of the extension, on the CPU with torch's number of threads.

    Args:
        name: Function without the type of its data.
        fields: The call.
        like: A tensor of the call: its type, and its device and stream.
        precision: ``ieee``, or ``bf16`` operands of matrix products.
    """
    dtype = "float64" if like.dtype == torch.float64 else "float32"
    function = getattr(extension(), f"{name}_{dtype}")
    if like.is_cuda:
        with torch.cuda.device(like.device):
            stream = torch.cuda.current_stream().cuda_stream
            function(fields, Execution(cuda=True, stream=stream))
        return
    settings = (instruction_set, precision == "bf16", torch.get_num_threads())
    for _ in range(2):
        execution = _thread.executions.get(settings)
        if execution is None:
            scratch = _thread.scratch
            execution = Execution(*settings, scratch.data_ptr(), scratch.numel())
            _thread.executions[settings] = execution
        needed = function(fields, execution)
        if not needed:
            return
        _thread.scratch = torch.empty(needed, dtype=torch.uint8)
        _thread.executions.clear()
    raise RuntimeError(f"{name}: asked for {needed} bytes of scratch memory and refused them")


def scratch_bytes() -> int:
    """Return the size of the calling thread's scratch memory."""
    return _thread.scratch.numel()
