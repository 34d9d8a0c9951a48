"""What a run's folder tells of its task."""

import json

import pytest

import trqam_fast as tf
from trqam_fast.errors import UsageError
from trqam_fast.training.interface import FILE, Sizes, read_sizes

WHOLE = {"obs_dim": 3, "low": [-1.0, 0.0], "high": [1.0, 2.0]}


def test_sizes_are_read(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(WHOLE))
    assert read_sizes(tmp_path, tf.TrainConfig()) == Sizes(3, (-1.0, 0.0), (1.0, 2.0))
    more = {"parts": [["a"], ["b", "c"]], "act_shape": [2, 1]}
    (tmp_path / FILE).write_text(json.dumps(WHOLE | more))
    sizes = read_sizes(tmp_path, tf.TrainConfig())
    assert sizes.parts == (("a",), ("b", "c")) and sizes.act_shape == (2, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"obs_dim": 0}, {"obs_dim": 1e308}, {"obs_dim": 2**40}, {"obs_dim": "3"}, {"low": [0.0]},
        {"low": [], "high": []}, {"high": 1.0}, {"parts": []}, {"parts": [[None]]}, {"parts": 3},
        {"act_shape": [3]}, {"act_shape": [-1, -2]}, {"act_shape": [2.0]}, {"act_shape": 2},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_sizes_are_damage(change, tmp_path):
    """Before anything is made of that size."""
    (tmp_path / FILE).write_text(json.dumps(WHOLE | change))
    with pytest.raises(UsageError, match="is no description of a task"):
        read_sizes(tmp_path, tf.TrainConfig())
