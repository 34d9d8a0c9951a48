import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from trqam_fast import parity
from trqam_fast.cli import run_command

DATA = Path(__file__).parent / "data"
QUANTITIES = {
    "trqam_chunked": ("out/xs", "out/adjs", "lam_raw", "grad/actor_fast/mlp/Dense_0/kernel"),
    "trqam_single_step": ("out/xs", "out/adjs", "lam_raw", "dual/kl_clipped"),
    "qam_chunked": ("out/xs", "out/adjs", "final/target_actor_slow/mlp/Dense_0/kernel"),
    "qam_e": ("out/edit", "out/edit_log_probs", "actor/edit_alpha", "final/edit_alpha/log_value",
              "grad/edit_actor/OutputDenseLogStd/kernel"),
    "sqam_chunked": ("out/xs", "out/adjs", "out/a_hat", "lam_raw", "critic/gap_reg_term"),
    "sqam_single_step": ("out/xs", "out/adjs", "lam_raw", "dual/kl_ema"),
    "fql": ("out/onestep_actions", "actor/distill_loss",
            "grad/actor_onestep_flow/mlp/Dense_0/bias"),
    "dsrl": ("out/latent", "out/log_probs", "actor/alpha", "final/alpha/log_value",
             "grad/z_critic/value_net/Dense_0/kernel",
             "final/target_actor_bc_flow/mlp/Dense_1/bias"),
}  # fmt: skip
RECORDINGS = list(QUANTITIES)


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("backend", ["reference", "cpp", "auto"])
def test_replay_in_float64(name, backend, capsys):
    status = parity.main([str(DATA / f"{name}.npz"), "--backend", backend])
    printed = capsys.readouterr().out
    assert status == 0, printed
    for quantity in ("out/next_actions", "critic/critic_loss", *QUANTITIES[name]):
        assert f"{quantity} " in printed, quantity


@pytest.mark.parametrize("name", RECORDINGS)
def test_replay_in_float32(name):
    """On average the hand-derived passes deviate at most twice as much as plain PyTorch does."""
    mean = {}
    for backend in ("reference", "cpp"):
        args = parity.ParityArgs(DATA / f"{name}.npz", backend=backend, dtype="float32")
        worst = parity.replay(args)
        assert max(worst.values()) < 1e-4
        mean[backend] = sum(worst.values()) / len(worst)
    assert mean["cpp"] <= 2 * mean["reference"]


