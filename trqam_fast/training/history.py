"""Metrics of the updates since the last row of the log, kept on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.errors import UsageError
from trqam_fast.kernels import Backend, record_metrics


class History:
    """Metrics of up to `interval` updates of S runs.

    `record` works on the device alone, so it can be part of a captured graph; whoever runs updates
    tells their number with `advance`; `collect` reads back what is new, once per log row or
    checkpoint.

    Attributes:
        names: Names of the M metrics.
        values: What was read back since the last `clear`, `[n, S, M]`, float64 on the host.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.names: list[str] = []
        self.values = torch.empty(0, 0, 0, dtype=torch.float64)
        self._buffer: Tensor | None = None
        self._position: Tensor | None = None
        self._count = 0

    @torch.no_grad()
    def record(self, metrics: dict[str, Tensor], backend: Backend = "auto") -> None:
        """Store the metrics of one update, each `[S]`, in the next row of the buffer.

        Args:
            metrics: The metrics by name.
            backend: As of `record_metrics`.

        Raises:
            UsageError: they are others than those of the first update.
        """
        if not self.names:
            self.names = list(metrics)
        if metrics.keys() != set(self.names):
            missing = ", ".join(name for name in self.names if name not in metrics) or "none"
            new = ", ".join(name for name in metrics if name not in self.names) or "none"
            raise UsageError(
                "an update has other metrics than the first one had "
                f"(missing: {missing}; new: {new}); log the same in every update"
            )
        row = [metrics[name] for name in self.names]
        wide = any(metric.dtype == torch.float64 for metric in row)
        row = [metric.to(torch.float64 if wide else torch.float32) for metric in row]
        if self._buffer is None or self._position is None:
            self._buffer = row[0].new_empty(self.interval, len(row[0]), len(row))
            self._position = torch.zeros(1, dtype=torch.int64, device=row[0].device)
        record_metrics(row, self._buffer, self._position, backend=backend)

    def advance(self, updates: int) -> None:
        """Count updates that were recorded."""
        self._count += updates

    def collect(self) -> Tensor:
        """Read back what was recorded since the last call, append it to `values`, return it."""
        if self._buffer is None or self._position is None:
            return self.values[:0]
        # A copy also of float64 on a CPU: the buffer's rows are written again.
        new = self._buffer[: self._count].to("cpu", torch.float64, copy=True)
        self._count = 0
        self._position.zero_()
        self.values = torch.cat([self.values, new]) if self.values.numel() else new
        return new

    def restore(self, values: Tensor, runs: int, names: list[str] | None = None) -> None:
        """Take over `values` of a checkpoint.

        Args:
            values: `[n, S, M]`.
            runs: S.
            names: Of the M metrics; without any, as of older checkpoints, the next update has them.

        Raises:
            ValueError: they are not those of so many runs, or of other metrics.
        """
        if values.dtype != torch.float64 or values.ndim != 3 or values.shape[1] not in (0, runs):
            raise ValueError(f"its history has shape {list(values.shape)}")
        if len(values) > 0 and names:
            if len(names) != values.shape[2]:
                raise ValueError(f"its history names {len(names)} of {values.shape[2]} metrics")
            self.names = list(names)
        self.values = values

    def clear(self) -> None:
        """Begin the next interval."""
        self.values = self.values[:0].clone()  # a view would keep, and save, what it is a part of
