import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pickles import REAL, plain, write
from trqam_fast import convert, flax_pickle
from trqam_fast.agents import BCAgent, TRQAMAgent, TRQAMConfig
from trqam_fast.cli import run_command
from trqam_fast.damage import Unreadable
from trqam_fast.errors import UsageError
from trqam_fast.runs import checkpoint
from trqam_fast.training import start

DATA = Path(__file__).parent / "data"
EXPECTED = DATA / "reference_checkpoint_expected.npz"


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
    config = TRQAMConfig(
        actor_hidden_dims=hidden, value_hidden_dims=hidden, num_qs=3, horizon_length=3,
        action_chunking=True,
    )  # fmt: skip
    agent = TRQAMAgent(config, 6, 2, [0])
    start.restore(agent, state, out)
    assert agent.dual.lam.item() == pytest.approx(0.97039, abs=1e-4)
    assert agent.steps.item() == 3
    assert agent.exp_avg.abs().max() > 0 and agent.exp_avg_sq.min() >= 0


def test_it_serves_as_pretrained(tmp_path):
    """Two seeds start from the one run of the file: weights, targets, lambda and moments."""
    out = tmp_path / "out.pt"
    convert.main([str(REAL), str(out)])
    state, path = checkpoint.load(out), start.check_exists(out)
    hidden = (16,) * 4
    options = {"actor_hidden_dims": hidden, "value_hidden_dims": hidden, "num_qs": 3}
    config = TRQAMConfig(**options, horizon_length=3, action_chunking=True)
    agent = TRQAMAgent(config, 6, 2, [5, 6])
    start.check_start(state, path, agent.online.shapes, {}, agent.runs)
    start.start_from(agent, state)
    saved, now = state["agent"], agent.state_dict()
    for name in ("online", "target", "exp_avg", "exp_avg_sq", "lam", "kl_ema", "step"):
        for run in range(2):
            torch.testing.assert_close(now[name][run], saved[name][0], rtol=0, atol=0)
    with pytest.raises(UsageError, match="--horizon-length"):
        start.check_start(state, path, TRQAMAgent(config, 7, 2, [0]).online.shapes, {}, 1)


def test_moments_lie_where_the_weights_do(tree, tmp_path):
    adam = tree["agent"]["network"]["opt_state"]["1"]["0"]
    for part, change in (("mu", lambda a: 2 * a), ("nu", lambda a: 3 * np.abs(a))):
        for name, network in adam[part].items():
            source = tree["agent"]["network"]["params"][name]
            for module, layers in network.items():
                for layer, arrays in layers.items():
                    for array in arrays:
                        value = source[module][layer][array]
                        adam[part][name][module][layer][array] = change(value)
    state = converted(write(tmp_path / "a.pkl", tree), tmp_path / "a.pt")["agent"]
    torch.testing.assert_close(state["exp_avg"], 2 * state["online"])
    torch.testing.assert_close(state["exp_avg_sq"], 3 * state["online"].abs())


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
    with pytest.raises(UsageError, match="--check"):
        convert.main([*argv, str(REAL)])
    with pytest.raises(Unreadable, match="missing.npz cannot be read") as error:
        convert.main([*argv, str(tmp_path / "missing.npz")])
    assert error.value.status == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: {"noise": a["noise"][:-1]}, "one row for each case"),
        (lambda a: {"observations": a["observations"][0]}, "one row for each case"),
        (lambda a: {"noise": np.float64(1)}, "one row for each case"),
        (lambda a: {"observations": a["observations"][:, :2]}, "observations of 2 numbers"),
    ],
)
def test_expected_of_other_sizes(change, expected, tmp_path):
    """It is one sentence, and nothing is written."""
    with np.load(EXPECTED) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "other.npz", **arrays | change(arrays))
    argv = [str(REAL), str(tmp_path / "out.pt"), "--check", str(tmp_path / "other.npz")]
    with pytest.raises(UsageError, match=expected) as error:
        convert.main(argv)
    assert "\n" not in str(error.value) and not (tmp_path / "out.pt").exists()


