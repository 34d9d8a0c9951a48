"""Exported programs act as the policy does, wherever they run."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import trqam_fast as tf
from tests.helpers import assert_within_budget
from trqam_fast.agents import ALGORITHMS
from trqam_fast.errors import UsageError
from trqam_fast.evaluation.policy import ROWS
from trqam_fast.simulator.bounds import unscaled
from trqam_fast.training.interface import Sizes

OBS, ACT, CHUNK = 5, 2, 3
SIZES = Sizes(OBS, (-10.0, 0.0), (10.0, 0.5))
SMALL = {
    "preset": "smoke", "seeds": (3, 5), "actor_hidden_dims": (16, 8), "value_hidden_dims": (16, 8),
    "actor_layer_norm": True, "flow_steps": 2, "horizon_length": CHUNK, "action_chunking": True,
}  # fmt: skip


def make_agents(algo, candidates=1):
    """An agent of two seeds, with random biases too, and the same in float64."""
    flags = {} if algo == "bc" else {"best_of_n": candidates}
    config = tf.make_config(algo=algo, **SMALL, **flags).agent
    agent, exact = (
        ALGORITHMS[algo](config, OBS, ACT, [3, 5], dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    generator = torch.Generator().manual_seed(1)
    for block in (agent.online, agent.target):
        for tensor in block.leaves:
            tensor.data.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    exact.load_state_dict(agent.state_dict())
    return agent, exact


def loaded(path):
    """A function of two arrays, by the runtime that the file is for."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda *arrays: program(*map(torch.from_numpy, arrays)).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    assert [(each.name, each.shape[0]) for each in session.get_inputs()] == [
        ("observations", "batch"), ("noise", "batch"),
    ]  # fmt: skip
    assert [each.name for each in session.get_outputs()] == ["actions"]
    return lambda s, z: session.run(None, {"observations": s, "noise": z})[0]


FORMATS = [
    *((algo, "pt2") for algo in ALGORITHMS),
    *((algo, "onnx") for algo in ("fql", "dsrl", "qam-e", "trqam")),  # BC, QAM, SQAM act as TRQAM
]


@pytest.mark.parametrize(("algo", "suffix"), FORMATS)
def test_acts_as_predict_does(tmp_path, algo, suffix):
    """Of any number of rows, with the same noise, in the environment's units."""
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    candidates = 1 if algo == "bc" else 4
    agent, exact_agent = make_agents(algo, candidates)
    policy = tf.Policy(agent, SIZES, run=1, seed=7)
    program = loaded(policy.export(tmp_path / f"policy.{suffix}"))
    for rows in (1, 2, ROWS + 3):
        policy.reset(seed=7)
        observations = np.random.default_rng(rows).normal(size=(rows, OBS)).astype(np.float32)
        shape = (candidates, agent.noise_dim)
        draws = [np.random.default_rng([7, row]).standard_normal(shape) for row in range(rows)]
        noise = np.stack(draws)
        found = program(observations, noise.reshape(rows, -1).astype(np.float32))
        assert found.shape == (rows, CHUNK, ACT) and found.dtype == np.float32
        assert (found >= np.float32(SIZES.low)).all() and (found <= np.float32(SIZES.high)).all()
        expected = np.stack([policy.predict(observations)[0] for _ in range(CHUNK)], axis=1)
        given = (torch.from_numpy(each).double().unsqueeze(0) for each in (observations, noise))
        exact = exact_agent.act(*given, run=1)[0].numpy().reshape(found.shape)
        exact = unscaled(exact, policy.low, policy.high)
        assert exact.std(axis=(0, 1)).min() > 0.01 or rows == 1
        assert_within_budget(*([torch.from_numpy(each)] for each in (found, expected, exact)))


def test_zeros_are_the_deterministic_policy(tmp_path):
    agents = make_agents("trqam")
    policy, exact = (tf.Policy(agent, SIZES) for agent in agents)
    program = loaded(policy.export(tmp_path / "policy", format="pt2").rename(tmp_path / "p.pt2"))
    observations = np.random.default_rng(0).normal(size=(20, OBS)).astype(np.float32)
    found = program(observations, np.zeros((20, ACT * CHUNK), np.float32))[:, 0]
    acted = (each.predict(observations, deterministic=True)[0] for each in (policy, exact))
    assert_within_budget(*([torch.from_numpy(each)] for each in (found, *acted)))


def test_a_program_needs_no_package_and_holds_one_seeds_policy(tmp_path):
    """Neither the other seed's weights nor the critics that one candidate does not ask."""
    agent, _ = make_agents("trqam")
    path = tf.Policy(agent, SIZES, run=1).export(tmp_path / "policy.pt2")
    program = torch.export.load(path)
    weights = agent.acting_networks(1)["actor_fast"].tensors
    numbers = sum(tensor.numel() for tensor in weights) + 2 * ACT
    assert sum(tensor.numel() for tensor in program.constants.values()) == numbers
    assert not program.state_dict
    code = f"""
import sys
sys.modules["trqam_fast"] = None
import torch
print(torch.export.load({str(path)!r}).module()(torch.ones(4, {OBS}), torch.ones(4, {ACT * CHUNK})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    acted = program.module()(torch.ones(4, OBS), torch.ones(4, ACT * CHUNK))
    assert done.stdout.strip() == str(acted)


def test_training_goes_on_after_an_export(tmp_path):
    """The program is a copy: the agent keeps its backend, and the file its weights."""
    agent, _ = make_agents("qam-e")
    before, options = agent.backend, dict(agent.options)
    path = tf.Policy(agent, SIZES).export(tmp_path / "policy.pt2")
    assert (agent.backend, agent.options) == (before, options)
    given = np.ones((1, OBS), np.float32), np.ones((1, 2 * ACT * CHUNK), np.float32)
    first = loaded(path)(*given)
    agent.online.flat.zero_()
    assert np.array_equal(loaded(path)(*given), first) and first.std() > 0


def test_refusals(tmp_path, monkeypatch):
    agent, _ = make_agents("bc")
    policy = tf.Policy(agent, SIZES)
    for path, format in (("policy.pt", None), ("policy", None), ("policy.onnx", "torchscript")):
        with pytest.raises(UsageError, match=r"ends in .pt2 or .onnx, or pass format="):
            policy.export(tmp_path / path, format=format)
    with pytest.raises(UsageError, match=f"there is no folder {tmp_path}/none; make it"):
        policy.export(tmp_path / "none" / "policy.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"ONNX needs onnx.*'trqam_fast\[onnx\]'"):
        policy.export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
