"""Damaged and foreign npz files."""

import numpy as np
import pytest

from tests.test_data import raw_arrays
from trqam_fast.data.load import load_arrays
from trqam_fast.data.npz import Layout, is_damaged, problems_of, read_raw
from trqam_fast.errors import UsageError


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **raw_arrays())
    return path


class TestBadFiles:
    def write(self, path, **changes):
        np.savez(path, **{k: v for k, v in {**raw_arrays(), **changes}.items() if v is not None})

    def load(self, path):
        return load_arrays(path, "pointmaze-medium-singletask-task1-v0")

    def test_truncated(self, archive):
        content = archive.read_bytes()
        for size in (0, 100, len(content) // 2, len(content) - 10):
            archive.write_bytes(content[:size])
            with pytest.raises(UsageError, match="truncated"):
                self.load(archive)

    def test_flipped_bit(self, archive):
        content = bytearray(archive.read_bytes())
        content[400] ^= 1  # among the observations
        archive.write_bytes(content)
        with pytest.raises(UsageError, match="Bad CRC-32 for file 'observations.npy'"):
            self.load(archive)

    def test_missing_key(self, archive):
        self.write(archive, qpos=None)
        with pytest.raises(UsageError, match=r"no array 'qpos' \[\?, \?\]"):
            self.load(archive)

    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("actions", (66, 3), r"\[\?, 2\]"),
            ("actions", (65, 2), r"\[\?, 2\]"),
            ("terminals", (66, 1), r"\[\?\]"),
        ],
    )
    def test_wrong_shape(self, archive, name, shape, expected):
        self.write(archive, **{name: np.zeros(shape, np.float32)})
        wrong = rf"{name} has shape \[{', '.join(map(str, shape))}\], expected {expected}"
        with pytest.raises(UsageError, match=wrong):
            self.load(archive)

    def test_pickled_object(self, archive):
        self.write(archive, actions=np.array([[{}, {}]] * 66, dtype=object))
        with pytest.raises(UsageError, match="damaged|truncated"):
            self.load(archive)

    def test_non_finite(self, archive):
        broken = raw_arrays()["observations"]
        broken[7, 1] = np.nan
        self.write(archive, observations=broken)
        with pytest.raises(UsageError, match="observations has non-finite values"):
            self.load(archive)

    def test_the_last_row_is_terminal(self, archive):
        terminals = raw_arrays()["terminals"]
        terminals[-1] = False
        self.write(archive, terminals=terminals)
        with pytest.raises(UsageError, match="last row is not terminal"):
            self.load(archive)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_every_byte(self, archive, save):
        """Whatever byte is changed, reading either works or is refused; no other error escapes."""
        arrays = raw_arrays(1, 3)
        del arrays["qvel"]
        save(archive, **arrays)
        content, layout = archive.read_bytes(), Layout(2, 2, ("qpos",))
        found = 0
        for position in range(len(content)):
            for flip in (0x01, 0xFF):
                changed = bytearray(content)
                changed[position] ^= flip
                archive.write_bytes(changed)
                found += bool(problems_of(archive, layout))
                is_damaged(archive)
                try:
                    read_raw(archive, layout)
                except UsageError:
                    continue
        assert len(content) < found < 2 * len(content)  # some bytes are not read by anybody
