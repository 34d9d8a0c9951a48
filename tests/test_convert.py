import collections
import contextlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from trqam_fast import convert, flax_pickle
from trqam_fast.agents import AgentConfig, BCAgent, TRQAMAgent
from trqam_fast.cli import run_command
from trqam_fast.errors import UsageError
from trqam_fast.training import checkpoint

DATA = Path(__file__).parent / "data"
REAL = DATA / "reference_checkpoint.pkl"
EXPECTED = DATA / "reference_checkpoint_expected.npz"


def plain(tree):
    """The tree with numpy arrays in place of stand-ins."""
    if isinstance(tree, flax_pickle.Array):
        return tree.value
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    return tree


def write(path, tree, protocol=4):
    path.write_bytes(pickle.dumps(tree, protocol))
    return path


@pytest.fixture
def tree():
    return plain(flax_pickle.read(REAL))


def converted(path, out):
    assert convert.main([str(path), str(out)]) == 0
    return checkpoint.load(out)


def test_the_authors_checkpoint_agrees(tmp_path, capsys):
    out = tmp_path / "out.pt"
    assert convert.main([str(REAL), str(out), "--check", str(EXPECTED)]) == 0
    printed = capsys.readouterr().out
    for name in ("slow_actions", "fast_actions", "q ", "target_q", "lam", "kl_ema"):
        assert name in printed
    state = checkpoint.load(out)
    assert state["stage"] == "offline" and state["step"] == 3
    assert state["source"]["file"] == REAL.name and len(state["source"]["sha256"]) == 64
    hidden = (16,) * 4
    config = AgentConfig(
        actor_hidden_dims=hidden, value_hidden_dims=hidden, num_qs=3, horizon_length=3,
        action_chunking=True,
    )  # fmt: skip
    agent = TRQAMAgent(config, 6, 2, [0])
    checkpoint.restore(agent, state, out)
    assert agent.lam.item() == pytest.approx(0.97039, abs=1e-4)
    assert agent.steps.item() == 3
    assert agent.exp_avg.abs().max() > 0 and agent.exp_avg_sq.min() >= 0


def test_it_serves_as_pretrained(tmp_path):
    """Two seeds start from the one run of the file: weights, targets, lambda and moments."""
    out = tmp_path / "out.pt"
    convert.main([str(REAL), str(out)])
    state, path = checkpoint.load_pretrained(out)
    hidden = (16,) * 4
    options = {"actor_hidden_dims": hidden, "value_hidden_dims": hidden, "num_qs": 3}
    config = AgentConfig(**options, horizon_length=3, action_chunking=True)
    agent = TRQAMAgent(config, 6, 2, [5, 6])
    checkpoint.check_start(state, path, agent.online.shapes, agent.runs)
    checkpoint.start_from(agent, state)
    saved, now = state["agent"], agent.state_dict()
    for name in ("online", "target", "exp_avg", "exp_avg_sq", "lam", "kl_ema", "step"):
        for run in range(2):
            torch.testing.assert_close(now[name][run], saved[name][0], rtol=0, atol=0)
    with pytest.raises(UsageError, match="--horizon-length"):
        checkpoint.check_start(state, path, TRQAMAgent(config, 7, 2, [0]).online.shapes, 1)


def test_moments_lie_where_the_weights_do(tree, tmp_path):
    adam = tree["agent"]["network"]["opt_state"]["1"]["0"]
    for part, factor in (("mu", 2.0), ("nu", 3.0)):
        for name, network in adam[part].items():
            source = tree["agent"]["network"]["params"][name]
            for module, layers in network.items():
                for layer, arrays in layers.items():
                    for array in arrays:
                        value = source[module][layer][array]
                        adam[part][name][module][layer][array] = factor * value
    state = converted(write(tmp_path / "a.pkl", tree), tmp_path / "a.pt")["agent"]
    torch.testing.assert_close(state["exp_avg"], 2 * state["online"])
    torch.testing.assert_close(state["exp_avg_sq"], 3 * state["online"])


def test_a_deviation_is_an_exit_status(tmp_path, capsys):
    with np.load(EXPECTED) as archive:
        arrays = dict(archive)
    arrays["fast_actions"] = arrays["fast_actions"] + 3e-5
    np.savez(tmp_path / "wrong.npz", **arrays)
    argv = [str(REAL), str(tmp_path / "out.pt"), "--check", str(tmp_path / "wrong.npz")]
    assert convert.main(argv) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "TOO LARGE" in line]
    assert line.split()[:2] == ["fast_actions", "3.0e-05"]


