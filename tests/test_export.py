"""Exports act as the run does, say what they are, and hold nothing of this machine."""

import json
import os
import platform
import re
import runpy
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.runs import run
from trqam_fast import export
from trqam_fast.agents import ALGORITHMS, algorithm, declare
from trqam_fast.cli import run_command
from trqam_fast.damage import Unreadable
from trqam_fast.errors import UsageError
from trqam_fast.evaluate import evaluate
from trqam_fast.export import load_export, weights, write_export
from trqam_fast.files import write_json
from trqam_fast.policy import Policy
from trqam_fast.runs import checkpoint
from trqam_fast.runs.folder import RunFolder
from trqam_fast.runs.read import read_run
from trqam_fast.runs.versions import cpu_model
from trqam_fast.training.backend import settle_backend
from trqam_fast.training.load_run import load_run, make_agent
from trqam_fast.training.presets import make_config

STEP = 7


def make_run(path, algo, seeds=(3, 5), low=(-1.0, -1.0), high=(1.0, 1.0), failures=None, **flags):
    """A run folder with one checkpoint of random weights."""
    config = make_config(
        algo=algo, preset="smoke", seeds=seeds, actor_hidden_dims=(16, 8), generated_dir=path / "x",
        value_hidden_dims=(16, 16), actor_layer_norm=True, run_dir=path, **flags,
    )  # fmt: skip
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.create(config.to_dict(), declare(algorithm(algo))._asdict())
    write_json(path / "task.json", {"obs_dim": 2, "low": low, "high": high})
    stage = "pretrain" if algo == "bc" else "offline"
    agent = make_agent(settle_backend(config, len(low)), stage, 2, len(low))
    generator = torch.Generator().manual_seed(1)
    for tensor in weights(agent).values():
        tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    state = {"stage": stage, "step": STEP, "agent": agent.state_dict(), "shapes": {}, "data": "d"}
    state["failures"] = failures or {}
    checkpoint.save(folder.checkpoint(STEP), state)
    return folder.checkpoint(STEP)


def assert_acts_alike(ours, theirs):
    generator = torch.Generator().manual_seed(2)
    for number in range(ours.runs):
        observations = torch.randn(1, 9, ours.obs_dim, generator=generator)
        noise = torch.randn(1, 9, ours.candidates, ours.noise_dim, generator=generator)
        expected = theirs.act(observations, noise, run=number)
        assert expected.std() > 0.01
        assert torch.equal(ours.act(observations, noise, run=number), expected)


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("seeds", [(3, 5), (4,)])
def test_acts_as_the_run_does(tmp_path, algo, seeds):
    """Bit for bit, with every algorithm; critics, targets and lambda too."""
    flags = {} if algo == "bc" else {"best_of_n": 3}
    path = make_run(tmp_path / "run", algo, seeds, **flags)
    folder = write_export(tmp_path / "run", tmp_path / "out", checkpoint=path)
    theirs, ours = load_run(tmp_path / "run", path).agent, load_export(folder)
    assert (ours.step, ours.config.algo, ours.config.seeds) == (STEP, algo, seeds)
    expected, found = weights(theirs), weights(ours.agent)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert_acts_alike(ours.agent, theirs)


def test_every_weight_is_in_the_file_once(tmp_path):
    path = make_run(tmp_path / "run", "trqam")
    write_export(tmp_path / "run", tmp_path / "out", checkpoint=path)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved["actor_fast.kernels.0"].shape == (2, 5, 16)
    assert saved["critic.kernels.0"].shape == (2, 2, 4, 16)
    assert saved["target_critic.biases.2"].shape == (2, 2, 1) and saved["lam"].shape == (2,)
    assert not any("exp_avg" in name for name in saved)
    agent = load_run(tmp_path / "run", path).agent
    shapes = [*agent.online.shapes.values(), *agent.target.shapes.values()]
    assert len(saved) == 2 + sum(len(shape.tensor_shapes) for shape in shapes)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    path = make_run(folder / "run", "trqam", horizon_length=3, action_chunking=True, lr=0.5)
    return write_export(folder / "run", folder / "out", checkpoint=path, license="mit")


