"""Checkpoints with damaged bytes, with other values, and those that the system refuses to read."""

import contextlib
import errno
import os
import shutil

import pytest
import torch

from tests.runs import run
from trqam_fast import evaluate
from trqam_fast.cli import run_command
from trqam_fast.damage import Damaged, Unreadable
from trqam_fast.errors import UsageError
from trqam_fast.networks import MLPShape
from trqam_fast.runs import checkpoint
from trqam_fast.training.start import check_start

NEWEST, BEFORE = "step_000000006.pt", "step_000000005.pt"


@pytest.fixture(scope="module")
def whole(generated, tmp_path_factory):
    """A finished run that fine-tuned online, with its last two checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    flags = [
        "--preset", "smoke", "--generated-dir", str(generated), "--generated-transitions", "3000",
        "--bc-steps", "2", "--offline-steps", "2", "--online-steps", "2", "--start-training", "0",
        "--log-interval", "1", "--eval-interval", "0", "--save-interval", "1", "--keep", "9",
        "--eval-episodes", "1", "--max-episode-steps", "50", "--eval-envs", "1",
        "--batch-size", "8", "--seeds", "3", "5",
        "--actor-hidden-dims", "16", "16", "--value-hidden-dims", "16", "16",
    ]  # fmt: skip
    assert run(flags, folder) == 0
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def newest(folder):
    return folder / "checkpoints" / NEWEST


def evaluated(*flags):
    return run_command(lambda: evaluate.main([*map(str, flags), "--episodes", "1"]))


def one_bit(path):
    """Set the compression method in the zip's directory: read as deflate, it is no longer."""
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + 10] = 8
    path.write_bytes(content)


def test_a_flipped_bit_of_the_directory_gives_way_to_the_one_before(folder, newest, capsys):
    one_bit(newest)
    assert run([], folder, "--resume") == 0
    said = capsys.readouterr()
    assert f"{newest} is no whole checkpoint of this package" in said.err
    assert f"resuming from {BEFORE}" in said.out
    one_bit(newest)
    assert evaluated(folder, "--checkpoint", newest) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "name another one with --checkpoint" in message
    assert run([], folder.with_name("new"), "--pretrained", str(newest)) == 2
    assert "name another one with --pretrained" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["state_dict", "safetensors", "pt2", "export"])
def test_weights_of_others_are_no_damage(kind, flags, tmp_path, capsys):
    net, path = torch.nn.Linear(2, 2), tmp_path / "weights"
    if kind == "pt2":
        torch.export.save(torch.export.export(net, (torch.zeros(1, 2),)), path.with_suffix(".pt2"))
        path = path.with_suffix(".pt2")
    elif kind == "state_dict":
        torch.save(net.state_dict(), path)
    elif kind == "safetensors":
        path.write_bytes((2).to_bytes(8, "little") + b"{}")
    else:
        path.mkdir()
        (path / "model.safetensors").touch()
        (path / "config.json").write_text("{}")
    assert run([*flags, "--pretrained", str(path)], tmp_path / "run") == 2
    said = capsys.readouterr().err
    whole = "is no whole checkpoint of this package"
    assert ("is no config of an export" if kind == "export" else whole) in said
    if kind != "export":
        assert "for a policy of your own see docs/your_own_policy.md" in said
    assert len(said.strip().splitlines()) == 1 and "miniz" not in said


@contextlib.contextmanager
def refusing(monkeypatch, number, names):
    """The system refuses to open the checkpoints of these names."""
    opened = os.open

    def refuse(path, *arguments, **options):
        if os.path.basename(path) in names:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        yield


@pytest.mark.parametrize("name", ["EACCES", "EIO"])
def test_a_refusal_of_the_system_is_no_step_back(name, folder, newest, monkeypatch, capsys):
    """The newest checkpoint may be whole: nothing is renamed, cut or begun again."""
    logs = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for names in ({NEWEST}, {NEWEST, BEFORE}):
        for command in (
            lambda: run([], folder, "--resume"),
            lambda: evaluated(folder),
            lambda: evaluated(folder, "--checkpoint", newest),
            lambda: run([], folder.with_name("new"), "--pretrained", str(folder)),
        ):
            with refusing(monkeypatch, getattr(errno, name), names):
                assert command() == 1
            message = capsys.readouterr().err
            assert f"{newest} cannot be read" in message
            assert "overwrite" not in message and "delete" not in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == logs


