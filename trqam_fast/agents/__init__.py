"""Agents: behaviour cloning, QAM and TRQAM for S independent runs at once."""

from trqam_fast.agents.base import Agent, Batch, Noise, Terms
from trqam_fast.agents.bc import BCAgent
from trqam_fast.agents.config import AgentConfig, Algorithm
from trqam_fast.agents.trqam import TRQAMAgent

__all__ = [
    "Agent",
    "AgentConfig",
    "Algorithm",
    "BCAgent",
    "Batch",
    "Noise",
    "TRQAMAgent",
    "Terms",
]
