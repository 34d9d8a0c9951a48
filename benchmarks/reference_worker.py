"""Times updates of the authors' JAX code; started by compare_reference.py.

It runs under an interpreter that has JAX, from a checkout of `yonghdong/trqam`, without this
project. It reads one JSON request per line and answers each with one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time


def make_update(size: dict):
    """Return a function that does one update of the authors' agent and waits for it."""
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

    def update() -> None:
        nonlocal agent
        agent, info = agent.update(batch)
        jax.block_until_ready((agent.network.params, info))

    return update


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    updates = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "describe":
            import jax

            device = jax.devices()[0]
            answer = {"jax": jax.__version__, "device": f"{device.platform}: {device.device_kind}"}
        elif request["do"] == "prepare":
            updates[request["name"]] = make_update(request["size"])
            answer = {}
        else:
            update, answer = updates[request["name"]], {"seconds": []}
            for _ in range(request["updates"]):
                start = time.perf_counter()
                update()
                answer["seconds"].append(time.perf_counter() - start)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
