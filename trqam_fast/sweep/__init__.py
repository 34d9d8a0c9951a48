"""Sweeps: tasks x algorithms x seeds x settings, from one file."""
