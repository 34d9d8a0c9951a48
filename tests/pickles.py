"""A checkpoint of the authors' code, and pickles of other trees."""

import pickle
from pathlib import Path

from trqam_fast import flax_pickle

REAL = Path(__file__).parent / "data" / "reference_checkpoint.pkl"


def plain(tree):
    """The tree with numpy arrays in place of stand-ins."""
    if isinstance(tree, flax_pickle.Array):
        return tree.value
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    return tree


def write(path, tree, protocol=4):
    path.write_bytes(pickle.dumps(tree, protocol))
    return path