@pytest.mark.parametrize("recording", ["trqam_chunked", "sqam_chunked", "qam_chunked", "qam_e"])
def test_behaviour_cloning_stage(recording, tmp_path, capsys):
    """A bc_only recording: the cloned field's gradient is that of the full update, and one Adam
    step on its own clipped norm follows; everything else stays. QAM's authors train the critics
    too there, and move both targets."""
    with np.load(DATA / f"{recording}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(str(arrays["meta"]))
    trained = ("actor_slow", "critic") if recording.startswith("qam") else ("actor_slow",)
    starts = tuple(f"update0/grad/{network}/" for network in trained)
    names = [key for key in arrays if key.startswith(starts)]
    for name in [key for key in arrays if key.startswith("update0/grad/") and key not in names]:
        arrays[name] = 0 * arrays[name]
    squares = sum(np.square(arrays[name]).sum() for name in names)
    scale = 1 / max(1.0, np.sqrt(squares))
    for key in [key for key in arrays if key.startswith("final/")]:
        arrays[key] = arrays[key.replace("final/", "init/")]
    for network in trained if recording.startswith("qam") else ():
        for key in [key for key in arrays if key.startswith(f"final/target_{network}/")]:
            online = arrays[key.replace(f"final/target_{network}", f"init/{network}")]
            arrays[key] = arrays[key] + meta["config"]["tau"] * (online - arrays[key])
    for name in names:
        gradient = arrays[name] * scale
        step = meta["config"]["lr"] * gradient / (np.abs(gradient) + 1e-8)
        arrays[name.replace("update0/grad/", "final/")] = (
            arrays[name.replace("update0/grad/", "init/")] - step
        )
    extremes = [f([f(arrays[name]) for name in names] + [0.0]) for f in (np.max, np.min)]
    meta["config"]["bc_only"] = True
    logged = [name for name in meta["infos"][0] if name.startswith("critic/")][
        : 9 * len(trained) - 9
    ]
    meta["infos"] = [
        {
            **{name: meta["infos"][0][name] for name in ("actor/flow_loss", *logged)},
            **({} if meta["init_lam"] is None else {"lam_raw": meta["init_lam"]}),
            "actor/fast_loss": 0.0,
            "grad/norm": float(sum(np.linalg.norm(arrays[name]) for name in names)),
            "grad/max": float(extremes[0]),
            "grad/min": float(extremes[1]),
        }
    ]
    arrays["meta"] = np.array(json.dumps(meta))
    path = tmp_path / "bc.npz"
    np.savez(path, **arrays)
    assert parity.main([str(path)]) == 0
    assert "not compared, as this package has no such quantity: actor/fast_loss, " in (
        capsys.readouterr().out
    )
    for name in ("final/critic/value_net/Dense_0/bias", "final/target_actor_slow/mlp/Dense_0/bias"):
        np.savez(path, **(arrays | {name: arrays[name] + 1e-8}))
        assert parity.main([str(path)]) == 1
        assert len(re.findall("TOO LARGE", capsys.readouterr().out)) == 1


def rewrite(source: str, target: Path, change) -> Path:
    with np.load(DATA / f"{source}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(str(arrays["meta"]))
    change(arrays, meta)
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(target, **arrays)
    return target


@pytest.mark.parametrize(
    ("recording", "change"),
    [
        ("trqam_chunked", {"batch_size": 256}),
        ("qam_e", {"edit_target_entropy": None}),
    ],
)
def test_what_says_the_same_in_other_words(recording, change, tmp_path):
    """The authors' code takes its batch as it comes, and derives the entropy that is not given."""
    path = rewrite(recording, tmp_path / "a.npz", lambda a, m: m["config"].update(change))
    assert parity.main([str(path)]) == 0


def test_their_defaults_are_theirs(tmp_path):
    path = rewrite("qam_e", tmp_path / "a.npz", lambda a, m: m["config"].pop("inv_temp"))
    assert parity.Recording(path).config.inv_temp == 0.3


@pytest.mark.parametrize(
    ("recording", "quantities"),
    [
        ("dsrl", ("actor/alpha_loss", "actor/total_loss", "critic/total_loss")),
        ("qam_e", ("actor/edit_alpha_loss", "actor/edit_entropy_loss", "out/ts")),
        ("sqam_chunked", ("out/ts",)),
    ],
)
def test_everything_recorded_is_compared(recording, quantities, tmp_path, capsys):
    def change(arrays, meta):
        for name in quantities:
            if name.startswith("out/"):
                arrays[f"update0/{name}"] = arrays[f"update0/{name}"] + 1e-8
            else:
                meta["infos"][-1][name] += 1e-8

    path = rewrite(recording, tmp_path / "a.npz", change)
    assert parity.main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert set(re.findall(r"(\S+) .*TOO LARGE", printed)) == set(quantities)
    assert "not compared" not in printed


@pytest.mark.parametrize(
    "change",
    [
        lambda a, m: a.update({"update0/noise/sde_x0": a["update0/noise/sde_x0"] + 1e-7}),
        lambda a, m: m["infos"][0].update({"actor/path_kl": m["infos"][0]["actor/path_kl"] + 1e-8}),
        lambda a, m: m["config"].update({"rho": 0.5001}),
        lambda a, m: m["config"].update({"clip_adj": False}),
        lambda a, m: m["config"].update({"use_target_grad": False}),
        lambda a, m: m["config"].update({"target_actor": False}),
        lambda a, m: m["config"].update({"clip_grad": False}),
        lambda a, m: m["config"].update({"lambda_min": 1.3}),
        lambda a, m: m["config"].update({"kl_clip_coef": 0.01}),
        lambda a, m: m["config"].update({"tau": 0.0051}),
        lambda a, m: m.update({"init_lam": 1.31}),
    ],
)
def test_a_changed_recording_fails(change, tmp_path, capsys):
    """Everything the recording's configuration says is used, so changing it is noticed."""
    path = rewrite("trqam_chunked", tmp_path / "changed.npz", change)
    assert parity.main([str(path)]) == 1
    assert "TOO LARGE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is not a recorded run"),
        (b"not an archive", "is not a recorded run"),
        (b"\x93NUMPY" + bytes(20), "is not a recorded run"),
    ],
)
def test_unreadable_file(content, message, tmp_path, capsys):
    path = tmp_path / "run.npz"
    if content is not None:
        path.write_bytes(content)
    assert run_command(lambda: parity.main([str(path)])) == 2
    assert message in capsys.readouterr().err


def test_unsupported_variant_and_damage(tmp_path, capsys):
    path = rewrite(
        "qam_chunked", tmp_path / "a.npz", lambda a, m: m["config"].update({"residual": True})
    )
    assert run_command(lambda: parity.main([str(path)])) == 2
    assert "residual is True" in capsys.readouterr().err
    path = rewrite(
        "qam_chunked",
        tmp_path / "b.npz",
        lambda a, m: a.pop("init/critic/value_net/Dense_0/kernel"),
    )
    assert run_command(lambda: parity.main([str(path)])) == 2
    assert "init/critic/value_net/Dense_0/kernel is missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["update1/noise/sde_eps", "final/actor_fast/mlp/Dense_0/bias"])
