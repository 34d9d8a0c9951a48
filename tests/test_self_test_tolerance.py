"""What the self-test lets pass: rounded operands, but no error of a small tensor."""

import pytest
import torch

from tests.helpers import LOST_BITS, CoarseProducts
from trqam_fast import self_test
from trqam_fast.kernels.dispatch import OPS
from trqam_fast.op_cases import CASES, OpCase, evaluate


@pytest.mark.parametrize("cut", [False, True], ids=["rounded", "cut"])
@pytest.mark.parametrize("precision", LOST_BITS)
@pytest.mark.parametrize("op", [name for name, c in CASES.items() if OPS[c.op].networks])
def test_operands_of_the_matrix_units_pass(op, precision, cut, monkeypatch):
    """With room to spare, as the kernels add in another order."""

    def coarse_evaluate(case, inputs, **_):
        with CoarseProducts(precision, cut):
            return evaluate(case, inputs, backend="reference")

    monkeypatch.setattr(self_test, "evaluate", coarse_evaluate)
    limit = self_test.TOLERANCE[precision]
    for size in (self_test.SMALL, *self_test.WIDE):
        found = self_test.deviation(op, "reference", "cpu", precision, size)
        assert limit / 200 < found < limit / 2, (size, found)


def test_a_small_tensor_is_measured_by_its_own_elements(monkeypatch):
    """As the gradients of weights are, beside losses and actions."""

    def call(inputs, **_):
        wrong = 1.0 if inputs["x"].dtype == torch.float64 else 1.001
        return {"large": torch.ones(3), "small": torch.full((2,), 1e-3 * wrong)}

    case = OpCase("path_kl", lambda draw: {"x": draw.normal(1)}, call)
    monkeypatch.setitem(CASES, "op", case)
    assert self_test.deviation("op", "reference", "cpu") == pytest.approx(1e-3, rel=1e-2)
