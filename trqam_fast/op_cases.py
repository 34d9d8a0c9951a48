"""A call of every op on random data: one table for the self-test and for the tests of the ops.

Longer than 400 lines, as it grows by a case with every op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trqam_fast.kernels import (
    MLPWeights,
    NoiseSchedule,
    action_gradient,
    adam_norm,
    adam_step,
    adjoint_matching,
    adjoint_sizes,
    dual_update,
    flow_matching_inputs,
    gather_sequences,
    lean_adjoint,
    mlp,
    ode_rollout,
    path_kl,
    philox,
    record_metrics,
    sde_rollout,
    squared_error,
    td_loss,
    td_target,
    velocity_along,
)
from trqam_fast.networks import MLPShape, ParameterBlock

Inputs = dict[str, Any]
"""Arguments of a call by name: tensors, packed weights, plain values."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a call.

    Attributes:
        runs: S.
        batch: B.
        obs: Width of the observations.
        dim: D.
        hidden: Widths of the hidden layers.
        layer_norm: LayerNorm in the velocity fields and the critics.
        steps: K.
        ensemble: E, or None for a single network without that axis.
        ode_batch: Rows of the noise-free flow.
    """

    runs: int
    batch: int
    obs: int
    dim: int
    hidden: tuple[int, ...]
    layer_norm: bool
    steps: int = 4
    ensemble: int | None = 2
    ode_batch: int = 3


class Draw:
    """Random inputs in float64 on the CPU; equal seeds draw equal numbers."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self.sizes = sizes
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def network(self, in_features: int, out_features: int, ensemble: int | None) -> MLPWeights:
        """Return weights laid out like the trainer's, biases and norm parameters random too."""
        sizes = self.sizes
        shape = MLPShape(in_features, sizes.hidden, out_features, sizes.layer_norm, ensemble)
        block = ParameterBlock({"network": shape}, sizes.runs, dtype=torch.float64)
        block.initialise([self.generator] * sizes.runs)
        network = block.networks["network"]
        for tensor in (*network.biases, *network.norm_scales, *network.norm_biases):
            tensor.add_(0.1 * self.normal(*tensor.shape))
        return network

    def field(self) -> MLPWeights:
        """Return a velocity field on [s, x, t]."""
        return self.network(self.sizes.obs + self.sizes.dim + 1, self.sizes.dim, None)

    def rows(self, width: int, *steps: int) -> Tensor:
        """Return `[S, *steps, B, width]`."""
        return self.normal(self.sizes.runs, *steps, self.sizes.batch, width)


@dataclass(frozen=True)
class OpCase:
    """How to call an op.

    Attributes:
        op: Name of the op, as `trqam_fast.kernels.dispatch.OPS` has it.
        draw: Random inputs of the call.
        call: Inputs and options to the outputs by name, each with the runs as its first axis.
        differentiable: Inputs with gradients.
        refused: Inputs whose gradient is refused.
        strided: Whether the inputs may have any strides.
        rounds: Whether it computes with what it is given, so that float32 gives the numbers of
            float64, rounded; else they are others, or the very same.
    """

    op: str
    draw: Callable[[Draw], Inputs]
    call: Callable[..., dict[str, Tensor]]
    differentiable: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    strided: bool = True
    rounds: bool = True


