"""What every algorithm of the registry promises, and one that is not in it.

Longer than 400 lines, as each mistake in an algorithm of one's own is a class.
"""

import csv
import itertools
import json
import math
import re
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from tests.factories import SMALL, make, make_batch, train
from tests.helpers import assert_equal64
from tests.runs import rows, run
from trqam_fast.agents import (
    ALGORITHMS,
    MAIN,
    Agent,
    BCAgent,
    FQLAgent,
    QAMAgent,
    Terms,
    TRQAMConfig,
    algorithm,
    declaration,
)
from trqam_fast.agents.checks import unsaved
from trqam_fast.agents.config import names_of
from trqam_fast.agents.trial import try_out
from trqam_fast.cli import run_command
from trqam_fast.data.batch import Batch
from trqam_fast.errors import UsageError
from trqam_fast.memory import update_bytes
from trqam_fast.randomness import Randomness
from trqam_fast.report.find import collect
from trqam_fast.runs import checkpoint
from trqam_fast.training.flags import parse_config
from trqam_fast.training.load_run import load_run

NAMES = list(ALGORITHMS)
TUNED = [name for name in NAMES if ALGORITHMS[name].fine_tunes]
OWN = "examples.annealed_qam:AnnealedQAM"


def agent_of(name, seeds=(0,), **settings):
    return make(TRQAMConfig(**SMALL, **settings), list(seeds), algorithm(name))


@pytest.mark.parametrize("name", [*NAMES, OWN])
def test_declarations_are_whole(name):
    kind = algorithm(name)
    agent = agent_of(name)
    shapes = kind.network_shapes(agent.config, 3, 2)
    assert kind.label and set(kind.targets) <= set(shapes) and set(kind.cloned) <= set(shapes)
    assert list(agent.online.shapes)[len(shapes) - len(kind.targets) :] == list(kind.targets)
    assert set(kind.tapes(agent.config)) <= set(agent.online.networks)
    assert name == OWN or set(kind.published) <= set(names_of(kind.Config))
    terms = train(agent, [0], 1)
    assert set(terms.metrics) <= {*kind.metrics, "grad_norm"}
    assert all(value.shape == (1,) for value in terms.metrics.values())
    assert set(kind.recorded.infos.values()) <= {*kind.metrics}
    assert set(kind.recorded.outputs.values()) <= set(terms.outputs) | {"next_actions"}


def test_labels_and_colours_tell_apart():
    for values in zip(*((kind.label, kind.colour) for kind in ALGORITHMS.values()), strict=True):
        assert len(set(values)) == len(NAMES)


@pytest.mark.parametrize("name", [*NAMES, OWN])
@pytest.mark.parametrize("best_of_n", [1, 3])
def test_runs_are_independent_also_of_one_that_diverges(name, best_of_n):
    def poison(u, batch):
        if u == 1:
            batch.rewards[1], batch.actions[1] = float("nan"), float("nan")
        return batch

    together = agent_of(name, (0, 1, 2), best_of_n=best_of_n)
    terms = train(together, [0, 1, 2], 4, poison)
    assert not together.online.flat[1].isfinite().all()
    for index in (0, 2):
        alone = agent_of(name, (index,), best_of_n=best_of_n)
        own = train(alone, [index], 4)
        state, expected = together.state_dict(), alone.state_dict()
        assert_equal64([state[k][index : index + 1] for k in state], list(expected.values()))
        metrics = [value[index : index + 1] for value in terms.metrics.values()]
        assert_equal64(metrics, list(own.metrics.values()))
        noise = torch.randn(1, 5, best_of_n, alone.noise_dim, dtype=torch.float64)
        s = torch.randn(1, 5, 3, dtype=torch.float64)
        assert_equal64([together.act(s, noise, run=index)], [alone.act(s, noise)])


