"""The sequence sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.conftest import DEVICES
from trqam_fast.data.dataset import Dataset

TRANSITIONS = 100_000


@pytest.mark.parametrize(
    "variant", [(device, "auto", "ieee") for device in DEVICES], ids="-".join, indirect=True
)
def test_sample(measure, size, variant):
    random = np.random.default_rng(0)
    arrays = {
        "observations": random.standard_normal((TRANSITIONS, size.obs_dim)),
        "actions": random.uniform(-1, 1, (TRANSITIONS, size.act_dim)),
        "rewards": -np.ones(TRANSITIONS),
        "masks": np.ones(TRANSITIONS),
        "terminals": np.arange(TRANSITIONS) % 200 == 199,
        "next_observations": random.standard_normal((TRANSITIONS, size.obs_dim)),
    }
    dataset = Dataset.from_arrays(arrays, variant.device)
    generators = [torch.Generator(variant.device).manual_seed(run) for run in range(size.runs)]
    measure("sample", lambda: dataset.sample(generators, size.batch, size.horizon, 0.99))
