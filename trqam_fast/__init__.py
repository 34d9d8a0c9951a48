"""TRQAM for OGBench: fine-tune flow policies off-policy under an exact path-space KL budget."""

__version__ = "0.2.0"
