"""Convert a checkpoint of the authors' JAX code: python -m trqam_fast.convert params.pkl out.pt.

Longer than 400 lines, as the names in the authors' file, carrying its values over and checking the
result against recorded outputs are one command.
"""

from __future__ import annotations

import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from trqam_fast import flax_pickle
from trqam_fast.agents import Agent, BCAgent, TRQAMAgent
from trqam_fast.agents.config import CloningConfig
from trqam_fast.agents.trqam import TRQAMConfig
from trqam_fast.authors import Deviations, agent_tensors, named_tensors
from trqam_fast.data.npz import read_arrays
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded, sha256_of
from trqam_fast.runs import checkpoint
from trqam_fast.text import printable

TOLERANCE = 1e-5
LARGEST = float(np.finfo(np.float32).max)
MOST_UPDATES = 2**31
FIELDS = ("actor_slow", "actor_fast")
NETWORKS = {*FIELDS, "target_actor_slow", "critic", "target_critic"}
UNUSED = {"target_actor_fast"}
"""Networks of the authors' checkpoints that their algorithm never reads."""


@dataclass(frozen=True)
class ConvertArgs:
    """Convert a checkpoint of the authors' JAX code into one of this package.

    The file is read as plain data: nothing in it is executed, and whatever is not a number, a
    container or a numpy array is refused by its name.
    """

    pickle: Annotated[Path, tyro.conf.Positional]
    """Checkpoint of the authors' code, e.g. params_300000.pkl."""
    out: Annotated[Path, tyro.conf.Positional]
    """Checkpoint to write, for --pretrained."""
    check: Path | None = None
    """An npz file with observations, noise, actions and values of the original networks; compare
    the result with it in float32, and exit with status 1 if it deviates by more than 1e-5."""

    def __post_init__(self) -> None:
        for name in ("pickle", "out", "check"):
            path = getattr(self, name)
            object.__setattr__(self, name, None if path is None else expanded(path))


