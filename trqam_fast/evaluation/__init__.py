"""Success of a policy in the simulator.

The worker processes import this package, so nothing here imports torch before it is needed.
"""

from trqam_fast.evaluation.episodes import EpisodeResult
from trqam_fast.evaluation.evaluator import Evaluator, NotFinite

__all__ = ["EpisodeResult", "Evaluator", "NotFinite"]
