"""Of the substrates, JAX alone."""

from tensorflow_probability.substrates import jax

__all__ = ["jax"]
