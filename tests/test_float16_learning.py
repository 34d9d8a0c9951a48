"""Operands rounded to float16 on the CPU, and the comparison of what is learned with them."""

import json

import pytest
import torch

from benchmarks import float16_learning
from benchmarks.float16_learning import Float16Operands
from tests import own_tasks
from tests.helpers import DEVICE, NEEDS_TRITON, cast, draw, error, gradients, make_mlp
from trqam_fast.kernels import mlp


def test_operands_of_both_passes():
    x = torch.tensor([[1.0 + 2**-10 + 2**-12, 1e5, 4e-8]], requires_grad=True)
    w = torch.tensor([[1.0], [0.0], [1.0]], requires_grad=True)
    with Float16Operands() as mode:
        y = x @ w
        assert y.item() == 1.0 + 2**-10  # to 11 bits
        assert (x @ torch.eye(3)).tolist() == [[1.0 + 2**-10, 65504.0, 2**-24]]
        tiny = 2**-100 * (1 + 2**-10 + 2**-12)
        gx, gw = torch.autograd.grad(y, (x, w), torch.full_like(y, tiny))
    kept = 2**-100 * (1 + 2**-10)
    assert gx.tolist() == [[kept, 0.0, kept]]
    assert gw[0, 0] == torch.tensor(kept) * (1 + 2**-10)
    assert mode.products == {"forwards": 2, "backwards": 2}
    assert (x @ w).item() > 1.0 + 2**-10 + 2**-13  # without the mode nothing is rounded


@pytest.mark.parametrize("size", [1.0, 1e-12])
@pytest.mark.parametrize("backend", [pytest.param("triton", marks=NEEDS_TRITON)])
def test_rounds_as_the_kernels_do(backend, size):
    """Nearer to the kernels with float16 than those are to what is not rounded."""
    weights = cast(make_mlp(9, 3, (32, 48), runs=2), torch.float32)
    x = draw(2, 40, 9).float().requires_grad_()

    def run(device="cpu", **options):
        y = mlp(weights.map(lambda t: t.to(device)), x.to(device), **options).cpu()
        return [y, *gradients([size * y], [x, *weights.tensors])]

    exact = run(backend="reference")
    with Float16Operands():
        emulated = run(backend="reference")
    kernels = run(device=DEVICE, backend=backend, precision="fp16")
    for found, wanted, plain in zip(emulated, kernels, exact, strict=True):
        assert error(found, wanted.double()) < 1e-6 + 0.1 * error(plain, wanted.double())


def test_the_comparison_trains_both_sides_and_goes_on(tmp_path, capsys):
    path = tmp_path / "found.json"
    flags = [
        "--seeds", "0", "3", "--updates", "4", "--out", str(tmp_path / "runs"), "--json", str(path),
        "--env-name", "tests.own_tasks:Reach", "--max-episode-steps", "20", "--preset", "default",
        "--dataset", str(own_tasks.write_data(tmp_path / "reach.npz")), "--bc-steps", "3",
        "--eval-interval", "2", "--eval-episodes", "4", "--batch-size", "4",
        "--actor-hidden-dims", "8", "8", "--value-hidden-dims", "8", "--horizon-length", "2",
    ]  # fmt: skip
    assert float16_learning.main(flags) == 0
    record = json.loads(path.read_text())
    assert record["success"].keys() == {"float32", "float16"}
    assert record["success"]["float16"]["3"].keys() == {"0", "2", "4"}
    assert record["difference"]["pairs"] == 2
    weights = [
        (tmp_path / "runs" / f"{side}-seed_0" / "metrics.csv").read_text()
        for side in ("float32", "float16")
    ]
    assert weights[0] != weights[1]
    capsys.readouterr()
    assert float16_learning.main(flags) == 0
    assert json.loads(path.read_text())["success"] == record["success"]
    assert "float16, seed 3" in capsys.readouterr().out
