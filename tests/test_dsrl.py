"""Known answers of DSRL: the size of its latents, where it acts and where it learns."""

import torch

from tests.factories import SMALL, make, make_batch
from tests.helpers import assert_equal64, draw
from trqam_fast.agents import TRQAMConfig
from trqam_fast.agents.dsrl import DSRLAgent
from trqam_fast.agents.gaussian import tanh_gaussian
from trqam_fast.kernels import mlp
from trqam_fast.randomness import Randomness


def test_the_flow_starts_from_latents_of_that_size():
    """nu tanh(u) both for actions and for the value that the latent policy is trained with."""
    for nu in (0.4, 1.4):
        agent = make(TRQAMConfig(**SMALL), [0], DSRLAgent, noise_scale=nu)
        batch, noise = make_batch(0, config=agent.config), agent.draw_noise(Randomness([1]))
        s, network = batch.observations, agent.online.networks["latent_actor"]
        eps = draw(1, agent.config.batch_size, 1, agent.dim, seed=3)
        latent, _, _ = tanh_gaussian(mlp(network, s), eps[:, :, 0])
        field = agent.target.networks["actor_slow"]
        assert_equal64([agent.act(s, eps)], [agent.flow(field, s, nu * latent).clamp(-1, 1)])
        _, terms = agent.loss(batch, noise)
        latent = terms.outputs["latent"]
        value = agent.critic_values(agent.online.networks["latent_critic"], s, nu * latent)
        assert_equal64([terms.metrics["latent_q"]], [value.mean((1, 2))])
        assert not torch.allclose(latent, nu * latent)
