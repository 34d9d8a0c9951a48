"""Stages of tools/gpu_trial.py; each runs in a process of its own."""
