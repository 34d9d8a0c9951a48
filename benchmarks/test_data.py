"""The sequence sampler, in memory and on disk; large sets are measured by benchmarks.large_data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import large_data
from benchmarks.conftest import DEVICES
from trqam_fast.data.dataset import Dataset
from trqam_fast.data.flat_dataset import FlatDataset
from trqam_fast.randomness import Randomness

TRANSITIONS = 100_000
FORMS = [(device, form, "ieee") for device in DEVICES for form in ("memory", "disk")]


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return large_data.make_set(tmp_path_factory.mktemp("data") / "random.flat", TRANSITIONS)


@pytest.mark.parametrize("variant", FORMS, ids="-".join, indirect=True)
def test_sample(measure, size, variant, flat):
    """Of the networks' sizes only runs, batch and horizon matter."""
    make = {"memory": Dataset.from_flat, "disk": FlatDataset}[variant.backend]
    dataset = make(flat, 1, device=variant.device)
    randomness = Randomness(range(size.runs), variant.device)
    measure("sample", lambda: dataset.sample(randomness, size.batch, size.horizon, 0.99))


def test_both_forms_give_the_same(flat):
    """What is compared above does the same."""
    batches = [
        make(flat, 1).sample(Randomness([0]), 256, 5, 0.99)
        for make in (Dataset.from_flat, FlatDataset)
    ]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a, b)
    assert np.isfinite(batches[0].rewards).all()
