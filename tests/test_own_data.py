"""Data of one's own: every format, what completes it, and one sentence for a wrong file.

Longer than 400 lines, as every format gives the same arrays and is refused alike.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.own_tasks import Keyed
from trqam_fast.cli import run_command
from trqam_fast.data import __main__ as data
from trqam_fast.data.dataset import FIELDS
from trqam_fast.data.flat import ACTION_LIMIT
from trqam_fast.data.load import load_task
from trqam_fast.data.readers import parse_source, read, whole
from trqam_fast.data.readers.whole import complete, fit
from trqam_fast.errors import UsageError
from trqam_fast.simulator.environment import Interface, interface_of

LEROBOT = Path(__file__).parent / "data" / "lerobot_v3"
"""Written by lerobot 0.4.4: 3 episodes of 5, 6 and 7 frames, random numbers."""

WIDE = Interface(3, np.full(1, -2.0), np.full(1, 2.0), 200, False)


def arrays(lengths=(3, 2), obs_dim=3, seed=0):
    """Trajectories of random numbers, as the plain npz has them."""
    rng, rows = np.random.default_rng(seed), sum(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(lengths) - 1] = True
    observations, last = rng.normal(size=(2, rows, obs_dim))
    return {
        "observations": observations,
        "actions": rng.uniform(-2, 2, size=(rows, 1)),
        "rewards": rng.normal(size=rows),
        "terminals": terminals,
        "masks": np.r_[np.ones(rows - 1, int), 0],
        "next_observations": np.where(terminals[:, None], last, np.roll(observations, -1, axis=0)),
    }


def save(path, **changes):
    values = arrays() | changes
    np.savez(path, **{name: array for name, array in values.items() if array is not None})
    return path


def verify(capsys, *words):
    status = run_command(lambda: data.main(["verify", *map(str, words)]))
    return status, capsys.readouterr().out.strip()


def test_a_plain_file_is_read_and_scaled(tmp_path):
    path = save(tmp_path / "mine.npz")
    found, notes = read(parse_source(str(path)))
    assert notes == [] and set(found) == set(FIELDS)
    for name, array in arrays().items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], array.astype(np.float32))
    fitted, notes = fit(found, WIDE, "Pendulum-v1", "mine.npz")
    assert notes == []
    assert np.allclose(fitted["actions"], arrays()["actions"] / 2, atol=1e-6)
    dataset, _ = load_task("Pendulum-v1", dataset=str(path))
    assert np.array_equal(dataset.actions.numpy(), fitted["actions"])
    assert np.array_equal(dataset.tail(5)["next_observations"], found["next_observations"])


@pytest.mark.parametrize("rows", [10_000, 2])
def test_next_observations_that_are_not_of_the_next_row_are_told(rows, monkeypatch):
    """Taken together or in parts."""
    monkeypatch.setattr(whole, "ROWS_AT_A_TIME", rows)
    values = arrays((5, 4))
    following = values["next_observations"]
    for wrong, count in ((following[::-1], 7), (values["observations"], 7), (following + 0, 0)):
        _, notes = complete(values | {"next_observations": wrong}, "mine.npz")
        told = [f"mine.npz: next_observations is not the next row's observations in {count} of 7"]
        assert [note[: len(told[0])] for note in notes] == told * bool(count)
    following[[0, 2, 6]] += 1
    assert complete(values, "mine.npz")[1] == []


def test_without_masks_the_end_of_a_trajectory_ends_the_task():
    values = arrays()
    del values["masks"]
    found, (note,) = complete(values, "mine.npz")
    assert np.array_equal(found["masks"], 1.0 - values["terminals"])
    assert "every end of a trajectory counts as an end of the task" in note


def test_a_trajectory_may_go_on_where_its_task_is_solved():
    """As OGBench's do."""
    values = arrays((5, 4)) | {"masks": np.array([1, 1, 0, 0, 1, 1, 0, 1, 1])}
    found, (note,) = complete(values, "mine.npz")
    assert np.array_equal(found["masks"], values["masks"])
    assert note.startswith("mine.npz: masks is 0 in 3 rows, 42.9% of those before a trajectory's")


