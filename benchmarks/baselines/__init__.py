"""Opponents of our kernels: the same update without them, and without needless slowness."""

from benchmarks.baselines.eager import CompiledAgent, EagerAgent, GraphedAgent

__all__ = ["CompiledAgent", "EagerAgent", "GraphedAgent"]
