"""What only Triton's kernels do: scratch instead of a tape, half precision, weights in place.

On a GPU, or under the interpreter, which must be on before Triton is imported and so takes a
process of its own: TRITON_INTERPRET=1 pytest -m interpreter
"""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.helpers import (
    DEVICE,
    INTERPRETED,
    NEEDS_TRITON,
    CoarseProducts,
    ErrorBudget,
    draw,
    error,
    make_mlp,
    poisoned_memory,
)
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import (
    BackendError,
    MLPWeights,
    dual_update,
    lean_adjoint,
    mlp,
    rollout_operands,
    sde_rollout,
    velocity_along,
    with_operands,
)
from trqam_fast.networks import MLPShape, ParameterBlock
from trqam_fast.op_cases import CASES, Sizes, convert, draw_inputs, evaluate
from trqam_fast.randomness import Randomness

pytestmark = NEEDS_TRITON

UNEVEN = Sizes(2, 33, 3, 2, (16, 40), True, steps=2, ensemble=None)
FEW = replace(UNEVEN, runs=1, batch=5)
DRAWS = 20
"""Independent runs over which an error budget is judged."""
FLOAT16_SIZES = (
    Sizes(1, 65, 6, 5, (64, 64), False, steps=2, ensemble=3),
    Sizes(3, 1, 2, 1, (8, 24), True, steps=2, ensemble=1),
    Sizes(8, 7, 3, 2, (16, 8, 24), True, steps=2, ensemble=None),
    Sizes(8, 5, 3, 2, (16, 24), False, steps=2, ensemble=None),
)


def inputs_of(name, sizes):
    return draw_inputs(CASES[name], sizes, dtype=torch.float32, device=DEVICE)


def on_device(*shape, seed=0):
    return draw(*shape, seed=seed, dtype=torch.float32).to(DEVICE)


def test_rollout_without_gradients_keeps_no_tape():
    """The same numbers from two alternating layers of scratch."""
    inputs = inputs_of("sde_rollout", UNEVEN)
    kept = evaluate(CASES["sde_rollout"], inputs, backend="triton")
    with poisoned_memory():
        bare = evaluate(CASES["sde_rollout"], inputs, wanted=(), backend="triton")
    # Two compilations on a GPU, which may contract products and sums differently.
    del bare["base_velocity"]  # of a pass of its own
    for name, ours in bare.items():
        assert error(ours, kept[name].double()) <= (0 if INTERPRETED else 1e-5)


