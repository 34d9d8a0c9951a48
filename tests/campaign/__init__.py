"""A campaign against every reader of files: seeded mutations, and what the commands make of them.

python -m tests.campaign --cases 10000
"""
