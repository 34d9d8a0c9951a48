"""Agents: behaviour cloning, QAM, QAM-E and TRQAM for S independent runs at once."""

from __future__ import annotations

from typing import Any

from trqam_fast.agents.base import Agent, Noise, Terms
from trqam_fast.agents.bc import BCAgent
from trqam_fast.agents.config import AgentConfig, Algorithm
from trqam_fast.agents.qam_e import QAMEAgent
from trqam_fast.agents.trqam import TRQAMAgent
from trqam_fast.data.batch import Batch

__all__ = [
    "Agent",
    "AgentConfig",
    "Algorithm",
    "BCAgent",
    "Batch",
    "Noise",
    "QAMEAgent",
    "TRQAMAgent",
    "Terms",
    "fine_tuning_class",
    "make_agent",
]


def fine_tuning_class(algo: Algorithm, config: AgentConfig) -> type[TRQAMAgent]:
    """Return the class that fine-tunes by an algorithm; QAM-E without edits is QAM."""
    return QAMEAgent if algo == "qam-e" and config.edit_scale > 0 else TRQAMAgent


def make_agent(
    algo: Algorithm,
    config: AgentConfig,
    obs_dim: int,
    act_dim: int,
    seeds: list[int],
    **options: Any,
) -> Agent:
    """Build the agent of an algorithm.

    Args:
        algo: trqam, qam, qam-e or bc.
        config: Hyperparameters.
        obs_dim: Width of an observation.
        act_dim: Width of an action.
        seeds: One run for each.
        options: dtype, device, backend and precision of `Agent`.
    """
    if algo == "bc":
        return BCAgent(config, obs_dim, act_dim, seeds, **options)
    if fine_tuning_class(algo, config) is QAMEAgent:
        return QAMEAgent(config, obs_dim, act_dim, seeds, **options)
    algo = "trqam" if algo == "trqam" else "qam"
    return TRQAMAgent(config, obs_dim, act_dim, seeds, algo=algo, **options)
