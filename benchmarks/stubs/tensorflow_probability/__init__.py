"""In the place of tensorflow_probability, as far as modules that never draw from it import it."""

from tensorflow_probability import substrates

__all__ = ["substrates"]
