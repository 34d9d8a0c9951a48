"""Opponents of our kernels: the same update without them, and without needless slowness."""

from benchmarks.baselines.eager import CompiledAgent, EagerAgent, EagerUpdate, GraphedAgent

__all__ = ["CompiledAgent", "EagerAgent", "EagerUpdate", "GraphedAgent"]