def test_lack_of_memory_is_no_step_back(folder, newest, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(Unreadable, match="too little memory"):
        checkpoint.load_newest(newest.parent, warn=lambda text: pytest.fail(text))


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(Unreadable, match="cannot be read"):
        checkpoint.newest(tmp_path)


def test_no_folder_is_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None


def test_steps_of_more_digits_are_newer(tmp_path):
    paths = [tmp_path / f"step_{step:09d}.pt" for step in (5, 999_999_999, 10**9, 2 * 10**10)]
    paths.insert(0, tmp_path / "step_000000100 (a copy of mine).pt")
    for path in paths[::-1]:
        path.touch()
    assert checkpoint.found(tmp_path) == paths and checkpoint.newest(tmp_path) == paths[-1]
    checkpoint.prune(tmp_path, 1, {paths[1]})
    assert checkpoint.found(tmp_path) == [*paths[:2], paths[-1]]


def changed(path, **changes):
    state = torch.load(path, weights_only=True)
    for name, value in changes.items():
        if name in state["agent"]:
            state["agent"][name] = value
        else:
            state[name] = value
    torch.save(state, path)


HUGE = torch.zeros(1).as_strided((10**5, 10**5), (0, 0))
ODD = [
    {"step": None}, {"step": "6"}, {"step": 1e30}, {"step": True}, {"step": -1},
    {"step": 10**30}, {"stage": None}, {"agent": None}, {"agent": "x"}, {"agent": [1]},
    {"lam": "x"}, {"online": HUGE}, {"online": torch.zeros(3)}, {"shapes": None},
    {"online": torch.zeros(2, 3, device="meta")},
    {"shapes": {"actor_slow": [[1e30, "x"]]}}, {"shapes": {3: []}},
]  # fmt: skip
"""Values of another type, or impossible, in what every reader of a checkpoint needs."""

ODD_PROGRESS = [
    {"success": None}, {"success": {"offline": "x"}}, {"success": {"offline": [1.0]}},
    {"success": {"online": []}}, {"step": 1}, {"evaluated": None}, {"seconds": None},
    {"seconds": {"data": "x"}}, {"seconds": {"data": 0.0}}, {"updates": {"offline": None}},
    {"updates": {"pretrain": 0, "offline": 0, "online": 0, "more": 1}}, {"failures": None},
    {"failures": {7: "x"}}, {"failures": {"a": "x"}}, {"ends": []}, {"history": [1]},
    {"history": torch.zeros(2, dtype=torch.float64)},
    {"drawn": None}, {"online": "x"}, {"data": None}, {"metrics": "x"}, {"metrics": [1]},
]  # fmt: skip
"""The same in what continuing a run needs."""


@pytest.mark.parametrize("odd", ODD, ids="".join)
def test_values_of_other_types(odd, newest):
    changed(newest, **odd)
    with pytest.raises(Damaged, match=f"{newest} is no whole checkpoint of this package"):
        checkpoint.load(newest)


@pytest.mark.parametrize("odd", ODD_PROGRESS, ids="".join)
def test_progress_of_other_types_gives_way_to_the_checkpoint_before(odd, newest):
    torch.save(torch.load(newest, weights_only=True) | odd, newest)
    warnings = []
    assert checkpoint.load_newest(newest.parent, warnings.append)[1] == BEFORE
    assert len(warnings) == 1 and f"{newest} is no whole checkpoint of this package" in warnings[0]


@pytest.mark.parametrize(
    "odd",
    [
        {"history": torch.zeros(2, 7, 3, dtype=torch.float64)},
        {"online": {"seconds": {}}},
    ],
    ids="".join,
)
def test_progress_that_contradicts_the_run(odd, folder, newest, capsys):
    """Right types of impossible contents: one sentence, and the files stay as they are."""
    newest.unlink()
    before = newest.with_name(BEFORE)
    torch.save(torch.load(before, weights_only=True) | odd, before)
    assert run([], folder, "--resume") == 2
    assert "does not fit this run" in capsys.readouterr().err.splitlines()[-1]


def test_sequences_of_an_unknown_flag_say_nothing(newest):
    """As a version to come may write them."""
    state = checkpoint.load(newest)
    shapes = {"actor_slow": MLPShape(4 + 1, (16, 16), 2, False)}
    own = {"horizon_length": 5}
    for more in ({}, {"horizon_length_more": float("inf")}):
        state["sequences"] = own | more
        check_start(state, newest, shapes, own, 2)
    for field in ({}, {"actor_slow": []}, {"actor_slow": [[3]]}):
        with pytest.raises(UsageError, match="holds no velocity field actor_slow; name another"):
            check_start(state | {"shapes": field}, newest, shapes, own, 2)
    with pytest.raises(UsageError, match="holds 2 runs, but --seeds names 3; use as many"):
        check_start(state, newest, shapes, own, 3)
    with pytest.raises(UsageError, match="was made with --horizon-length 5, but the flags ask"):
        check_start(state, newest, shapes, {"horizon_length": 4}, 2)


def test_weights_that_are_not_finite_are_refused(folder, newest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    online = torch.load(newest, weights_only=True)["agent"]["online"]
    online[1, 7] = float("nan")
    changed(newest, **{"online": online})
    assert evaluated(folder, "--checkpoint", newest) == 2
    assert "weights of seed 5 that are not finite" in capsys.readouterr().err
    flags = ["--bc-steps", "0", "--pretrained", str(newest)]
    assert run(flags, tmp_path / "new") == 2
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_another_version_is_not_damage(folder, newest, capsys):
    """Of a run that a newer version has continued, nothing is cut or renamed."""
    changed(newest, format=checkpoint.FORMAT + 1)
    with pytest.raises(UsageError, match="of another version") as told:
        checkpoint.load(newest)
    assert not isinstance(told.value, Damaged)
    assert run([], folder, "--resume") == 2
    assert "use the version of trqam_fast that wrote it" in capsys.readouterr().err
    assert newest.exists()


def test_a_log_that_is_no_text_stops_a_continuation(folder, newest, capsys):
    newest.unlink()
    content = (folder / "metrics.csv").read_bytes()
    (folder / "metrics.csv").write_bytes(content + b"\xff\xfe\n")
    assert run([], folder, "--resume") == 2
    assert "metrics.csv is damaged" in capsys.readouterr().err
    os.truncate(folder / "metrics.csv", 2**40)
    assert run([], folder, "--resume") == 2
    assert "larger than" in capsys.readouterr().err