class FlaxCheckpoint:
    """The arrays of one checkpoint of the authors' code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.agent = self.entry(flax_pickle.read(path), "agent")
        self.bytes = path.stat().st_size
        network = self.entry(self.agent, "network")
        self.params = self.entry(network, "params")
        self.networks = {
            name.removeprefix("modules_")
            for name in self.params
            if isinstance(name, str) and name.startswith("modules_")
        }
        self.optimiser = find_adam(network.get("opt_state"))

    def entry(self, tree: Any, name: str) -> dict[Any, Any]:
        """Return a dictionary inside a dictionary.

        Raises:
            UsageError: it is missing.
        """
        if not isinstance(tree, dict) or not isinstance(tree.get(name), dict):
            raise UsageError(
                f"{self.path} has no {name!r}; give a checkpoint that the authors' code saved"
            )
        return tree[name]

    def array(self, tree: dict[Any, Any], name: str) -> np.ndarray:
        """Return the array `network/module/layer/part` of the weights, or of their moments.

        Raises:
            UsageError: it is missing or holds something else than numbers.
        """
        *folders, last = f"modules_{name}".split("/")
        for folder in folders:
            tree = self.entry(tree, folder)
        found = tree.get(last)
        value = found.value if isinstance(found, flax_pickle.Array) else None
        if value is None or value.dtype.kind != "f":
            raise UsageError(f"{self.path} has no numbers in {name}; the checkpoint is incomplete")
        return value

    def number(self, tree: dict[Any, Any], name: str) -> float | None:
        """Return a scalar, or None where there is none.

        Raises:
            UsageError: it is no float32: NaN, infinite or too large.
        """
        found = tree.get(name)
        if isinstance(found, flax_pickle.Array) and found.value is not None:
            found = found.value.item() if found.value.size == 1 else None
        if not isinstance(found, (int, float)):
            return None
        if not -LARGEST <= found <= LARGEST:
            raise UsageError(
                f"{self.path}: {name} is not finite or too large; take an earlier checkpoint of "
                "that run"
            )
        return float(found)

    def layers(self, network: str) -> tuple[list[tuple[int, ...]], bool]:
        """Return the shapes of a network's kernels in order, and whether it has LayerNorm.

        Raises:
            UsageError: they do not fit each other, or are more than the file can hold.
        """
        module = module_of(network)
        tree = self.entry(self.entry(self.params, f"modules_{network}"), module)
        parts = [name for name in tree if isinstance(name, str)]
        count = sum(name.startswith("Dense_") for name in parts)
        axes = 3 if "critic" in network else 2
        shapes: list[tuple[int, ...]] = []
        for layer in range(count):
            name = f"{network}/{module}/Dense_{layer}/kernel"
            shape = self.array(self.params, name).shape
            fits = len(shape) == axes and min(shape) > 0
            if fits and shapes:
                fits = shape[:-1] == (*shapes[-1][:-2], shapes[-1][-1])
            if not fits:
                raise UsageError(
                    f"{self.path}: {name} has shape {list(shape)}, which does not fit the layers "
                    "before it; the checkpoint is damaged"
                )
            shapes.append(shape)
        # One array may stand for many layers, in memory it would be there for each of them.
        numbers = sum(math.prod(shape) for shape in shapes)
        if numbers * np.float16().nbytes > self.bytes:
            raise UsageError(
                f"{self.path}: {network} has {numbers:,} weights, more than a file of "
                f"{self.bytes:,} bytes holds; the checkpoint is damaged"
            )
        if count < 2:
            raise UsageError(f"{self.path}: {network} has {count} layers; two or more are needed")
        return shapes, any(name.startswith("LayerNorm_") for name in parts)

    @property
    def cloning_only(self) -> bool:
        """Whether the checkpoint ends behaviour cloning: nothing else has been trained yet.

        The authors' code holds all networks from the start. The first update of fine-tuning moves
        the critics, but not yet their targets, and the two never meet again.
        """
        if not NETWORKS <= self.networks:
            return True
        if self.number(self.agent, "lam") not in (None, 1.0):
            return False
        shapes, _ = self.layers("critic")
        names = [f"value_net/Dense_{layer}/kernel" for layer in range(len(shapes))]
        return all(
            np.array_equal(
                self.array(self.params, f"critic/{name}"),
                self.array(self.params, f"target_critic/{name}"),
            )
            for name in names
        )


def module_of(network: str) -> str:
    """Name that flax gives to the layers of a network."""
    return "value_net" if "critic" in network else "mlp"


def find_adam(state: Any, depth: int = 4) -> dict[Any, Any] | None:
    """Return Adam's part of an optax state: the dictionary with count, mu and nu."""
    if not isinstance(state, dict):
        return None
    if {"count", "mu", "nu"} <= set(state):
        return state
    parts = (find_adam(part, depth - 1) for part in list(state.values())[:4] if depth > 0)
    return next((part for part in parts if part is not None), None)


def build_agent(source: FlaxCheckpoint) -> Agent:
    """Return an agent of one run with the checkpoint's weights, dual variables and moments.

    The number of actions in a chunk cannot be told from the weights, so the agent's one action is
    the whole chunk.

    Raises:
        UsageError: a network is missing, or its arrays contradict each other.
    """
    kernels, actor_norm = source.layers("actor_slow")
    dim = kernels[-1][-1]
    obs_dim = kernels[0][-2] - dim - 1
    options: dict[str, Any] = {
        "actor_hidden_dims": tuple(shape[-1] for shape in kernels[:-1]),
        "actor_layer_norm": actor_norm,
    }
    if obs_dim < 1:
        raise UsageError(
            f"{source.path}: actor_slow maps {kernels[0][-2]} numbers to {dim}, which leaves no "
            "observation; networks with an encoder are not part of this package"
        )
    if source.cloning_only:
        agent: Agent = BCAgent(CloningConfig(**options), obs_dim, dim, [0], backend="reference")
    else:
        critic, value_norm = source.layers("critic")
        if critic[0][-2] != obs_dim + dim or critic[-1][-1] != 1:
            raise UsageError(
                f"{source.path}: critic maps {critic[0][-2]} numbers to {critic[-1][-1]}, but the "
                f"fields imply {obs_dim + dim} to 1; the checkpoint is damaged"
            )
        options["value_hidden_dims"] = tuple(shape[-1] for shape in critic[:-1])
        options |= {"value_layer_norm": value_norm, "num_qs": critic[0][0]}
        agent = TRQAMAgent(TRQAMConfig(**options), obs_dim, dim, [0], backend="reference")
    with torch.no_grad():
        for name, tensor in agent_tensors(agent).items():
            copy_array(tensor, source.array(source.params, name), f"{source.path}: {name}")
        if isinstance(agent, TRQAMAgent):
            for name, variable in (("lam", agent.dual.lam), ("kl_ema", agent.dual.kl_ema)):
                value = source.number(source.agent, name)
                if value is not None:
                    variable.fill_(value)
    load_moments(agent, source)
    return agent


