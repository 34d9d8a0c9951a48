"""QAM-E: the edit policy against torch.distributions, and its entropy against its target."""

import csv

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from tests.helpers import draw
from tests.runs import rows, run
from trqam_fast.agents import QAMEAgent, QAMEConfig, algorithm
from trqam_fast.data.batch import Batch
from trqam_fast.randomness import Randomness
from trqam_fast.training.load_run import load_run

OBS, ACT, SIZE = 5, 2, 16
CONFIG = QAMEConfig(
    batch_size=SIZE, actor_hidden_dims=(16, 16), value_hidden_dims=(16, 16), num_qs=3,
    flow_steps=4, horizon_length=3, action_chunking=True, inv_temp=2.0, edit_scale=0.3,
)  # fmt: skip
D = 6


def batch_of(runs=1, seed=0):
    return Batch(
        draw(runs, SIZE, OBS, seed=seed), draw(runs, SIZE, 3, ACT, seed=seed + 1).clamp(-1, 1),
        -draw(runs, SIZE, seed=seed + 2).abs(), torch.ones(runs, SIZE, dtype=torch.float64),
        torch.ones(runs, SIZE, dtype=torch.float64), draw(runs, SIZE, OBS, seed=seed + 3),
    )  # fmt: skip


def make(kind="qam-e", config=CONFIG, seeds=(0,), **options):
    options = {"dtype": torch.float64, "backend": "reference", **options}
    return algorithm(kind)(config, OBS, ACT, list(seeds), **options)


def noise_of(agent, seeds=(7,)):
    return agent.draw_noise(Randomness(seeds))


def plain(network, run, inputs):
    """One run's network, layer by layer."""
    for kernel, bias in zip(network.kernels[:-1], network.biases[:-1], strict=True):
        inputs = torch.nn.functional.gelu(inputs @ kernel[run] + bias[run], approximate="tanh")
    return inputs @ network.kernels[-1][run] + network.biases[-1][run]


def test_without_edits_it_is_qam():
    config = QAMEConfig(**{**vars(CONFIG), "edit_scale": 0.0})
    ours, qam = make(config=config), make("qam")
    assert list(ours.online.shapes) == ["actor_fast", "actor_slow", "critic"]
    for step in range(3):
        noise = noise_of(qam, (step,))
        ours.update(batch_of(seed=step), noise)
        qam.update(batch_of(seed=step), noise)
    torch.testing.assert_close(ours.online.flat, qam.online.flat, rtol=0, atol=1e-12)


def test_an_edit_policy_that_edits_nothing_leaves_the_gradients_of_qam():
    ours, qam = make(), make("qam")
    with torch.no_grad():
        ours.online.span("edit_actor").zero_()
        width = qam.online.flat.shape[1]
        ours.online.flat[:, -width:] = qam.online.flat
        ours.target.flat.copy_(qam.target.flat)
    noise = noise_of(ours)
    noise["next_edit_eps"].zero_()
    gradient, _ = ours.gradients(batch_of(), noise)
    expected, _ = qam.gradients(batch_of(), noise)
    torch.testing.assert_close(gradient[:, -width:], expected, rtol=0, atol=1e-12)
    assert gradient[:, :-width].abs().max() > 1e-3


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_gradients_of_the_edit_policy(backend):
    """The loss written again with torch.distributions, for one of two runs."""
    agent = make(seeds=(0, 1), backend=backend)
    with torch.no_grad():
        agent.online.span("edit_alpha").fill_(0.4)
    batch, noise = batch_of(2), noise_of(agent, (7, 8))
    gradient, terms = agent.gradients(batch, noise)
    run_index, networks = 1, agent.online.networks
    s, h = batch.observations[run_index], 1.0 / CONFIG.flow_steps
    x = noise["edit_x0"][run_index]
    with torch.no_grad():
        for k in range(CONFIG.flow_steps):
            t = torch.full((SIZE, 1), k * h, dtype=torch.float64)
            x = x + h * plain(networks["actor_fast"], run_index, torch.cat([s, x, t], -1))
    x = x.clamp(-1, 1)
    mean, log_std = plain(networks["edit_actor"], run_index, torch.cat([s, x], -1)).chunk(2, -1)
    gaussian = Independent(Normal(mean, log_std.exp()), 1)
    policy = TransformedDistribution(gaussian, [TanhTransform(cache_size=1)])
    e = (mean + log_std.exp() * noise["edit_eps"][run_index]).tanh()
    log_prob = policy.log_prob(e)
    critic = networks["critic"].map(lambda tensor: tensor[run_index : run_index + 1].detach())
    edited = (x + CONFIG.edit_scale * e).clamp(-1, 1)
    q = agent.critic_values(critic, s[None], edited[None]).mean()
    log_alpha = agent.online.scalars["edit_alpha"]
    alpha = log_alpha[run_index].exp()
    entropy = -log_prob.mean()
    loss = -q - alpha.detach() * entropy + alpha * (entropy.detach() + 0.5 * D)
    leaves = [*networks["edit_actor"].tensors, log_alpha]
    expected = torch.autograd.grad(loss, leaves)
    ours = dict(zip(map(id, agent.online.leaves), agent.online.unflatten(gradient), strict=True))
    for leaf, wanted in zip(leaves, expected, strict=True):
        found = ours[id(leaf)][run_index]
        torch.testing.assert_close(found, wanted[run_index].view_as(found), rtol=1e-9, atol=1e-11)
    assert terms.metrics["edit_entropy"][run_index].item() == pytest.approx(entropy.item())


