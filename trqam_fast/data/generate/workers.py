"""Makes shards in this process or in worker processes."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from trqam_fast.data.generate.expert import Expert
from trqam_fast.data.generate.shards import KEPT, Shard
from trqam_fast.errors import RunError


def make_shards(
    shards: Sequence[Shard], make_expert: Callable[[], Expert], workers: int
) -> Generator[int, None, None]:
    """Make shards, yielding the number of trajectories that have been made since.

    Closing the iterator, an error, or the end of this process ends the workers.

    Args:
        shards: What is missing.
        make_expert: Makes a worker's expert, once; it is pickled.
        workers: Number of processes; 1 works in this one.

    Raises:
        RunError: a trajectory cannot be generated, or a worker died.
    """
    workers = min(workers, len(shards))
    if workers > 1:
        yield from in_processes(shards, make_expert, workers)
    elif shards:
        with contextlib.closing(make_expert()) as expert:
            for shard in shards:
                for _ in shard.make(expert):
                    yield 1


def in_processes(
    shards: Sequence[Shard], make_expert: Callable[[], Expert], workers: int
) -> Generator[int, None, None]:
    """Make shards in worker processes, each of which gets a new shard when it has made one."""
    context = multiprocessing.get_context("spawn")  # A fork after torch's threads can hang.
    theirs, ours = context.Pipe(duplex=False)
    started = (theirs, make_expert)
    with ours, theirs, ProcessPoolExecutor(workers, context, begin, started) as pool:
        try:
            # Workers keep the mask: Ctrl-C is this process's alone, which ends them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                made = {pool.submit(make_shard, shard): shard for shard in shards}
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for future in as_completed(made):
                future.result()
                yield made[future].episodes
        except BaseException as error:
            ours.close()  # Shards are written whole, so nothing is lost but the present ones.
            if isinstance(error, BrokenProcessPool):
                raise RunError(f"a worker process died; {KEPT}") from None
            raise


expert: Callable[[], Expert]
"""Returns the expert of this process, if it is a worker: the same one every time."""


def begin(parent: Connection, make_expert: Callable[[], Expert]) -> None:
    """Prepare a worker: its simulator's warnings are not shown, and it ends with its parent."""
    global expert
    warnings.simplefilter("ignore")
    follow(parent)
    expert = functools.cache(make_expert)


def follow(parent: Connection) -> None:
    """End this worker when its parent closes its end of a pipe, or is gone, however that ended."""

    def wait() -> None:
        with contextlib.suppress(EOFError):
            parent.recv()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def make_shard(shard: Shard) -> None:
    """Make a shard in a worker."""
    try:
        for _ in shard.make(expert()):
            pass
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"a worker failed ({type(error).__name__}: {error}); {KEPT}") from None
