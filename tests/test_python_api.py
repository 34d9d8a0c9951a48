"""The Python API: training, evaluating and acting without the command line.

Longer than 400 lines, as most of it starts or reads the same small run (`flags`, `result`).
"""

import json
import re
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

import trqam_fast as tf
from examples.annealed_qam import AnnealedQAM
from tests import own_tasks
from tests.runs import run
from trqam_fast.errors import Stopped, UsageError
from trqam_fast.evaluation.episodes import Request
from trqam_fast.evaluation.policy import choose_chunks
from trqam_fast.export import load_export, write_export
from trqam_fast.runs import checkpoint
from trqam_fast.runs.folder import RunFolder
from trqam_fast.training.flags import parse_config, read_file
from trqam_fast.training.stopping import StopRequest

REACH = "tests.own_tasks:Reach"
SMALL = {
    "max_episode_steps": 12, "bc_steps": 8, "offline_steps": 8, "log_interval": 4,
    "eval_interval": 4, "save_interval": 4, "eval_episodes": 2, "batch_size": 8,
    "actor_hidden_dims": [16], "value_hidden_dims": [16],
}  # fmt: skip


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    path = own_tasks.write_data(tmp_path_factory.mktemp("own") / "reach.npz")
    return {"env_id": REACH, "dataset": str(path), **SMALL}


@pytest.fixture(scope="module")
def cloning(flags):
    return {name: flags[name] for name in flags if name != "value_hidden_dims"} | {"algo": "bc"}


