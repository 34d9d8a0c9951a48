"""The extension: bfloat16 operands on every instruction set, the choice of one, refused calls."""

import sys
from typing import NamedTuple

import pytest
import torch

from tests.helpers import draw, make_mlp, mean_error
from trqam_fast.kernels import action_gradient, cpp, mlp
from trqam_fast.kernels.dispatch import OPS, extension
from trqam_fast.kernels.mlp.cpp import MLPForward, describe
from trqam_fast.kernels.noise_schedule import schedule_table
from trqam_fast.kernels.path_kl.ops import PathKL
from trqam_fast.op_cases import CASES, Sizes, draw_inputs, evaluate

# Several tiles, panels and tasks of rows, none of them full; another width in every layer.
WIDE = Sizes(2, 75, 11, 5, (70, 129, 33), True, ensemble=3, ode_batch=150)
SETS = extension().instruction_sets()


@pytest.fixture
def use(monkeypatch):
    """Choose the instruction set."""
    module = sys.modules["trqam_fast.kernels.cpp"]
    return lambda name: monkeypatch.setattr(module, "instruction_set", name)


def run(name, **options):
    return evaluate(
        CASES[name], draw_inputs(CASES[name], WIDE, dtype=torch.float32), backend="cpp", **options
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if OPS[case.op].networks])
@pytest.mark.parametrize("instruction_set", SETS)
def test_bf16_rounds_operands_alone(use, instruction_set, name):
    """Errors like those of operands with 8 bits, and the same on every instruction set."""
    use(instruction_set)
    found = run(name, precision="bf16")
    exact = evaluate(CASES[name], draw_inputs(CASES[name], WIDE), backend="reference")
    errors = {key: mean_error(found[key], exact[key]) for key in exact}
    assert 2**-12 < max(errors.values()) < 2**-7
    if name == "mlp":
        # A sum of float32 cotangents: no product, nothing is rounded.
        assert errors["d weights.biases[3]"] < 1e-7
    use("baseline")
    for key, other in run(name, precision="bf16").items():
        assert mean_error(found[key], other.double()) < 1e-3, key


@pytest.fixture
def threads():
    """Let a test choose the number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("ensemble", "batch"), [(1, 20), (1, 300), (5, 20), (5, 300)])
def test_weight_gradients_of_many_rows_and_wide_layers(use, threads, ensemble, batch):
    """Threads that share a network or have several, sums of one block of the batch or of two."""
    threads(2)
    sizes = Sizes(1, batch, 11, 5, (300, 40), True, ensemble=ensemble, ode_batch=1)
    exact = evaluate(CASES["mlp"], draw_inputs(CASES["mlp"], sizes), backend="reference")
    inputs = draw_inputs(CASES["mlp"], sizes, dtype=torch.float32)
    for name in SETS:
        use(name)
        limits = {"bf16": 2**-7} | ({} if name == "avx512_bf16" else {"ieee": 2e-6})
        for precision, limit in limits.items():
            found = evaluate(CASES["mlp"], inputs, backend="cpp", precision=precision)
            errors = {key: mean_error(found[key], exact[key]) for key in exact}
            assert max(errors.values()) < limit, (name, precision, errors)


@pytest.mark.parametrize("rows", [1, 43, 300])
def test_the_action_gradient_is_a_pass_and_its_pullback(use, threads, rows):
    """Bit for bit, however few rows at a time it takes."""
    threads(2)
    critic = make_mlp(5, 1, (300, 17), runs=2, ensemble=3, layer_norm=True, dtype=torch.float32)
    s, x = (draw(2, rows, width, seed=width, dtype=torch.float32) for width in (3, 2))
    x.requires_grad_()
    for name in SETS:
        use(name)
        for precision in ("bf16",) if name == "avx512_bf16" else ("ieee", "bf16"):
            options = {"backend": "cpp", "precision": precision}
            values = mlp(critic, torch.cat([s, x], -1), **options).squeeze(-1)
            (expected,) = torch.autograd.grad(values, x, torch.full_like(values, 1 / 3))
            found = action_gradient(critic, s, x.detach(), clip=False, **options)
            assert torch.equal(found[0], expected) and torch.equal(found[1], values)


def test_default_set_is_the_fastest(use):
    use("")
    default = run("mlp")
    use(next(name for name in SETS if name != "avx512_bf16"))
    chosen = run("mlp")
    assert all(torch.equal(default[key], chosen[key]) for key in default)
    use("avx1024")
    for name in ("mlp", "path_kl"):
        with pytest.raises(ValueError, match="'avx1024' is not available"):
            run(name)


def call_of_path_kl(**changes):
    v, table = torch.zeros(1, 2, 1, 1), schedule_table(None, 2, torch.float64, torch.device("cpu"))
    call = PathKL(
        shape=v.shape,
        schedule=table.data_ptr(),
        horizon=1,
        velocity=v.data_ptr(),
        base_velocity=v.data_ptr(),
        sums=None,
        per_trajectory=v.data_ptr(),
        mean=v.data_ptr(),
    )
    cpp.call("path_kl", call._replace(**changes), v)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (1, 0, 1, 1)}, "steps is 0; it must be at least 1"),
        ({"shape": (1, 1, 1)}, "shape has not 4 axes"),
        ({"mean": 0}, "mean is a null address"),
        ({"mean": None}, "mean is a null address"),
        ({"horizon": 0}, "horizon is 0"),
    ],
)
def test_refuses_sizes_and_addresses(change, message):
    with pytest.raises(ValueError, match=message):
        call_of_path_kl(**change)


class Swapped(NamedTuple):
    shape: tuple
    horizon: int
    schedule: int


class Short(NamedTuple):
    shape: tuple
    schedule: int
    horizon: int


def test_refuses_the_call_of_another_struct():
    """Fields are checked by name: two that are swapped would corrupt memory."""
    v, shape = torch.zeros(1), (1, 1, 1, 1)
    with pytest.raises(TypeError, match="field 1 of the call is horizon; expected schedule"):
        cpp.call("path_kl", Swapped(shape, 1, v.data_ptr()), v)
    with pytest.raises(TypeError, match="field 3 of the call is missing; expected velocity"):
        cpp.call("path_kl", Short(shape, v.data_ptr(), 1), v)
    with pytest.raises(TypeError):
        call_of_path_kl(horizon="1")


def test_sizes_of_networks_are_checked():
    weights, x = make_mlp(5, 3).map(torch.Tensor.detach), draw(1, 4, 5)
    out = x.new_empty(1, 4, 3)
    for place, name in ((0, "runs"), (1, "members"), (4, "width"), (6, "width")):
        numbers, _alive = describe(weights)
        numbers[place] = -4
        fields = MLPForward(numbers, x.data_ptr(), 4, out.data_ptr(), None)
        with pytest.raises(ValueError, match=f"{name} is -4; it must be at least 1"):
            cpp.call("mlp_forward", fields, x)