@pytest.mark.parametrize(("precision", "hidden"), [("ieee", (16, 40)), ("fp16", (8,))])
def test_a_rollout_with_its_base_field_finds_what_passes_find(precision, hidden):
    """Velocities at t_k, and at t_k + h the tape of a sweep, last the kernels as operands."""
    runs, layer_norm = (1, True) if len(hidden) > 1 else (2, False)
    sizes = replace(UNEVEN, runs=runs, steps=3, hidden=hidden, layer_norm=layer_norm)
    inputs, options = inputs_of("sde_rollout", sizes), {"backend": "triton", "precision": precision}
    weights, base = inputs.pop("velocity"), inputs.pop("base_velocity")
    tracked = weights.map(lambda t: t.detach().requires_grad_())
    budget = {"ieee": 1e-5, "fp16": 1e-2}[precision]
    alone = sde_rollout(tracked, base, **inputs, **options)
    assert sde_rollout(weights.detach(), base, **inputs, with_base=True, **options).base is None
    operands = rollout_operands(weights, base, **options)
    with poisoned_memory():
        found = sde_rollout(tracked, base, **inputs, with_base=True, **options)
        given = sde_rollout(tracked, base, **inputs, with_base=True, operands=operands, **options)
    assert alone.base is None
    for each in (found, given):
        gradients = torch.autograd.grad(each.velocity.square().sum(), tracked.tensors)
        expected = torch.autograd.grad(
            alone.velocity.square().sum(), tracked.tensors, retain_graph=True
        )
        # Two compilations on a GPU again.
        ours, theirs = (*each[:3], *gradients), (*alone[:3], *expected)
        assert max(map(error, ours, theirs)) <= (0 if INTERPRETED else budget)
    s, x = inputs["observations"], found.trajectory
    sweep = (base, s, x, x[:, 0])
    ours = [found.base.velocity, lean_adjoint(*sweep, tape=found.base.tape, **options)]
    assert torch.equal(given.base.velocity, found.base.velocity)
    assert all(map(torch.equal, given.base.tape, found.base.tape))
    for part in found.base.tape[2:4]:  # statistics, with LayerNorm
        if part.numel():
            before = part.clone()
            part.fill_(torch.nan)
            assert lean_adjoint(*sweep, tape=found.base.tape, **options).isnan().any()
            part.copy_(before)
    # Parts that lie otherwise are copied.
    mixed = [found.base.tape[0].clone(), *found.base.tape[1:]]
    assert torch.equal(lean_adjoint(*sweep, tape=mixed, **options), ours[1])
    # A pass adds up the first layer in another order.
    passes = [velocity_along(base, s, x[:, :-1], **options), lean_adjoint(*sweep, **options)]
    for each, expected in zip(ours, passes, strict=True):
        assert error(each, expected.double()) <= budget
    if precision == "ieee":
        return
    # All of it is read, and nothing that is wrong.
    tape = found.base.tape
    for part in (tape[0], tape[4]):
        before = part.clone()
        part.fill_(torch.nan)
        assert lean_adjoint(*sweep, tape=tape, **options).isnan().any()
        part.copy_(before)
    of_another = sde_rollout(
        tracked, base, **inputs, with_base=True, **options | {"precision": "ieee"}
    ).base.tape
    for wrong in ([], tape[:4], [part[:, :, 1:] for part in tape[:4]] + tape[4:], of_another):
        with pytest.raises(ValueError, match="pass that of a rollout of the same chain"):
            lean_adjoint(*sweep, tape=wrong, **options)


@pytest.mark.parametrize("precision", ["ieee", "fp16"])
def test_a_rollout_takes_the_operands_that_were_made_before(precision):
    """Those of both fields, and the kernels as operands of pullbacks, its own last but one."""
    inputs = inputs_of("sde_rollout", FEW)
    options = {"backend": "triton", "precision": precision}
    weights, base = inputs.pop("velocity"), inputs.pop("base_velocity")
    operands = rollout_operands(weights, base, **options)

    def passed(operands=None):
        tracked = weights.map(lambda t: t.detach().requires_grad_())
        bare = sde_rollout(weights.detach(), base, **inputs, operands=operands, **options)
        found = sde_rollout(tracked, base, **inputs, operands=operands, **options)
        loss = found.velocity.square().sum()
        return [*bare[:3], *found[:3], *torch.autograd.grad(loss, tracked.tensors)]

    for ours, alone in zip(passed(operands), passed(), strict=True):
        assert torch.equal(ours, alone)
    read = [part for part in operands[:-1] if part.numel()]
    assert len(read) == (8 if precision == "fp16" else 7)
    for part in read:
        before = part.clone()
        part.fill_(torch.nan)
        assert any(found.isnan().any() for found in passed(operands))
        part.copy_(before)
    other = "fp16" if precision == "ieee" else "ieee"
    of_another = rollout_operands(weights, base, backend="triton", precision=other)
    for wrong in (operands[:-1], [part[1:] for part in operands], of_another):
        with pytest.raises(ValueError, match="pass what rollout_operands returned"):
            passed(wrong)


