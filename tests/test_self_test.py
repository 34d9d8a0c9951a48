"""The self-test of the Triton kernels, and the authors' recording replayed through them."""

import os
from pathlib import Path

import pytest
import torch

from trqam_fast import parity
from trqam_fast.kernels.dispatch import OPS, PRECISIONS
from trqam_fast.op_cases import CASES
from trqam_fast.self_test import problem, triton_problems

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available(),
        reason="needs a GPU or TRITON_INTERPRET=1",
    ),
]
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
RECORDINGS = ["trqam_single_step"] + (["trqam_chunked"] if DEVICE == "cuda" else [])


def test_no_problem():
    # The interpreter computes bfloat16 wrongly without saying so.
    for precision in PRECISIONS[:3] if DEVICE == "cpu" else PRECISIONS:
        assert triton_problems(DEVICE, precision) == []


@pytest.mark.parametrize("wrong", [0.999, float("nan")])
def test_a_wrong_kernel_is_named(wrong, monkeypatch):
    from trqam_fast.kernels.lean_adjoint import triton

    right = triton.lean_adjoint
    monkeypatch.setattr(triton, "lean_adjoint", lambda *args, **how: wrong * right(*args, **how))
    _, found = problem("lean_adjoint", "triton", DEVICE)
    assert found.startswith(f"lean_adjoint with backend triton on {DEVICE} deviates by")
    assert found.endswith("use --backend reference")


def test_the_precision_of_products_excuses_no_op_without_products(monkeypatch):
    from trqam_fast.kernels.td_loss import triton

    right = triton.td_loss
    monkeypatch.setattr(
        triton, "td_loss", lambda *args: [1.001 * tensor for tensor in right(*args)]
    )
    assert "deviates by" in problem("td_loss", "triton", DEVICE, "bf16")[1]


def test_a_kernel_that_does_not_launch_is_named(monkeypatch):
    from triton.runtime.errors import OutOfResources

    from trqam_fast.kernels.action_gradient import triton as gradient
    from trqam_fast.kernels.mlp import triton

    def refuse(*_, **__):
        raise OutOfResources(300_000, 232_448, "shared memory")

    for module in (triton, gradient):  # which keeps the one that it finds when it is imported
        monkeypatch.setattr(module, "forward_pass", refuse)
    problems = triton_problems(DEVICE, "tf32")
    assert problems[0].startswith(f"mlp with backend triton on {DEVICE} in tf32 fails: out of res")
    assert len(problems) < sum(OPS[case.op].triton for case in CASES.values())


@pytest.mark.parametrize("name", RECORDINGS)
def test_replay_of_the_authors_run(name):
    """Updates of TRQAM: losses, trajectories, adjoints, gradients, weights.

    The interpreter takes a minute for twelve updates with chunks, so that it has the six without;
    `tests/test_triton.py` gives it chunks.
    """
    file = Path(__file__).parent / "data" / f"{name}.npz"
    args = parity.ParityArgs(file, backend="triton", device=DEVICE, dtype="float32")
    assert max(parity.replay(args).values()) < 1e-4
