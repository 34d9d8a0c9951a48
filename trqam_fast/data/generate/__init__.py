"""Datasets generated with OGBench's own scripted oracles and published settings."""