def test_nothing_of_this_machine_is_in_it(exported):
    for file in exported.iterdir():
        for text in (str(exported.parent), platform.platform(), cpu_model()):
            assert text.encode() not in file.read_bytes(), file
    card = (exported / "README.md").read_text()
    assert "| torch | " in card and "| cpu | " not in card and "| threads | " not in card
    assert {file.name for file in exported.iterdir()} == {
        "model.safetensors", "config.json", "README.md",
    }  # fmt: skip


def test_the_card_says_where_settings_come_from(exported):
    card = (exported / "README.md").read_text()
    assert "| `--lr` | 0.5 | chosen for this run |" in card
    assert "| `--num-qs` | 2 | preset smoke, this project |" in card
    assert "| `--flow-steps` | 10 | default |" in card
    assert "| `--preset` | smoke | chosen for this run |" in card
    assert "| `--algo` | trqam | default |" in card
    data = "pointmaze-medium-navigate-v0, half of the expert's goals in corners, action noise 0.5"
    assert f"20000 transitions of {data}" in card
    assert "These weights have not been evaluated." in card
    assert "--run-dir" not in card and "--generated-dir" not in card


def test_published_settings_name_their_source(tmp_path):
    name = "cube-double-play-singletask-task1-v0"
    config = make_config(env_name=name)
    rows = {flag: (value, source) for flag, value, source in export_rows(config)}
    assert rows["`--env-name`"] == (name, "chosen for this run")
    assert rows["`--preset`"] == ("paper", "default")  # of this task
    assert rows["`--rho`"] == ("0.5", "authors' README")
    assert rows["`--discount`"][1] == "authors' README"
    private = export.published_settings(make_config(pretrained="a.pt", pretrained_seed=3))
    assert not {"pretrained", "pretrained_seed"} & set(private)


def export_rows(config):
    from trqam_fast.model_card import setting_rows

    return setting_rows(config, export.published_settings(config))


