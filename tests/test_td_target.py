"""The critics' target: pessimism at its limits."""

import math

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON
from trqam_fast.kernels import td_loss, td_target


@pytest.mark.parametrize("rho", [-0.5, math.nan])
def test_pessimism_is_not_negative(rho):
    """The reference took the mean then, and Triton's kernel an optimistic value."""
    values, *rows = torch.ones(1, 2, 3), *torch.ones(3, 1, 3)
    with pytest.raises(ValueError, match=f"td_target: rho is {rho}; use zero or more"):
        td_target(values, *rows[:2], discount=0.9, rho=rho)
    with pytest.raises(ValueError, match=f"td_loss: rho is {rho}; use zero or more"):
        td_loss(values, values, *rows, discount=0.9, rho=rho)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=NEEDS_TRITON)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_without_pessimism_it_is_the_mean(backend):
    """Also where the deviation is infinite or none: of values beyond 1e19, and infinite ones."""
    device = DEVICE if backend == "triton" else "cpu"
    values = torch.tensor([[[1.0, 1e30, math.inf], [3.0, 3e30, 1.0]]], device=device)
    rewards, masks = torch.zeros(1, 3, device=device), torch.ones(1, 3, device=device)
    expected = torch.tensor([[1.0, 1e30, math.inf]], device=device)
    if backend == "reference":
        found = td_target(values, rewards, masks, discount=0.5, rho=0.0)
        torch.testing.assert_close(found, expected)
    for row, loss in enumerate((1.0, math.inf, math.inf)):  # (0 - y)^2, too large for float32.
        q, one = torch.zeros(1, 1, 1, device=device), slice(row, row + 1)
        given = (part[..., one] for part in (values, rewards, masks, masks))
        found = td_loss(q, *given, discount=0.5, rho=0.0, backend=backend)
        assert float(found.loss) == loss


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=NEEDS_TRITON)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_logged_shows_what_is_no_number(backend):
    """Smallest and largest too, which a minimum would leave out; infinite values stay."""
    device = DEVICE if backend == "triton" else "cpu"
    rows = torch.ones(1, 2, device=device)
    for value, expected in ((math.nan, (math.nan, math.nan)), (math.inf, (2.0, math.inf))):
        q = torch.tensor([[[2.0, 3.0], [value, 4.0]]], device=device)
        found = td_loss(q, q, rows, rows, rows, discount=0.5, rho=0.5, backend=backend)
        assert [float(found.min), float(found.max)] == pytest.approx(expected, nan_ok=True)
        assert found.gap is None