def test_expected_of_other_networks_or_no_npz(tmp_path):
    with np.load(EXPECTED) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "other.npz", **arrays | {"noise": arrays["noise"][:, :4]})
    argv = [str(REAL), str(tmp_path / "out.pt"), "--check"]
    with pytest.raises(UsageError, match="actions of 4, but the checkpoint has 6 and 6"):
        convert.main([*argv, str(tmp_path / "other.npz")])
    for path in (REAL, tmp_path / "missing.npz"):
        with pytest.raises(UsageError, match="--check"):
            convert.main([*argv, str(path)])


def test_a_cloning_checkpoint_is_recognised(tree, tmp_path):
    params = tree["agent"]["network"]["params"]
    tree["agent"]["lam"] = np.float32(1.0)
    assert converted(write(tmp_path / "a", tree), tmp_path / "a.pt")["stage"] == "offline"
    params["modules_target_critic"] = params["modules_critic"]
    state = converted(write(tmp_path / "b", tree), tmp_path / "b.pt")
    assert state["stage"] == "pretrain"
    agent = BCAgent(AgentConfig(actor_hidden_dims=(16,) * 4), 6, 6, [0])
    checkpoint.restore(agent, state, tmp_path / "b.pt")
    kernel = params["modules_actor_slow"]["mlp"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(
        agent.online.networks["actor_slow"].kernels[0][0].detach(), kernel
    )


def test_qam_and_unknown_networks(tree, tmp_path, capsys):
    """QAM has no lambda; a network that this package lacks is named, not dropped silently."""
    del tree["agent"]["lam"], tree["agent"]["kl_ema"], tree["agent"]["network"]["opt_state"]
    tree["agent"]["network"]["params"]["modules_actor_edit"] = {}
    state = converted(write(tmp_path / "qam.pkl", tree), tmp_path / "qam.pt")
    printed = capsys.readouterr().out
    assert "no lambda (QAM)" in printed and "left out" in printed and "actor_edit" in printed
    assert "moments" in printed
    assert state["agent"]["lam"].item() == 1.0 and state["agent"]["exp_avg"].abs().max() == 0


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_forms(protocol, tmp_path):
    """Protocols, orders, byte orders, scalars and ordered dictionaries read as they were."""
    kept = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">f8"),
        "int": np.arange(4, dtype=np.int64)[::2],
        "flags": np.array([True, False]),
        "scalar": np.float32(0.5),
        "empty": np.zeros((0, 3), np.float16),
        "zero_d": np.array(7, np.int32),
    }
    path = write(
        tmp_path / "a.pkl", collections.OrderedDict(kept, extra=[1, (2, "x"), None]), protocol
    )
    found = flax_pickle.read(path)
    assert found.pop("extra") == [1, (2, "x"), None]
    assert set(found) == set(kept)
    for name, value in kept.items():
        np.testing.assert_array_equal(found[name].value, value)
        assert found[name].value.dtype == value.dtype and found[name].value.shape == value.shape


def test_frozen_dict_and_old_numpy_names(tmp_path):
    data = REAL.read_bytes()
    old = b"numpy.core.multiarray"
    new = data.replace(b"\x8c\x16numpy._core.multiarray", bytes([0x8C, len(old)]) + old)
    assert new != data
    (tmp_path / "old.pkl").write_bytes(unframed(new))
    expected, found = plain(flax_pickle.read(REAL)), plain(flax_pickle.read(tmp_path / "old.pkl"))
    np.testing.assert_array_equal(found["agent"]["lam"], expected["agent"]["lam"])
    frozen = b"\x80\x04cflax.core.frozen_dict\nFrozenDict\n}\x8c\x01aK\x05s\x85R."
    (tmp_path / "frozen.pkl").write_bytes(frozen)
    assert flax_pickle.read(tmp_path / "frozen.pkl") == {"a": 5}


def unframed(data):
    """The pickle with its first frame's length corrected by what `data` has lost."""
    (length,) = struct.unpack("<Q", data[3:11])
    return data[:3] + struct.pack("<Q", length - 1) + data[11:]


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (self.function, self.arguments, self.state)[: 2 if self.state is None else 3]


class WithState:
    def __setstate__(self, state):
        raise AssertionError("executed")

    def __getstate__(self):
        return {"a": 1}


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def names(module, attribute, end=b"."):
    return b"\x80\x04" + text(module) + text(attribute) + b"\x93" + end


