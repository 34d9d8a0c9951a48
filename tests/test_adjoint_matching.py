"""The adjoint-matching loss: bounds of lambda, schedules, its path KL, what it refuses."""

import sys

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON, assert_equal64, draw, gradients
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import BackendError, NoiseSchedule, adjoint_matching, cpp, path_kl
from trqam_fast.kernels.cotangent import unit_cotangent
from trqam_fast.randomness import Randomness

BACKENDS = ["cpp", "reference"]


def inputs(*size, dtype=torch.float64):
    v, u, a = (draw(*size, seed=s, dtype=dtype) for s in (1, 2, 3))
    lam = draw(size[0], seed=4, dtype=dtype).abs() + 0.1
    return v.requires_grad_(), u, a, lam


def run(backend, *arguments, horizon=2):
    loss, kl = adjoint_matching(*arguments, horizon=horizon, backend=backend)
    return [loss, kl, *gradients([loss], [arguments[0]])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_vanishing_lam_is_floored(backend):
    v, u, a, _ = inputs(1, 3, 4, 2)
    floor = run(backend, v, u, a, torch.tensor([1e-8], dtype=v.dtype))
    for value in (0.0, -1.0, 1e-12):
        assert_equal64(run(backend, v, u, a, torch.tensor([value], dtype=v.dtype)), floor)


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("backend", ["cpp", pytest.param("triton", marks=NEEDS_TRITON)])
def test_lam_that_is_not_positive(backend, lam):
    device = DEVICE if backend == "triton" else "cpu"
    v, u, a = (draw(2, 3, 5, 2, seed=s).float().to(device) for s in range(3))
    lams = torch.tensor([lam, 0.7], device=device)
    ours = adjoint_matching(v, u, a, lams, backend=backend)
    theirs = adjoint_matching(v, u, a, lams, backend="reference")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["cpp", pytest.param("triton", marks=NEEDS_TRITON)])
def test_a_cotangent_of_ones_is_not_multiplied_by(backend):
    """The stored gradient itself is handed on, and stays what it is when another is added to it."""
    device = DEVICE if backend == "triton" else "cpu"
    v, u, a, lam = (t.detach().to(device) for t in inputs(2, 3, 5, 2, dtype=torch.float32))
    v.requires_grad_()
    loss, _ = adjoint_matching(v, u, a, lam, backend=backend)
    unit = unit_cotangent(2, dtype=v.dtype, device=device)

    def pulled(value, cotangent):
        return torch.autograd.grad(value, v, cotangent, retain_graph=True)[0]

    found, again = pulled(loss, unit), pulled(loss, unit)
    assert found.data_ptr() == again.data_ptr()
    expected = pulled(loss, torch.ones_like(unit))
    assert expected.data_ptr() != found.data_ptr()
    both = pulled(loss + v.square().sum((1, 2, 3)), unit)
    doubled = pulled(loss, 2.0 * unit)
    for ours, theirs in ((found, expected), (both, expected + 2.0 * v), (doubled, 2.0 * expected)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("triton", marks=NEEDS_TRITON)])