def test_without_next_observations_the_next_row_follows():
    values = arrays()
    del values["next_observations"]
    found, (note,) = complete(values, "mine.npz")
    # Row 2 was cut off: what follows it is unknown. Row 4 ended the task: nothing follows it.
    kept = [0, 1, 3, 4]
    observations = values["observations"].astype(np.float32)
    assert np.array_equal(found["observations"], observations[kept])
    assert np.array_equal(found["next_observations"], observations[[1, 2, 4, 4]])
    assert found["terminals"].tolist() == [0, 1, 0, 1] and found["masks"].tolist() == [1, 1, 1, 0]
    assert "1 trajectories" in note


@pytest.mark.parametrize("masks", [None, np.ones(9)])
def test_timeouts_end_trajectories_but_not_the_task(masks, tmp_path):
    """As in D4RL; what nobody uses is named."""
    ended, cut = np.eye(9)[3], np.eye(9)[6] + np.eye(9)[8]
    flags = {"terminals": ended, "timeouts": cut, "masks": masks, "next_observations": None}
    path = save(tmp_path / "mine.npz", **(arrays((4, 5)) | flags), infos=np.array([{}] * 9))
    found, (unused, note, left_out) = read(parse_source(str(path)))
    assert set(found) == set(FIELDS) and unused == f"{path} has arrays that are not used: infos"
    said = f"{path}: timeouts ends 2 trajectories where terminals is 0"
    rows = [0, 1, 2, 3, 4, 5, 7] if masks is None else [0, 1, 2, 4, 5, 7]
    assert np.array_equal(found["observations"], np.float32(arrays((4, 5))["observations"])[rows])
    if masks is None:
        assert note == f"{said}, without ending the task; terminals ends it in 1 rows"
        assert found["masks"].tolist() == [1, 1, 1, 0, 1, 1, 1]
        assert found["terminals"].tolist() == [0, 0, 0, 1, 0, 1, 1]
    else:
        assert note == said and found["masks"].all()
        assert found["terminals"].tolist() == [0, 0, 1, 0, 1, 1]
    assert "2 trajectories" in left_out if masks is None else "3 trajectories" in left_out