@pytest.mark.parametrize("name", NAMES)
def test_backends_agree_over_many_updates(name):
    states = []
    for backend in ("reference", "cpp"):
        agent = make(TRQAMConfig(**SMALL), [0], algorithm(name), backend=backend)
        train(agent, [0], 10)
        states.append(list(agent.state_dict().values()))
    assert_equal64(states[1], states[0], tolerance=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_continues_exactly(name):
    agent, other = agent_of(name, (0, 1)), agent_of(name, (5, 6))
    train(agent, [0, 1], 2)
    other.load_state_dict(agent.state_dict())
    for each in (agent, other):
        train(each, [0, 1], 2)
    for (key, a), b in zip(agent.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert unsaved(agent, lambda: train(agent, [0, 1], 1)) == []


@pytest.mark.parametrize("name", TUNED)
def test_a_cloned_field_is_taken_over(name):
    cloned, agent = agent_of("bc", (3, 4)), agent_of(name, (0, 1))
    train(cloned, [3, 4], 1)
    agent.load_pretrained(cloned.online.span("actor_slow"))
    for network in agent.cloned:
        assert torch.equal(agent.online.span(network), cloned.online.span("actor_slow"))
    for network in agent.targets:
        assert torch.equal(agent.target.span(network), agent.online.span(network))


@pytest.mark.parametrize("name", NAMES)
def test_held_memory_stays_within_its_bound(name):
    agent = make(TRQAMConfig(**SMALL), [0, 1], algorithm(name))
    blocks = (agent.online.flat, agent.online.gradient, agent.exp_avg, agent.exp_avg_sq)
    numbers = sum(block.numel() for block in (*blocks, agent.target.flat))
    bound = update_bytes(algorithm(name), agent.config, 3, 2, runs=2)
    assert 4 * numbers <= bound["held"] <= 4 * numbers + 4 * 2 * 80


@pytest.mark.parametrize("name", TUNED)
def test_all_stages_resume_and_load(name, flags, tmp_path):
    """Pretraining, offline and online; stopped and continued, it ends as undisturbed."""
    stages = ("--online-steps", "10", "--start-training", "5", "--algo", name, "--keep", "9")
    assert run(flags, tmp_path / "whole", *stages) == 0
    folder = tmp_path / "cut"
    assert run(flags, folder, *stages, "--online-steps", "0", "--offline-steps", "20") == 0
    assert run([], folder, "--resume", "--online-steps", "10") == 0
    last = "checkpoints/step_000000050.pt"
    whole, cut = (checkpoint.load(tmp_path / d / last)["agent"] for d in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    with open(folder / "metrics.csv", newline="") as file:
        header = next(csv.reader(file))
    assert header[:3] == ["stage", "step", "seed"] and set(header[3:]) <= {
        *ALGORITHMS[name].metrics, "grad_norm",
    }  # fmt: skip
    loaded = load_run(folder)
    assert type(loaded.agent) is ALGORITHMS[name] and loaded.stage == "online"


def test_an_algorithm_of_ones_own(flags, tmp_path, capsys):
    """It trains, resumes, is evaluated, swept and reported with its own settings and metrics."""
    from trqam_fast import evaluate
    from trqam_fast.report.__main__ import main as report
    from trqam_fast.sweep.plan import make_plan
    from trqam_fast.sweep.spec import parse_spec

    folder = tmp_path / "run"
    own = ("--algo", OWN, "--inv-temp-end", "2", "--anneal-steps", "10")
    assert run(flags, folder, *own, "--offline-steps", "10") == 0
    assert run([], folder, "--resume", "--offline-steps", "20") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^offline \d+  critic_loss .*  path_kl .*  inv_temp 2  ", printed, re.M)
    assert re.search(r"^  seed +pretrained +QAM annealed( offline)?$", printed, re.M)
    config = json.loads((folder / "config.json").read_text())
    assert config["algo"] == OWN and config["inv_temp_end"] == 2.0 and "inv_temp" not in config
    values = [float(row["inv_temp"]) for row in rows(folder / "metrics.csv") if row["inv_temp"]]
    assert values == sorted(values) and values[-1] == pytest.approx(2.0) and values[0] < 1.5
    loaded = load_run(folder)
    assert loaded.agent.label == "QAM annealed" and loaded.config.agent.anneal_steps == 10
    assert run_command(lambda: evaluate.main([str(folder), "--episodes", "1", "--envs", "1"])) == 0
    (result,) = collect([folder])[0]
    assert (result.method, result.status) == ("QAM annealed", "done")
    assert declaration(OWN).label == OWN  # nothing is imported for a name in a file
    assert run_command(lambda: report([str(folder), "--out", str(tmp_path / "report")])) == 0
    capsys.readouterr()

    spec = parse_spec(
        {
            "tasks": [config["env_name"]],
            "algos": ["bc", "qam", OWN],
            "seeds": [0],
            "flags": {"inv_temp_start": 0.5},
            "grid": {OWN: {"inv_temp_end": [1.0, 3.0]}},
        }
    )
    jobs = make_plan(spec, tmp_path)
    assert [job.method for job in jobs] == [
        "BC", "QAM", "QAM annealed inv-temp-end 1.0", "QAM annealed inv-temp-end 3.0",
    ]  # fmt: skip
    assert jobs[-1].config["inv_temp_start"] == 0.5 and "inv_temp_start" not in jobs[1].config
    assert ":" not in jobs[-1].name


class Own:
    """How it acts: by more normals, and by what a target critic says of the flow's actions."""

    label = "Own"
    noise_dim = 7

    def refine(self, networks, observations, actions, noise):
        self.branches.catch_up()
        assert noise.shape == (*actions.shape[:-1], 7 - self.dim)
        values = self.critic_values(networks["target_critic"], observations, actions)
        return 0.1 * actions + 0.01 * values.mean(1).unsqueeze(-1) + noise[..., :1]


class Scaled(Own):
    """How it acts, without a flow."""

    def propose(self, networks, observations, noise):
        return 0.1 * noise[..., : self.dim]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *itertools.product(["qam", "trqam", "sqam"], ["refined", "proposed", "slow", "as it is"]),
        ("qam-e", "slow"), ("qam-e", "as it is"),  # it has a `refine` of its own
    ],
)  # fmt: skip
def test_next_actions_are_sampled_as_the_policy_acts(name, setting):
    parts = {"refined": (Own,), "proposed": (Scaled,)}.get(setting, ())
    kind = type("Kind", (*parts, algorithm(name)), {})
    agent = make(TRQAMConfig(**SMALL, best_of_n=2), [0, 1], kind)
    if setting == "slow":
        agent.acting_field = "actor_slow"
        agent.online.span("actor_slow").mul_(1.5)
    batch = Batch(*(torch.cat(parts) for parts in zip(
        *(make_batch(seed, config=agent.config) for seed in (0, 10)), strict=True
    )))  # fmt: skip
    noise = agent.draw_noise(Randomness([0, 1]))
    expected = agent.act(batch.next_observations, agent.policy_noise(noise))
    terms = agent.update(batch, noise)
    assert_equal64([terms.outputs["next_actions"]], [expected])
    with pytest.raises(ValueError, match="act: noise has shape .*expected .*, noise_dim"):
        agent.act(batch.next_observations, agent.policy_noise(noise)[..., 1:])


def test_a_state_without_its_step_changes_nothing():
    agent, other = agent_of("trqam"), agent_of("trqam", seeds=(1,))
    before, state = agent.online.flat.clone(), other.state_dict()
    del state["step"]
    with pytest.raises(KeyError, match="step"):
        agent.load_state_dict(state)
    assert torch.equal(agent.online.flat, before)


def test_the_page_runs_as_written(flags, tmp_path, monkeypatch, capsys):
    """Its whole algorithm, in a file of its own."""
    page = (Path(__file__).parent.parent / "docs" / "your_own_algorithm.md").read_text()
    block = re.search(r"`distilled.py`.*?^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "distilled.py").write_text(block[1])
    monkeypatch.syspath_prepend(tmp_path)
    own = ("--algo", "distilled:Distilled", "--student-hidden-dims", "8", "--online-steps", "0")
    assert run(flags, tmp_path / "run", *own) == 0
    assert float(rows(tmp_path / "run" / "metrics.csv")[-1]["distill_loss"]) > 0
    assert re.search(r"^offline \d+  bc_loss .*  distill_loss ", capsys.readouterr().out, re.M)
    sys.modules.pop("distilled")


class Boxed(BCAgent):
    label = "Boxed"

    @dataclass(frozen=True)
    class Config(BCAgent.Config):
        beta: float = 2.0


@dataclass(frozen=True)
class DataConfig(Boxed.Config):
    share: float = 0.5


class BoxedAgain(Boxed):
    Config = DataConfig


def test_settings_whose_class_says_nothing_or_has_a_name_of_the_trainers(capsys):
    """The trainer has a `DataConfig` too; the flags of both are there."""
    flags = ["--algo", f"{__name__}:BoxedAgain", "--beta", "3", "--share", "0.1", "--generated"]
    config = parse_config(flags)
    assert (config.agent.beta, config.agent.share, config.generated) == (3.0, 0.1, True)
    with pytest.raises(SystemExit):
        parse_config([*flags, "--help"])
    text = capsys.readouterr().out
    assert "What Boxed.Config adds." in text and "What DataConfig adds." in text
    assert "Config(" not in text


class Negated(Boxed):
    @dataclass(frozen=True)
    class Config(Boxed.Config):
        no_target: bool = False


def test_a_setting_may_begin_with_no():
    flags = ["--algo", f"{__name__}:Negated"]
    assert parse_config([*flags, "--no-target"]).agent.no_target
    assert not parse_config([*flags, "--no-no-target", "--no-clip-grad"]).agent.no_target


class Unlabelled(Agent):
    network_shapes, draws, loss = BCAgent.network_shapes, BCAgent.draws, BCAgent.loss


class Lossless(Agent):
    network_shapes, draws, label = BCAgent.network_shapes, BCAgent.draws, "Mine"


class Letters(BCAgent):
    metrics = "bc_loss"


class Early(QAMAgent):
    targets = ("critic", "actor_slow")


class Plain(BCAgent):
    class Config:
        beta = 2.0


class Undecorated(FQLAgent):
    class Config(FQLAgent.Config):
        beta: float = 2.0
        alpha = 5.0


class Untyped(FQLAgent):
    @dataclass(frozen=True)
    class Config(FQLAgent.Config):
        beta: float = 2.0
        alpha = 5.0


class Still(BCAgent):
    targets = ("actor_slow",)


class Absent(QAMAgent):
    targets = ("actor_slow", "critics")
    late = None


class Uncloned(BCAgent):
    @classmethod
    def network_shapes(cls, config, obs_dim, act_dim):
        return {"policy": super().network_shapes(config, obs_dim, act_dim)["actor_slow"]}


class Lagging(BCAgent):
    acting_field = "target_actor_slow"


class Betas:
    beta: float = 2.0
    source: ClassVar[str] = "nowhere"


class Mixed(BCAgent):
    @dataclass(frozen=True)
    class Config(Betas, BCAgent.Config):
        pass


class OtherField(BCAgent):
    """A field of its own name, which is cloned and acts; what is logged, in a list."""

    label, metrics = "Other field", ["bc_loss"]
    cloned, acting_field, fine_tunes = ("policy",), "policy", True

    @classmethod
    def network_shapes(cls, config, obs_dim, act_dim):
        return {"policy": super().network_shapes(config, obs_dim, act_dim)["actor_slow"]}

    def draws(self):
        return {}

    def loss(self, batch, noise):
        loss = self.online.networks["policy"].kernels[0].square().mean((1, 2))
        return {MAIN: loss}, Terms({"bc_loss": loss.detach()}, {})


class Undrawn(BCAgent):
    def draws(self):
        return {"z": (1,)}


class Counted(BCAgent):
    def draws(self):
        return super().draws() | {"z": self.config.batch_size}


class Unasked(BCAgent):
    def loss(self, batch, noise):
        return {MAIN: noise["z"].mean((1, 2))}, Terms({}, {})


class Actionless(QAMAgent):
    def draws(self):
        return {name: shape for name, shape in super().draws().items() if name != "next_action"}


class Valueless(QAMAgent):
    def data_values(self, batch):
        return None


class Returnless(BCAgent):
    def draws(self):
        super().draws()


class Closed(BCAgent):
    def __init__(self, config):
        super().__init__(config, 3, 2, [0])


class Module(BCAgent):
    @classmethod
    def network_shapes(cls, config, obs_dim, act_dim):
        shapes = super().network_shapes(config, obs_dim, act_dim)
        return shapes | {"value": torch.nn.Linear(obs_dim, 1)}


class Misspelt(BCAgent):
    def loss(self, batch, noise):
        return {MAIN: self.network("actor", batch.observations).mean((1, 2))}, Terms({}, {})


class Fieldless(BCAgent):
    cloned, acting_field = ("policy",), "policy"
    network_shapes = OtherField.network_shapes


class Misdrawn(BCAgent):
    def draws(self):
        return {"bc_x0": (1, 2, 3)}


class Scalar(BCAgent):
    def after_step(self, metrics):
        metrics["lr"] = torch.tensor(self.config.lr)


class Number(BCAgent):
    def after_step(self, metrics):
        metrics["lr"] = self.config.lr


class Forgetful(QAMAgent):
    """It keeps what no checkpoint holds, what does not change, and what is in `state`."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen, self.means, self.fixed = 0, {"grad": self.ones * 0}, self.ones * 2
        self.held, self.ema, self.lazy, self.best = self.ones * 0, self.ones * 0, None, math.nan
        self.norm, self.array = torch.nn.BatchNorm1d(1), np.zeros(2)
        self.generator, self.sparse = torch.Generator(), torch.zeros(2).to_sparse()
        self.gone = weakref.proxy(torch.nn.Linear(1, 1))
        self.itself = [self.means]
        self.itself.append(self.itself)
        self.fixed8 = torch.zeros(2, dtype=torch.float8_e4m3fn)

    def state(self):
        return super().state() | {"held": self.held, "ema": self.ema}

    def after_step(self, metrics):
        self.seen += 1
        self.means["grad"] = 0.9 * self.means["grad"] + metrics["grad_norm"]
        self.held += 1
        self.ema = 0.9 * self.ema + metrics["grad_norm"]  # another tensor, which is saved too
        self.norm(torch.rand(4, 1, generator=self.generator))
        self.array[0] += 1
        if self.lazy is None:
            self.lazy = self.ones * 3


class Gaudy(BCAgent):
    colour = "red"


class Sooner(BCAgent):
    first_updates = ("warmup",)


class Renowned(BCAgent):
    published: ClassVar = {"lr": 3e-4}


class Unflowing(QAMAgent):
    acting_field = "critic"


class Slim(BCAgent):
    """Its flow is that of a field as wide as it likes."""

    cloned = ()

    @classmethod
    def network_shapes(cls, config, obs_dim, act_dim):
        (name, shape), *_ = super().network_shapes(config, obs_dim, act_dim).items()
        return {name: replace(shape, hidden_dims=(4,))}


class EachSeed(BCAgent):
    """It has a number for each of its seeds."""

    def loss(self, batch, noise):
        losses, terms = super().loss(batch, noise)
        return {name: torch.arange(1.0, 4.0) * loss for name, loss in losses.items()}, terms


class Chooseless(BCAgent):
    label, Config = "Chooseless", FQLAgent.Config


class Leaking(QAMAgent):
    """Its values are normalised over all runs."""

    def terminal_adjoint(self, observations, x):
        gradient, values = super().terminal_adjoint(observations, x)
        return gradient / values.std(), values


class Drawing(FQLAgent):
    def loss(self, batch, noise):
        losses, terms = super().loss(batch, noise)
        return {name: loss * torch.rand(self.runs) for name, loss in losses.items()}, terms


class Untrained(QAMAgent):
    def loss(self, batch, noise):
        losses, terms = super().loss(batch, noise)
        return {"cloning": losses["cloning"]}, terms


class Broad(BCAgent):
    def propose(self, networks, observations, noise):
        return torch.cat([noise, noise], dim=-1)


class Counting(BCAgent):
    """Its loss depends on how often it was asked, which `state` returns."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.count = torch.zeros(self.runs)

    def loss(self, batch, noise):
        losses, terms = super().loss(batch, noise)
        self.count += 1
        return {name: loss * self.count for name, loss in losses.items()}, terms

    def state(self):
        return super().state() | {"count": self.count}


class Copied(Counting):
    def state(self):
        return super().state() | {"count": self.count.clone()}


class Numbered(Counting):
    def state(self):
        return super().state() | {"count": self.count[0]}


class Whole(Counting):
    def state(self):
        return super().state() | {"count": self.count.long()}


class Late(QAMAgent):
    def loss(self, batch, noise):
        losses, terms = super().loss(batch, noise)
        return {name: loss.sum() for name, loss in losses.items()}, terms


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Unlabelled", 'it has no label; write label = "Unlabelled" in it'),
        ("Lossless", "it has no loss; define it"),
        ("Letters", "its metrics is 'bc_loss'; give a tuple of names"),
        ("Gaudy", "its colour is 'red'; give one such as"),
        ("Sooner", "its first_updates names 'warmup', which is no setting of its Config; name one"),
        ("Renowned", "its published 'lr' is of type float; give ByDomain"),
        ("Early", "its late is 'critic', not the last of its targets; write late = None"),
        ("Plain", "its Config does not inherit CloningConfig; begin it with @dataclass"),
        ("Undecorated", "its Config would lose beta, alpha (no field of a dataclass); write"),
        ("Untyped", "its Config would lose alpha (no field of a dataclass); write @dataclass"),
        ("Still", "it has targets, and its Config no tau; inherit CriticConfig too"),
        ("Absent", "its targets names 'critics', which is no network it has; name one of "),
        ("Uncloned", "its cloned names 'actor_slow', which is no network it has; name one of "),
        ("Lagging", "its acting_field names 'target_actor_slow', which is no network it has; name"),
        (
            "Mixed",
            "its Config would lose beta (no field of a dataclass); write @dataclass(frozen="
            "True) above class Betas, and",
        ),
        (
            "Closed",
            "its __init__ does not take what Agent's does (too many positional arguments); w",
        ),
        ("Unflowing", "its acting_field 'critic' is no velocity field; give it the inp"),
        ("Module", "its network 'value' is of type Linear; give its architecture, MLPShape("),
        (
            "Misspelt",
            "it applies 'actor', which is no network it has; name one of actor_slow, or add",
        ),
        (
            "Fieldless",
            "it applies 'actor_slow', which is no network it has; name one of policy, or add",
        ),
        ("Counted", "its draw 'z' is 16; give shapes without the run axis by name, such as "),
        ("Returnless", "what its draws returned is of type NoneType; give shapes "),
        ("Unasked", "it reads the noise 'z', which it does not draw; add it to what its draws re"),
        ("Actionless", "its critics learn from next actions, of which it draws no noise; add "),
        ("Valueless", "its data_values returned None, which its critic_loss needs; return "),
        ("Undrawn", "its draws are z, while cloning_loss reads bc_x0; add "),
        ("Scalar", "its metric 'lr' is a tensor []; give a tensor [1], one number for each run"),
        ("Number", "its metric 'lr' is of type float; give a tensor [1], one number for each run"),
    ],
)
def test_what_an_algorithm_of_ones_own_lacks(name, message):
    with pytest.raises(UsageError) as error:
        train(agent_of(f"{__name__}:{name}"), [0], 1)
    start = f"--algo is {__name__}:{name}, but {message}"
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(" (docs/your_own_algorithm.md)")