@torch.no_grad()
def load_moments(agent: Agent, source: FlaxCheckpoint) -> None:
    """Copy Adam's moments and its count of updates; without them the optimiser starts afresh."""
    adam = source.optimiser
    count = None if adam is None else source.number(adam, "count")
    if adam is None or count is None:
        return
    if count < 0 or count % 1 or count > MOST_UPDATES:
        raise UsageError(
            f"{source.path}: Adam's count of updates is {count:g}; the checkpoint is damaged"
        )
    agent.steps.fill_(count)
    for ours, theirs in ((agent.exp_avg, "mu"), (agent.exp_avg_sq, "nu")):
        moments = source.entry(adam, theirs)
        parts = agent.online.unflatten(ours)
        for name, part in named_tensors(agent.online, parts, agent.recorded.networks).items():
            where = f"{source.path}: {theirs} of {name}"
            copy_array(part, source.array(moments, name), where)
    if (agent.exp_avg_sq < 0).any():
        raise UsageError(f"{source.path}: nu has negative numbers; the checkpoint is damaged")


def copy_array(tensor: Tensor, array: np.ndarray, where: str) -> None:
    """Copy an array into a tensor that has the run axis as well.

    Raises:
        UsageError: its shape is another one, or it holds NaN or what is no float32.
    """
    if tuple(array.shape) != tuple(tensor.shape[1:]):
        raise UsageError(
            f"{where} has shape {list(array.shape)}, but the other arrays imply "
            f"{list(tensor.shape[1:])}; the checkpoint is damaged"
        )
    array = array.astype(np.float64)
    if not (np.abs(array) <= LARGEST).all():
        raise UsageError(f"{where} is not finite; take an earlier checkpoint of that run")
    tensor[0].copy_(torch.from_numpy(array))


def to_state(agent: Agent, source: FlaxCheckpoint) -> dict[str, Any]:
    """Return the contents of a checkpoint to start from; a run cannot be continued from it."""
    digest = sha256_of(source.path)
    return {
        "stage": "pretrain" if isinstance(agent, BCAgent) else "offline",
        "step": int(agent.steps),
        "agent": agent.state_dict(),
        "shapes": checkpoint.plain_shapes(agent.online.shapes),
        "source": {"file": source.path.name, "sha256": digest},
    }


def load_expected(path: Path) -> dict[str, np.ndarray]:
    """Read the file of `--check`.

    Raises:
        UsageError: it is damaged, or lacks the observations or the noise.
        Unreadable: the system refuses.
    """
    arrays = read_arrays(path, "cannot be used as --check", "give an npz file")
    if not {"observations", "noise"} <= set(arrays):
        raise UsageError(f"--check {path} has no observations or no noise; give another npz file")
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def check_sizes(agent: Agent, expected: dict[str, np.ndarray], where: Path) -> None:
    """Raise `UsageError` unless the file of `--check` belongs to networks of these sizes."""
    observations, noise = expected["observations"], expected["noise"]
    if observations.ndim != 2 or noise.ndim != 2 or len(observations) != len(noise):
        raise UsageError(
            f"--check {where} has observations of shape {list(observations.shape)} and noise of "
            f"shape {list(noise.shape)}; both need one row for each case"
        )
    if observations.shape[1] != agent.obs_dim or noise.shape[1] != agent.dim:
        raise UsageError(
            f"--check {where} has observations of {observations.shape[1]} numbers and actions of "
            f"{noise.shape[1]}, but the checkpoint has {agent.obs_dim} and {agent.dim}"
        )


