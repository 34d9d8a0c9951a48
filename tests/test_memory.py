import dataclasses
import subprocess
import sys

import pytest
import torch

from benchmarks.memory import held_bytes, scratch_bytes, temporary_bytes
from benchmarks.sizes import PAPER, make_agent, make_batch
from trqam_fast.memory import update_bytes
from trqam_fast.randomness import Randomness

BASE = dataclasses.replace(PAPER, width=96, batch=64, ensemble=3)
CHANGES = [
    {}, {"runs": 3}, {"batch": 256}, {"width": 200}, {"flow_steps": 25}, {"ensemble": 10},
    {"depth": 2}, {"obs_dim": 300}, {"horizon": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_update_stays_within_its_bound(change):
    """And the bound is no more than a few times too large."""
    size = dataclasses.replace(BASE, **change)
    agent, batch = make_agent(size, "cpu", "cpp", "ieee"), make_batch(size, "cpu")
    randomness = Randomness(range(size.runs))

    def update():
        agent.update(batch, agent.draw_noise(randomness))

    update()
    bound = update_bytes(
        type(agent),
        agent.config,
        size.obs_dim,
        size.act_dim,
        runs=size.runs,
        threads=torch.get_num_threads(),
    )
    found = {"held": held_bytes(agent), "temporary": temporary_bytes(update)}
    for name, measured in found.items():
        assert 0.4 * bound[name] <= measured <= bound[name], (name, measured, bound[name])


def test_scratch_stays_within_its_bound():
    """In a process of its own, since scratch memory only grows."""
    code = (
        "import torch\n"
        "from benchmarks.memory import scratch_bytes\n"
        "from benchmarks.sizes import make_agent, make_batch\n"
        "from tests.test_memory import BASE\n"
        "from trqam_fast.randomness import Randomness\n"
        "from trqam_fast.memory import update_bytes\n"
        "torch.set_num_threads(2)\n"
        "agent, batch = make_agent(BASE, 'cpu', 'cpp', 'ieee'), make_batch(BASE, 'cpu')\n"
        "agent.update(batch, agent.draw_noise(Randomness([0])))\n"
        "bound = update_bytes(type(agent), agent.config, 28, 5, threads=2)\n"
        "print(scratch_bytes(), bound['scratch'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    measured, bound = map(int, done.stdout.split())
    assert 0.1 * bound <= measured <= bound


def test_updates_allocate_nothing_lasting():
    agent, batch = make_agent(BASE, "cpu", "cpp", "ieee"), make_batch(BASE, "cpu")
    randomness = Randomness([0])
    for _ in range(2):
        agent.update(batch, agent.draw_noise(randomness))
    before = scratch_bytes(), held_bytes(agent)
    for _ in range(3):
        agent.update(batch, agent.draw_noise(randomness))
    assert (scratch_bytes(), held_bytes(agent)) == before