def test_results_may_be_changed_in_place(backend):
    device = DEVICE if backend == "triton" else "cpu"
    v, u, a, lam = (t.detach().to(device) for t in inputs(2, 3, 5, 2, dtype=torch.float32))
    v.requires_grad_()
    expected = torch.autograd.grad(adjoint_matching(v, u, a, lam, backend=backend)[0].sum(), v)
    loss, path_kl = adjoint_matching(v, u, a, lam, backend=backend)
    path_kl *= 2.0
    loss += path_kl
    (found,) = torch.autograd.grad(loss.sum(), v)
    assert torch.equal(found, *expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_schedule(backend):
    """The equations, with unequal steps."""
    v, u, a, lam = inputs(2, 3, 4, 2)
    schedule = NoiseSchedule((0.0, 0.2, 0.7), (0.2, 0.5, 0.3), (9.0, 2.0, 0.5))
    loss, kl = adjoint_matching(v, u, a, lam, horizon=3, schedule=schedule, backend=backend)
    h, g_squared = (
        torch.tensor(x, dtype=torch.float64) for x in (schedule.step_sizes, schedule.g_squared)
    )
    sigma = (g_squared / lam.unsqueeze(-1)).sqrt().view(2, 3, 1, 1)
    delta = v - u
    expected = (2 * delta / sigma + sigma * a).square().sum((1, 3)).mean(-1)
    divergence = (2 * h / g_squared * delta.square().sum(-1).transpose(1, 2)).sum(-1) / 3
    assert_equal64([loss, kl], [expected, divergence.mean(-1).detach()])
    none = path_kl(v, u, horizon=3, schedule=schedule, reduction="none", backend=backend)
    assert_equal64([none], [divergence])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_path_kl_is_that_of_path_kl_to_the_bit(dtype):
    """One loop sums both: csrc/trajectories.inl."""
    for dim in (1, 5, 25, 64, 100):
        v, u, a, lam = inputs(3, 10, 63, dim, dtype=dtype)
        _, kl = adjoint_matching(v, u, a, lam, horizon=5, backend="cpp")
        assert torch.equal(kl, path_kl(v, u, horizon=5, backend="cpp").detach())
        with torch.no_grad():
            _, kl = adjoint_matching(v, u, a, lam, horizon=5, backend="cpp")
        assert torch.equal(kl, path_kl(v, u, horizon=5, backend="cpp").detach())


def test_an_update_on_the_cpu_runs_the_compiled_loss_and_path_kl(monkeypatch):
    """The metric of a training run is the number that the compiled path KL gives."""
    called, call = [], cpp.call

    def note(name, fields, like, *rest):
        called.append((name, fields))
        return call(name, fields, like, *rest)

    seen = {}

    def keep(velocity, base_velocity, adjoint, lam, **options):
        seen["kl"] = path_kl(velocity, base_velocity, horizon=options["horizon"], backend="cpp")
        return adjoint_matching(velocity, base_velocity, adjoint, lam, **options)

    ops = sys.modules["trqam_fast.kernels.adjoint_matching.ops"]
    monkeypatch.setattr(ops, "call", note)
    monkeypatch.setattr(sys.modules["trqam_fast.agents.qam"], "adjoint_matching", keep)
    config = TRQAMConfig(batch_size=4, actor_hidden_dims=(8,), value_hidden_dims=(8,), num_qs=2)
    agent = TRQAMAgent(config, 3, 2, [0])
    ones = torch.ones(1, 4)
    s, actions, following = (draw(*shape).float() for shape in ((1, 4, 3), (1, 4, 1, 2), (1, 4, 3)))
    batch = Batch(s, actions, ones, ones, ones, following)
    # Once to move the fine-tuned field away from the base field.
    for _ in range(2):
        terms = agent.update(batch, agent.draw_noise(Randomness([0])))
    assert [name for name, _ in called] == ["adjoint_matching"] * 2
    assert terms.metrics["path_kl"] > 0
    assert torch.equal(terms.metrics["path_kl"], seen["kl"].detach())


def test_bad_input():
    v, u, a, lam = inputs(2, 3, 4, 2)
    with pytest.raises(ValueError, match=r"lam has shape \[1\]; expected \[2\]"):
        adjoint_matching(v, u, a, lam[:1])
    with pytest.raises(ValueError, match="adjoint has shape"):
        adjoint_matching(v, u, a[:, 1:], lam)
    with pytest.raises(ValueError, match="horizon is -1"):
        adjoint_matching(v, u, a, lam, horizon=-1)
    with pytest.raises(ValueError, match="schedule has 4 steps, but velocity has 3"):
        adjoint_matching(v, u, a, lam, schedule=NoiseSchedule.flow(4))
    with pytest.raises(BackendError, match="triton"):
        adjoint_matching(v, u, a, lam, backend="triton")
