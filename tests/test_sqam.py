"""Known answers of SQAM: one critic gradient, states of a bridge, no sweep through the base."""

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.factories import SMALL, make, make_batch, train
from tests.helpers import assert_equal64, draw
from trqam_fast.agents import SQAMAgent, TRQAMAgent, TRQAMConfig
from trqam_fast.kernels import lean_adjoint
from trqam_fast.memory import update_bytes
from trqam_fast.randomness import Randomness


def sqam(seeds=(0,), kind=SQAMAgent, **settings):
    return make(TRQAMConfig(**SMALL), list(seeds), kind, **settings)


def sample(agent, number=0):
    """A batch, noise, and the states of the bridge for them."""
    randomness = Randomness([number + run for run in range(agent.runs)])
    batch = make_batch(number, agent.runs, agent.config)
    noise = agent.draw_noise(randomness)
    return batch, noise, agent.sample(batch, noise)[0]


class Calls(TorchDispatchMode):
    """Counts this project's compiled ops."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name] += func.namespace == "trqam_fast"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "sweeps"), [(SQAMAgent, 0), (TRQAMAgent, 1)])
def test_the_base_field_has_no_vector_jacobian_product(kind, sweeps):
    """Backward passes are those of the two fields, of the critics' loss and of their gradient."""
    agent = sqam(kind=kind, backend="cpp")
    with Calls() as calls:
        train(agent, [0], 1)
    assert calls.counts["trqam_fast::mlp_backward"] == 3
    assert calls.counts["trqam_fast::action_gradient"] == 1
    assert calls.counts["trqam_fast::lean_adjoint"] == sweeps


@pytest.mark.parametrize("states", [1, 4, 7])
def test_states_of_the_bridge_and_their_adjoints(states):
    """x_j = (1 - tau_j) eps_j + tau_j a^ with x_J = a^, and b_j = -tau_j G; K and J may differ."""
    agent = sqam((0, 1), n_bridge=states)
    batch, noise, path = sample(agent)
    end = agent.flow(agent.online.networks["actor_fast"], batch.observations, noise["policy_x0"])
    assert_equal64([path.end, path.points[:, -1]], [end, end])
    gradient, _ = agent.action_gradient(batch.observations, end)
    adjoint, _ = agent.adjoint(batch.observations, path, -gradient)
    assert adjoint.shape == path.points.shape == path.velocity.shape
    for j in range(1, states + 1):
        tau = j / states
        if j < states:
            expected = (1 - tau) * noise["bridge_eps"][:, j - 1] + tau * end
            assert_equal64([path.points[:, j - 1]], [expected])
        assert_equal64([adjoint[:, j - 1]], [-tau * gradient])


def test_trqams_sweep_agrees_where_the_base_field_is_constant():
    """It telescopes to a_k = t_k a_K then, along any trajectory."""
    agent = sqam((0, 1), n_bridge=5)
    batch, _, path = sample(agent)
    constant = agent.base.map(torch.zeros_like)
    constant.biases[-1].copy_(draw(*constant.biases[-1].shape))
    trajectory = draw(2, 6, *path.end.shape[1:], seed=1)
    gradient, _ = agent.action_gradient(batch.observations, path.end)
    swept = lean_adjoint(constant, batch.observations, trajectory, -gradient)
    adjoint, _ = agent.adjoint(batch.observations, path, -gradient)
    assert_equal64([swept[:, 1:], swept[:, 0]], [adjoint[:, :-1], 0 * gradient])


def test_equal_fields_have_no_path_kl():
    agent = sqam((0, 1))
    agent.load_pretrained(agent.online.span("actor_slow").clone())
    assert float(train(agent, [0, 1], 1).metrics["path_kl"].max()) < 1e-30


def test_the_minimiser_meets_the_budget_at_the_closed_form():
    """Delta_j = ((1 - tau_j + 1/J) / (tau_j + 1/J)) tau_j G / (3 lam), of D = eps; and A is
    0.1792 E|G|^2 / H for ten states."""
    agent = sqam(kl_budget=0.37, lambda_start="closed-form")
    batch, _, path = sample(agent)
    gradient, _ = agent.action_gradient(batch.observations, path.end)
    adjoint, _ = agent.adjoint(batch.observations, path, -gradient)
    base = agent.base_velocity(batch.observations, path)
    agent.adjoint_loss(path, base, adjoint)
    tau = agent.taus(gradient)
    delta = (1 - tau + 0.1) / (tau + 0.1) * tau * gradient.unsqueeze(1)
    best = path._replace(velocity=base + delta / agent.temperature())
    loss, path_kl = agent.adjoint_loss(best, base, adjoint)
    assert float(loss) < 1e-20
    assert_equal64([path_kl], [torch.tensor([0.37], dtype=torch.float64)])
    cost = agent.matching_cost(adjoint) * SMALL["horizon_length"]
    assert float(cost / gradient.square().sum(-1).mean(-1)) == pytest.approx(0.1792, abs=5e-5)


def test_the_penalty_is_the_critics_alone():
    """Both of its terms are of the online critics; without a weight there is none."""
    gradients = {}
    for weight in (0.0, 0.3):
        agent = sqam(value_penalty=weight)
        batch, noise, path = sample(agent)
        gradient, terms = agent.gradients(batch, noise)
        gradients[weight] = gradient.clone()
        assert (agent.config.value_penalty, "value_gap" in terms.metrics) == (weight, True)
    critic = agent.online.networks["critic"]
    policy, data = (
        agent.critic_values(critic, batch.observations, actions).mean()
        for actions in (path.end.clamp(-1, 1), agent.policy_actions(batch))
    )
    expected = torch.autograd.grad(0.3 * (policy - data), critic.tensors)
    difference = (gradients[0.3] - gradients[0.0]).squeeze(0)
    start, end = agent.online.spans["critic"]
    assert not difference[:start].any() and not difference[end:].any()
    assert float(difference[start:end].square().sum()) == pytest.approx(
        float(sum(tensor.square().sum() for tensor in expected)), rel=1e-10
    )


def test_memory_grows_with_the_states_of_the_bridge():
    few, many = (
        update_bytes(SQAMAgent, SQAMAgent.Config(n_bridge=states), 3, 2)["temporary"]
        for states in (5, 10)
    )
    assert 1.1 * few < many < 2 * few
