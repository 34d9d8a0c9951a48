"""Data: OGBench datasets, generated datasets, the sequence sampler."""
