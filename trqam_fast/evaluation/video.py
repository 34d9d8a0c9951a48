"""Videos of episodes: which renderer works here, and writing mp4 files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from trqam_fast.data.tasks import Task
from trqam_fast.errors import UsageError
from trqam_fast.simulator.environment import draw_simply, make_env

SIZE = 256
RENDER_OPTIONS = {"render_mode": "rgb_array", "width": SIZE, "height": SIZE}
RENDERERS = ("egl", "osmesa")
FRAMES_PER_SECOND = 20
PROBE_SECONDS = 120


def check_encoder() -> None:
    """Raise `UsageError` unless videos can be encoded."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UsageError(
            "--video needs imageio-ffmpeg, which is not installed; run "
            "pip install 'trqam_fast[video]' or drop --video"
        ) from None


def render_options(task: Task) -> dict[str, Any]:
    """Return the arguments of `make_env` with which a task's environment renders."""
    if task.dataset_name is None:  # not every environment has a size that can be chosen
        return {"render_mode": "rgb_array"}
    return RENDER_OPTIONS


def find_renderer(env_id: str, options: dict[str, Any] = RENDER_OPTIONS) -> str | None:
    """Return the first value of MUJOCO_GL that renders an environment here, or None.

    Each is tried in a process of its own, because a renderer that does not work may end it.

    Args:
        env_id: What `make_env` takes.
        options: Its further arguments.
    """
    for name in RENDERERS:
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", __name__, env_id, json.dumps(options)],
                env=os.environ | {"MUJOCO_GL": name},
                capture_output=True,
                timeout=PROBE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return name
    return None


class VideoWriter:
    """Encodes frames `[height, width, 3]`, uint8, as an mp4 file."""

    def __init__(
        self, path: str | Path, size: tuple[int, int], frames_per_second: int | None
    ) -> None:
        import imageio_ffmpeg

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.frames = imageio_ffmpeg.write_frames(
            str(path), size, fps=frames_per_second or FRAMES_PER_SECOND, macro_block_size=2
        )
        self.frames.send(None)

    def add(self, frame: np.ndarray) -> None:
        """Append a frame."""
        self.frames.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Finish the file."""
        self.frames.close()


def probe(env_id: str, options: dict[str, Any]) -> int:
    """Render one frame; return 0 if it shows anything."""
    env = make_env(env_id, **options)
    env.reset(seed=0)
    draw_simply(env)
    return 0 if np.std(np.asarray(env.render())) > 0 else 1


if __name__ == "__main__":
    # Without the clean-up at exit, which some renderers do not survive.
    os._exit(probe(sys.argv[1], json.loads(sys.argv[2])))
