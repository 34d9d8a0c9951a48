"""What every backend of the loss agrees on."""

MIN_LAM = 1e-8
"""Lower bound on the effective trust-region parameter."""