@pytest.mark.parametrize("precision", ["ieee", "fp16"])
def test_passes_share_what_was_prepared_of_their_weights(precision):
    """The weights as operands of forward passes, and last the kernels as those of pullbacks."""
    inputs = inputs_of("mlp", replace(FEW, ensemble=2))
    weights, options = inputs["weights"], {"backend": "triton", "precision": precision}
    operands = with_operands(weights, **options).operands

    def passed(operands=()):
        x = inputs["inputs"].detach().requires_grad_()
        tracked = weights.map(lambda t: t.detach().requires_grad_())
        out = mlp(replace(tracked, operands=operands), x, **options)
        bare = mlp(replace(weights, operands=operands).detach(), x.detach(), **options)
        return [out, bare, *torch.autograd.grad(out.square().sum(), [x, *tracked.tensors])]

    for ours, alone in zip(passed(operands), passed(), strict=True):
        assert torch.equal(ours, alone)
    for part in operands if precision == "fp16" else operands[:-1]:
        before = part.clone()
        part.fill_(torch.nan)
        assert any(found.isnan().any() for found in passed(operands))
        part.copy_(before)
    other = "fp16" if precision == "ieee" else "ieee"
    of_another = with_operands(weights, backend="triton", precision=other).operands
    for wrong in (operands[:-1], [part[1:] for part in operands], of_another):
        with pytest.raises(ValueError, match="prepare them by with_operands"):
            passed(wrong)


@pytest.mark.parametrize("name", ["mlp", "sde_rollout", "lean_adjoint", "mlp_of_two_parts"])
def test_float16_within_budget(name):
    """At most twice the error of plain PyTorch with operands of as many bits.

    bfloat16, which the interpreter gets wrong, takes the same way through the kernels.
    """
    budget = ErrorBudget()
    for sizes in FLOAT16_SIZES:
        inputs = inputs_of(name, sizes)
        with poisoned_memory():
            found = evaluate(CASES[name], inputs, backend="triton", precision="fp16")
        with CoarseProducts("tf32", cut=False):
            plain = evaluate(CASES[name], inputs, backend="reference")
        exact = evaluate(CASES[name], convert(inputs, torch.Tensor.double), backend="reference")
        for key, value in found.items():
            assert error(value, exact[key]) < 1e-2, (sizes, key)
            budget.add(key.split("[")[0], value, plain[key], exact[key])
    budget.check(DRAWS)


def test_layer_norm_of_activations_far_from_zero():
    """What products and sums of rounded weights subtract cancels: rows have no error in common."""
    weights = make_mlp(16, 8, (64,), runs=2, layer_norm=True).map(torch.Tensor.detach)
    weights.kernels[0].copy_(0.3 / 4 * draw(2, 16, 64, seed=1))
    weights.biases[0].fill_(3.0)
    single = weights.map(lambda t: t.float().to(DEVICE))
    inputs = on_device(2, 128, 16, seed=2)
    out = mlp(single, inputs, backend="triton", precision="fp16")
    exact = mlp(single.map(torch.Tensor.double), inputs.double(), backend="reference")
    wrong = out.double() - exact
    common = wrong.mean(1).square().mean().sqrt() / wrong.square().mean().sqrt()
    assert wrong.abs().max() < 2e-2 and common < 0.3, common


ROW_SIZES = (1e-12, 1e12, 0.0, 1e-3, 1.0)
"""Of the gradients of five rows."""


def pulled(name, inputs, cotangent, **options):
    """Return what is linear in a cotangent or terminal adjoint, row by row; and by run."""
    if name == "lean_adjoint":
        adjoint = lean_adjoint(**inputs | {"terminal_adjoint": cotangent}, **options)
        return adjoint.transpose(1, 2), {}
    weights = inputs["weights"].map(lambda t: t.detach().requires_grad_())
    x = inputs["inputs"].detach().requires_grad_()
    out = mlp(weights, x, **options)
    by_row, *by_run = torch.autograd.grad(out, [x, *weights.tensors], cotangent)
    return by_row, dict(enumerate(by_run))


