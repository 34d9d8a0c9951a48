"""The experiments of docs/protocol.md: run, read, compare, draw."""