def tried(name, **settings):
    """The notes on an algorithm, of two runs."""

    def make():
        return agent_of(name, (0, 1), **settings)

    def draw():
        batch = make_batch(next(seeds), runs=2, config=agent.config)
        return batch, agent.draw_noise(randomness)

    agent, randomness, seeds = make(), Randomness([0, 1]), itertools.count(0, 10)
    return try_out(agent, make, draw, lambda: agent.update(*draw()))


@pytest.mark.parametrize(
    "settings", [{}, {"best_of_n": 3, "critic_warmup": 9, "freeze_base": True}]
)
@pytest.mark.parametrize("name", [*NAMES, OWN, f"{__name__}:Counting"])
def test_nothing_is_said_of_what_is_right(name, settings):
    assert tried(name, **settings) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Leaking", "what an update makes of a run changes with the data of others; reduce over a"),
        ("Broad", "what it acts with is a tensor [2, 2, 8]; give a tensor [2, 2, 4], self.dim"),
        ("Numbered", "its state 'count' is a tensor []; give a tensor [2, ...], a row for each"),
        ("Whole", "its state cannot be restored (count has shape [2] and torch.int64, where "),
        ("Copied", "its state 'count' is not restored when a run continues; return the tensor i"),
    ],
)
def test_mistakes_that_a_trial_finds(name, message):
    with pytest.raises(UsageError) as error:
        tried(f"{__name__}:{name}")
    assert str(error.value).startswith(f"--algo is {__name__}:{name}, but {message}")