REDUCED = [
    (Call(os.system, "touch executed"), "names posix.system"),
    (Call(eval, "open('executed', 'w')"), "names builtins.eval"),
    (Call(exec, "open('executed', 'w')"), "names builtins.exec"),
    (Call(getattr, "", "__class__"), "names builtins.getattr"),
    (Call(subprocess.check_call, ["touch", "executed"]), "names subprocess.check_call"),
    (Call(np.load, "x.npy"), "names numpy.load"),
    (Call(torch.load, "x.pt"), "names torch"),
    (Call(os.open, "executed", 64), "names posix.open"),
    (Path("x"), "names pathlib"),
    (WithState(), "names tests.test_convert.WithState"),
    (json.loads, "names json.loads"),
    ({1, 2}, "EMPTY_SET"),
    (1j, "names builtins.complex"),
    (np.array([object()], object), "numbers of type O8"),
    (np.array(["a"]), "numbers of type U1"),
    (np.zeros(2, [("a", "f4")]), "numbers of type V4"),
    (np.array(["2020"], "M8[D]"), "numbers of type M8"),
    (Call(np.dtype, "O"), "numbers of type O"),
    (Call(collections.OrderedDict, [(1, 2)]), "dictionary of something else"),
    ({(1, 2): 3}, "tuple as a key"),
]  # fmt: skip

RECONSTRUCT = names("numpy._core.multiarray", "_reconstruct", b"")
NDARRAY = names("numpy", "ndarray", b"")[2:]
EMPTY_ARRAY = RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R"
DTYPE = (
    names("numpy", "dtype", b"")[2:]
    + text("f4")
    + b"\x85R(K\x03"
    + text("<")
    + b"NNNK\x00K\x00K\x00tb"
)
SHAPE_OF_A_TERABYTE = b"\x8a\x06" + struct.pack("<q", 2**38)[:6] + b"\x85"

