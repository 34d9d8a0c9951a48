"""The path KL: what it refuses. Its values are the contract's, and test_adjoint_matching's."""

import pytest
import torch

from trqam_fast.kernels import BackendError, NoiseSchedule, path_kl


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"velocity": torch.zeros(2, 3, 4)}, ValueError, "velocity has shape"),
        ({"base_velocity": torch.zeros(1, 3, 4, 3)}, ValueError, "base_velocity has shape"),
        ({"velocity": torch.zeros(1, 3, 4, 2, dtype=torch.int64)}, TypeError, "velocity has dtype"),
        (
            {"velocity": torch.zeros(1, 3, 4, 2).double()},
            ValueError,
            "base_velocity is torch.float32",
        ),
        ({"horizon": 0}, ValueError, "horizon is 0"),
        ({"schedule": NoiseSchedule.bridge(2)}, ValueError, "schedule has 2 steps, but velocity"),
        ({"reduction": "sum"}, ValueError, "reduction is 'sum'"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'"),
        ({"backend": "triton"}, BackendError, "it has no Triton kernel"),
        ({"velocity": [1.0]}, TypeError, "velocity is a list"),
    ],
)
def test_bad_input(change, kind, message):
    arguments = {
        "velocity": torch.zeros(1, 3, 4, 2),
        "base_velocity": torch.zeros(1, 3, 4, 2),
    } | change
    with pytest.raises(kind, match=message):
        path_kl(**arguments)