def _mlp(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return {"out": mlp(inputs["weights"], inputs["inputs"], **options)}


def _draw_mlp(draw: Draw) -> Inputs:
    width = draw.sizes.obs + draw.sizes.dim
    return {"weights": draw.network(width, 2, draw.sizes.ensemble), "inputs": draw.rows(width)}


def _values(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return {"out": mlp(inputs["weights"], (inputs["observations"], inputs["actions"]), **options)}


def _draw_values(draw: Draw) -> Inputs:
    sizes = draw.sizes
    return {
        "weights": draw.network(sizes.obs + sizes.dim, 1, sizes.ensemble),
        "observations": draw.rows(sizes.obs),
        "actions": draw.rows(sizes.dim),
    }


def _action_gradient(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    gradient, values = action_gradient(**inputs, **options)
    return {"gradient": gradient, "values": values}


def _draw_action_gradient(draw: Draw) -> Inputs:
    sizes = draw.sizes
    return {
        "critic": draw.network(sizes.obs + sizes.dim, 1, sizes.ensemble or 1),
        "observations": draw.rows(sizes.obs),
        "x": draw.rows(sizes.dim),
        "scale": -1.5,
    }


def _sde_rollout(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    rollout = sde_rollout(**inputs, with_base=True, **options)
    found = rollout._asdict() | {"base_velocity": None if rollout.base is None else rollout.base[0]}
    del found["base"]
    if found["base_velocity"] is None:
        points = rollout.trajectory[:, :-1]
        base, s = inputs["base_velocity"], inputs["observations"]
        found["base_velocity"] = velocity_along(base, s, points, **options)
    return found


def _draw_sde_rollout(draw: Draw) -> Inputs:
    sizes = draw.sizes
    return {
        "velocity": draw.field(),
        "base_velocity": draw.field(),
        "observations": draw.rows(sizes.obs),
        "x0": draw.rows(sizes.dim),
        "noise": draw.rows(sizes.dim, sizes.steps - 1),
        "ode_observations": draw.normal(sizes.runs, sizes.ode_batch, sizes.obs),
        "ode_x0": draw.normal(sizes.runs, sizes.ode_batch, sizes.dim),
    }


def _ode_rollout(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return {"x": ode_rollout(**inputs, **options)}


def _draw_ode_rollout(draw: Draw) -> Inputs:
    sizes = draw.sizes
    return {
        "velocity": draw.field(),
        "observations": draw.rows(sizes.obs),
        "x0": draw.rows(sizes.dim),
        "flow_steps": sizes.steps,
    }


def _lean_adjoint(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return {"adjoint": lean_adjoint(**inputs, **options)}


def _draw_lean_adjoint(draw: Draw) -> Inputs:
    sizes = draw.sizes
    return {
        "base_velocity": draw.field(),
        "observations": draw.rows(sizes.obs),
        "trajectory": draw.rows(sizes.dim, sizes.steps + 1),
        "terminal_adjoint": draw.rows(sizes.dim),
    }


def _velocity_along(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    # The points of a longer trajectory, as in an update: runs lie further apart than they fill.
    points = inputs["trajectory"][:, :-1]
    return {
        "velocity": velocity_along(inputs["velocity"], inputs["observations"], points, **options)
    }


def _draw_velocity_along(draw: Draw) -> Inputs:
    sizes = draw.sizes
    return {
        "velocity": draw.field(),
        "observations": draw.rows(sizes.obs),
        "trajectory": draw.rows(sizes.dim, sizes.steps + 1),
    }


def _adjoint_matching(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    loss, kl = adjoint_matching(**inputs, **options)
    return {"loss": loss, "path_kl": kl}


def _draw_adjoint_matching(draw: Draw) -> Inputs:
    sizes = draw.sizes
    names = ("velocity", "base_velocity", "adjoint")
    return {
        **{name: draw.rows(sizes.dim, sizes.steps) for name in names},
        "lam": draw.normal(sizes.runs).abs() + 0.1,
        "horizon": 2,
    }


def _adjoint_sizes(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return adjoint_sizes(**inputs, **options)._asdict()


def _draw_adjoint_sizes(draw: Draw) -> Inputs:
    sizes = draw.sizes
    return {"terminal": draw.rows(sizes.dim), "adjoint": draw.rows(sizes.dim, sizes.steps)}


def _squared_error(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return {"loss": squared_error(**inputs, **options)}


def _draw_squared_error(draw: Draw) -> Inputs:
    sizes = draw.sizes
    prediction = draw.normal(sizes.runs, sizes.ensemble or 1, sizes.batch, sizes.dim)
    valid = (draw.normal(sizes.runs, sizes.batch) > -1.0).double()
    return {"prediction": prediction, "target": draw.rows(sizes.dim), "valid": valid}


def _flow_matching_inputs(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return flow_matching_inputs(**inputs, **options)._asdict()


def _draw_flow_matching_inputs(draw: Draw) -> Inputs:
    sizes = draw.sizes
    times = draw.normal(sizes.runs, sizes.batch, 1).sigmoid()
    names = ("actions", "x0")
    rows = {name: draw.rows(sizes.dim) for name in names}
    return {"observations": draw.rows(sizes.obs), **rows, "times": times}


def _td_target(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return {"target": td_target(**inputs, **options)}


def _draw_td_target(draw: Draw) -> Inputs:
    sizes = draw.sizes
    return {
        "values": draw.normal(sizes.runs, sizes.ensemble or 1, sizes.batch),
        "rewards": draw.normal(sizes.runs, sizes.batch),
        "masks": (draw.normal(sizes.runs, sizes.batch) > -1.0).double(),
        "discount": 0.95,
        "rho": 0.5,
    }


def _td_loss(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return td_loss(**inputs, **options)._asdict()


def _draw_td_loss(draw: Draw) -> Inputs:
    target, members = _draw_td_target(draw), draw.sizes.ensemble or 1
    shape = draw.sizes.runs, members, draw.sizes.batch
    return {
        "values": draw.normal(*shape),
        "next_values": target.pop("values"),
        "policy_values": draw.normal(*shape),
        "valid": (draw.normal(shape[0], shape[2]) > -1.0).double(),
        **target,
    }


def _path_kl(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return {
        "none": path_kl(**inputs, reduction="none", **options),
        "mean": path_kl(**inputs, reduction="mean", **options),
    }


def _draw_path_kl(draw: Draw) -> Inputs:
    inputs = _draw_adjoint_matching(draw)
    return {name: inputs[name] for name in ("velocity", "base_velocity", "horizon")}


ADAM: Inputs = {"lr": 1e-3, "max_norm": 1.0, "tau": 0.1}


def _adam_state(inputs: Inputs) -> tuple[Inputs, Tensor]:
    """Return what a step reads and writes, apart from the inputs, and the number of steps."""
    written = ("params", "exp_avg", "exp_avg_sq", "targets")
    state = {name: inputs[name].clone() for name in written}
    return state, torch.zeros((), device=inputs["params"].device)


def _adam_step(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    state, step = _adam_state(inputs)
    norm = adam_step(**state, gradient=inputs["gradient"], step=step, **ADAM, **options)
    return {"norm": norm, **state}


def _adam_step_in_parts(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """The step of a captured update: the norm of all, then the columns in two parts."""
    state, step = _adam_state(inputs)
    gradient = inputs["gradient"]
    norm = adam_norm(gradient, step, **options)
    if norm is None:  # The reference does no parts.
        return _adam_step(inputs, **options)
    size = gradient.shape[1]
    before, begin = size - state["targets"].shape[1], size // 3
    for first, last in ((0, begin), (begin, size)):
        part = {name: state[name][:, first:last] for name in ("params", "exp_avg", "exp_avg_sq")}
        part["targets"] = state["targets"][:, max(first - before, 0) : last - before]
        part["gradient"] = gradient[:, first:last]
        norms = adam_step(**part, step=step, norm=norm, **ADAM, **options)
    return {"norm": norms, **state}


def _draw_adam_step(draw: Draw) -> Inputs:
    runs, params = draw.sizes.runs, 131 * draw.sizes.batch  # Blocks, of large batches several.
    names = ("params", "gradient", "exp_avg")
    inputs = {name: draw.normal(runs, params) for name in names}
    inputs["exp_avg_sq"] = draw.normal(runs, params).square()
    inputs["targets"] = draw.normal(runs, params - 5)
    return inputs


def _dual_update(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    lam, kl_ema = inputs["lam"].clone(), inputs["kl_ema"].clone()
    lam_copy, kl_ema_copy = dual_update(
        lam,
        kl_ema,
        inputs["path_kl"],
        0.5,
        eta=0.1,
        ema=0.3,
        clip=2.0,
        bracket=(0.01, 100.0),
        rule=inputs["rule"],
        **options,
    )
    return {"lam": lam, "kl_ema": kl_ema, "lam_copy": lam_copy, "kl_ema_copy": kl_ema_copy}


def _draw_dual_update(draw: Draw) -> Inputs:
    names = ("lam", "kl_ema", "path_kl")
    return {name: draw.normal(draw.sizes.runs).abs() for name in names} | {"rule": "additive"}


def _draw_dual_update_log(draw: Draw) -> Inputs:
    return _draw_dual_update(draw) | {"rule": "log"}


def _draw_bridge(draw: Draw) -> Inputs:
    return _draw_adjoint_matching(draw) | {"schedule": NoiseSchedule.bridge(draw.sizes.steps)}


def _philox(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    arguments = {name: value for name, value in inputs.items() if name != "like"}
    return philox(**arguments, dtype=inputs["like"].dtype, **options)._asdict()


def _philox_next(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    offset, runs = inputs["offset"].clone(), len(inputs["seeds"])
    ended = torch.zeros(1, dtype=torch.int32, device=offset.device)
    draws = _philox(inputs | {"offset": offset, "ended": ended}, **options)
    return draws | {"offset": offset.expand(runs), "ended": ended.expand(runs)}


def _philox_of_two_calls(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return _philox_next(inputs | {"calls": 2}, **options)


def _draw_philox(draw: Draw) -> Inputs:
    sizes = draw.sizes
    bound = 2**63 - 1
    return {
        "seeds": torch.randint(-bound, bound, (sizes.runs,), generator=draw.generator),
        "offset": torch.randint(bound, (1,), generator=draw.generator),
        "stream": 3,
        "normals": sizes.batch * sizes.dim * sizes.steps,
        "uniforms": sizes.batch,
        "integers": sizes.batch,
        "high": 1000,
        "like": torch.zeros(sizes.runs, dtype=torch.float64),  # Of the type to draw.
    }


def _gather_sequences(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    return gather_sequences(**inputs, **options)._asdict()


def _draw_gather_sequences(draw: Draw) -> Inputs:
    sizes, count, horizon = draw.sizes, 50, 5
    starts = count - horizon + 1

    def rows(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw.generator)

    return {
        "starts": rows(starts, sizes.runs, sizes.batch),
        "pool": draw.normal(count + 7, sizes.obs),
        "actions": draw.normal(count, sizes.dim),
        "outcomes": draw.normal(starts, 3),
        "next_rows": rows(count + 7, starts),
        "horizon": horizon,
    }


def _record_metrics(inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    table = inputs["table"].transpose(0, 1).clone(memory_format=torch.contiguous_format)
    position = torch.tensor([inputs["row"]], device=table.device)
    record_metrics(inputs["metrics"].unbind(1), table, position, **options)
    return {"table": table.transpose(0, 1), "position": position.expand(table.shape[1])}


def _draw_record_metrics(draw: Draw) -> Inputs:
    runs, count, rows = draw.sizes.runs, 5, 4
    return {
        "metrics": draw.normal(runs, count),
        "table": draw.normal(runs, rows, count),
        "row": 2,
    }


CASES = {
    "mlp": OpCase("mlp", _draw_mlp, _mlp, ("weights", "inputs")),
    "mlp_of_two_parts": OpCase(
        "mlp", _draw_values, _values, ("weights", "observations", "actions")
    ),
    "action_gradient": OpCase("action_gradient", _draw_action_gradient, _action_gradient),
    "sde_rollout": OpCase(
        "sde_rollout",
        _draw_sde_rollout,
        _sde_rollout,
        ("velocity",),
        ("observations", "x0", "noise"),
    ),
    "ode_rollout": OpCase("ode_rollout", _draw_ode_rollout, _ode_rollout),
    "lean_adjoint": OpCase(
        "lean_adjoint",
        _draw_lean_adjoint,
        _lean_adjoint,
        refused=("observations", "trajectory", "terminal_adjoint"),
    ),
    "velocity_along": OpCase("velocity_along", _draw_velocity_along, _velocity_along),
    "adjoint_matching": OpCase(
        "adjoint_matching",
        _draw_adjoint_matching,
        _adjoint_matching,
        ("velocity",),
        ("base_velocity", "adjoint", "lam"),
    ),
    "adjoint_matching_bridge": OpCase(
        "adjoint_matching",
        _draw_bridge,
        _adjoint_matching,
        ("velocity",),
        ("base_velocity", "adjoint", "lam"),
    ),
    "adjoint_sizes": OpCase("adjoint_sizes", _draw_adjoint_sizes, _adjoint_sizes),
    "squared_error": OpCase(
        "squared_error",
        _draw_squared_error,
        _squared_error,
        ("prediction",),
        ("target", "valid"),
    ),
    "flow_matching_inputs": OpCase(
        "flow_matching_inputs", _draw_flow_matching_inputs, _flow_matching_inputs
    ),
    "td_loss": OpCase(
        "td_loss",
        _draw_td_loss,
        _td_loss,
        ("values",),
        ("next_values", "rewards", "masks", "valid", "policy_values"),
    ),
    "td_target": OpCase("td_target", _draw_td_target, _td_target),
    "path_kl": OpCase("path_kl", _draw_path_kl, _path_kl, ("velocity", "base_velocity")),
    "adam_step": OpCase("adam_step", _draw_adam_step, _adam_step, strided=False),
    "adam_step_in_parts": OpCase("adam_step", _draw_adam_step, _adam_step_in_parts, strided=False),
    "dual_update": OpCase("dual_update", _draw_dual_update, _dual_update),
    "dual_update_log": OpCase("dual_update", _draw_dual_update_log, _dual_update),
    "philox": OpCase("philox", _draw_philox, _philox, rounds=False),
    "philox_of_two_calls": OpCase("philox", _draw_philox, _philox_of_two_calls, rounds=False),
    "philox_next": OpCase("philox", _draw_philox, _philox_next, rounds=False),
    "record_metrics": OpCase("record_metrics", _draw_record_metrics, _record_metrics, rounds=False),
    "gather_sequences": OpCase(
        "gather_sequences", _draw_gather_sequences, _gather_sequences, rounds=False
    ),
}
"""Every op by the name of its case."""


def convert(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Return inputs with `function` applied to all tensors, those of weights too."""
    converted = {}
    for name, value in inputs.items():
        if isinstance(value, MLPWeights):
            value = value.map(function)
        elif isinstance(value, Tensor):
            value = function(value)
        converted[name] = value
    return converted


def draw_inputs(
    case: OpCase,
    sizes: Sizes,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Return random inputs of a case; `dtype` is that of floating-point tensors."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return convert(case.draw(Draw(sizes, seed)), move)


def tensors_of(inputs: Inputs, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of the inputs `names`; those of weights are named by their kind."""
    found = {}
    for name in names:
        value = inputs[name]
        if not isinstance(value, MLPWeights):
            found[name] = value
            continue
        for kind in ("kernels", "biases", "norm_scales", "norm_biases"):
            layers = enumerate(getattr(value, kind))
            found |= {f"{name}.{kind}[{layer}]": tensor for layer, tensor in layers}
    return found


def random_cotangent(output: Tensor, first_run: int) -> Tensor:
    """Return standard normal numbers like `output`, those of a run from its number alone."""
    drawn = torch.empty(output.shape, dtype=torch.float64)
    for run, part in enumerate(drawn, start=first_run):
        part.normal_(generator=torch.Generator().manual_seed(run))
    return drawn.to(output)


def evaluate(
    case: OpCase,
    inputs: Inputs,
    *,
    wanted: Iterable[str] | None = None,
    first_run: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """Return outputs and gradients of a call.

    Args:
        case: The op.
        inputs: Its inputs; they are detached.
        wanted: Inputs whose gradients are wanted; None for all that have one.
        first_run: Number of the first run; cotangents are drawn from a run's number.
        options: Backend and precision.

    Returns:
        Outputs by name and, named ``d NAME``, gradients of their inner product with fixed random
        cotangents; every tensor has the runs as its first axis.
    """
    wanted = case.differentiable if wanted is None else wanted
    inputs = convert(inputs, torch.Tensor.detach)
    leaves = tensors_of(inputs, wanted)
    for leaf in leaves.values():
        leaf.requires_grad_()
    outputs = case.call(inputs, **options)
    results = {name: output.detach() for name, output in outputs.items()}
    if leaves:
        trained = [output for output in outputs.values() if output.requires_grad]
        cotangents = [random_cotangent(output, first_run) for output in trained]
        gradients = torch.autograd.grad(trained, list(leaves.values()), cotangents)
        results |= {f"d {name}": found for name, found in zip(leaves, gradients, strict=True)}
    return results
