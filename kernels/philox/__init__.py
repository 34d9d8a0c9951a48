"""Counter-based random numbers."""

from trqam_fast.kernels.philox.reference import Philox, philox_normal

__all__ = ["Philox", "philox_normal"]
