"""Metrics of an update, stored in the next row of a table on their device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_counter, check_same, check_tensor, check_written
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.record_metrics import ops, reference


@torch.no_grad()
def record_metrics(
    metrics: Sequence[Tensor], table: Tensor, position: Tensor, *, backend: Backend = "auto"
) -> None:
    """Write metrics to row `position` of a table, and count one further.

    Nothing is read back to the host, so that it can be part of a captured graph.

    Args:
        metrics: M tensors `[S]`, float32 or float64, without gradients.
        table: `[N, S, M]`, of the same type, changed in place.
        position: The row, `[1]`, int64, below N; changed in place. A row behind the last one is not
            written by Triton, which cannot say so, and raises IndexError else.
        backend: ``auto``, ``reference`` or ``triton`` (float32).

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or there are no metrics.
        IndexError: the table is full; not with Triton.
        BackendError: the backend asked for cannot run.
    """
    op = "record_metrics"
    if len(metrics) == 0:
        raise ValueError(f"{op}: there are no metrics; pass at least one")
    check_tensor(op, "table", table, (None, None, len(metrics)))
    named = {f"metrics[{index}]": metric for index, metric in enumerate(metrics)}
    for name, metric in named.items():
        check_tensor(op, name, metric, (table.shape[1],))
    check_same(op, table=table, **named)
    check_counter(op, "position", position, torch.int64, table.device)
    check_written(op, table=table)
    chosen = choose_backend(op, backend, table.device, dtype=table.dtype)
    implementation = reference if chosen == "reference" else ops
    implementation.record_metrics(metrics, table, position)


__all__ = ["record_metrics"]
