"""What every backend of the MLP agrees on."""

NORM_EPS = 1e-6
"""Added to the variance by LayerNorm."""
