"""What every backend of the MLP agrees on."""

NORM_EPS = 1e-6
"""Added to the variance by LayerNorm."""

ALIGNMENT = 32
"""Elements to which every tensor of packed weights is aligned, as the Triton kernels want it."""


def aligned(size: int) -> int:
    """Return `size` rounded up to the alignment of packed weights."""
    return size + -size % ALIGNMENT