def size_budget(name, layer_norm):
    """Return the error budget of gradients of sizes from 1e-24 to 1e24."""
    sizes = Sizes(DRAWS, len(ROW_SIZES), 3, 2, (8, 24), layer_norm, steps=3, ensemble=None)
    inputs = inputs_of(name, sizes)
    if name == "lean_adjoint":  # It grows a hundredfold in a step.
        inputs["base_velocity"].kernels[-1].mul_(100)
    by_run = 10.0 ** torch.linspace(-12, 12, DRAWS, device=DEVICE)
    by_row = torch.tensor(ROW_SIZES, device=DEVICE)
    cotangent = on_device(DRAWS, len(ROW_SIZES), 2, seed=5)
    cotangent *= by_run[:, None, None] * by_row[:, None]
    with poisoned_memory():
        rows, runs = pulled(name, inputs, cotangent, backend="triton", precision="fp16")
    with CoarseProducts("tf32", cut=False):
        plain = pulled(name, inputs, cotangent, backend="reference")
    double = convert(inputs, torch.Tensor.double)
    exact = pulled(name, double, cotangent.double(), backend="reference")
    assert not rows[:, by_row == 0].any()
    budget = ErrorBudget()
    kept = [each[0][:, by_row > 0].flatten(0, -2) for each in ((rows,), plain, exact)]
    budget.add("rows", *kept)
    for key, value in runs.items():
        budget.add(key, value, plain[1][key], exact[1][key])
    return budget


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", ["mlp", "lean_adjoint"])
def test_float16_gradients_of_any_size(name, layer_norm, monkeypatch):
    """Powers of two keep them within float16's range, without which they are lost."""
    size_budget(name, layer_norm).check(DRAWS)
    if INTERPRETED and not layer_norm:
        from trqam_fast.kernels.mlp.triton_config import KernelConfig

        monkeypatch.setattr(KernelConfig, "scaled", False)
        with pytest.raises(AssertionError):
            size_budget(name, layer_norm).check(DRAWS)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_float16_ends_at_its_largest_number():
    """What is beyond counts as 65504, never as infinite; NaN stays NaN."""
    options = {"backend": "triton", "precision": "fp16"}
    case, inputs = CASES["sde_rollout"], inputs_of("sde_rollout", replace(UNEVEN, layer_norm=False))
    results = []
    for large in (1e9, 65504.0):
        for field in (inputs["velocity"], inputs["base_velocity"]):
            field.kernels[1][0, 3, 5] = -large
        inputs["observations"][0, 1, 2] = large
        results.append(evaluate(case, inputs, **options))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]) and value.isfinite().all(), name

    weights, x = field_of_one_layer(), 30 * on_device(1, 9, 6)
    cotangent = on_device(1, 9, 2, seed=1)
    out = mlp(weights, x.requires_grad_(), **options)
    found = [out, *torch.autograd.grad(out, [x, *weights.tensors], cotangent)]
    double = weights.map(lambda t: t.detach().double().requires_grad_())
    wide = x.detach().double().requires_grad_()
    h = functional.gelu(wide @ double.kernels[0] + double.biases[0][:, None], approximate="tanh")
    assert h.max() > 1e5
    h = h - (h - h.clamp(max=65504.0)).detach()
    exact = h @ double.kernels[1] + double.biases[1][:, None]
    expected = torch.autograd.grad(exact, [wide, *double.tensors], cotangent.double())
    for ours, theirs in zip(found, [exact, *expected], strict=True):
        assert error(ours, theirs) < 2e-3

    x = x.detach()
    x[0, 2, 0] = float("nan")
    lost = mlp(weights, x, **options).isnan()
    assert lost[0, 2].all() and lost.sum() == 2