def test_missing_array(name, tmp_path, capsys):
    path = rewrite("trqam_chunked", tmp_path / "a.npz", lambda a, m: a.pop(name))
    assert run_command(lambda: parity.main([str(path)])) == 2
    assert f"{name} is missing" in capsys.readouterr().err


ODD = [
    *({"config": value} for value in (..., None, [], 5, "x")),
    *({"infos": value} for value in (..., None, 5, [None], [{}], ["x"], [{"grad/norm": None}])),
    *({"algo": value} for value in (..., None, [], "x", "\x1b[2J")),
    *({"obs_dim": value} for value in (..., None, "6", 6.0, 0, -1, True, 7, 10**9, 10**400)),
    *({"act_dim": value} for value in (None, "2", 3)),
    *({"init_lam": value} for value in (..., "text", [1], None, True, 10**400)),
    *({"init_kl_ema": value} for value in (..., "text")),
    *({"config/" + name: value} for name in ("lr", "actor_hidden_dims", "clip_adj")
      for value in (None, "x", [], {}, -1, [[1]])),
    *({"config/horizon_length": value} for value in (4, 3.0, "3", 10**9, 10**400)),
    *({"config/flow_steps": value} for value in (9, 10**9)),
    *({"config/num_qs": value} for value in (2, 10**9)),
    {"config/best_of_n": 10**9}, {"config/value_hidden_dims": [10**9]}, {"config/lr": 10**400},
    {"config/actor_hidden_dims": [10**9] * 4}, {"config/actor_hidden_dims": ...},
    {"config/residual": "\x1b[2J" * 99}, {"config/bc_only": "\x1b[2J", "algo": "\x1b[2J"},
]  # fmt: skip


@pytest.mark.parametrize("change", ODD, ids=lambda change: ascii(change)[:60])
def test_odd_values_are_one_sentence(change, tmp_path, capsys):
    """Whatever a recording says of itself is compared with what is there before it is replayed."""

    def apply(arrays, meta):
        for path, value in change.items():
            *folders, name = path.split("/")
            tree = meta[folders[0]] if folders else meta
            if value is ...:
                del tree[name]
            else:
                tree[name] = value

    path = rewrite("trqam_chunked", tmp_path / "a.npz", apply)
    assert run_command(lambda: parity.main([str(path)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and line.isprintable() and len(line) < 500


@pytest.mark.parametrize("meta", ["[" * 10**5, "", "null", "[]", "{", '{"a": ' + "9" * 5000 + "}"])
def test_odd_descriptions(meta, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", meta=np.array(meta))
    assert run_command(lambda: parity.main([str(tmp_path / "a.npz")])) == 2
    assert "is not a recorded run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["batch/observations", "batch/masks", "noise/sde_eps", "noise/bc_t"]
)
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[:, :-1], lambda a: a[:-1], lambda a: a[..., None], lambda a: a[:0],
        lambda a: a.astype("U8"), lambda a: a.astype(complex), lambda a: np.float64(0),
    ],
)  # fmt: skip
def test_odd_arrays_are_one_sentence(name, change, tmp_path, capsys):
    name, path = f"update1/{name}", tmp_path / "a.npz"
    rewrite("trqam_chunked", path, lambda a, m: a.update({name: change(a[name])}))
    assert run_command(lambda: parity.main([str(path)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and line.isprintable() and len(line) < 500


def test_the_other_order_of_bytes(tmp_path):
    def turn(arrays, _):
        for name, array in arrays.items():
            arrays[name] = array.astype(array.dtype.newbyteorder(">"))

    path = rewrite("trqam_chunked", tmp_path / "a.npz", turn)
    whole, turned = parity.Recording(DATA / "trqam_chunked.npz"), parity.Recording(path)
    assert whole.arrays.keys() == turned.arrays.keys()
    for name, array in whole.arrays.items():
        assert turned.arrays[name].dtype == array.dtype
        assert np.array_equal(turned.arrays[name], array)


def test_a_recording_that_cannot_be_read(tmp_path, refused, capsys):
    path = rewrite("trqam_chunked", tmp_path / "a.npz", lambda a, m: None)
    with refused(path, errno.EIO):
        assert run_command(lambda: parity.main([str(path)])) == 1
    assert "a.npz cannot be read (Input/output error); it may be whole" in capsys.readouterr().err
    path.unlink()
    os.mkfifo(path)
    assert run_command(lambda: parity.main([str(path)])) == 2


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:99"])
def test_unusable_device(device, capsys):
    path = str(DATA / "trqam_chunked.npz")
    assert run_command(lambda: parity.main([path, "--device", device])) == 2
    assert f"--device is {device}" in capsys.readouterr().err.replace("'", "")
