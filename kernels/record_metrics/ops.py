"""Storing metrics by Triton's kernel, registered with torch.library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trqam_fast.kernels.registration import register


def _record(metrics, table, position):
    from trqam_fast.kernels.record_metrics import triton

    triton.record_metrics([metric.contiguous() for metric in metrics], table, position)


def _record_fake(metrics, table, position):
    return None


register(
    "record_metrics(Tensor[] metrics, Tensor(a!) table, Tensor(b!) position) -> ()",
    _record,
    _record_fake,
)


def record_metrics(metrics: Sequence[Tensor], table: Tensor, position: Tensor) -> None:
    """Write the row and count; see the package's `record_metrics`."""
    torch.ops.trqam_fast.record_metrics(list(metrics), table, position)