WRONG = {
    "missing": (
        {"rewards": None},
        "has no array 'rewards', expected [N]; it has observations, actions, terminals, masks, "
        "next_observations; save terminals - 1 as rewards if every trajectory succeeded",
    ),
    "names": (
        {"actions": None, "rewards": None, "action": np.zeros((5, 1)), "reward": np.zeros(5)},
        "has no array 'actions', expected [N, A]; it has observations, terminals, masks, "
        "next_observations, action, reward; save action as actions, reward as rewards",
    ),
    "rank": ({"actions": np.zeros(5)}, "actions has shape [5], expected [5, A]; reshape it to [5,"),
    "rows": ({"rewards": np.zeros(4)}, "rewards has shape [4], expected [5]"),
    "width": (
        {"next_observations": np.zeros((5, 2))},
        "next_observations has shape [5, 2], expected [5, 3]",
    ),
    "pictures": (
        {"observations": np.zeros((5, 8, 8, 3), np.uint8)},
        "observations has shape [5, 8, 8, 3], expected [N, O]; pictures are not read, so save feat",
    ),
    "text": ({"rewards": np.array(list("abcde"))}, "rewards has dtype <U1, expected numbers"),
    "nan": ({"rewards": np.r_[0, 1, np.nan, 0, 0]}, "rewards has nan at [2], expected finite"),
    "large": ({"rewards": np.full(5, 1e300)}, "rewards has inf at [0], expected finite"),
    "flag": ({"masks": np.full(5, 0.5)}, "masks has 0.5 at [0], expected 0 or 1"),
    "inverted": (
        {"masks": 1 - arrays()["masks"]},
        "masks is 0 in 3 rows, 100.0% of those before a trajectory's last, expected 1 where",
    ),
    "complex": ({"rewards": np.zeros(5, complex)}, "rewards has dtype complex128, expected numb"),
    "objects": ({"masks": np.array([None] * 5)}, "masks has dtype object, expected numbers that"),
    "end": ({"terminals": np.zeros(5)}, "terminals ends with 0, expected 1 in the last row"),
    "timeout": (
        {"terminals": np.zeros(5), "timeouts": np.zeros(5)},
        "timeouts ends with 0, expected 1 in",
    ),
    "empty": (
        {name: array[:0] for name, array in arrays().items()},
        "observations has shape [0, 3], expected [N, O]; it holds no transition, so record some",
    ),
    "other": (
        {"observations": np.zeros((5, 2)), "next_observations": np.zeros((5, 2))},
        "observations has 2 numbers a row, but Pendulum-v1 has 3",
    ),
    "units": (
        {"actions": np.linspace(-90, 90, 5)[:, None]},
        "actions has -90 at [0, 0], expected the units of Pendulum-v1, [-2, 2]; 80% lie outside",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_verify_and_training_refuse_with_one_sentence(case, tmp_path, capsys):
    changes, sentence = WRONG[case]
    path = save(tmp_path / "mine.npz", **changes)
    status, printed = verify(capsys, path, "--env-id", "Pendulum-v1")
    assert status == 1 and sentence in printed and "\n" not in printed
    with pytest.raises(UsageError) as error:
        load_task("Pendulum-v1", dataset=str(path))
    assert str(error.value) == printed


def test_a_whole_file_is_whole_for_both(tmp_path, capsys):
    """And both say the same of it."""
    values = arrays((50, 50)) | {"masks": None, "next_observations": None}
    values["actions"][7] = 2.5
    path, said = save(tmp_path / "mine.npz", **values), []
    assert len(load_task("Pendulum-v1", dataset=str(path), say=said.append)[0]) == 100
    assert len(said) == 2 and all(line.startswith("note: ") for line in said)
    whole = "\n".join([*said, f"{path} is whole"])
    assert verify(capsys, path, "--env-id", "Pendulum-v1") == (0, whole)
    assert verify(capsys, path) == (0, "\n".join([said[0], f"{path} is whole"]))
    own = ("--env-id", "tests.own_tasks:OldStep")
    assert "fails at the first step" in verify(capsys, path, *own)[1]


def test_verify_names_what_it_takes(tmp_path, capsys):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"")
    assert run_command(lambda: data.main(["verify", str(path)])) == 2
    sentence = f"'{path}' is no dataset; name one of OGBench, a file (.npz, .hdf5), a LeRobotData"
    assert sentence in capsys.readouterr().err


def test_a_cut_file_is_damaged(tmp_path, capsys):
    path = save(tmp_path / "mine.npz")
    path.write_bytes(path.read_bytes()[:900])
    assert "truncated, damaged or no npz file" in verify(capsys, path)[1]
    status, printed = verify(capsys, tmp_path / "none.npz")
    assert status == 1 and "cannot be read (No such file or directory)" in printed


def test_a_few_actions_outside_are_clipped():
    values = arrays((50, 50))
    values["actions"][7] = 2.5
    found, _ = complete(values, "mine.npz")
    fitted, (note,) = fit(found, WIDE, "Pendulum-v1", "mine.npz")
    assert fitted["actions"][7] == np.float32(ACTION_LIMIT)
    assert note == "1 numbers of actions outside [-2, 2] are clipped to it"


def test_what_is_no_source_is_refused(tmp_path):
    for text in ("mine.csv", "csv:mine", "npz:"):
        with pytest.raises(UsageError, match="name a file"):
            parse_source(text)
    assert str(parse_source("robomimic:a.hdf5#x,y")) == "robomimic:a.hdf5#x,y"
    assert parse_source("a.hdf5#x,y").keys == ("x", "y")
    assert parse_source(str(LEROBOT)).form == "lerobot"


def test_convert_names_the_way_to_train(tmp_path, capsys):
    path = save(tmp_path / "mine.npz")
    assert run_command(lambda: data.main(["convert", str(path)])) == 2
    assert f"train on it as it is, with --dataset {path}" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*is set to None")
def test_minari(tmp_path, monkeypatch):
    gymnasium, minari = pytest.importorskip("gymnasium"), pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = gymnasium.make("Pendulum-v1", max_episode_steps=6)
    episodes, steps = [], []
    for seed in range(2):
        observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
        env.action_space.seed(seed)
        truncated = False
        while not truncated:
            actions.append(env.action_space.sample())
            observation, reward, _, truncated, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        steps.append((observations, actions, rewards))
        episodes.append(
            minari.data_collector.EpisodeBuffer(
                observations=np.array(observations), actions=np.array(actions), rewards=rewards,
                terminations=[False] * 6, truncations=[*[False] * 5, True], infos={},
            )
        )  # fmt: skip
    minari.create_dataset_from_buffers("pendulum/test-v0", buffer=episodes, env=env)
    found, notes = read(parse_source("minari:pendulum/test-v0"))
    assert notes == [] and found["masks"].all() and len(found["rewards"]) == 12
    assert np.flatnonzero(found["terminals"]).tolist() == [5, 11]
    for part, (observations, actions, rewards) in enumerate(steps):
        rows = slice(6 * part, 6 * part + 6)
        assert np.array_equal(found["observations"][rows], observations[:-1])
        assert np.array_equal(found["next_observations"][rows], observations[1:])
        assert np.array_equal(found["actions"][rows], actions)
        assert np.array_equal(found["rewards"][rows], np.float32(rewards))
    assert fit(found, interface_of("Pendulum-v1"), "Pendulum-v1", "it")[1] == []
    with pytest.raises(UsageError, match="minari download pendulum/none-v0"):
        read(parse_source("minari:pendulum/none-v0"))


@pytest.mark.filterwarnings("ignore")
def test_minari_names_the_order_of_a_dict(tmp_path, monkeypatch):
    """It keeps that of the names, which may not be the environment's."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    place, goal = np.float32([[1], [2], [3]]), np.float32([[4, 5], [6, 7], [8, 9]])
    episode = minari.data_collector.EpisodeBuffer(
        observations={"place": place, "aim": {"goal": goal}}, actions=np.zeros((2, 1, 1)),
        rewards=[0, 0], terminations=[False] * 2, truncations=[False, True], infos={},
    )  # fmt: skip
    minari.create_dataset_from_buffers("keyed/test-v0", buffer=[episode], env=Keyed())
    for keys, parts in (("", [goal, place]), ("#place,aim", [place, goal])):
        found, (note,) = read(parse_source(f"minari:keyed/test-v0{keys}"))
        assert np.array_equal(found["observations"], np.concatenate(parts, axis=1)[:-1])
        names = "place, aim" if keys else "aim, place"
        assert note == f"observations of minari:keyed/test-v0: {names}"


def test_lerobot():
    pytest.importorskip("pyarrow")
    found, (note,) = read(parse_source(str(LEROBOT)))
    assert found["observations"].shape == (18, 4)
    assert "next.done is set in the last frame of every episode, so each counts as an end" in note
    assert np.flatnonzero(found["terminals"]).tolist() == [4, 10, 17]
    assert np.flatnonzero(found["masks"] == 0).tolist() == [4, 10, 17]
    assert (found["rewards"] == -1).all() and np.abs(found["actions"]).max() <= 0.1
    rng = np.random.default_rng(0)  # as it was written
    for row in range(18):
        assert np.array_equal(found["observations"][row], rng.standard_normal(4).astype("f4"))
        assert np.array_equal(found["actions"][row], rng.uniform(-0.1, 0.1, 2).astype("f4"))
    with pytest.raises(UsageError, match="no column 'observation.effort'"):
        read(parse_source(f"{LEROBOT}#observation.effort"))


def lerobot(folder, **columns):
    """Write two episodes in the format of version 2.1, a file for each, frames out of order."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    chunk = folder / "data" / "chunk-000"
    chunk.mkdir(parents=True)
    for episode in range(2):
        table = {
            "observation.state": [[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]],
            "action": [[0.3], [0.2], [0.1]],
            "episode_index": [episode] * 3, "frame_index": [2, 1, 0],
        }  # fmt: skip
        table |= {name: values[episode][::-1] for name, values in columns.items()}
        parquet.write_table(pyarrow.table(table), chunk / f"episode_{episode:06d}.parquet")
    return str(folder)


def test_lerobot_demonstrations_without_rewards(tmp_path):
    place = lerobot(tmp_path)
    found, (note,) = read(parse_source(place))
    assert found["observations"][:, 0].tolist() == [1, 2, 3, 1, 2, 3]
    assert found["rewards"].tolist() == [-1, -1, 0] * 2 and "counts as a success" in note
    (tmp_path / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v1.6"}))
    with pytest.raises(UsageError, match="codebase_version is 'v1.6', expected one of v2.0"):
        read(parse_source(place))


@pytest.mark.parametrize("name", ["next.success", "next.done"])
def test_lerobot_flags_are_true_or_false(name, tmp_path):
    place = lerobot(tmp_path, **{name: [[np.nan, 0.0, 0.0]] * 2})
    with pytest.raises(UsageError, match=f"{name} holds other values than true and false"):
        read(parse_source(place))


@pytest.mark.parametrize("rewarded", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_lerobot_names_its_successes(rewarded, last, tmp_path):
    """Whatever next.done says, which time limits set too."""
    success, done = [[False] * 3, [False, False, last]], [[False, False, True]] * 2
    rewards = {"next.reward": [[1.0, 2.0, 3.0]] * 2} if rewarded else {}
    parts = {"observation.goal": [[[0.0]] * 3] * 2}
    columns = {"next.success": success, "next.done": done, **rewards, **parts}
    place = lerobot(tmp_path, **columns)
    found, (ends, unused, *_) = read(parse_source(place))
    # Without next_observations a last row that does not end the task is left out.
    rows = [0, 1, 3, 4, 5] if last else [0, 1, 3, 4]
    assert found["masks"].tolist() == np.r_[np.ones(5), 1 - last][rows].tolist()
    given = [1, 2, 3] * 2 if rewarded else [-1] * 5 + [last - 1]
    assert found["rewards"].tolist() == np.array(given)[rows].tolist()
    assert f"next.success ends the task in {int(last)} of 6 frames" in ends
    assert ("so the reward is 0 there, -1 elsewhere" in ends) != rewarded
    assert unused == f"{place} has observations that are not used: observation.goal"
    chosen = read(parse_source(f"{place}#observation.state"))[1]
    assert not any("not used" in note for note in chosen)


def test_robomimic(tmp_path):
    """Written with h5py in robomimic's layout, which has no writer apart from its simulators."""
    h5py = pytest.importorskip("h5py")
    path, rng = tmp_path / "low_dim.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in (0, 1, 10, 2):
            demo, steps = file.create_group(f"data/demo_{number}"), 3 + number % 2
            demo.attrs["num_samples"] = steps
            demo["actions"] = rng.uniform(-1, 1, (steps, 2))
            demo["rewards"] = np.r_[np.zeros(steps - 1), 1.0]
            demo["dones"] = np.r_[np.zeros(steps - 1, int), 1]
            eef = rng.normal(size=(steps + 1, 3))
            for group, rows in (("obs", eef[:-1]), ("next_obs", eef[1:])):
                demo[f"{group}/object"] = np.full((steps, 2), number)
                demo[f"{group}/eef"] = rows
                demo[f"{group}/image"] = np.zeros((steps, 4, 4, 3), np.uint8)
    found, (note,) = read(parse_source(str(path)))
    assert note.endswith("eef, object") and found["observations"].shape == (13, 5)
    assert found["observations"][:, 4].tolist() == [0] * 3 + [1] * 4 + [2] * 3 + [10] * 3
    assert np.flatnonzero(found["masks"] == 0).tolist() == [2, 6, 9, 12]
    found, _ = read(parse_source(f"{path}#object"))
    assert found["next_observations"].shape == (13, 2)
    with pytest.raises(UsageError, match="demo_0/obs has none of 'force', expected 3; it has eef"):
        read(parse_source(f"{path}#force"))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UsageError, match="truncated, damaged or no hdf5 file"):
        read(parse_source(str(path)))


def test_d4rl(tmp_path):
    """Its arrays lie at the root, and are read as those of an npz are."""
    h5py = pytest.importorskip("h5py")
    path, values = tmp_path / "hopper.hdf5", arrays() | {"timeouts": np.array([0, 0, 1, 0, 1])}
    del values["masks"], values["next_observations"]
    values["terminals"] = np.zeros(5, bool)
    with h5py.File(path, "w") as file:
        file.update(values)
        file["infos/qpos"] = np.zeros((5, 2))
    np.savez(tmp_path / "hopper.npz", **values)
    found, (unused, *notes) = read(parse_source(str(path)))
    again, same = read(parse_source(str(tmp_path / "hopper.npz")))
    assert unused == f"{path} has arrays that are not used: infos"
    assert [note.replace(".hdf5", ".npz") for note in notes] == same
    assert all(np.array_equal(found[name], again[name]) for name in FIELDS)
    with pytest.raises(UsageError, match="has no parts to choose; drop #x"):
        read(parse_source(f"{path}#x"))
    with h5py.File(path, "a") as file:
        del file["actions"]
        file["actions/arm"] = values["actions"]
    with pytest.raises(UsageError, match="actions has dtype object, expected numbers"):
        read(parse_source(str(path)))
