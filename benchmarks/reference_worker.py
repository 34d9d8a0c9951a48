"""Runs the authors' JAX code for compare_reference.py and compare_learning.py.

It runs under an interpreter that has JAX, from a checkout of `yonghdong/trqam`, without this
project. It reads one JSON request per line and answers each with one line of JSON. Packages that
the checkout imports but the update does not use may be missing: `stubs/` has something in their
place.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from reference_learning import Learner, default_config

sys.path.append(str(Path(__file__).with_name("stubs")))  # last: installed packages come first


def make_update(size: dict) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a function that begins one update of the authors' agent, and one that waits."""
    import jax
    import numpy as np
    from agents.trqam import TRQAMAgent, get_config

    config = get_config()
    config.actor_hidden_dims = config.value_hidden_dims = (size["width"],) * size["depth"]
    config.batch_size, config.num_qs = size["batch"], size["ensemble"]
    config.horizon_length, config.action_chunking = size["horizon"], True
    config.flow_steps = size["flow_steps"]
    random = np.random.default_rng(0)
    rows, obs, horizon = size["batch"], size["obs_dim"], size["horizon"]

    def normal(*shape: int):
        return random.standard_normal(shape).astype(np.float32)

    batch = {
        "observations": normal(rows, obs),
        "actions": np.clip(normal(rows, horizon, size["act_dim"]), -1, 1),
        "rewards": -np.ones((rows, horizon), np.float32),
        "masks": np.ones((rows, horizon), np.float32),
        "valid": np.ones((rows, horizon), np.float32),
        "next_observations": normal(rows, horizon, obs),
    }
    batch = jax.device_put(batch)
    agent = TRQAMAgent.create(
        0, np.asarray(batch["observations"][0]), np.asarray(batch["actions"][0, 0]), config
    )

    info = None

    def update() -> None:
        nonlocal agent, info
        agent, info = agent.update(batch)

    def wait() -> None:
        jax.block_until_ready((agent.network.params, info))

    return update, wait


def time_updates(update, wait, updates: int, every: int) -> list[float]:
    """Return the seconds of an update, one number for each row of `every` that ends with a wait."""
    seconds = []
    for _ in range(updates // every):
        start = time.perf_counter()
        for _ in range(every):
            update()
        wait()
        seconds.append((time.perf_counter() - start) / every)
    return seconds


def profile(update, wait, updates: int = 5) -> dict:
    """Return the number of kernels of an update on a GPU and the microseconds that they run.

    Without what is idle between them, so two streams at once count twice.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(updates):
                update()
            wait()
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    planes = [plane for plane in data.planes if plane.name.startswith("/device:GPU")]
    events = [
        event
        for plane in planes
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    if not events:
        return {"problem": "the profile has no kernels of a GPU"}
    nanoseconds = sum(event.duration_ns for event in events)
    return {"kernels": len(events) / updates, "kernel_us": 1e-3 * nanoseconds / updates}


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    updates = {}
    learner = None
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        match request.pop("do"):
            case "describe":
                import jax

                device = jax.devices()[0]
                answer["jax"] = jax.__version__
                answer["device"] = f"{device.platform}: {device.device_kind}"
            case "prepare":
                updates[request["name"]] = make_update(request["size"])
            case "profile":
                try:
                    answer = profile(*updates[request["name"]])
                except (AttributeError, ValueError, RuntimeError, OSError) as error:  # versions
                    answer = {"problem": repr(error)}
            case "time":
                name = request.pop("name")
                answer["seconds"] = time_updates(*updates[name], **request)
            case "settings":
                answer["names"] = list(default_config(**request).keys())
            case "learn":
                learner = Learner(**request)
            case "start":
                learner.start(**request)
            case "train":
                answer["means"] = learner.train(**request)
            case "act":
                answer["actions"] = learner.act(**request)
            case "save":
                learner.save(**request)
            case "load":
                learner.load(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