ASSEMBLED = {
    "classic": (b"cos\nsystem\n(S'touch executed'\ntR.", "names os.system"),
    "instance": (b"(S'touch executed'\nios\nsystem\n.", "STRING|INST"),
    "dotted attribute": (names("numpy", "core.os.system"), "names numpy.core.os.system"),
    "builtins through a module": (names("numpy", "__builtins__"), "names numpy.__builtins__"),
    "dunder": (names("numpy.dtype", "__reduce__"), "names numpy.dtype.__reduce__"),
    "module that is not text": (b"\x80\x04K\x01" + text("x") + b"\x93.", "not text"),
    "attribute from the memo": (
        b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x94h\x00h\x01\x93.",
        "names os.system",
    ),
    "memo overwritten": (
        b"\x80\x04" + text("numpy") + b"q\x00" + text("os") + b"q\x00" + text("system")
        + b"q\x01h\x00h\x01\x93.", "names os.system"),
    "terminal escapes": (names("\x1b[2J", "x"), r"names \\x1b\[2J.x"),
    "call of a class": (names("numpy", "ndarray", b"K\x05\x85R."), "calls numpy.ndarray"),
    "call of a number": (b"\x80\x04K\x05)R.", "calls int"),
    "new object": (names("numpy", "ndarray", b"K\x05\x85\x81."), "NEWOBJ"),
    "extension registry": (b"\x80\x04\x82\x01.", "EXT1"),
    "persistent id": (b"Pexecuted\n.", "PERSID"),
    "state of a function": (
        RECONSTRUCT + b"}" + text("__defaults__") + b"N\x85sb.", "state of a Global",
    ),
    "state of a dictionary": (b"\x80\x04}}b.", "state of a dict"),
    "state twice": (
        EMPTY_ARRAY + b"\x94" + (b"(K\x01)" + DTYPE + b"\x89C\x04abcdtb") * 2 + b".", "unknown way",
    ),
    "items of an array": (EMPTY_ARRAY + b"K\x01K\x01s.", "adds items to a Array"),
    "array of a foreign class": (RECONSTRUCT + b"K\x05K\x00\x85C\x01b\x87R.", "unknown class"),
    "array of a list": (EMPTY_ARRAY + b"(K\x01K\x01\x85" + DTYPE + b"\x89]tb.", "array of objects"),
    "terabyte": (
        EMPTY_ARRAY + b"(K\x01" + SHAPE_OF_A_TERABYTE + DTYPE + b"\x89C\x04abcdtb.", "another size",
    ),
    "negative shape": (
        EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89C\x04abcdtb.", "another size",
    ),
    "jax array of another function": (
        names("jax._src.array", "_reconstruct_array", b"(") + names("numpy", "dtype", b"")[2:]
        + text("f4") + b"\x85)}tR.", "something else than a numpy array"),
}  # fmt: skip


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Reads bytes in an empty folder and returns the refusal; nothing may appear there."""
    monkeypatch.chdir(tmp_path)

    def refusal(data):
        Path("hostile.pkl").write_bytes(data)
        with pytest.raises(UsageError) as error:
            convert.main(["hostile.pkl", "out.pt"])
        assert os.listdir() == ["hostile.pkl"]
        message = str(error.value)
        assert "\n" not in message and len(message) < 400 and message.isprintable()
        return message

    return refusal


@pytest.mark.parametrize("case", REDUCED, ids=lambda case: case[1])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_hostile_objects_are_refused_by_name(case, protocol, hostile):
    value, expected = case
    message = hostile(pickle.dumps({"agent": value}, protocol))
    if protocol == 3:
        expected = expected.replace("EMPTY_SET", "names builtins.set")
    assert expected in message, message
    assert "nothing in it was executed" in message


@pytest.mark.parametrize("name", ASSEMBLED)
def test_hostile_programs_are_refused(name, hostile):
    data, expected = ASSEMBLED[name]
    message = hostile(data)
    assert re.search(expected, message), message
    assert "refused" in message


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**63 + 1) + b"x.",
        b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        b"\x80\x04N" + b"r" + struct.pack("<I", 2**32 - 1) + b"0.",
        b"\x80\x04j" + struct.pack("<I", 2**32 - 1) + b".",
        b"",
        b"no pickle at all",
        b"\x80\x04.",
        b"\x80\x04((.",
        b"\x80\x04t.",
        b"\x80\x04}K\x01u.",
        b"\x80\x04N",
        b"\x80\x04I" + b"9" * 5000 + b"\n.",
    ],
)
def test_damaged_and_oversized_files(data, hostile):
    hostile(data)


def test_every_truncation_is_one_sentence(tmp_path):
    data = REAL.read_bytes()
    for length in [*range(0, 400), *range(400, len(data), 7919), len(data) - 1]:
        path = tmp_path / "short.pkl"
        path.write_bytes(data[:length])
        with pytest.raises(UsageError, match="damaged or no pickle") as error:
            flax_pickle.read(path)
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_changed_bytes_never_escape_as_another_error(tmp_path):
    data, random = REAL.read_bytes()[:3000], np.random.default_rng(0)
    path = tmp_path / "changed.pkl"
    for _ in range(600):
        changed = bytearray(data)
        for position in random.integers(0, len(data), 3):
            changed[position] = random.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(UsageError):
            flax_pickle.read(path)


def test_endless_nesting_is_cheap(tmp_path):
    """Thirty levels of pairs of the level before would be a billion items if walked through."""
    pairs = b"".join(b"h%ch%c\x86\x94" % (level, level) for level in range(30))
    (tmp_path / "nested.pkl").write_bytes(b"\x80\x04]\x94" + pairs + b".")
    with pytest.raises(UsageError, match="has no 'agent'"):
        convert.main([str(tmp_path / "nested.pkl"), str(tmp_path / "out.pt")])


def change_kernel(tree, change):
    layers = tree["agent"]["network"]["params"]["modules_actor_slow"]["mlp"]
    layers["Dense_1"]["kernel"] = change(layers["Dense_1"]["kernel"])


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda t: t.pop("agent"), "has no 'agent'"),
        (lambda t: t["agent"]["network"]["params"].pop("modules_actor_slow"), "actor_slow"),
        (lambda t: change_kernel(t, lambda k: k[:, :5]), "does not fit|damaged"),
        (lambda t: change_kernel(t, lambda k: k[0]), "does not fit"),
        (lambda t: change_kernel(t, lambda k: np.zeros((0, 2**30), np.float32)), "does not fit"),
        (lambda t: change_kernel(t, lambda k: k * np.nan), "not finite"),
        (lambda t: change_kernel(t, lambda k: k.astype(np.int32)), "no numbers"),
        (lambda t: change_kernel(t, lambda k: "text"), "no numbers"),
        (
            lambda t: t["agent"]["network"]["params"]["modules_critic"]["value_net"][
                "LayerNorm_0"
            ].pop("scale"),
            "LayerNorm_0/scale",
        ),
    ],
)
def test_incomplete_checkpoints(edit, expected, tree, tmp_path):
    edit(tree)
    with pytest.raises(UsageError, match=expected):
        convert.main([str(write(tmp_path / "a.pkl", tree)), str(tmp_path / "out.pt")])
    assert not (tmp_path / "out.pt").exists()


def test_command_statuses(tmp_path, capsys):
    def status(*argv):
        return run_command(lambda: convert.main([str(word) for word in argv]))

    assert status(tmp_path / "missing.pkl", tmp_path / "out.pt") == 2
    assert status(tmp_path, tmp_path / "out.pt") == 2
    assert status(REAL, REAL) == 2
    assert status(REAL, tmp_path / "new" / "out.pt") == 0
    assert capsys.readouterr().err.count("error:") == 3


def test_reading_imports_no_jax():
    code = (
        "import sys; from pathlib import Path; from trqam_fast import flax_pickle\n"
        f"flax_pickle.read(Path({str(REAL)!r})); print('jax' in sys.modules, 'flax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_result_holds_no_foreign_pickle(tmp_path):
    out = tmp_path / "out.pt"
    convert.main([str(REAL), str(out)])
    with zipfile.ZipFile(out) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        assert b"jax" not in archive.read(name)
