"""Damaged, old and hostile flat sets."""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from tests.datasets import MAZE, raw_arrays
from trqam_fast.damage import Damaged, Unreadable
from trqam_fast.data import __main__ as command
from trqam_fast.data import flat as flat_module
from trqam_fast.data.dataset import Dataset
from trqam_fast.data.flat import FlatSet, problems_of_flat
from trqam_fast.data.flat_dataset import open_flat
from trqam_fast.data.flatten import convert
from trqam_fast.errors import UsageError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **raw_arrays())
    return convert([path], MAZE, path.with_suffix(".flat"), progress=False)


@pytest.fixture
def flat(original, tmp_path):
    return shutil.copytree(original, tmp_path / original.name)


class TestDamagedFlatSets:
    def test_flipped_bit(self, flat):
        content = bytearray((flat / "records.npy").read_bytes())
        content[400] ^= 1
        (flat / "records.npy").write_bytes(content)
        (problem,) = problems_of_flat(flat)
        assert "records.npy is damaged: its checksum is wrong" in problem

    @pytest.mark.parametrize("name", ["records", "finals", "masks_task3"])
    def test_cut_off(self, flat, name):
        path = flat / f"{name}.npy"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UsageError, match=f"no whole flat set .{name}.npy has .* bytes, not"):
            FlatSet.open(flat)
        path.unlink()
        with pytest.raises(UsageError, match="convert the dataset again"):
            FlatSet.open(flat)

    def change(self, flat, sign=True, **changes):
        """Change the manifest, and its checksum to fit."""
        path = flat / "manifest.json"
        manifest = {**json.loads(path.read_text()), **changes}
        manifest = {name: value for name, value in manifest.items() if value is not ...}
        if sign:
            manifest["checksum"] = flat_module.checksum_of(manifest)
        path.write_text(json.dumps(manifest))

    def test_manifest(self, flat):
        self.change(flat, format=3)
        with pytest.raises(UsageError, match="has format 3, this version reads 1 and 2"):
            FlatSet.open(flat)
        for content in ("", "[]", "{}", '{"format": 1}', "[" * 10**5, '{"format": ' + "9" * 5000):
            (flat / "manifest.json").write_text(content)
            with pytest.raises(Damaged, match="is no whole flat set"):
                FlatSet.open(flat)
        os.truncate(flat / "manifest.json", 2**40)
        with pytest.raises(Damaged, match="larger than 1,048,576 bytes"):
            FlatSet.open(flat)

    def test_every_bit_of_the_manifest(self, flat):
        """Whatever bit is changed, the set is refused; white space alone may differ."""
        path, rng = flat / "manifest.json", np.random.default_rng(0)
        content = path.read_bytes()
        for position in rng.choice(len(content), 400, replace=False):
            changed = bytearray(content)
            changed[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            try:
                FlatSet.open(flat)
            except UsageError as error:
                assert str(error).isprintable()
            else:
                assert chr(content[position]).isspace() and chr(changed[position]).isspace()
            if problems_of_flat(flat):
                continue
            assert json.loads(changed) == json.loads(content)

    @pytest.mark.parametrize(
        "changes",
        [
            {"transitions": 59}, {"transitions": 0}, {"transitions": -60}, {"transitions": 60.0},
            {"transitions": 10**12}, {"transitions": 10**400}, {"trajectories": 61},
            {"trajectories": True}, {"obs_dim": 3, "act_dim": 1}, {"obs_dim": None},
            {"env": ...}, {"dataset": ...}, {"default_task": ...}, {"sources": ...},
            {"arrays": ...}, {"tasks": ...}, {"env": "cube-double-v0"}, {"dataset": "x"},
            {"dataset": ["x"]}, {"default_task": 7}, {"tasks": []}, {"tasks": {"1": 1}},
            {"tasks": [1, 1, 2, 3, 4, 5]}, {"tasks": list(range(1, 10**5))}, {"sources": [1]},
            {"sources": [{"bytes": "1"}]}, {"arrays": {"records": {}}}, {"arrays": []},
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("version", [1, 2])
    def test_a_manifest_that_contradicts_itself(self, flat, changes, version):
        """By hand, so that its checksum fits; sizes are compared before memory is asked for."""
        self.change(flat, **changes, format=version)
        (problem,) = problems_of_flat(flat)
        assert problem.isprintable() and len(problem) < 500
        with pytest.raises(UsageError):
            open_flat(flat, "pointmaze-medium-singletask-task1-v0")

    def test_an_old_set_of_another_task(self, flat):
        """A set of format 1 has no checksum; it is compared with its environment."""
        env_id = "pointmaze-medium-singletask-v0"
        self.change(flat, format=1, checksum=..., sign=False)
        assert problems_of_flat(flat) == [] and len(open_flat(flat, env_id)) == 60
        self.change(flat, format=1, checksum=..., sign=False, default_task=3)
        (problem,) = problems_of_flat(flat)
        assert "default task are (2, 2, 3), those of pointmaze-medium-v0 are (2, 2, 1)" in problem
        with pytest.raises(Damaged, match="convert the dataset again"):
            open_flat(flat, env_id)

    def sum_of(self, flat, name):
        """The entries of the manifest with the checksum that an array has now."""
        arrays = json.loads((flat / "manifest.json").read_text())["arrays"]
        arrays[name]["sha256"] = hashlib.sha256((flat / f"{name}.npy").read_bytes()).hexdigest()
        return arrays

    def test_values(self, flat):
        """What is wrong is found even where a checksum fits."""
        for name, index, value in (("records", (3, 1), np.nan), ("terminals", 59, 0)):
            array = np.load(flat / f"{name}.npy")
            array[index] = value
            np.lib.format.write_array(open(flat / f"{name}.npy", "wb"), array, (1, 0))
            self.change(flat, arrays=self.sum_of(flat, name))
        values, ends = problems_of_flat(flat)
        assert "records.npy has non-finite values" in values
        assert "marks 5 ends, the last transition is not one; the manifest has 6" in ends

    @pytest.mark.parametrize("value", [0, 1])
    def test_terminals_that_are_all_alike(self, flat, value):
        path = flat / "terminals.npy"
        content = path.read_bytes()
        path.write_bytes(content[:-60] + bytes([value]) * 60)
        with pytest.raises(Damaged, match=f"terminals.npy marks {60 * value} ends"):
            open_flat(flat, "pointmaze-medium-singletask-task1-v0")
        with pytest.raises(Damaged, match=f"terminals.npy marks {60 * value} ends"):
            Dataset.from_flat(FlatSet.open(flat), 1)

    @pytest.mark.parametrize("kind", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
    @pytest.mark.parametrize("file", ["manifest.json", "records.npy"])
    def test_a_set_that_cannot_be_read_is_not_damaged(self, flat, kind, file, refused, capsys):
        with refused(flat / file, kind):
            with pytest.raises(Unreadable, match=f"{file} cannot be read") as error:
                FlatSet.open(flat)
            assert command.main(["verify", str(flat), str(flat)]) == 1
        assert "delete" not in str(error.value)
        assert capsys.readouterr().out.count(f"{file} cannot be read") == 2


def test_verify_without_names_says_what_it_did(flat, tmp_path, capsys):
    """Every dataset of the folder, and how many there are; nothing where there is none."""
    here = ["verify", "--dataset-dir", str(tmp_path)]
    assert command.main(here) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"no name is given: 1 in {tmp_path}", f"{flat} is whole",
    ]  # fmt: skip
    (flat / "records.npy").write_bytes(b"")
    assert command.main(here) == 1
    capsys.readouterr()
    with pytest.raises(UsageError, match=f"--dataset-dir {tmp_path}/none does not exist"):
        command.main(["verify", "--dataset-dir", str(tmp_path / "none")])
    odd = tmp_path / "odd\x1b[2J"
    odd.mkdir()
    shown = f"{tmp_path}/odd\\x1b[2J"
    assert command.main(["verify", "--dataset-dir", str(odd)]) == 0
    assert capsys.readouterr().out.endswith(f"0 in {shown}, so nothing is checked\n")
    shutil.move(flat, odd)
    for verb, status in (("verify", 1), ("list", 0)):
        assert command.main([verb, "--dataset-dir", str(odd)]) == status
        printed = capsys.readouterr().out
        assert shown in printed and "\x1b" not in printed
