"""The lean adjoint: what it is the gradient of, fields that are not ours, known answers."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_equal64, draw, make_field
from trqam_fast.kernels import BackendError, lean_adjoint
from trqam_fast.kernels.fields import as_function
from trqam_fast.kernels.lean_adjoint import reference

CASES = [
    dict(runs=1, batch=63, obs=6, dim=5, steps=10, hidden=(16, 24), layer_norm=False),
    dict(runs=3, batch=1, obs=2, dim=1, steps=1, hidden=(8,), layer_norm=True),
    dict(runs=2, batch=63, obs=3, dim=2, steps=4, hidden=(8, 12, 16), layer_norm=True),
]


def make(runs, batch, obs, dim, steps, hidden, layer_norm):
    field = make_field(obs, dim, runs=runs, hidden=hidden, layer_norm=layer_norm, seed=1)
    return field.detach(), [
        draw(runs, batch, obs, seed=2),
        draw(runs, steps + 1, batch, dim, seed=3),
        draw(runs, batch, dim, seed=4),
    ]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_is_the_gradient_of_the_memoryless_chain(backend):
    """a_0 is the derivative of <a_K, X_K> along X <- X + h (2 v(X, t + h) - X / (t + h)) when the
    points are those of that chain."""
    field, (s, _, terminal) = make(**CASES[0])
    steps, h = 10, 0.1
    start = draw(1, 63, 5, seed=8).requires_grad_()
    x, points = start, []
    for k in range(steps):
        points.append(x)
        t = torch.full_like(x[..., :1], (k + 1) * h)
        x = x + h * (2 * as_function(field)(s, x, t) - x / ((k + 1) * h))
    (expected,) = torch.autograd.grad((x * terminal).sum(), start)
    trajectory = torch.stack([*points, x], 1).detach()
    found = lean_adjoint(field, s, trajectory, terminal, backend=backend)
    assert_equal64([found[:, 0]], [expected], tolerance=1e-11)


class Transformer(nn.Module):
    """A small transformer policy head: the observation's features and the action are tokens."""

    def __init__(self, obs, dim):
        super().__init__()
        self.embed = nn.Linear(1, 8, dtype=torch.float64)
        self.position = nn.Parameter(torch.randn(obs + dim + 1, 8, dtype=torch.float64))
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, dtype=torch.float64
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 1, dtype=torch.float64)
        self.dim = dim

    def forward(self, s, x, t):
        tokens = self.embed(torch.cat([s, t, x], -1).flatten(0, 1).unsqueeze(-1)) + self.position
        out = self.head(self.encoder(tokens)).squeeze(-1)[:, -self.dim :]
        return out.view(*x.shape)


def test_transformer_field():
    torch.manual_seed(0)
    _, (s, points, terminal) = make(**CASES[2])
    model = Transformer(3, 2).eval()
    found = lean_adjoint(model, s, points, terminal)
    adjoint, h = terminal, 0.25
    for k in range(3, -1, -1):
        x = points[:, k].clone().requires_grad_()
        t = torch.full_like(x[..., :1], (k + 1) * h)
        drift = 2 * model(s, x, t) - x / ((k + 1) * h)
        adjoint = adjoint + h * torch.autograd.grad(drift, x, adjoint)[0]
        assert_equal64([found[:, k]], [adjoint])
    with pytest.raises(BackendError, match="MLPWeights"):
        lean_adjoint(model, s, points, terminal, backend="cpp")


def test_linear_field_is_a_product_of_matrices():
    """a_k = prod_j (I + h (2 A^T - I / (t_j + h))) a_K for v = A x + c."""
    matrix, offset = draw(3, 3, seed=5), draw(3, seed=6)
    steps, h = 8, 1 / 8
    s, points, terminal = draw(1, 4, 1), draw(1, steps + 1, 4, 3, seed=1), draw(1, 4, 3, seed=2)
    found = lean_adjoint(lambda s, x, t: x @ matrix.T + offset, s, points, terminal)
    product = torch.eye(3, dtype=torch.float64)
    for k in range(steps - 1, -1, -1):
        step = torch.eye(3, dtype=torch.float64) * (1 - h / ((k + 1) * h)) + 2 * h * matrix.T
        product = step @ product
        assert_equal64([found[0, k]], [terminal[0] @ product.T])


def test_gradcheck_of_reference():
    field, (s, points, terminal) = make(2, 3, 2, 2, 3, (4, 5), True)
    terminal.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: reference.lean_adjoint(field, s, points, a), (terminal,)
    )


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_adjoints_are_constants(backend):
    field, data = make(**CASES[2])
    trainable = field.map(lambda t: t.clone().requires_grad_())
    assert not lean_adjoint(trainable, *data, backend=backend).requires_grad


def test_trainable_callable_gets_no_gradient():
    torch.manual_seed(0)
    _, data = make(**CASES[2])
    assert not lean_adjoint(Transformer(3, 2).eval(), *data).requires_grad


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_nothing_is_prepared_on_a_cpu(backend):
    field, (s, points, terminal) = make(**CASES[2])
    with pytest.raises(ValueError, match=f"backend {backend} does not take a tape"):
        lean_adjoint(field, s, points, terminal, tape=[points], backend=backend)
    found = lean_adjoint(field, s, points, terminal, tape=[], backend=backend)
    assert torch.equal(found, lean_adjoint(field, s, points, terminal, backend=backend))


def test_bad_input():
    field, (s, points, terminal) = make(**CASES[2])
    with pytest.raises(ValueError, match="trajectory has 1 points"):
        lean_adjoint(field, s, points[:, :1], terminal)
    with pytest.raises(ValueError, match="trajectory has shape"):
        lean_adjoint(field, s, points[:, :, 1:], terminal)
    with pytest.raises(ValueError, match="terminal_adjoint has shape"):
        lean_adjoint(field, s, points, terminal[:, 1:])
    with pytest.raises(ValueError, match="terminal_adjoint is torch.float32"):
        lean_adjoint(field, s, points, terminal.float())