def test_hubs_can_read_its_header(exported):
    _, header, _ = (exported / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["license"] == "mit" and values["library_name"] == "trqam_fast"
    assert "model-index" not in values  # nothing was measured


def run_snippet(folder, monkeypatch, tmp_path):
    """What the code of an export's card makes."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (tmp_path / "snippet.py").write_text(code)
    monkeypatch.chdir(folder)
    return runpy.run_path(str(tmp_path / "snippet.py"))


def test_the_snippet_of_the_card_runs(exported, monkeypatch, tmp_path):
    card = (exported / "README.md").read_text()
    assert "for [OGBench](" in card and '"ogbench"' in card and "decides on 3 steps" in card
    assert "It holds 2 policies, one for each seed: 3 5." in card
    values = run_snippet(exported, monkeypatch, tmp_path)
    assert values["action"].shape == (2,) and abs(values["action"]).max() <= 1
    assert (values["action"] == Policy.load(exported)([0, 0])).all()


def test_the_card_of_an_own_task_and_algorithm(monkeypatch, tmp_path):
    """It names neither OGBench nor its bounds, and how the class is given."""
    folder = tmp_path / "run"
    path = make_run(
        folder, "examples.annealed_qam:AnnealedQAM", seeds=(4,), low=(-10, 20), high=(30, 90),
        env_name="tests.own_tasks:Reach", dataset="reach.npz",
    )  # fmt: skip
    (folder / "evaluation/x").mkdir(parents=True)
    rows = {"4": {"success": 1, "episodes": 1, "return": -1253.25}}
    write_json(
        folder / "evaluation/x/summary.json", {"stage": "offline", "step": STEP, "by_seed": rows}
    )
    card = (write_export(folder, tmp_path / "out", checkpoint=path) / "README.md").read_text()
    assert "| `--algo` | examples.annealed_qam:AnnealedQAM | chosen for this run |" in card
    assert "A flow policy for `tests.own_tasks:Reach`, trained by QAM annealed" in card
    assert "It holds the policy of seed 4." in card and "1 episode of 1 seed" in card
    assert "| 20.7 to 100.0 | -1253.25 |" in card
    assert '"ogbench"' not in card and "[-1, 1]" not in card
    assert "own bounds\n[-10, 30] x [20, 90]. The policy decides on every step" in card
    values = run_snippet(tmp_path / "out", monkeypatch, tmp_path)
    assert -10 <= values["action"][0] <= 30 and 20 <= values["action"][1] <= 90
    assert (values["action"] == Policy.load(folder)([0, 0])).all()


def test_the_card_of_a_trained_run(flags, tmp_path, capsys):
    """Success of the trainer's evaluation and of others, seeds that failed, an own directory."""
    folder = tmp_path / "run"
    run(flags, folder, "--seeds", "0", "1")
    summary = json.loads((folder / "summary.json").read_text())
    summary["failures"] = {"1": "critic_loss is not finite"}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = {str(seed): {"success": success, "episodes": 8} for seed, success in ((0, 1), (1, 0.5))}
    for name, step in (("here", 40), ("before", 30)):
        values = {"stage": "offline", "step": step, "by_seed": rows}
        (folder / "evaluation" / name).mkdir(parents=True)
        (folder / "evaluation" / name / "summary.json").write_text(json.dumps(values))
    vast = {"stage": "offline", "step": 40, "by_seed": {"3": {"success": 1, "episodes": 1e999}}}
    for name, text in (("odd", "{"), ("vast", json.dumps(vast))):
        (folder / "evaluation" / name).mkdir()
        (folder / "evaluation" / name / "summary.json").write_text(text)
    capsys.readouterr()
    words = [str(folder), "--out", str(tmp_path / "out")]
    assert run_command(lambda: export.main(words)) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/out: model.safetensors (")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| the trainer, at this update | seed 0 | 1 |" in card
    assert "| `evaluate`, here | mean of 2 seeds | 16 | 75.0 |" in card
    assert "| `evaluate`, here | seed 1 | 8 | 50.0 | 21.5 to 78.5 | - |" in card
    assert not any(name in card for name in ("before", "odd", "vast"))
    assert "Seed 1 failed (critic_loss is not finite)" in card
    (result,) = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 75.0
    assert_acts_alike(load_export(str(tmp_path / "out")).agent, load_run(folder).agent)


def test_a_diverged_seed_is_known_for_one(tmp_path):
    folder = make_run(tmp_path / "run", "bc", failures={1: "loss is not finite"}).parent.parent
    out = write_export(folder, tmp_path / "out")
    assert load_export(out).failures == load_run(folder).failures == {1: "loss is not finite"}
    with pytest.warns(UserWarning, match="seed 5 of .* diverged: loss is not finite"):
        Policy.load(out, train_seed=5)
    values = json.loads((out / "config.json").read_text())
    del values["failures"]  # an export of an earlier version
    (out / "config.json").write_text(json.dumps(values))
    assert load_export(out).failures == {}


def test_refusals(exported, tmp_path, monkeypatch):
    run_folder = exported.parent / "run"
    with pytest.raises(UsageError, match=r"is no empty folder; name a new one"):
        write_export(str(run_folder), str(exported))
    with pytest.raises(UsageError, match="holds no config.json"):
        write_export(tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="no config of an export"):
        load_export(run_folder)
    for refused in (write_export, read_run):
        with pytest.raises(UsageError, match="out is an export, which has no logs; name its run"):
            refused(exported, *[tmp_path / "out"][: refused is write_export])
    with pytest.raises(UsageError, match="is an export, which has no checkpoints; drop --check"):
        load_run(exported, run_folder / "checkpoints" / "step_000000007.pt")
    with pytest.raises(UsageError, match="is a file, which --checkpoint takes beside its run"):
        load_run(exported / "config.json")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(UsageError, match=r"pip install 'trqam_fast\[export\]'"):
        load_export(exported)


def change_config(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    settings = values["settings"] | {n: changes.pop(n) for n in list(changes) if n in ALGO_FLAGS}
    path.write_text(json.dumps(values | {"settings": settings} | changes))


def without_checksum(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    del values["sha256"]
    path.write_text(json.dumps(values))


ALGO_FLAGS = {"algo", "actor_hidden_dims", "seeds"}


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"format": 2}, "format 2 is of another version"),
        ({"step": None}, "no config of an export"),
        ({"algo": "antigravity:Agent"}, "is of antigravity:Agent, a class that is not"),
        ({"actor_hidden_dims": [16, 9]}, "does not hold the weights .actor_fast.*16, 8"),
        ({"actor_hidden_dims": [16]}, "does not hold the weights .actor_fast.* is unknown"),
        ({"seeds": [1]}, "does not hold the weights"),
        ({"seeds": [1, 1]}, "name every seed only once"),
    ],
)
def test_odd_configs(exported, tmp_path, changes, complaint):
    """One sentence; a class that the file names is not imported."""
    folder = shutil.copytree(exported, tmp_path / "copy")
    change_config(folder, **changes)
    with pytest.raises(UsageError, match=complaint):
        load_export(folder)
    assert "antigravity" not in __import__("sys").modules


