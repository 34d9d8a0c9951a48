"""The gradient of values in the action: the ends of the clip, and what is refused."""

import math

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON, draw, make_mlp
from trqam_fast.kernels import action_gradient, mlp

BACKENDS = ["reference", "cpp", pytest.param("triton", marks=NEEDS_TRITON)]
BEYOND = float(torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)))


def make(device="cpu", outputs=1, ensemble=3):
    critic = make_mlp(4, outputs, (16,), ensemble=ensemble, dtype=torch.float32)
    return critic.map(lambda t: t.to(device)), draw(1, 6, 2, seed=3, dtype=torch.float32).to(device)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_gradient_ends_behind_one(backend):
    """It counts at exactly 1 and -1, and not from the next numbers on; NaN shows."""
    device = DEVICE if backend == "triton" else "cpu"
    critic, s = make(device)
    x = torch.zeros(1, 6, 2, device=device)
    x[0, :, 0] = torch.tensor([1.0, -1.0, BEYOND, -1.5, math.inf, math.nan], device=device)
    gradient, values = action_gradient(critic, s, x, backend=backend)
    assert gradient[0, :2, 0].ne(0).all() and gradient[0, 2:5, 0].eq(0).all()
    assert gradient[0, :5, 1].ne(0).all()
    assert gradient[0, 5].isnan().all() and values[0, :, 5].isnan().all()
    expected = mlp(critic, (s, x.clamp(-1, 1)), backend=backend).squeeze(-1)
    torch.testing.assert_close(values, expected.detach(), equal_nan=True)
    halved, _ = action_gradient(critic, s, x, scale=-0.5, backend=backend)
    torch.testing.assert_close(halved, -0.5 * gradient, equal_nan=True, rtol=0, atol=0)
    assert not gradient.requires_grad and not values.requires_grad
    # Without the clip it counts everywhere, at other values.
    given = [tensor[:, 2:4] for tensor in (s, x)]
    free = action_gradient(critic, *given, clip=False, backend=backend)
    exact = action_gradient(critic, *given, clip=False, backend="reference")
    assert free[0].ne(0).all() and not torch.allclose(free[1], values[..., 2:4])
    for ours, theirs in zip(free, exact, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bad_input():
    critic, s = make()
    for options, said in (
        ({"ensemble": None}, r"axes \[1\] and 1 outputs"),
        ({"outputs": 2}, r"axes \[1, 3\] and 2 outputs"),
    ):
        with pytest.raises(ValueError, match=f"action_gradient: critic has leading {said}"):
            action_gradient(make(**options)[0], s, s)
    with pytest.raises(ValueError, match=r"action_gradient: x has shape \[1, 6, 1\]"):
        action_gradient(critic, s, s[..., :1])
    with pytest.raises(TypeError, match="action_gradient: critic is a list; pass MLPWeights"):
        action_gradient(list(critic.tensors), s, s)
