"""Start one training process per rank on this host, or become a rank where a launcher has set the environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ghn.errors import InputError, TrainingError
from pipelines.ports import free_port
from pipelines.progress import emit
from pipelines.settings import Recipe
from pipelines.storage import LocalStore
from pipelines.training.data import MetaBatches
from pipelines.training.state import MODEL_NAME, RECIPE_NAME, check_resumable, read_state

_POLL_S = 0.2
_GRACE_S = 10.0


def train(recipe: Recipe, run: Path, *, stop_after: int | None = None) -> None:
    """Meta-train in the run folder, resuming from its training state if there is one.

    Everything that can be checked is checked before any process starts. Under a launcher (``torchrun``, ``deepspeed``,
    a Kubernetes Indexed Job: ``RANK`` and ``WORLD_SIZE`` are set) this process is one rank; otherwise
    ``training.processes`` ranks are started here.

    Args:
        recipe: the resolved recipe.
        run: folder for recipe, metrics, training state and the model.
        stop_after: end this session, with a checkpoint, after this many steps in all.

    Raises:
        GHNError: for anything wrong with recipe, shards, run folder or training.

    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    world_size = int(os.environ["WORLD_SIZE"]) if launched else recipe.training.processes
    if stop_after is not None and stop_after < 1:
        raise InputError(f"stop-after={stop_after}: give at least 1")
    if launched:
        from pipelines.training.worker import run_rank

        run_rank(recipe, run, stop_after=stop_after)
        return
    MetaBatches(recipe)
    state = read_state(run)
    if state is not None:
        check_resumable(run, state, recipe, world_size)
        emit("resume", step=state.step, total=state.total_steps)
        if state.step >= recipe.training.steps and (run / MODEL_NAME).exists():
            emit("finished", step=state.step)
            return
    LocalStore(str(run)).write(RECIPE_NAME, recipe.to_toml().encode())
    _run_ranks(run, world_size, stop_after)


def _run_ranks(run: Path, world_size: int, stop_after: int | None) -> None:
    """Run all ranks; when one fails, stop the others and raise."""
    port = free_port()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // world_size))
    command = [sys.executable, "-m", "pipelines.training.worker", str(run)]
    if stop_after is not None:
        command += ["--stop-after", str(stop_after)]
    ranks = []
    for rank in range(world_size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": threads,
        }
        ranks.append(subprocess.Popen(command, env=environment))
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while any(process.poll() is None for process in ranks):
            if any(process.poll() not in (None, 0) for process in ranks):
                break
            time.sleep(_POLL_S)
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(ranks)
    failed = [(rank, process.returncode) for rank, process in enumerate(ranks) if process.returncode > 0]
    killed = [(rank, process.returncode) for rank, process in enumerate(ranks) if process.returncode < 0]
    if failed or killed:
        rank, code = (failed or killed)[0]
        how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
        raise TrainingError(f"rank {rank} {how}; its message is above. Run the same command again to resume from {run}")


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()
