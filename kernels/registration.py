"""Registration of the compiled ops with torch.library, so that compilers see them whole."""

from __future__ import annotations

from collections.abc import Callable

import torch

_library = torch.library.Library("trqam_fast", "FRAGMENT")


def register(schema: str, implementation: Callable, fake: Callable) -> None:
    """Define ``trqam_fast::NAME`` for the CPU and for CUDA.

    Args:
        schema: ``NAME(arguments) -> results`` in PyTorch's notation.
        implementation: What runs, on tensors of either device.
        fake: The same for tensors without data: it returns results of the right shapes.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    for device in ("CPU", "CUDA"):
        _library.impl(name, implementation, device)
    torch.library.register_fake(f"trqam_fast::{name}", fake, lib=_library)