def compare(agent: Agent, expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the worst deviation of every quantity in `expected` that the agent has.

    Actions are those of the flow's ODE from `noise`, and values are taken at `noise` itself.
    """
    observations = torch.from_numpy(expected["observations"]).float()[None]
    noise = torch.from_numpy(expected["noise"]).float()[None]
    deviations = Deviations()

    def add(name: str, value: Tensor) -> None:
        if name in expected:
            deviations.add(name, value[0], expected[name])

    for field in FIELDS:
        if field in agent.online.networks:
            agent.acting_field = field
            action = agent.act(observations, noise.unsqueeze(2))
            add(f"{field.removeprefix('actor_')}_actions", action)
    if isinstance(agent, TRQAMAgent):
        with torch.no_grad():
            for name, block in (("q", agent.online), ("target_q", agent.target)):
                critic = block.networks["critic"]
                add(name, agent.critic_values(critic, observations, noise))
        add("lam", agent.dual.lam)
        add("kl_ema", agent.dual.kl_ema)
    return deviations.worst


def main(argv: list[str] | None = None) -> int:
    """Convert, compare if asked, return the exit status."""
    args = tyro.cli(ConvertArgs, args=argv, prog="python -m trqam_fast.convert")
    if args.out.exists() or args.out.is_symlink():
        raise UsageError(f"{args.out} is there already; remove it, or name another file to write")
    expected = None if args.check is None else load_expected(args.check)
    source = FlaxCheckpoint(args.pickle)
    agent = build_agent(source)
    if args.check is not None and expected is not None:
        check_sizes(agent, expected, args.check)
    checkpoint.save(args.out, to_state(agent, source))
    state = checkpoint.load(args.out)
    print(describe(agent, source, state))
    ignored = sorted(source.networks - NETWORKS - UNUSED)
    if ignored:
        print(f"left out, since this package has no such networks: {printable(', '.join(ignored))}")
    print(f"wrote {args.out}")
    if expected is None:
        return 0
    agent.load_state_dict(state["agent"])
    worst = compare(agent, expected)
    for name, deviation in worst.items():
        print(f"{name:13}  {deviation:8.1e}{'' if deviation <= TOLERANCE else '  TOO LARGE'}")
    largest = max(worst.values(), default=float("inf"))
    print(f"{len(worst)} quantities, worst {largest:.1e}, allowed {TOLERANCE:g}")
    return 0 if largest <= TOLERANCE else 1


def describe(agent: Agent, source: FlaxCheckpoint, state: dict[str, Any]) -> str:
    """One paragraph on what was found."""
    config = agent.config
    norm = {True: "with LayerNorm", False: "without LayerNorm"}
    lines = [
        f"{state['stage']} checkpoint after {state['step']} updates: observations {agent.obs_dim}, "
        f"actions {agent.dim} (action size times chunk length)",
        f"fields: hidden {list(config.actor_hidden_dims)} {norm[config.actor_layer_norm]}",
    ]
    if isinstance(agent, TRQAMAgent):
        dual = "no lambda (QAM)"
        if source.number(source.agent, "lam") is not None:
            dual = f"lambda {agent.dual.lam.item():.6g}, kl_ema {agent.dual.kl_ema.item():.6g}"
        lines.append(
            f"critics: {config.num_qs}, hidden {list(config.value_hidden_dims)} "
            f"{norm[config.value_layer_norm]}; {dual}"
        )
    if source.optimiser is None:
        lines.append("no moments of the optimiser; they start at zero")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