def test_an_infinite_path_kl_is_clipped():
    """As in the reference: a run that has left the budget far behind keeps a lambda."""
    found = []
    for backend in ("triton", "reference"):
        lam, ema = torch.ones(2, 3, device=DEVICE)
        path_kl = torch.tensor([0.5, torch.inf, torch.nan], device=DEVICE)
        settings = dict(eta=0.1, ema=0.5, clip=5.0, bracket=(0.01, 10.0), backend=backend)
        found.append(dual_update(lam, ema, path_kl, 0.5, **settings))
    for ours, theirs in zip(*found, strict=True):
        assert theirs[:2].isfinite().all() and theirs[2].isnan()
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_weights_are_read_in_place():
    """Packed parameters of full blocks are not copied; anything else gives the same result."""
    from trqam_fast.kernels.mlp.triton_config import make_config
    from trqam_fast.kernels.mlp.triton_weights import weight_pointers

    shape = MLPShape(6, (32, 32), 2, layer_norm=True, ensemble=3)
    block = ParameterBlock({"other": MLPShape(3, (5,), 1), "net": shape}, 2, device=DEVICE)
    block.initialise([torch.Generator().manual_seed(s) for s in range(2)])
    packed = block.networks["net"]
    config = make_config(packed, "ieee", obs=6, train=False)
    net = weight_pointers(packed, config)
    assert net.w_hid.data_ptr() == packed.kernels[1].data_ptr()
    assert net.shift.data_ptr() == packed.norm_biases[0].data_ptr()
    assert net.kernel_stride == block.flat.stride(0)
    loose = packed.map(lambda t: t.clone())
    assert weight_pointers(loose, config).w_hid.data_ptr() != loose.kernels[1].data_ptr()
    inputs = on_device(2, 5, 6)
    results = [mlp(net, inputs, backend="triton") for net in (packed, loose)]
    assert torch.equal(*results)


def field_of_one_layer() -> MLPWeights:
    """Weights whose activations are beyond 65504 for inputs of 30."""
    weights = make_mlp(6, 2, (16,), dtype=torch.float32).map(lambda t: t.detach().to(DEVICE))
    weights.kernels[0].mul_(2e4)
    return weights.map(torch.Tensor.requires_grad_)


def field(hidden, out=2, dtype=torch.float32) -> MLPWeights:
    block = ParameterBlock({"net": MLPShape(6, hidden, out)}, 1, dtype=dtype, device=DEVICE)
    return block.networks["net"]


def test_limits_are_named():
    s, x, eps = on_device(1, 2, 3), on_device(1, 2, 2), on_device(1, 1, 2, 2)
    for hidden, match in (
        ((1040,), "up to 1024 units, and the network has 1040"),
        ((8,) * 7, "up to 6 hidden layers, and the network has 7"),
    ):
        with pytest.raises(BackendError, match=match):
            sde_rollout(field(hidden), field(hidden), s, x, eps, backend="triton")
    with pytest.raises(BackendError, match="one architecture"):
        sde_rollout(field((8,)), field((16,)), s, x, eps, backend="triton")
    with pytest.raises(BackendError, match="compute in float32, not float64"):
        mlp(field((8,), dtype=torch.float64), on_device(1, 2, 6).double(), backend="triton")
    with pytest.raises(BackendError, match="up to 128 outputs, and the network has 129"):
        mlp(field((8,), out=129), on_device(1, 2, 6), backend="triton")


def test_an_update_equals_the_reference():
    """Two updates of TRQAM with an ensemble, LayerNorm, chunks and best of two."""
    config = TRQAMConfig(
        batch_size=6, actor_hidden_dims=(32, 32), actor_layer_norm=True, value_hidden_dims=(16,),
        num_qs=3, flow_steps=3, horizon_length=2, action_chunking=True, best_of_n=2,
    )  # fmt: skip
    batch = Batch(
        on_device(2, 6, 3),
        on_device(2, 6, 2, 2, seed=1).clamp(-1, 1),
        on_device(2, 6, seed=2),
        *torch.ones(2, 2, 6, device=DEVICE).unbind(0),
        on_device(2, 6, 3, seed=3),
    )
    agents = []
    for implementation in ("triton", "reference"):
        agent = TRQAMAgent(config, 3, 2, [0, 1], backend=implementation, device=DEVICE)
        randomness = Randomness(range(2), DEVICE)
        for _ in range(2):
            terms = agent.update(batch, agent.draw_noise(randomness))
        agents.append(
            (agent.online.flat, agent.target.flat, agent.dual.lam, *terms.metrics.values())
        )
    for ours, theirs in zip(*agents, strict=True):
        assert error(ours, theirs.double()) < 1e-4