def test_what_may_be_meant_is_noted():
    (note,) = tried(f"{__name__}:Drawing")
    assert "so its runs are not reproducible; declare the random numbers that it draws in" in note
    (note,) = tried(f"{__name__}:Untrained")
    assert note.startswith(f"the first updates of {__name__}:Untrained leave actor_fast, by which ")


def test_candidates_need_something_that_chooses():
    """Which cloning the field of another algorithm does not do."""
    with pytest.raises(UsageError, match="no network 'critic' .* --best-of-n 3 candidates; name"):
        agent_of(f"{__name__}:Chooseless", best_of_n=3)
    agent_of(f"{__name__}:Chooseless")
    BCAgent(TRQAMConfig(**SMALL, best_of_n=3), 3, 2, [0])


def test_what_acts_may_be_of_other_widths_than_what_is_cloned():
    assert tried(f"{__name__}:Slim") == []


def test_networks_are_checked_before_a_field_is_pretrained(flags, tmp_path, capsys):
    assert run([*flags, "--algo", f"{__name__}:Absent"], tmp_path / "run") == 2
    printed = capsys.readouterr()
    assert "its targets names 'critics'" in printed.err and "pretrain" not in printed.out


def test_it_is_updated_before_a_field_is_pretrained(flags, tmp_path, capsys):
    for name, seeds, message in (
        ("Late", "0", "is a tensor []; give a tensor [1]"),
        ("Leaking", "0 1 2", "changes with the data of others"),
    ):
        own = ("--algo", f"{__name__}:{name}", "--seeds", *seeds.split())
        assert run([*flags, *own], tmp_path / name) == 2
        printed = capsys.readouterr()
        assert message in printed.err and "pretrain" not in printed.out
    each = ("--algo", f"{__name__}:EachSeed", "--seeds", "0", "1", "2")
    assert run([*flags, *each], tmp_path / "each") == 0, "tried with all of its seeds"
    assert "note: " not in capsys.readouterr().out
    assert run([*flags, "--algo", f"{__name__}:Forgetful"], tmp_path / "run") == 0
    printed = capsys.readouterr().out
    named = re.findall(
        r"^note: an update of .*:Forgetful changes self\.(\S+), which", printed, re.M
    )
    assert named == [
        "seen", "array", "generator", "means['grad']", "norm._buffers['running_mean']",
        "norm._buffers['running_var']", "norm._buffers['num_batches_tracked']",
    ]  # fmt: skip
    assert printed.index("note:") < printed.index("\npretrain ")


