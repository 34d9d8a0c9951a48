"""Updates as CUDA graphs, timed by events of the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trqam_fast.training.updater import WARMUP

Update = Callable[[], None]


def capture(update: Update, count: int) -> torch.cuda.CUDAGraph:
    """Return `count` updates as one graph, after warm-up on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            update()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            update()
    return graph


def event_seconds(graph: torch.cuda.CUDAGraph, count: int, replays: int) -> list[float]:
    """Return the seconds of one of a graph's `count` updates, for each of `replays` in a row.

    The replays are queued at once, so the host's part is hidden behind them, but for the first one,
    which is not counted.
    """
    events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 2)]
    for event in events[:-1]:
        event.record()
        graph.replay()
    events[-1].record()
    torch.cuda.synchronize()
    pairs = zip(events[1:-1], events[2:], strict=True)
    return [1e-3 * before.elapsed_time(after) / count for before, after in pairs]
