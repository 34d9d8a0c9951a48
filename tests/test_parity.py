import json
from pathlib import Path

import numpy as np
import pytest

from trqam_fast import parity
from trqam_fast.cli import run_command

DATA = Path(__file__).parent / "data"
RECORDINGS = ["trqam_chunked", "trqam_single_step", "qam_chunked"]


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("backend", ["reference", "cpp", "auto"])
def test_replay_in_float64(name, backend, capsys):
    status = parity.main([str(DATA / f"{name}.npz"), "--backend", backend])
    printed = capsys.readouterr().out
    assert status == 0, printed
    for quantity in ("out/xs", "out/adjs", "out/next_actions", "critic/critic_loss"):
        assert quantity in printed
    assert "final/target_actor_slow/mlp/Dense_0/kernel" in printed
    assert "grad/actor_fast/mlp/Dense_0/kernel" in printed
    assert ("lam_raw" in printed) == name.startswith("trqam")


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


def rewrite(source: str, target: Path, change) -> Path:
    with np.load(DATA / f"{source}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(str(arrays["meta"]))
    change(arrays, meta)
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(target, **arrays)
    return target


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
    [(None, "does not exist"), (b"not an archive", "is not a recorded run")],
)
def test_unreadable_file(content, message, tmp_path, capsys):
    path = tmp_path / "run.npz"
    if content is not None:
        path.write_bytes(content)
    assert run_command(lambda: parity.main([str(path)])) == 2
    assert message in capsys.readouterr().err


def test_unsupported_variant_and_damage(tmp_path, capsys):
    path = rewrite(
        "qam_chunked", tmp_path / "a.npz", lambda a, m: m["config"].update({"edit_scale": 0.1})
    )
    assert run_command(lambda: parity.main([str(path)])) == 2
    assert "edit_scale is 0.1" in capsys.readouterr().err
    path = rewrite(
        "qam_chunked",
        tmp_path / "b.npz",
        lambda a, m: a.pop("init/critic/value_net/Dense_0/kernel"),
    )
    assert run_command(lambda: parity.main([str(path)])) == 2
    assert "init/critic/value_net/Dense_0/kernel is missing" in capsys.readouterr().err
