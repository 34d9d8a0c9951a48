"""What only Triton's kernels do: scratch instead of a tape, half precision, weights in place.

On a GPU, or under the interpreter, which must be on before Triton is imported and so takes a
process of its own: TRITON_INTERPRET=1 pytest -m interpreter
"""

import pytest
import torch

from tests.helpers import DEVICE, INTERPRETED, NEEDS_TRITON, draw, error, poisoned_memory
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import (
    BackendError,
    MLPWeights,
    lean_adjoint,
    mlp,
    sde_rollout,
    sweep_tape,
)
from trqam_fast.networks import MLPShape, ParameterBlock
from trqam_fast.op_cases import CASES, Sizes, draw_inputs, evaluate
from trqam_fast.randomness import Randomness

pytestmark = NEEDS_TRITON

UNEVEN = Sizes(2, 33, 3, 2, (16, 40), True, steps=2, ensemble=None)


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
    for name, ours in bare.items():
        assert error(ours, kept[name].double()) <= (0 if INTERPRETED else 1e-5)


def test_a_sweep_takes_the_tape_that_was_made_before():
    inputs = inputs_of("lean_adjoint", UNEVEN)
    states = [inputs[name] for name in ("base_velocity", "observations", "trajectory")]
    tape = sweep_tape(*states, backend="triton")
    assert torch.equal(
        lean_adjoint(**inputs, tape=tape, backend="triton"),
        lean_adjoint(**inputs, backend="triton"),
    )
    tape[0].fill_(torch.nan)
    assert lean_adjoint(**inputs, tape=tape, backend="triton").isnan().any()
    for wrong in ([], [part[:, :, 1:] for part in tape]):
        with pytest.raises(ValueError, match="pass what sweep_tape returned"):
            lean_adjoint(**inputs, tape=wrong, backend="triton")


@pytest.mark.parametrize("name", ["sde_rollout", "lean_adjoint"])
def test_half_precision_operands(name, monkeypatch):
    """float16 takes bfloat16's way through the kernels, which the interpreter gets wrong."""
    import triton.language as tl

    from trqam_fast.kernels.mlp import triton_config

    if INTERPRETED:
        monkeypatch.setitem(triton_config.OPERANDS, "bf16", tl.float16)
    coarse = 1 if INTERPRETED else 8
    inputs = inputs_of(name, UNEVEN)
    half = evaluate(CASES[name], inputs, backend="triton", precision="bf16")
    exact = evaluate(CASES[name], inputs, backend="reference")
    errors = {key: error(half[key], value.double()) for key, value in exact.items()}
    assert 1e-6 < max(errors.values()) < 6e-3 * coarse, errors
    for key, value in errors.items():
        assert value < (6e-3 if key.startswith("d ") else 3e-3) * coarse, key


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