NUMBERS = {
    "large": 10**400, "small": -(10**400), "nan": np.float32("nan"), "inf": np.float64("inf"),
    "plain nan": float("nan"), "no float32": 1e39,
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", ["lam", "kl_ema", "count"])
def test_numbers_that_are_none(kind, name, tree, tmp_path):
    adam = tree["agent"]["network"]["opt_state"]["1"]["0"]
    (adam if name == "count" else tree["agent"])[name] = NUMBERS[kind]
    with pytest.raises(UsageError, match=f"{name} is not finite or too large"):
        convert.main([str(write(tmp_path / "a.pkl", tree)), str(tmp_path / "out.pt")])
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("count", [-1, 2.5, np.int32(-3), 1e30])
def test_counts_that_are_none(count, tree, tmp_path):
    tree["agent"]["network"]["opt_state"]["1"]["0"]["count"] = count
    with pytest.raises(UsageError, match="Adam's count of updates is"):
        convert.main([str(write(tmp_path / "a.pkl", tree)), str(tmp_path / "out.pt")])


def test_a_cloning_checkpoint_is_recognised(tree, tmp_path):
    params = tree["agent"]["network"]["params"]
    tree["agent"]["lam"] = np.float32(1.0)
    assert converted(write(tmp_path / "a", tree), tmp_path / "a.pt")["stage"] == "offline"
    params["modules_target_critic"] = params["modules_critic"]
    state = converted(write(tmp_path / "b", tree), tmp_path / "b.pt")
    assert state["stage"] == "pretrain"
    agent = BCAgent(TRQAMConfig(actor_hidden_dims=(16,) * 4), 6, 6, [0])
    start.restore(agent, state, tmp_path / "b.pt")
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
        (lambda t: change_kernel(t, lambda k: np.full_like(k, 1e39, float)), "not finite"),
        (lambda t: change_kernel(t, lambda k: np.full_like(k, np.inf, np.float16)), "not finite"),
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


def adam(tree, part):
    moments = tree["agent"]["network"]["opt_state"]["1"]["0"][part]
    return moments["modules_critic"]["value_net"]["Dense_1"]


def test_negative_second_moments(tree, tmp_path):
    adam(tree, "mu")["bias"] = -np.ones_like(adam(tree, "mu")["bias"])
    converted(write(tmp_path / "a.pkl", tree), tmp_path / "out.pt")
    adam(tree, "nu")["bias"] = -np.ones_like(adam(tree, "nu")["bias"])
    with pytest.raises(UsageError, match="nu has negative numbers"):
        convert.main([str(write(tmp_path / "a.pkl", tree)), str(tmp_path / "new.pt")])
    assert not (tmp_path / "new.pt").exists()


@pytest.mark.parametrize("network", ["actor_slow", "critic"])
def test_one_array_in_the_place_of_many(network, tree, tmp_path):
    """A small file must not ask for gigabytes: 4 MB, and 100 layers that share one array."""
    params = tree["agent"]["network"]["params"]
    module = "mlp" if network == "actor_slow" else "value_net"
    layers = params[f"modules_{network}"][module]
    shape, first = (1024, 1024), layers["Dense_0"]["kernel"]
    kernel = np.zeros((*first.shape[:-2], *shape), np.float32)
    layers["Dense_0"]["kernel"] = np.zeros((*first.shape[:-1], 1024), np.float32)
    layers |= {f"Dense_{layer}": {"kernel": kernel} for layer in range(1, 100)}
    layers["Dense_100"] = {"kernel": np.zeros((*first.shape[:-2], 1024, 6), np.float32)}
    path = write(tmp_path / "a.pkl", tree)
    with pytest.raises(UsageError, match=f"{network} has .* weights, more than a file of .* bytes"):
        convert.main([str(path), str(tmp_path / "out.pt")])


def test_names_of_a_file_reach_no_terminal(tree, tmp_path, capsys):
    tree["agent"]["network"]["params"]["modules_\x1b[2J\nwrote /etc/x"] = {}
    converted(write(tmp_path / "a.pkl", tree), tmp_path / "a.pt")
    printed = capsys.readouterr().out
    assert r"no such networks: \x1b[2J\nwrote /etc/x" in printed and "\x1b" not in printed


def test_keys_that_are_no_names(tree, tmp_path):
    """Python refuses to print such a number; the weights beside it are read as without it."""
    expected = converted(write(tmp_path / "a.pkl", tree), tmp_path / "a.pt")["agent"]
    tree["agent"]["network"]["params"]["modules_actor_slow"]["mlp"][10**5000] = {}
    found = converted(write(tmp_path / "b.pkl", tree), tmp_path / "b.pt")["agent"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_paths_that_lead_to_no_file(tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    os.truncate(write(tmp_path / "huge", 1), 2**40)
    said = {"loop": "levels of symbolic links", "pipe": "no regular file", "huge": "is larger than"}
    for name, reason in said.items():
        argv = [str(tmp_path / name), str(tmp_path / "out.pt")]
        assert run_command(lambda argv=argv: convert.main(argv)) == 2
        assert reason in capsys.readouterr().err


def test_nothing_is_replaced(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(write(tmp_path / "a.pkl", 1))
    for name in ("a.pkl", "link", "loop", ""):
        with pytest.raises(UsageError, match="is there already; remove it, or name another file"):
            convert.main([str(REAL), str(tmp_path / name)])


def test_command_statuses(tmp_path, capsys):
    def status(*argv):
        return run_command(lambda: convert.main([str(word) for word in argv]))

    assert status(tmp_path / "missing.pkl", tmp_path / "out.pt") == 2
    assert status(tmp_path, tmp_path / "out.pt") == 2
    assert status(REAL, REAL) == 2
    assert status(REAL, tmp_path / "new" / "out.pt") == 0
    assert capsys.readouterr().err.count("error:") == 3


def test_the_result_holds_no_foreign_pickle(tmp_path):
    out = tmp_path / "out.pt"
    convert.main([str(REAL), str(out)])
    with zipfile.ZipFile(out) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        assert b"jax" not in archive.read(name)
