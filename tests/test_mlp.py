"""Networks: what only the stacked MLP promises, and its limits."""

import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import (
    DEVICE,
    NEEDS_TRITON,
    ErrorBudget,
    assert_equal64,
    cast,
    draw,
    error,
    generator,
    gradients,
    make_field,
    make_mlp,
    poisoned_memory,
)
from trqam_fast.kernels import (
    BackendError,
    GradientMemory,
    MLPWeights,
    both_with_operands,
    lean_adjoint,
    mlp,
    with_operands,
)
from trqam_fast.kernels.dispatch import extension
from trqam_fast.networks import MLPShape, ParameterBlock

SETS = [name for name in extension().instruction_sets() if name != "avx512_bf16"]
BACKENDS = ["cpp", pytest.param("triton", marks=NEEDS_TRITON)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_are_not_needed(backend):
    """Inputs alone, as for the terminal adjoint, and weights alone, as for a critic's loss."""
    device = DEVICE if backend == "triton" else "cpu"
    weights = make_mlp(5, 1, layer_norm=True, ensemble=2, dtype=torch.float32)
    weights = weights.map(lambda tensor: tensor.detach().to(device).requires_grad_())
    inputs = draw(1, 9, 5).float().to(device).requires_grad_()
    frozen, fixed = weights.detach(), inputs.detach()
    for net, x, wanted in ((frozen, inputs, [inputs]), (weights, fixed, weights.tensors)):
        ours = gradients([mlp(net, x, backend=backend)], wanted)
        theirs = gradients([mlp(net, x, backend="reference")], wanted)
        for a, b in zip(ours, theirs, strict=True):
            assert error(a, b.double()) < 1e-5
    with torch.no_grad():
        assert not mlp(weights, inputs, backend=backend).requires_grad


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gelu_of_near_and_extreme_values(name, dtype, monkeypatch):
    """Through networks of identity kernels, which leave nothing but the activation."""
    monkeypatch.setattr(sys.modules["trqam_fast.kernels.cpp"], "instruction_set", name)
    runs = 1 if dtype == torch.float64 else 20
    eye = torch.eye(32, dtype=dtype).expand(runs, -1, -1)
    zero = torch.zeros(runs, 32, dtype=dtype)
    weights = make_mlp(32, 32, (32,), dtype=dtype)
    weights = replace(weights, kernels=(eye, eye), biases=(zero, zero))
    near = torch.linspace(-12, 12, 63 * 32, dtype=torch.float64)
    far = torch.tensor([22.0, 1e3, 1e9, 1e-30, 0.0], dtype=torch.float64)
    z = torch.cat([near, far, -far, near[:22]]).view(1, 64, 32)
    z = (z * (1 + 0.01 * draw(runs, 1, 1))).to(dtype)

    def run(backend, z):
        z = z.clone().requires_grad_()
        out = mlp(weights.map(lambda t: t.to(z.dtype)), z, backend=backend)
        return [out, *gradients([out], [z])]

    found, plain, exact = run("cpp", z), run("reference", z), run("reference", z.double())
    if dtype == torch.float64:
        assert_equal64(found, exact)
    else:
        budget = ErrorBudget()
        for part, rows in (("near", slice(0, 60)), ("far", slice(60, 64))):
            for index, tensors in enumerate(zip(found, plain, exact, strict=True)):
                budget.add((part, index), *(tensor.detach()[:, rows] for tensor in tensors))
        budget.check(runs)
    z[0, 0, 3] = float("nan")
    rows = run("cpp", z)[0].isnan().any(-1)
    assert rows[0, 0] and not rows[0, 1:].any()


def test_gradient_memory_is_used_once():
    weights = make_mlp(5, 3, runs=2, layer_norm=True, ensemble=2)
    x = draw(2, 9, 5)
    expected = gradients([mlp(weights, x, backend="cpp")], weights.tensors)
    memory = GradientMemory([torch.full_like(t, float("nan")) for t in weights.tensors])
    owned = replace(weights, memory=memory)
    first = gradients([mlp(owned, x, backend="cpp")], weights.tensors)
    assert [t.data_ptr() for t in first] == [t.data_ptr() for t in memory.tensors]
    # Autograd adds these two: they must not share memory.
    memory.release()
    twice = gradients([mlp(owned, x, backend="cpp") for _ in range(2)], weights.tensors)
    other = gradients([mlp(weights, x, backend="cpp") for _ in range(2)], weights.tensors)
    assert_equal64(twice, other)
    last = gradients([mlp(owned, x, backend="cpp")], weights.tensors)
    assert all(torch.equal(a, b) for a, b in zip(last, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hidden", [(32, 32), (16, 40)], ids=["blocks", "padded"])
def test_gradients_lie_where_the_optimiser_reads_them(backend, hidden):
    """Also those that Triton's kernels write to padded memory first."""
    device = DEVICE if backend == "triton" else "cpu"
    shapes = {"critic": MLPShape(5, hidden, 1, True, 2), "field": MLPShape(5, hidden, 3)}
    block = ParameterBlock(shapes, 3, device=device, trainable=True)
    block.initialise([generator(run) for run in range(3)])
    x = draw(3, 9, 5).float().to(device)

    def flatten(backend):
        outputs = [mlp(network, x, backend=backend) for network in block.networks.values()]
        found = gradients(outputs, block.leaves)
        return found, block.flatten_gradients(tuple(found)).clone()

    for slot in block.unflatten(block.gradient):
        slot.fill_(float("nan"))
    found, flat = flatten(backend)
    slots = block.unflatten(block.gradient)
    assert [g.data_ptr() for g in found] == [slot.data_ptr() for slot in slots]
    assert error(flat, flatten("reference")[1].double()) < 1e-5


def test_no_rows():
    weights, x = make_mlp(5, 3, runs=2, layer_norm=True, ensemble=2), draw(2, 0, 5)
    x.requires_grad_()
    out = mlp(weights, x, backend="cpp")
    assert out.shape == (2, 2, 0, 3)
    assert all((g == 0).all() for g in gradients([out], [x, *weights.tensors]))
    field, s, points = make_field(3, 2), draw(1, 0, 3), draw(1, 4, 0, 2)
    assert lean_adjoint(field.detach(), s, points, points[:, 0], backend="cpp").numel() == 0


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_nothing_is_prepared_on_a_cpu(backend):
    weights, x = make_mlp(5, 3), draw(1, 4, 5)
    assert with_operands(weights, backend=backend).operands == ()
    of_others = replace(weights, operands=(x,))
    found = gradients([mlp(of_others, x, backend=backend)], weights.tensors)
    assert_equal64(found, gradients([mlp(weights, x, backend=backend)], weights.tensors))
    with pytest.raises(TypeError, match="mlp: weights is a list; pass MLPWeights"):
        with_operands(list(weights.tensors), backend=backend)
    both = both_with_operands(weights, weights, backend=backend)
    assert [each.operands for each in both] == [(), ()]
    with pytest.raises(TypeError, match="mlp: others is a list; pass MLPWeights"):
        both_with_operands(weights, list(weights.tensors), backend=backend)
    with pytest.raises(ValueError, match="weights and others differ in their shapes"):
        both_with_operands(weights, make_mlp(4, 3), backend=backend)
    for first in (0, 5, -1):
        with pytest.raises(ValueError, match=f"mlp: the first part of the inputs has {first} col"):
            with_operands(weights, first, backend=backend)
    with pytest.raises(TypeError, match="mlp: first is '2'; pass an integer"):
        with_operands(weights, "2", backend=backend)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_inputs_in_two_parts_are_side_by_side(backend):
    weights, x = make_mlp(5, 3, runs=2, ensemble=2), draw(2, 4, 5)
    s, a = (part.contiguous().requires_grad_() for part in x.split([3, 2], dim=-1))
    x.requires_grad_()
    out, expected = mlp(weights, (s, a), backend=backend), mlp(weights, x, backend=backend)
    assert torch.equal(out, expected)
    (whole,) = gradients([expected], [x])
    assert torch.equal(torch.cat(gradients([out], [s, a]), dim=-1), whole)
    with pytest.raises(
        ValueError, match=r"mlp: inputs\[1\] has shape \[2, 4, 3\]; expected \[2, 4, 2\]"
    ):
        mlp(weights, (s, s), backend=backend)
    with pytest.raises(ValueError, match="mlp: inputs are 3 parts; pass a tensor, or two"):
        mlp(weights, (s, a, a), backend=backend)
    with pytest.raises(ValueError, match="first part of the inputs has 5 columns; it must"):
        mlp(weights, (x, a), backend=backend)


@pytest.mark.parametrize("layer_norm", [pytest.param(on, marks=NEEDS_TRITON) for on in (0, 1)])
def test_two_stacks_are_prepared_as_each_would_be(layer_norm):
    """For inputs in two parts; with few columns the operands for one part are as large."""
    shape = {"runs": 2, "ensemble": 2, "layer_norm": bool(layer_norm), "dtype": torch.float32}
    stacks = [make_mlp(5, 1, seed=seed, **shape).map(lambda t: t.to(DEVICE)) for seed in (0, 1)]
    given = [draw(2, 33, n, seed=n, dtype=torch.float32).to(DEVICE) for n in (3, 2)]
    options, given = {"backend": "triton"}, tuple(given)
    with poisoned_memory():
        both = both_with_operands(*stacks, 3, **options)
    for plain, prepared in zip(stacks, both, strict=True):
        with poisoned_memory():
            assert torch.equal(mlp(prepared, given, **options), mlp(plain, given, **options))
    # Operands for other parts are not read.
    whole, alone = torch.cat(given, dim=-1), with_operands(stacks[0], **options)
    assert torch.equal(mlp(both[0], whole, **options), mlp(stacks[0], whole, **options))
    assert torch.equal(mlp(alone, given, **options), mlp(stacks[0], given, **options))


def test_limits_are_named():
    deep = make_mlp(3, 2, (4,) * 17)
    single = deep.map(lambda t: t.detach().float())
    with pytest.raises(BackendError, match="'cpp' has it, but its passes take up to 16 hidden lay"):
        mlp(single, draw(1, 4, 3).float(), precision="bf16")
    with pytest.raises(BackendError, match="up to 16 hidden layers, and the network has 17"):
        mlp(deep, draw(1, 2, 3), backend="cpp")
    assert_equal64([mlp(deep, draw(1, 2, 3))], [mlp(deep, draw(1, 2, 3), backend="reference")])
    weights, x = make_mlp(3, 2), draw(1, 2, 3)
    with pytest.raises(BackendError, match="bf16 operands need float32 tensors"):
        mlp(weights, x, backend="cpp", precision="bf16")
    with pytest.raises(BackendError, match="has no precision 'tf32'; use 'ieee' or 'bf16'"):
        mlp(cast(weights, torch.float32), x.float(), backend="cpp", precision="tf32")


def test_bad_input():
    weights, x = make_mlp(5, 3, runs=2), draw(2, 4, 5)
    with pytest.raises(ValueError, match=r"inputs has shape \[2, 4, 4\]; expected \[2, N, 5\]"):
        mlp(weights, x[..., 1:])
    with pytest.raises(ValueError, match="float32"):
        mlp(weights, x.float())
    with pytest.raises(TypeError, match="mlp: weights is a list; pass MLPWeights"):
        mlp(list(weights.tensors), x)
    broken = replace(weights, biases=weights.biases[1:])
    with pytest.raises(ValueError, match="3 kernels and 2 biases"):
        mlp(broken, x)
    broken = replace(
        weights, kernels=(weights.kernels[0], *weights.kernels[:1], weights.kernels[2])
    )
    with pytest.raises(ValueError, match=r"weights.kernels\[1\] has shape"):
        mlp(broken, x)
    normed = make_mlp(5, 3, runs=2, layer_norm=True)
    with pytest.raises(ValueError, match="norm_biases has 1 entries"):
        mlp(replace(normed, norm_biases=normed.norm_biases[:1]), x)
    mixed = replace(weights, biases=(*weights.biases[:2], weights.biases[2].float()))
    with pytest.raises(ValueError, match=r"weights\[5\] is torch.float32"):
        mlp(mixed, x)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_layers_of_modules(norm, backend):
    """The network that they are part of, and their gradients."""
    sizes = [5, 8, 6, 3]
    layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes)]
    norms = [nn.LayerNorm(n, 1e-6, dtype=torch.float64) for n in sizes[1:-1]] if norm else []
    for tensor in (t for each in norms for t in each.parameters()):
        torch.nn.init.normal_(tensor)
    x = draw(1, 4, 5)
    expected = x
    for index, layer in enumerate(layers):
        expected = layer(expected)
        if index < len(layers) - 1:
            expected = F.gelu(expected, approximate="tanh")
            expected = norms[index](expected) if norm else expected
    leaves = [p for each in (*layers, *norms) for p in each.parameters()]
    network = nn.Sequential(layers[0])
    for index, layer in enumerate(layers[1:]):
        network.extend([nn.GELU(approximate="tanh"), *norms[index : index + 1], layer])
    wanted = gradients([expected], leaves)
    for given in ((layers, norms), (network,)):
        found = mlp(MLPWeights.from_linears(*given), x, backend=backend)
        assert_equal64([found], [expected])
        assert_equal64(gradients([found], leaves), wanted)


def test_layers_that_are_no_network():
    layers = [nn.Linear(5, 8), nn.Linear(8, 3)]
    with pytest.raises(ValueError, match=r"layers\[1\] has no bias; give it one of zeros"):
        MLPWeights.from_linears([layers[0], nn.Linear(8, 3, bias=False)])
    with pytest.raises(ValueError, match=r"norms\[0\] is LayerNorm.*eps=1e-05.*; use one with eps"):
        MLPWeights.from_linears(layers, [nn.LayerNorm(8)])
    with pytest.raises(ValueError, match=r"layers.kernels\[1\] has shape \[1, 7, 3\]; expected"):
        MLPWeights.from_linears([layers[0], nn.Linear(7, 3)])
    with pytest.raises(ValueError, match=r"layers\[1\] is GELU; pass the linear layers alone, or"):
        MLPWeights.from_linears([layers[0], nn.GELU("tanh"), layers[1]])
    first, last = layers
    gelu, norm, middle = nn.GELU("tanh"), nn.LayerNorm(8, 1e-6), nn.Linear(8, 8)
    for network, says in (
        ([first, nn.ReLU(), last], r"layers\[1\] is ReLU; the passes have Linear, GELU"),
        ([first, nn.GELU(), last], r"layers\[1\] is GELU\(approximate='none'\); the passes"),
        ([first, norm, gelu, last], r"layers\[1\] is LayerNorm; .* behind every activation"),
        ([first, gelu, norm, middle, gelu, last], r"layers\[5\] is Linear; .* or none, LayerNorm"),
        ([first, gelu, middle, gelu, norm, last], r"layers\[4\] is LayerNorm; "),
        ([first, last], r"layers\[1\] is Linear; "),
        ([first, gelu, nn.LayerNorm(8), last], r"layers\[2\] is LayerNorm.*eps=1e-05.*; use one"),
        ([first, gelu], "layers has no Linear at its end; the passes have"),
    ):
        with pytest.raises(ValueError, match=says):
            MLPWeights.from_linears(nn.Sequential(*network))
    with pytest.raises(ValueError, match="layers is an nn.Sequential; put norms into it"):
        MLPWeights.from_linears(nn.Sequential(first, gelu, last), [norm])