def test_odd_weights(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], b"\xff" * 64, whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="does not hold the weights .*; export the run again"):
            load_export(folder)
    path.write_bytes(whole)
    tensors = load_file(path)
    del tensors["lam"]
    save_file(tensors, path)
    with pytest.raises(UsageError, match="lam is missing"):
        load_export(folder)
    path.unlink()
    with pytest.raises(UsageError, match="is an export, but model.safetensors is missing; copy it"):
        Policy.load(folder)
    os.mkfifo(path)
    with pytest.raises(Unreadable, match="no regular file"):
        load_export(folder)


def test_changed_weights_are_noticed(exported, tmp_path):
    """Where the config has their checksum, which that of an earlier version has not."""
    folder = shutil.copytree(exported, tmp_path / "copy")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UsageError, match="does not hold the weights .its checksum is not the one"):
        load_export(folder)
    without_checksum(folder)
    load_export(folder)


def test_own_algorithms_are_given_as_classes(exported, tmp_path, monkeypatch):
    from examples.annealed_qam import AnnealedQAM

    folder = shutil.copytree(exported, tmp_path / "copy")
    change_config(folder, algo="examples.annealed_qam:AnnealedQAM")
    with pytest.raises(UsageError, match="pass it as kind=, or name it with --algo"):
        load_export(folder)
    with pytest.raises(UsageError, match="does not hold the weights"):  # TRQAM's has lambda too
        load_export(folder, kind=AnnealedQAM)
    monkeypatch.setattr("examples.annealed_qam.HandedOn", AnnealedQAM, raising=False)
    change_config(folder, algo="examples.annealed_qam:HandedOn")  # as a package calls it
    with pytest.raises(UsageError, match="does not hold the weights"):
        load_export(folder, kind=AnnealedQAM)
    change_config(folder, algo="examples.annealed_qam:AnnealedQAM")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n not in ("lam", "kl_ema")},
              folder / "model.safetensors")  # fmt: skip
    without_checksum(folder)
    policy = Policy.load(folder, kind=AnnealedQAM)
    assert policy(np.zeros(policy.sizes.obs_dim)).shape == (len(policy.sizes.low),)


def test_evaluating_imports_what_is_named_alone(tmp_path):
    """Whoever evaluates names the class and the environment of an export, no file does."""
    algo, env_name = "examples.annealed_qam:AnnealedQAM", "tests.own_tasks:Reach"
    make_run(
        tmp_path / "run", algo, low=(-10,), high=(30,), env_name=env_name,
        dataset="reach.npz", max_episode_steps=2,
    )  # fmt: skip
    out = write_export(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UsageError, match=f"is of {algo}, a class that is not .*with --algo"):
        evaluate(out)
    with pytest.raises(UsageError, match=f"is of {env_name}, an environment that is not"):
        evaluate(out, algo=algo)
    with pytest.raises(UsageError, match=f"--env-name is a:b, but {out} is of {env_name}; drop it"):
        evaluate(out, algo=algo, env_name="a:b")
    found = evaluate(out, algo=algo, env_name=env_name, episodes=1)
    assert found.summary == evaluate(tmp_path / "run", episodes=1).summary | {
        "checkpoint": "model.safetensors"
    }
