"""Settings of the trust region and of critics that are off by default, against their formulas."""

import math
from dataclasses import replace

import pytest
import torch

from tests.factories import SMALL, make, make_batch, train
from tests.helpers import DEVICE, NEEDS_TRITON, assert_equal64
from trqam_fast.agents import DualController, QAMAgent, TRQAMAgent, TRQAMConfig, algorithm
from trqam_fast.agents.critics import CRITICS
from trqam_fast.data.batch import Batch
from trqam_fast.errors import UsageError
from trqam_fast.randomness import Randomness
from trqam_fast.train import continued
from trqam_fast.training.presets import make_config
from trqam_fast.training.start import settle_budget


def trqam(seeds=(0,), **settings):
    return make(TRQAMConfig(**SMALL, **settings), list(seeds))


def update(agent, number=0):
    noise = agent.draw_noise(Randomness([number + run for run in range(agent.runs)]))
    return agent.update(make_batch(number, agent.runs, agent.config), noise)


def test_the_log_rule_is_relative():
    dual = DualController(2, 0.5, eta=0.3, ema=1.0, lam=0.5, rule="log", dtype=torch.float64)
    dual.update(torch.tensor([0.75, 0.25], dtype=torch.float64))
    expected = [0.5 * math.exp(0.3 * 0.5), 0.5 * math.exp(-0.3 * 0.5)]
    assert_equal64([dual.lam], [torch.tensor(expected, dtype=torch.float64)])