def test_the_entropy_reaches_its_target():
    """With critics that like small actions, one run from below and one from above."""
    changed = {"lr": 3e-2, "batch_size": 32, "flow_steps": 2, "clip_grad": False}
    config = QAMEConfig(**{**vars(CONFIG), **changed})
    agent = make(config=config, seeds=(0, 0))
    batch = Batch(*(tensor[[0, 0]].repeat_interleave(2, 1) for tensor in batch_of()))
    agent.critic_values = lambda critic, s, a: -5.0 * a.square().sum(-1)[:, None].expand(-1, 3, -1)
    with torch.no_grad():
        (_, bias) = agent.online.networks["edit_actor"].biases[-1].chunk(2, -1)
        bias.copy_(torch.tensor([-4.0, 0.0]).view(2, *[1] * (bias.dim() - 1)))
    generator, entropies = Randomness([3, 3]), []
    for _ in range(800):
        terms = agent.update(batch, agent.draw_noise(generator))
        entropies.append(terms.metrics["edit_entropy"])
    target = config.edit_target_entropy * D
    below, above = (entropies[0] - target).tolist()
    assert below < -1.0 and above > 1.0
    settled = torch.stack(entropies[-300:]).mean(0)
    assert settled.tolist() == pytest.approx([target, target], abs=0.25)


def test_acting_takes_the_noise_of_both():
    agent = make(config=QAMEConfig(**{**vars(CONFIG), "best_of_n": 4}))
    assert agent.noise_dim == 2 * D
    s, z = draw(1, 7, OBS), draw(1, 7, 4, 2 * D, seed=1)
    actions = agent.act(s, z)
    assert actions.shape == (1, 7, D) and actions.abs().max() <= 1
    other = z.clone()
    other[..., D:] += 1.0
    moved = (agent.act(s, other) - actions).abs()
    assert moved.max() > 1e-3


def test_runs_are_independent():
    both, alone = make(seeds=(0, 1)), make(seeds=(1,))
    for step in range(3):
        batch, noise = batch_of(2, seed=step), noise_of(both, (step, 10 + step))
        both.update(batch, noise)
        one = {name: tensor[1:] for name, tensor in noise.items()}
        alone.update(Batch(*(tensor[1:] for tensor in batch)), one)
    torch.testing.assert_close(both.online.flat[1], alone.online.flat[0], rtol=1e-9, atol=1e-11)


def test_initial_deviations_of_the_heads():
    """Mean and deviation are layers of their own, each Xavier-uniform."""
    agent = make(config=QAMEConfig(**{**vars(CONFIG), "actor_hidden_dims": (512,)}))
    kernel = agent.online.networks["edit_actor"].kernels[-1]
    bound = (6 / (512 + D)) ** 0.5
    assert 0.99 * bound < kernel.abs().max().item() <= bound
    assert agent.online.scalars["edit_alpha"].tolist() == [[0.0]]


def test_a_run(flags, tmp_path, capsys):
    folder = tmp_path / "run"
    online = ("--online-steps", "10", "--start-training", "3")
    assert run(flags, folder, "--algo", "qam-e", "--seeds", "3", "5", *online) == 0
    last = rows(folder / "metrics.csv")[-1]
    assert float(last["edit_alpha"]) > 0 and last["edit_entropy"] and last["stage"] == "online"
    loaded = load_run(folder)
    assert type(loaded.agent) is QAMEAgent
    more = ["--pretrained", str(folder), "--offline-steps", "0", "--seeds", "3", "5", *online]
    bc = flags.index("--bc-steps")
    short = [*flags[:bc], *flags[bc + 2 :]]
    assert run(short, tmp_path / "next", "--algo", "qam-e", *more) == 0
    assert run(short, tmp_path / "other", "--algo", "qam", *more) == 2
    assert "--algo needs actor_fast, actor_slow, critic" in capsys.readouterr().err
    with open(folder / "metrics.csv", newline="") as file:
        assert next(csv.reader(file)) == ["stage", "step", "seed", *QAMEAgent.metrics, "grad_norm"]