def test_the_field_may_have_another_name(flags, tmp_path, capsys):
    """It is cloned, acts, and starts from a cloned field, if not from another's fine-tuned one."""
    own = [*flags, "--algo", f"{__name__}:OtherField", "--online-steps", "0"]
    assert run(own, tmp_path / "run") == 0
    cloned = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))[0]
    assert checkpoint.load(cloned)["stage"] == "pretrain"
    for steps in ("5", "0"):
        more = ["--pretrained", str(cloned), "--bc-steps", steps]
        assert run(own, tmp_path / steps, *more) == 0
    assert run([*flags, "--algo", "qam", "--online-steps", "0"], tmp_path / "qam") == 0
    capsys.readouterr()
    tuned = ["--pretrained", str(tmp_path / "qam"), "--bc-steps", "0"]
    assert run(own, tmp_path / "none", *tuned) == 2
    said = capsys.readouterr().err
    assert "starts a field actor_slow, but the networks of --algo are policy; name a" in said


def test_a_mistake_below_an_algorithm_of_ones_own_is_not_called_this_packages(capsys):
    """Where nobody foresaw it: draws of another shape fail in torch, called by the package."""
    assert run_command(lambda: train(agent_of(f"{__name__}:Misdrawn"), [0], 1)) == 1
    said = capsys.readouterr().err
    assert f"; the cause may be in {__name__}:Misdrawn, which is not of trqam_fast: its" in said
    Path(re.search(r"trace is in (.*?);", said)[1]).unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qan", "did you mean qam?"),
        ("os:system", "no subclass of trqam_fast.agents.Agent"),
        ("no.such:Thing", "importing no.such fails (ModuleNotFoundError: No module named 'no')"),
        ("examples.annealed_qam:Nothing", "examples.annealed_qam has no Nothing; name a class"),
        (":", "importing  fails (ValueError: Empty module name); start in its folder, set"),
    ],
)
def test_what_is_no_algorithm(name, message):
    with pytest.raises(UsageError, match="--algo is") as error:
        algorithm(name)
    assert message in str(error.value)
