"""Devices that a command accepts."""

from __future__ import annotations

import torch

from trqam_fast.errors import UsageError


def check_device(name: str) -> torch.device:
    """Return the torch device called `name`.

    Raises:
        UsageError: neither the CPU nor a GPU of this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device is {name!r}; use cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise UsageError(
                f"--device is {name}, but torch sees no GPU; use --device cpu or install a CUDA "
                "build of torch"
            )
        if (device.index or 0) >= count:
            raise UsageError(f"--device is {name}, but torch sees {count} GPU(s), numbered from 0")
    return device
