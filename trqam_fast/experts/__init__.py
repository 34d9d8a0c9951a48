"""Policies that are not ours: a robot's action expert as a field of the ops.

docs/your_own_policy.md shows them together, examples/smolvla.py and pi0.py with LeRobot's models.
"""

from trqam_fast.experts.critic_gradient import terminal_adjoint
from trqam_fast.experts.field_check import FieldCheck, check_field
from trqam_fast.experts.flow_field import FlowField
from trqam_fast.experts.low_rank import LowRank
from trqam_fast.experts.matching import Match, match_sqam, match_trqam

__all__ = [
    "FieldCheck",
    "FlowField",
    "LowRank",
    "Match",
    "check_field",
    "match_sqam",
    "match_trqam",
    "terminal_adjoint",
]
