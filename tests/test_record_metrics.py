"""Metrics stored on their device: rows in order, a full table, and what is refused."""

import pytest
import torch

from tests.helpers import DEVICE, NEEDS_TRITON
from trqam_fast.kernels import record_metrics


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=NEEDS_TRITON)])
def test_rows_are_written_in_order_and_none_behind_the_last(backend):
    device = DEVICE if backend == "triton" else "cpu"
    memory = torch.zeros(3, 2, 2, device=device)
    table, position = memory[:2], torch.zeros(1, dtype=torch.int64, device=device)
    for row in range(2):
        values = [torch.full((2,), 10.0 * row + index, device=device) for index in (1, 2)]
        record_metrics(values, table, position, backend=backend)
    assert table.tolist() == [[[1.0, 2.0]] * 2, [[11.0, 12.0]] * 2] and int(position) == 2
    if backend == "reference":
        with pytest.raises(IndexError):
            record_metrics(values, table, position, backend=backend)
    else:
        record_metrics(values, table, position, backend=backend)
    assert not memory[2].any()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"metrics": [torch.zeros(3)]}, ValueError, r"metrics\[0\] has shape \[3\]"),
        ({"metrics": []}, ValueError, "there are no metrics; pass at least one"),
        ({"position": 0}, TypeError, "position is int; pass an int64 tensor"),
        ({"position": torch.zeros((), dtype=torch.int64)}, ValueError, r"expected \[1\] on cpu"),
        ({"table": torch.zeros(1, 2, 4).transpose(0, 2)}, ValueError, "table is not contiguous"),
    ],
)
def test_bad_input(change, kind, message):
    arguments = {
        "metrics": [torch.zeros(2)], "table": torch.zeros(4, 2, 1),
        "position": torch.zeros(1, dtype=torch.int64),
    }  # fmt: skip
    with pytest.raises(kind, match=f"record_metrics: .*{message}"):
        record_metrics(**arguments | change)
