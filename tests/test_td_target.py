"""The critics' target: pessimism at its limits."""

import math

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON
from trqam_fast.kernels import td_target


@pytest.mark.parametrize("rho", [-0.5, math.nan])
def test_pessimism_is_not_negative(rho):
    """The reference took the mean then, and Triton's kernel an optimistic value."""
    with pytest.raises(ValueError, match=f"td_target: rho is {rho}; use zero or more"):
        td_target(torch.ones(1, 2, 3), *torch.ones(2, 1, 3), discount=0.9, rho=rho)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=NEEDS_TRITON)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_without_pessimism_it_is_the_mean(backend):
    """Also where the deviation is infinite or none: of values beyond 1e19, and infinite ones."""
    device = DEVICE if backend == "triton" else "cpu"
    values = torch.tensor([[[1.0, 1e30, math.inf], [3.0, 3e30, 1.0]]], device=device)
    rewards, masks = torch.zeros(1, 3, device=device), torch.ones(1, 3, device=device)
    found = td_target(values, rewards, masks, discount=0.5, rho=0.0, backend=backend)
    torch.testing.assert_close(found.cpu(), torch.tensor([[1.0, 1e30, math.inf]]))