def test_a_resting_controller_keeps_everything():
    dual = DualController(2, 0.5, dtype=torch.float64)
    dual.update(torch.tensor([9.0, 0.0], dtype=torch.float64), active=torch.tensor(False))
    assert dual.lam.tolist() == [1.0, 1.0] and dual.kl_ema.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=NEEDS_TRITON) for rule in ("additive", "log")]
)
@pytest.mark.parametrize("active", [True, False])
def test_a_budget_and_a_warm_up_on_the_device(rule, active):
    """The kernel reads both where they lie; path KLs that are no number make lambda none."""
    found = []
    for device, backend in (("cpu", "reference"), (DEVICE, "triton")):
        dual = DualController(3, 9.0, eta=0.3, rule=rule, device=device, backend=backend)
        number = {"budget": torch.tensor(0.4), "active": torch.tensor(active)}
        number = {name: tensor.to(device) for name, tensor in number.items()}
        copies = dual.update(torch.tensor([9.0, math.nan, 0.1]).to(device), **number)
        found.append(torch.stack([dual.lam, dual.kl_ema, *copies]).cpu())
    torch.testing.assert_close(*found, equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("algo", ["trqam", "qam", "qam-e"])
def test_the_warm_up_trains_the_critics_alone(algo):
    kind = algorithm(algo)
    agent = make(TRQAMConfig(**SMALL, critic_warmup=2), [0, 1], kind)
    lam = agent.state_dict().get("lam")
    policy = {name: agent.online.span(name).clone() for name in agent.online.spans}
    critics, anchor = policy.pop("critic"), agent.target.span("actor_slow").clone()
    train(agent, [0, 1], 2)
    for name, value in policy.items():
        assert torch.equal(agent.online.span(name), value), name
    assert torch.equal(agent.target.span("actor_slow"), anchor)
    assert (agent.online.span("critic") != critics).any(1).all()
    if lam is not None:
        assert torch.equal(agent.dual.lam, lam) and not agent.dual.kl_ema.any()
    train(agent, [0, 1], 1)
    for name, value in policy.items():
        assert not torch.equal(agent.online.span(name), value), name
    if lam is not None:
        assert not torch.equal(agent.dual.lam, lam)


@pytest.mark.parametrize("algo", ["trqam", "sqam", "qam"])
def test_a_frozen_base_stays_where_fine_tuning_found_it(algo):
    """Also after updates that moved it, whose momentum and whose target lag behind."""
    kind = algorithm(algo)
    config = kind.Config(**SMALL)
    moved = make(config, [0, 1], kind)
    train(moved, [0, 1], 2)
    agent = make(replace(config, freeze_base=True), [0, 1], kind)
    agent.load_state_dict(moved.state_dict())
    before = {name: agent.online.span(name).clone() for name in ("actor_fast", "actor_slow")}
    anchor = [tensor.clone() for tensor in agent.base.tensors]
    train(agent, [0, 1], 3)
    assert torch.equal(agent.online.span("actor_slow"), before["actor_slow"])
    assert not torch.equal(agent.online.span("actor_fast"), before["actor_fast"])
    for tensor, old in zip(agent.base.tensors, anchor, strict=True):
        assert torch.equal(tensor, old)
    train(moved, [0, 1], 1)
    assert not torch.equal(moved.online.span("actor_slow"), before["actor_slow"])


def test_the_budget_grows_linearly():
    agent = trqam(kl_budget=0.5, budget_ramp=4, kl_ema_coef=1.0, eta_lambda=0.1, lambda_max=1e6)
    lam = agent.dual.lam.clone()
    for number in range(6):
        terms = update(agent, number)
        budget = 0.5 * min(1.0, (number + 1) / 4)
        clipped = terms.metrics["path_kl"].clamp(max=2.0 * budget)
        lam = (lam + 0.1 * (clipped - budget)).clamp(min=0.01)
        assert_equal64([terms.metrics["lam"]], [lam])


@pytest.mark.parametrize("warmup", [0, 2])
def test_lambda_starts_where_the_minimiser_meets_the_budget(warmup):
    """At fixed adjoints the minimiser is Delta_k = -sigma_k^2 a_k / 2, of path KL eps."""
    agent = trqam(kl_budget=0.37, lambda_start="closed-form", eta_lambda=0.0, critic_warmup=warmup)
    for number in range(warmup):
        assert update(agent, number).metrics["lam"].tolist() == [1.0]
    adjoint = update(agent, warmup).outputs["adjoint"]
    steps = agent.config.flow_steps
    h, t = 1 / steps, torch.arange(steps, dtype=torch.float64) / steps
    g_squared = (2 * (1 - t + h) / (t + h)).view(-1, 1, 1)
    delta = -(g_squared / (3 * agent.dual.lam)) * adjoint[0] / 2
    path_kl = (2 * h / g_squared * delta.square()).sum((0, 2)).mean() / agent.config.chunk_length
    assert path_kl.item() == pytest.approx(0.37, rel=1e-12)
    before = agent.dual.lam.clone()
    update(agent, warmup + 1)
    assert torch.equal(agent.dual.lam, before)


def test_lambda_starts_where_it_is_told_to():
    assert trqam(init_lambda=10.0).dual.lam.tolist() == [10.0]


def test_scaled_rewards_are_the_rewards_scaled():
    plain, scaled = trqam(), trqam(reward_scale=10.0)
    batch = make_batch(0, config=plain.config)
    noise = plain.draw_noise(Randomness([0]))
    more = batch._replace(rewards=10.0 * batch.rewards)
    assert_equal64([scaled.gradients(batch, noise)[0]], [plain.gradients(more, noise)[0]])


def test_the_value_penalty_is_the_gap_at_the_end_of_the_rollout():
    """Gradient and metrics against autograd on the critics alone."""
    plain, penalised = trqam(value_penalty=0.0), trqam(value_penalty=0.7)
    batch = make_batch(0, config=plain.config)
    noise = plain.draw_noise(Randomness([0]))
    expected, terms = plain.gradients(batch, noise)
    expected = expected.clone()
    critic, s = plain.online.networks["critic"], batch.observations
    at_policy = plain.critic_values(critic, s, terms.outputs["end"].clamp(-1, 1))
    gap = at_policy.mean((1, 2)) - plain.critic_values(critic, s, plain.policy_actions(batch)).mean(
        (1, 2)
    )
    parts = torch.autograd.grad(gap.sum(), critic.tensors)
    flat = plain.online.unflatten(expected)[-len(parts) :]
    for slot, part in zip(flat, parts, strict=True):
        slot.add_(0.7 * part)
    found, terms = penalised.gradients(batch, noise)
    assert_equal64([found], [expected])
    assert_equal64([terms.metrics["value_gap"]], [gap])


def test_the_gain_of_the_sweep_and_the_gap_of_the_values():
    agent = make(TRQAMConfig(**SMALL), [0, 1], QAMAgent, inv_temp=3.0)
    batch = make_batch(0, 2, agent.config)
    noise = agent.draw_noise(Randomness(range(2)))
    _, terms = agent.gradients(batch, noise)
    gradient, values = agent.action_gradient(batch.observations, terms.outputs["end"])

    def norm(a):
        return a.square().sum(-1).mean(-1).sqrt()

    gain = norm(terms.outputs["adjoint"]).amax(1) / norm(3.0 * gradient)
    gap = values.mean((1, 2)) - terms.metrics["q_mean"]
    assert_equal64([terms.metrics["adjoint_gain"], terms.metrics["value_gap"]], [gain, gap])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_clipped_actions_is_zero_beyond_the_box_alone(dtype):
    agent = make(TRQAMConfig(**SMALL), [0], QAMAgent, dtype=dtype)
    batch = make_batch(0, 1, agent.config, dtype)
    one, two = torch.tensor([1.0, 2.0], dtype=dtype)
    sides = torch.stack([one, one.nextafter(two), one.nextafter(-one), two])
    x = torch.cat([sides, -sides]).repeat(agent.config.batch_size * agent.dim)
    x = x[: agent.config.batch_size * agent.dim].view(1, -1, agent.dim)
    gradient, _ = agent.action_gradient(batch.observations, x)
    assert torch.equal(gradient != 0, x.abs() <= 1)


def test_a_critic_without_a_gradient_is_no_failure():
    """Every X_K outside the box, or units that are all off: a_K = 0, and no metric is NaN."""
    agent = make(TRQAMConfig(**SMALL), [0, 1], QAMAgent, inv_temp=0.0)
    batch = make_batch(0, 2, agent.config)
    noise = agent.draw_noise(Randomness(range(2)))
    _, terms = agent.gradients(batch, noise)
    assert_equal64([terms.metrics["adjoint_gain"]], [torch.zeros(2, dtype=torch.float64)])
    assert all(value.isfinite().all() for value in terms.metrics.values())


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_an_implicit_critic_on_a_table(expectile):
    """Q and V of a two-state problem, solved by iteration, are learnt by gradient descent."""
    discount = 0.8
    agent = TRQAMAgent(
        TRQAMConfig(
            batch_size=64, actor_hidden_dims=(4,), value_hidden_dims=(64, 64), num_qs=1, rho=0.0,
            discount=discount, tau=0.05, lr=3e-3, flow_steps=2, critic="implicit",
            expectile=expectile, clip_grad=False, value_layer_norm=False,
        ),
        1, 1, [0],
    )  # fmt: skip
    # State 0: action -1 stays and earns -1, action +1 leads to state 1 and earns -2; state 1 ends
    # with reward 0 whatever is done. The data take -1 three times out of four.
    states = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0]).repeat(11)[:64]
    actions = torch.tensor([-1.0, -1.0, -1.0, 1.0, -1.0, 1.0]).repeat(11)[:64]
    goes = (states == 0) & (actions > 0)
    rewards = torch.where(states == 1, 0.0, torch.where(goes, -2.0, -1.0))
    following = torch.where(goes, 1.0, states)
    masks = (states == 0).float()
    batch = Batch(
        states.view(1, -1, 1), actions.view(1, -1, 1, 1), rewards.view(1, -1), masks.view(1, -1),
        torch.ones(1, 64), following.view(1, -1, 1),
    )  # fmt: skip
    assert not CRITICS["implicit"].samples_policy and "next_action" not in agent.draws()
    generator = Randomness([0])
    for _ in range(1500):
        terms = agent.update(batch, agent.draw_noise(generator))
    assert "next_actions" not in terms.outputs and "value_loss" in terms.metrics

    def expected():
        share = float((actions[states == 0] > 0).float().mean())
        v0 = 0.0
        for _ in range(500):
            stay, go = -1.0 + discount * v0, -2.0
            # The expectile of two values: where the weighted errors balance.
            best, worst, weight = (stay, go, 1 - share) if stay > go else (go, stay, share)
            up, down = weight * expectile, (1 - weight) * (1 - expectile)
            v0 = (up * best + down * worst) / (up + down)
        return v0, stay, go

    v0, stay, go = expected()
    value = agent.network("value", torch.tensor([[[0.0], [1.0]]])).flatten().tolist()
    critic = agent.online.networks["critic"].detach()
    q = agent.critic_values(critic, torch.zeros(1, 2, 1), torch.tensor([[[-1.0], [1.0]]]))
    assert value == pytest.approx([v0, 0.0], abs=0.1)
    assert q.flatten().tolist() == pytest.approx([stay, go], abs=0.1)


