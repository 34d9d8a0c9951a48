"""The folder of a run: what is written to it, its checkpoints, and the one reader of it."""