@pytest.fixture(scope="module")
def result(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    chunks = {"horizon_length": 3, "action_chunking": True, "best_of_n": 2}
    return tf.train(**flags, **chunks, seeds=[4, 7], run_dir=str(folder))


def test_the_package_is_light_and_whole():
    code = """
import sys
import trqam_fast as tf
assert not {"torch", "numpy", "gymnasium"} & set(sys.modules), "import trqam_fast is heavy"
assert {"Policy", "train", "sde_rollout"} <= set(dir(tf))
for name in tf.__all__:
    assert callable(getattr(tf, name)), name
import trqam_fast.train, trqam_fast.evaluate
assert callable(tf.train) and callable(tf.evaluate) and callable(trqam_fast.train.main)
assert "matplotlib.pyplot" not in sys.modules, "the caller's figures and backend are not ours"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tf.nothing


def test_train_returns_what_the_run_came_to(result):
    assert result.success == result.summary["final_success"]
    steps, values = result.curves["success"][7].T
    assert steps.tolist() == [8, 12, 16] and ((0 <= values) & (values <= 1)).all()
    assert result.curves["path_kl"][4].shape == (2, 2)
    assert (result.run_dir / "summary.json").exists()


def test_train_takes_a_configuration_or_flags(cloning, tmp_path):
    config = tf.make_config(**cloning, run_dir=str(tmp_path / "bc"))
    assert isinstance(config, tf.TrainConfig)
    with pytest.raises(TypeError, match="not both; drop lr"):
        tf.train(config, lr=1e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert tf.train(config).run_dir == tmp_path / "bc"
    assert torch.get_num_threads() == threads + 1  # The run had one, as its preset says.
    torch.set_num_threads(threads)
    longer = tf.train(resume="yes", run_dir=str(tmp_path / "bc"), bc_steps=12)
    assert longer.curves["success"][0][-1, 0] == 12
    with pytest.raises(UsageError, match="there is no flag --learning-rate"):
        tf.train(learning_rate=1e-3)
    with pytest.raises(TypeError, match=r"is a dict, expected a TrainConfig; .* train\(\*\*flags"):
        tf.train(cloning)


def test_a_flag_that_the_algorithm_has_no_use_for_is_warned_of(cloning, tmp_path):
    """For a new run and for one that goes on."""
    with pytest.warns(UserWarning, match="--algo qam has no use for --kl-budget$"):
        assert tf.make_config(algo="qam", kl_budget=3.0, rho=0.5).agent.rho == 0.5
    call = {**cloning, "run_dir": str(tmp_path / "bc"), "resume": "auto"}
    sentence = "--algo bc has no use for --kl-budget, --init-lambda$"
    for _ in range(2):
        with pytest.warns(UserWarning, match=sentence):
            tf.train(**call, kl_budget=3.0, init_lambda=0.1)


def test_a_task_has_one_name(cloning, tmp_path):
    sentence = f"env_name is 'Pendulum-v1' and env_id is '{REACH}', .*; give one of them"
    both = {**cloning, "env_name": "Pendulum-v1"}
    for call in (tf.make_config, tf.train):
        with pytest.raises(UsageError, match=sentence):
            call(**both)
    file = tmp_path / "run.toml"
    file.write_text(f"env_id = '{REACH}'\nenv_name = 'Pendulum-v1'")
    with pytest.raises(UsageError, match=f"{file}: {sentence}"):
        read_file(file)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("seeds", 3, "a list of whole numbers, as"), ("seeds", (0.5,), "a list of whole numbers"),
        ("lr", "0.1", "a number"), ("algo", 3, "text"), ("env_name", 3, "text"),
        ("preset", 3, "text"), ("clip_grad", "no", "true or false"), ("bc_steps", 1.5, "a whole"),
        ("backend", "nope", "'auto' or"), ("resume", "maybe", "'no' or"), ("run_dir", 3, "a path"),
        ("dual", "x", "'additive' or 'log'"), ("dataset", 3, "text"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_one_sentence(name, value, remedy, tmp_path):
    """Wherever it enters: by flags, as a configuration, or for a run that goes on."""
    sentence = re.escape(f"--{name.replace('_', '-')} is {value!r}; give {remedy}")
    with pytest.raises(UsageError, match=sentence):
        tf.make_config(**{name: value})
    with pytest.raises(UsageError, match=sentence):
        tf.train(**{"resume": "auto", "run_dir": str(tmp_path), name: value})
    if name not in ("lr", "clip_grad", "dual"):
        with pytest.raises(UsageError, match=sentence):
            tf.TrainConfig(**{name: value})


def test_the_same_call_goes_on_where_it_was(cloning, tmp_path):
    """By the names of the first call; a flag that does not exist is told as there."""
    call = {**cloning, "run_dir": str(tmp_path / "bc"), "resume": "auto"}
    first = tf.train(**call)
    steps = first.curves["bc_loss"][0][:, 0].tolist()
    assert tf.train(**call | {"bc_steps": 12}).curves["bc_loss"][0][:, 0].tolist() == [*steps, 12]
    with pytest.raises(UsageError, match="there is no flag --learning-rate"):
        tf.train(**call, learning_rate=1e-3)
    with pytest.raises(UsageError, match="cannot resume .* with --lr 0.5"):
        tf.train(**call, lr=0.5)
    with pytest.raises(UsageError, match="--lr is '0.5'; give a number"):
        tf.train(**call, lr="0.5")


@pytest.mark.parametrize("last", [("pretrain", 8), ("offline", 12)])
def test_who_looks_at_the_evaluations_may_stop_a_run(last, flags, tmp_path):
    """Saved, as by a signal, so that it goes on; the end of the run is none that is stopped at."""
    seen, folder = {}, tmp_path / "run"

    def look(stage, step, success):
        seen[stage, step] = success
        return None if (stage, step) != last else False

    with pytest.raises(Stopped, match=f"by on_evaluation after step {last[1]}; continue with --re"):
        tf.train(**flags, seeds=[4, 7], run_dir=folder, on_evaluation=look)
    assert checkpoint.newest(folder / "checkpoints") == RunFolder(folder).checkpoint(last[1])
    last = ("offline", 16)
    done = tf.train(resume="yes", run_dir=folder, on_evaluation=look)
    assert list(seen) == [("pretrain", 8), ("offline", 12), ("offline", 16)]
    final = done.summary["final_success_by_seed"]
    assert seen["offline", 16] == dict(zip([4, 7], final, strict=True))


def test_what_looks_at_the_evaluations_is_a_function(flags, cloning, tmp_path):
    with pytest.raises(TypeError, match="on_evaluation is 3, expected a function of stage, step"):
        tf.train(**flags, run_dir=tmp_path / "run", on_evaluation=3)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ZeroDivisionError):
        tf.train(**cloning, run_dir=tmp_path / "run", on_evaluation=lambda *_: 1 // 0)
    seen = []
    request = StopRequest(lambda *found: seen.append(found))
    request.evaluated("offline", 3, {4: float("nan"), 7: 0.5})
    request.evaluated("offline", 4, {4: float("nan")})
    assert seen == [("offline", 3, {7: 0.5})] and not request


@pytest.mark.parametrize(
    "answer, stops",
    [(False, True), (np.bool_(False), True), (0, False), ([], False), (None, False), (True, False)],
)
def test_false_alone_stops(answer, stops):
    """The first Ctrl-C after it is the first one all the same."""
    request = StopRequest(lambda *_: answer)
    request.evaluated("offline", 3, {7: 0.5})
    assert bool(request) is stops and request.signal == ""


def test_a_policy_acts_as_the_evaluation_does(result):
    """The noise of an episode apart: with the same noise, the same actions."""
    policy = tf.Policy.load(str(result.run_dir), train_seed=7)
    observation = np.float32([0.1, -0.2])
    noise = np.random.default_rng([3, 0]).standard_normal((2, policy.agent.noise_dim))
    (chunk,) = choose_chunks(policy.agent, 1, [Request(observation, noise)])
    policy.reset(seed=3)
    for number in range(3):  # the chunk is played open loop, whatever is observed
        action = policy(observation + 50 * number)
        assert action.dtype == np.float32 and action.shape == (1,)
        assert np.allclose(action, -10 + 20 * (chunk[number] + 1), atol=1e-5)
        assert own_tasks.Reach.action_space.contains(action)
    (other,) = choose_chunks(policy.agent, 0, [Request(observation, noise)])
    assert not np.allclose(other, chunk)


def test_rows_do_not_depend_on_each_other(result):
    policy = tf.Policy.load(result.run_dir)
    observations = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32) * 50
    together = np.stack([policy(observations) for _ in range(4)])
    alone = tf.Policy.load(result.run_dir)
    first = np.concatenate([alone(observations[:1]) for _ in range(4)])
    assert np.array_equal(first, together[:, 0])
    with pytest.raises(ValueError, match="has 1 rows, but 5 before; call reset"):
        policy(observations[:1])
    for shape in ([3], [1, 3], [], [1, 1, 2]):
        sentence = re.escape(f"has shape {shape}, expected [2] or [n, 2]")
        with pytest.raises(ValueError, match=sentence):
            policy(np.zeros(shape))


def test_predict_is_stable_baselines3s(result):
    policy = tf.Policy.load(result.run_dir, seed=1)
    observations = np.float32([[0, 0.5], [0, -0.5]])
    first, state = policy.predict(observations, deterministic=True)
    assert state is None and first.shape == (2, 1)
    begins = np.array([True, False])
    second, _ = policy.predict(observations, episode_start=begins, deterministic=True)
    with pytest.raises(ValueError, match="episode_start has 1 flags for . environments; pass one"):
        policy.predict(observations, episode_start=begins[:1], deterministic=True)
    # Row 0 began anew, so its chunk begins again; row 1 plays its second action.
    assert second[0] == first[0] and second[1] != first[1]
    policy.reset()
    assert np.array_equal(policy.predict(observations, deterministic=True)[0], first)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A run folder of an environment with a dict of observations and a table of actions."""
    folder, rng = tmp_path_factory.mktemp("keyed"), np.random.default_rng(0)
    np.savez(
        folder / "keyed.npz", observations=rng.normal(size=(40, 3)), rewards=-np.ones(40),
        actions=rng.uniform(-0.1, 0.1, (40, 1)), terminals=np.arange(40) % 10 == 9,
    )  # fmt: skip
    tf.train(
        env_id="tests.own_tasks:Keyed", dataset=str(folder / "keyed.npz"), algo="bc",
        run_dir=str(folder / "run"), horizon_length=1,
        **{name: value for name, value in SMALL.items() if name != "value_hidden_dims"},
    )  # fmt: skip
    return folder / "run"


def test_a_dict_is_joined_as_in_training(keyed, tmp_path):
    """In the space's order, which is not that of the names; by a run and by its export."""
    pytest.importorskip("safetensors")
    space = own_tasks.Keyed.observation_space
    first, second = (
        {"aim": {"goal": np.float32([1, number])}, "place": np.float32([3])} for number in (2, 9)
    )
    stacked = {
        "place": np.stack([first["place"]] * 2),
        "aim": {"goal": np.stack([first["aim"]["goal"], second["aim"]["goal"]])},
    }
    flat = np.stack([gymnasium.spaces.flatten(space, each) for each in (first, second)])
    assert flat[0].tolist() == [3, 1, 2]
    for folder in (keyed, write_export(keyed, tmp_path / "export")):
        policy = tf.Policy.load(folder)
        expected = policy(flat, deterministic=True)
        assert not np.allclose(expected[0], policy(flat[:, ::-1], deterministic=True)[0])
        assert np.array_equal(policy(stacked, deterministic=True), expected)
        policy.reset()
        assert np.array_equal(policy(first, deterministic=True), expected[0])
    # A run of an earlier version did not keep the order.
    old = tf.Policy(policy.agent, policy.sizes._replace(parts=None))
    sorted_by_name = old({"b": flat[0, 1:], "a": flat[0, :1]}, deterministic=True)
    assert np.array_equal(sorted_by_name, expected[0])


def test_an_odd_observation_is_one_sentence(keyed, result):
    policy = tf.Policy.load(keyed)
    place, aim = np.zeros(1), {"goal": np.zeros(2)}
    for odd, sentence in (
        ({"place": place}, "observation is a dict of place, expected the parts place, aim/goal"),
        ({"place": place, "aim": aim, "b": place}, "is a dict of aim/goal, b, place, expected the"),
        ({}, "observation is a dict of nothing, expected the parts place, aim/goal"),
        ({"place": 1.0, "aim": aim}, "has parts of the shapes place [], aim/goal [2], expected"),
        ({"place": np.zeros((2, 1)), "aim": aim}, "shapes place [2, 1], aim/goal [2], expected"),
        (np.zeros((0, 3)), "has shape [0, 3], expected [3] or [n, 3] of one row or more; gymnas"),
        ({"place": place, "aim": {"goal": np.zeros((2, 1))}}, "expected [numbers] each, or [n, nu"),
        ({"place": 1, "aim": aim}, "gymnasium.spaces.flatten(env.observation_space, observation)"),
        ((place, np.zeros(2)), "observation has a tuple that is no array of numbers (setting an"),
        ({"place": "a", "aim": aim}, "observation has a str that is no array of numbers (could"),
        ([0.0, np.nan, 0.0], "observation has nan at number 1 of row 0, expected finite numbers"),
        (np.float32([[0] * 3, [0, 0, np.inf]]), "observation has inf at number 2 of row 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(sentence)):
            policy(odd)
    with pytest.raises(ValueError, match="observation is a dict of a, expected an array"):
        tf.Policy.load(result.run_dir)({"a": np.zeros(2)})


def test_actions_keep_the_shape_and_the_bounds_of_the_space(keyed, monkeypatch):
    policy, space = tf.Policy.load(keyed), own_tasks.Keyed.action_space
    assert float(np.float32(0.1)) > 0.1 and policy(np.zeros(3)).shape == (1, 1)
    policy.reset()
    for end in (-1.0, 1.0):
        monkeypatch.setattr("trqam_fast.policy.choose_chunks", lambda *_, end=end: [[[end]]] * 2)
        actions = policy(np.zeros((2, 3)))
        assert actions.dtype == np.float32 and actions.shape == (2, 1, 1)
        assert all(space.contains(action) for action in actions) and np.allclose(actions, end / 10)


def test_a_policy_acts_where_its_environment_is_not_installed(result, tmp_path):
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ogbench", "gymnasium", "mujoco", "tests"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import trqam_fast as tf
checkpoint = {str(result.run_dir)!r} + "/checkpoints/step_000000016.pt"
print(tf.Policy.load(checkpoint)([0.0, 1.0]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    policy = tf.Policy.load(result.run_dir)
    assert done.stdout.strip() == str(policy([0.0, 1.0]))


def test_an_export_acts_as_its_run_and_names_no_place(result, tmp_path):
    pytest.importorskip("safetensors")
    folder = write_export(result.run_dir, tmp_path / "export")
    observation = np.float32([0.1, 0.2])
    for train_seed in (4, 7):
        ours = tf.Policy.load(folder, train_seed=train_seed)(observation)
        theirs = tf.Policy.load(result.run_dir, train_seed=train_seed)(observation)
        assert np.array_equal(ours, theirs)
    for path in folder.iterdir():
        assert b"reach.npz" not in path.read_bytes(), path


def test_evaluate_and_load_run_take_text(result):
    found = tf.evaluate(str(result.run_dir), episodes=2)
    assert found.success == found.summary["pooled"]["success"] and set(found.episodes) == {4, 7}
    finals = [curve[-1, 1] for curve in result.curves["success"].values()]
    assert np.isclose(found.success, np.mean(finals))  # the episodes of the run's own evaluation
    assert tf.load_run(str(result.run_dir)).step == 16
    with pytest.raises(TypeError, match="drop video"):
        tf.evaluate(result.run_dir, video=1)
    with pytest.raises(UsageError, match="has the seeds 4, 7"):
        tf.Policy.load(result.run_dir, train_seed=5)


def test_wrong_arguments_are_told_before_a_file_is_read(result, tmp_path):
    """So no file is called damaged for them."""
    nowhere = tmp_path / "nowhere"
    for options, sentence in (
        ({"backend": "foo"}, "--backend is 'foo'; give 'auto' or "),
        ({"device": "tpu"}, "--device is 'tpu'; use cpu"), ({"device": 3}, "--device is 3; give"),
    ):  # fmt: skip
        for load in (tf.Policy.load, tf.load_run, load_export, tf.evaluate):
            with pytest.raises(UsageError, match=sentence):
                load(nowhere, **options)
    with pytest.raises(UsageError, match="seed is -1; use a whole number, 0 or more"):
        tf.Policy.load(nowhere, seed=-1)
    with pytest.raises(UsageError, match="--episodes is '10'; give a whole number"):
        tf.evaluate(str(nowhere), episodes="10")
    with pytest.raises(UsageError, match="does not exist"):  # NumPy's numbers are fine
        tf.evaluate(str(nowhere), episodes=np.int64(3))
    with pytest.raises(UsageError, match="evaluate has no flag epsodes; nearest: episodes"):
        tf.evaluate(str(nowhere), epsodes=3)
    with pytest.raises(
        UsageError, match="evaluate has no flag xyz; 'python -m trqam_fast.evaluate"
    ):
        tf.evaluate(str(nowhere), xyz=3)
    assert type(tf.make_config(batch_size=np.int64(3), lr=np.float32(0.5)).agent.lr) is float
    for seeds in (np.arange(3), range(3), [0, np.int64(1), 2]):
        assert tf.make_config(seeds=seeds).seeds == (0, 1, 2)
    config = tf.make_config(env_id=own_tasks.Reach, algo=AnnealedQAM, dataset="reach.npz")
    assert (config.env_name, config.algo) == (REACH, "examples.annealed_qam:AnnealedQAM")
    assert tf.make_config(own_tasks.make_reach).env_name == "tests.own_tasks:make_reach"
    with pytest.raises(UsageError, match="--eval-workers is 2; use 0 with __main__:Mine, which"):
        tf.make_config("__main__:Mine", eval_workers=2)
    program = tmp_path / "policy.pt2"
    program.write_bytes(b"")
    with pytest.raises(UsageError, match=f"{program} is no checkpoint in a run folder; name"):
        tf.Policy.load(program)
    loaded = tf.load_run(result.run_dir)
    for run_index in (5, -1, "0"):
        with pytest.raises(UsageError, match=f"run is {run_index!r}; use a whole number, 0 to 1"):
            tf.Policy(loaded.agent, loaded.sizes, run=run_index)
    with pytest.raises(UsageError, match="seed is 0.5; use a whole number"):
        tf.Policy(loaded.agent, loaded.sizes).reset(0.5)


def test_a_file_holds_the_flags_of_one_run(flags, tmp_path, capsys):
    path = tmp_path / "run.toml"
    lines = {**flags, "seeds": [0, 1], "lr": 1, "overwrite": True}
    text = "".join(
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
        for name, value in lines.items()
    )
    path.write_text(text)
    config = parse_config(["--config", str(path), "--lr", "0.5", "--seeds", "3"])
    assert (config.env_name, config.seeds, config.agent.lr) == (REACH, (3,), 0.5)
    assert config.agent.actor_hidden_dims == (16,) and config.overwrite
    assert config == parse_config(["--config", str(path), "--lr", "0.5", "--seeds", "3"])
    assert run(["--config", str(path), "--seeds", "0"], tmp_path / "run") == 0
    path.write_text("bc-steps = 3\n")
    assert parse_config(["--config", str(path)]).bc_steps == 3
    path.write_text("bc-steps = 3\nbc_steps = 4\n")
    with pytest.raises(UsageError, match="has a flag twice, with dashes and with underscores"):
        read_file(path)
    for wrong, sentence in (
        ("learning_rate = 1", "has 'learning_rate', which means nothing; nearest: lr"),
        ("lr = 'high'", "lr is 'high'; give a number"),
        ("lr = ", "is not TOML"),
        ("algo = 3", "algo is 3; give text"),
    ):
        path.write_text(wrong)
        with pytest.raises(UsageError) as error:
            read_file(path)
        assert sentence in str(error.value)
    assert run(["--config", str(tmp_path / "none.toml")], tmp_path / "other") == 2
    assert "none.toml cannot be read" in capsys.readouterr().err


def test_a_config_json_holds_the_flags_of_another_run(result, tmp_path):
    """But for its folder and for what it started from."""
    file = result.run_dir / "config.json"
    config = parse_config(["--config", str(file), "--lr", "0.5"])
    values = json.loads(file.read_text())
    assert config.agent.lr == 0.5 and config.run_dir is None
    again = values | {"run_dir": None, "lr": 0.5}
    assert json.loads(json.dumps(config.to_dict())) == again
    export = write_export(result.run_dir, tmp_path / "export") / "config.json"
    assert parse_config(["--config", str(export)]).agent.horizon_length == 3
    copy = tmp_path / "config.json"
    started = {"pretrained": "bc", "pretrained_seed": 3, "bc_steps": 0}
    copy.write_text(json.dumps(values | started))
    assert not {*started, "run_dir"} & {*read_file(copy)}
    assert parse_config(["--config", str(copy), "--pretrained", "other"]).bc_steps == 0
    for wrong in ("lr = 1", "[1]", '{"settings": 1}'):
        copy.write_text(wrong)
        with pytest.raises(UsageError, match="is not the config.json of a run or an export"):
            read_file(copy)


def test_the_controller_is_reusable():
    controller = tf.DualController(2, 0.5)
    controller.update(torch.tensor([2.0, 0.0]))
    assert controller.lam[0] > controller.lam[1]
