import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.factories import OBS, SMALL, make, make_batch, train
from tests.helpers import assert_equal64, draw
from trqam_fast.agents import (
    BCAgent,
    DualController,
    QAMAgent,
    TRQAMAgent,
    TRQAMConfig,
    algorithm,
)
from trqam_fast.agents.config import select
from trqam_fast.agents.reference import reference_update
from trqam_fast.data.batch import Batch
from trqam_fast.errors import UsageError
from trqam_fast.randomness import Randomness


@pytest.mark.parametrize("algo", ["trqam", "qam", "bc"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("best_of_n", [1, 3])
def test_three_runs_equal_three_separate_runs(algo, layer_norm, best_of_n):
    config = TRQAMConfig(**SMALL, actor_layer_norm=layer_norm, best_of_n=best_of_n)

    def build(seeds):
        return make(config, seeds, algorithm(algo))

    together = build([0, 1, 2])
    terms = train(together, [0, 1, 2], 5)
    for run in range(3):
        alone = build([run])
        own = train(alone, [run], 5)
        state, expected = together.state_dict(), alone.state_dict()
        assert_equal64([state[k][run : run + 1] for k in state], list(expected.values()))
        assert_equal64(
            [value[run : run + 1] for value in terms.metrics.values()], list(own.metrics.values())
        )
        s, z = draw(1, 5, OBS, seed=run), draw(1, 5, best_of_n, together.dim, seed=run)
        assert_equal64([together.act(s, z, run=run)], [alone.act(s, z)])


def test_a_diverging_run_does_not_touch_the_others():
    config = TRQAMConfig(**SMALL, best_of_n=2)

    def poison(u, batch):
        if u == 2:
            batch.rewards[1, 0] = math.nan
        return batch

    together = make(config, [0, 1, 2])
    terms = train(together, [0, 1, 2], 6, poison)
    assert not together.online.flat[1].isfinite().all()
    assert terms.metrics["critic_loss"].isfinite().tolist() == [True, False, True]
    for run in (0, 2):
        alone = make(config, [run])
        train(alone, [run], 6)
        state, expected = together.state_dict(), alone.state_dict()
        assert_equal64([state[k][run : run + 1] for k in state], list(expected.values()))


@pytest.mark.parametrize("chunking", [False, True])
def test_backends_agree_over_many_updates(chunking):
    config = TRQAMConfig(**{**SMALL, "action_chunking": chunking}, best_of_n=2)
    agents = [make(config, [0], backend=backend) for backend in ("reference", "cpp")]
    for agent in agents:
        train(agent, [0], 20)
    states = [agent.state_dict() for agent in agents]
    assert_equal64(list(states[1].values()), list(states[0].values()), tolerance=1e-9)


def test_optimiser_is_adam_with_one_clipped_norm_per_run():
    """Three steps against torch.optim.Adam and clip_grad_norm_ on each run's tensors."""
    config = TRQAMConfig(**SMALL)
    agent = make(config, [0, 1])
    shadow = [
        [leaf[run].detach().clone().requires_grad_() for leaf in agent.online.leaves]
        for run in range(2)
    ]
    optimisers = [torch.optim.Adam(tensors, lr=config.lr) for tensors in shadow]
    randomness = Randomness(range(2))
    for u in range(3):
        batch, noise = make_batch(u, 2, config), agent.draw_noise(randomness)
        gradient, terms = agent.gradients(batch, noise)
        for run in range(2):
            parts = agent.online.unflatten(gradient)
            for tensor, part in zip(shadow[run], parts, strict=True):
                tensor.grad = part[run].clone()
            # clip_grad_norm_ adds 1e-6 to the norm; the algorithm does not.
            norm = torch.cat([t.grad.flatten() for t in shadow[run]]).norm()
            for tensor in shadow[run]:
                tensor.grad.div_(norm.clamp(min=1.0))
            optimisers[run].step()
        agent.apply(gradient, terms)
    for run in range(2):
        assert_equal64([leaf[run] for leaf in agent.online.leaves], shadow[run])


def test_targets_move_toward_the_parameters_before_the_step():
    config = TRQAMConfig(**SMALL, tau=0.3)
    agent = make(config, [0])
    train(agent, [0], 2)
    before, target = agent.online.flat.clone(), agent.target.flat.clone()
    train(agent, [0], 1)
    followed = before[:, agent.online.spans["actor_slow"][0] :]
    assert_equal64([agent.target.flat], [0.3 * followed + 0.7 * target])


def test_dual_update_clips_smooths_and_projects():
    dual = DualController(3, 0.5, eta=0.2, ema=0.25, bracket=(0.01, 1.005), dtype=torch.float64)
    dual.lam.copy_(torch.tensor([1.0, 0.02, 1.0], dtype=torch.float64))
    dual.kl_ema.copy_(torch.tensor([0.4, 0.0, 0.4], dtype=torch.float64))
    dual.update(torch.tensor([0.6, 0.0, 99.0], dtype=torch.float64))
    ema = [0.75 * 0.4 + 0.25 * 0.6, 0.0, 0.75 * 0.4 + 0.25 * 1.0]
    lam = [1.0 + 0.2 * (ema[0] - 0.5), 0.01, min(1.0 + 0.2 * (ema[2] - 0.5), 1.005)]
    assert_equal64([dual.kl_ema], [torch.tensor(ema, dtype=torch.float64)])
    assert_equal64([dual.lam], [torch.tensor(lam, dtype=torch.float64)])
    assert_equal64([dual.temperature], [3.0 * dual.lam])


def test_the_online_stage_has_a_budget_of_its_own():
    agent = make(TRQAMConfig(**SMALL, kl_budget=0.5, kl_budget_online=0.25), [0])
    agent.begin_stage("offline")
    assert agent.dual.budget == 0.5
    agent.begin_stage("online")
    assert agent.dual.budget == 0.25


def test_loading_a_cloned_field_sets_both_fields_and_the_base():
    config = TRQAMConfig(**SMALL)
    cloned = make(config, [3, 4], BCAgent)
    train(cloned, [3, 4], 2)
    agent = make(config, [0, 1])
    agent.load_pretrained(cloned.online.flat)
    for block, name in (
        (agent.online, "actor_fast"),
        (agent.online, "actor_slow"),
        (agent.target, "actor_slow"),
    ):
        assert torch.equal(block.span(name), cloned.online.flat)
    assert torch.equal(agent.target.span("critic"), agent.online.span("critic"))


def test_initialisation():
    config = TRQAMConfig(**{**SMALL, "value_hidden_dims": (400, 300)}, actor_layer_norm=True)
    agent = make(config, [0, 1])
    critic = agent.online.networks["critic"]
    kernel = critic.kernels[1]
    bound = math.sqrt(6 / 700)
    assert float(kernel.detach().abs().max()) <= bound
    assert abs(float(kernel.detach().std()) - bound / math.sqrt(3)) < 1e-3
    assert not torch.equal(kernel[0, 0], kernel[0, 1])  # every critic has its own
    assert not torch.equal(kernel[0], kernel[1])  # every run has its own
    assert all(not bias.any() for bias in (*critic.biases, *critic.norm_biases))
    assert all((scale == 1).all() for scale in critic.norm_scales)
    for name in agent.targets:
        assert torch.equal(agent.target.span(name), agent.online.span(name))
    assert torch.equal(make(config, [1]).online.flat[0], agent.online.flat[1])


def test_best_of_n_takes_the_candidate_the_online_critics_like():
    config = TRQAMConfig(**SMALL, best_of_n=4)
    agent = make(config, [0])
    s, z = draw(1, 6, OBS), draw(1, 6, 4, agent.dim, seed=1)
    one = make(TRQAMConfig(**SMALL), [0])
    candidates = torch.stack([one.act(s, z[:, :, n : n + 1]) for n in range(4)], 2)
    critic = agent.online.networks["critic"].detach()
    values = torch.stack(
        [agent.critic_values(critic, s, candidates[:, :, n]).mean(1) for n in range(4)], 2
    )
    best = values.argmax(2)
    expected = torch.stack([candidates[0, b, best[0, b]] for b in range(6)]).unsqueeze(0)
    assert_equal64([agent.act(s, z)], [expected])
    assert float(expected.abs().max()) <= 1


@pytest.mark.parametrize("kind", [TRQAMAgent, BCAgent])
def test_state_dict_continues_exactly(kind):
    config = TRQAMConfig(**SMALL)
    agent = make(config, [0, 1], kind)
    train(agent, [0, 1], 3)
    other = make(config, [5, 6], kind)
    other.load_state_dict(agent.state_dict())
    train(agent, [0, 1], 3)
    train(other, [0, 1], 3)
    for (name, a), b in zip(agent.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


class NoReadback(TorchDispatchMode):
    """Raises where a tensor's value, or a shape that depends on one, is asked for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            raise AssertionError(f"{name} would synchronise with the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("algo", ["trqam", "qam", "bc"])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_update_reads_nothing_back(algo, backend):
    config = TRQAMConfig(**SMALL, best_of_n=2)
    agent = make(config, [0, 1], algorithm(algo), backend=backend)
    with pytest.raises(AssertionError, match="synchronise"), NoReadback():
        agent.online.flat.sum().item()
    train(agent, [0, 1], 1)
    with NoReadback():
        train(agent, [0, 1], 2)


def test_qam_has_no_dual_update_and_scales_the_terminal_adjoint():
    batch = make_batch(0, config=TRQAMConfig(**SMALL))
    adjoints = []
    for inv_temp in (1.0, 7.0):
        agent = make(TRQAMConfig(**SMALL), [0], QAMAgent, inv_temp=inv_temp)
        noise = agent.draw_noise(Randomness([0]))
        terms = agent.update(batch, noise)
        assert not {"lam", "kl_ema"} & {*agent.state_dict(), *terms.metrics}
        adjoints.append(terms.outputs["adjoint"])
    assert_equal64([adjoints[1]], [7.0 * adjoints[0]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"horizon_length": 0}, "--horizon-length is 0; use 1 or more"),
        ({"kl_budget": 0.0}, "--kl-budget is 0.0; use a positive number"),
        ({"kl_budget": -1.0}, "--kl-budget is -1.0"),
        ({"flow_steps": 0}, "--flow-steps is 0; use 1 or more"),
        ({"lambda_max": 0.001}, "--lambda-max is 0.001; use --lambda-min or more"),
        ({"actor_hidden_dims": ()}, "--actor-hidden-dims is"),
        ({"value_hidden_dims": (8, 10**39)}, "use one or more widths from 1 to 65536"),
        ({"discount": 1.5}, "--discount is 1.5"),
        ({"lr": math.nan}, "--lr is nan"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        TRQAMConfig(**values)


@pytest.mark.parametrize("case", range(16))
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_update_against_the_reference(case, backend):
    """Random settings: every flag on and off, uneven widths and depths, K, E, N, H."""
    picker = torch.Generator().manual_seed(case)

    def pick(*options):
        return options[int(torch.randint(len(options), (1,), generator=picker))]

    config = TRQAMConfig(
        batch_size=pick(1, 5, 9),
        actor_hidden_dims=pick((7,), (12, 5), (6, 9, 11)),
        value_hidden_dims=pick((5,), (8, 13), (9, 4, 6, 5)),
        actor_layer_norm=pick(True, False),
        value_layer_norm=pick(True, False),
        num_qs=pick(1, 2, 5),
        rho=pick(0.0, 0.5, 1.3),
        horizon_length=pick(1, 2, 4),
        action_chunking=pick(True, False),
        flow_steps=pick(2, 3, 7),
        best_of_n=pick(1, 3),
        clip_adj=pick(True, False),
        clip_grad=pick(True, False),
        target_actor=pick(True, False),
        use_target_grad=pick(True, False),
        kl_budget=pick(0.1, 3.0),
        eta_lambda=pick(0.01, 1.0),
        tau=pick(0.3, 1.0),
        lr=1e-2,
    )
    obs, act = pick(1, 4), pick(1, 3)
    kind, inv_temp = algorithm(pick("trqam", "qam")), pick(0.3, 10.0)
    if kind is QAMAgent:
        config = kind.Config(**select(kind.Config, vars(config)), inv_temp=inv_temp)
    agent = kind(config, obs, act, [case], dtype=torch.float64, backend=backend)
    agent.online.flat.add_(draw(*agent.online.flat.shape, seed=case), alpha=0.3)
    agent.target.flat.add_(draw(*agent.target.flat.shape, seed=case + 1), alpha=0.2)
    randomness = Randomness([case])
    rows, h = config.batch_size, config.horizon_length
    for update in range(3):
        seed = 100 * case + 10 * update
        batch = Batch(
            draw(1, rows, obs, seed=seed),
            draw(1, rows, h, act, seed=seed + 1).clamp(-1, 1),
            draw(1, rows, seed=seed + 2),
            (draw(1, rows, seed=seed + 3) > 0).double(),
            (draw(1, rows, seed=seed + 4) > 0).double(),
            draw(1, rows, obs, seed=seed + 5),
        )
        noise = agent.draw_noise(randomness)
        expected = reference_update(agent, batch, noise)
        gradient, terms = agent.gradients(batch, noise)
        agent.apply(gradient, terms)
        blocks = {
            "gradient": agent.online.unflatten(gradient), "weights": agent.online.leaves,
            "exp_avg": agent.online.unflatten(agent.exp_avg),
            "exp_avg_sq": agent.online.unflatten(agent.exp_avg_sq),
            "targets": agent.target.leaves,
        }  # fmt: skip
        for name, parts in blocks.items():
            found = [part[0].detach() for part in parts]
            assert_equal64(found, getattr(expected, name), tolerance=1e-11)
        for name in ("path_kl", "lam", "kl_ema"):
            if getattr(expected, name) is not None:
                found = float(terms.metrics[name][0])
                assert found == pytest.approx(getattr(expected, name), rel=1e-11)