def test_runs_with_an_implicit_critic_are_independent():
    settings = dict(
        critic="implicit", value_penalty=0.2, critic_warmup=1, budget_ramp=3, dual="log"
    )
    both, alone = trqam([0, 1], **settings), trqam([1], **settings)
    train(both, [0, 1], 3)
    train(alone, [1], 3)
    states = both.state_dict(), alone.state_dict()
    assert_equal64([states[0][name][1:] for name in states[0]], list(states[1].values()))


def test_a_budget_for_each_number_of_an_action():
    """It sets the budget, and the same flag goes on with the run that it was set in."""
    asked = make_config(kl_budget_per_dim=0.3, run_dir="runs/here")
    settled = settle_budget(asked, 7)
    assert settled.agent.kl_budget == pytest.approx(2.1)
    of_seven = [TRQAMAgent(each.agent, 3, 7, [0]).dual.budget for each in (asked, settled)]
    assert of_seven == pytest.approx([2.1, 2.1])
    assert continued(settled, asked).resume == "yes"
    with pytest.raises(UsageError, match=r"with --kl-budget-per-dim 0.4 \(the run has 0.3\)"):
        continued(settled, make_config(kl_budget_per_dim=0.4, run_dir="runs/here"))
    with pytest.raises(UsageError, match=r"with --kl-budget 0.25 \(the run has 0.5\)"):
        continued(make_config(), make_config(kl_budget=0.25))
