"""Start one training process per rank on this host, or become a rank where a launcher has set the environment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ghn.errors import EnvironmentSetupError, InputError, TrainingError, TrainingStoppedError
from pipelines.machine import cores
from pipelines.ports import bound_socket
from pipelines.process import PARENT_VARIABLE
from pipelines.progress import emit
from pipelines.recipe import Recipe
from pipelines.storage import LocalStore
from pipelines.training.checkpoints import check_resumable, read_checkpoint
from pipelines.training.data import MetaBatches
from pipelines.training.launcher import Launcher
from pipelines.training.run_folder import MODEL_NAME, RECIPE_NAME, checkpoint_store

_POLL_S = 0.2
_LOCK_NAME = ".lock"
_LOCK_WAIT_S = 15.0
_AFTER_FAILURE_S = 10.0


def train(recipe: Recipe, run: Path, *, store: str | None = None, stop_after: int | None = None) -> None:
    """Meta-train in the run folder, going on from its newest whole checkpoint if there is one.

    Everything that can be checked is checked before any process starts. Under a launcher (``torchrun``, ``deepspeed``,
    a Kubernetes Indexed Job: ``RANK`` and ``WORLD_SIZE`` are set) this process is one rank; otherwise
    ``training.processes`` ranks are started here.

    Args:
        recipe: the resolved recipe.
        run: folder for recipe, metrics and the model, and for checkpoints unless there is a store.
        store: where checkpoints and exported models go, e.g. ``s3://bucket/runs/NAME``.
        stop_after: end this session, with a checkpoint, after this many steps in all.

    Raises:
        GHNError: for anything wrong with recipe, shards, run folder or training.

    """
    if stop_after is not None and stop_after < 1:
        raise InputError(f"stop-after={stop_after}: give at least 1")
    launcher = Launcher.from_environment()
    MetaBatches(recipe)  # on every host: what is wrong with the shards must not leave the others waiting
    with _locked(run) if launcher.is_first else contextlib.nullcontext():
        if not launcher.launched and _is_finished(recipe, run, store):
            return
        if launcher.is_first:
            LocalStore(str(run)).write(RECIPE_NAME, recipe.to_toml().encode())
        if launcher.launched:
            from pipelines.training.worker import run_rank

            run_rank(recipe, run, store=store, stop_after=stop_after)
        else:
            _run_ranks(recipe, run, store, stop_after)


def _is_finished(recipe: Recipe, run: Path, store: str | None) -> bool:
    """Look at the newest checkpoint: does it belong to the recipe, and is there anything left to do?"""
    place = checkpoint_store(run, store)
    found = read_checkpoint(place)
    if found is None:
        return False
    state = found[0]
    check_resumable(place.root, state, recipe)
    emit("resume", step=state.step, total=state.total_steps)
    finished = state.step >= recipe.training.steps and (run / MODEL_NAME).exists()
    if finished:
        emit("finished", step=state.step)
    return finished


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold a run folder for this process and those that it starts; wait a little for an earlier one to end.

    Raises:
        EnvironmentSetupError: if another process goes on using it.

    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / _LOCK_NAME).open("a+") as stream:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    stream.seek(0)
                    owner = stream.read().strip() or "another process"
                    raise EnvironmentSetupError(
                        f"{run} is in use by {owner}; wait for it, stop it, or give another --run"
                    ) from None
                time.sleep(_POLL_S)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}")
        stream.flush()
        yield


def _run_ranks(recipe: Recipe, run: Path, store: str | None, stop_after: int | None) -> None:
    """Run all ranks; when one fails, stop the others and raise. Signals to stop are passed on, once."""
    command = [sys.executable, "-m", "pipelines.training.worker", str(run)]
    if store is not None:
        command += ["--store", store]
    if stop_after is not None:
        command += ["--stop-after", str(stop_after)]
    ranks = _start_ranks(command, recipe.training.processes)
    asked = 0

    def pass_on(number: int, frame: object) -> None:
        nonlocal asked
        asked = number
        for process in ranks:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    deadline, first = None, None
    try:
        while any(process.poll() is None for process in ranks):
            first = first or _first_failure(ranks)
            if first or asked:
                wait_s = recipe.training.grace_s if asked else _AFTER_FAILURE_S
                deadline = deadline or time.monotonic() + wait_s
                if time.monotonic() > deadline:
                    break
            time.sleep(_POLL_S)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for rank, process in enumerate(ranks):
            if process.poll() is None:
                first = first or (rank, -signal.SIGKILL)
                process.kill()
                process.wait()
    _raise_for(first or _first_failure(ranks), run, asked)


def _start_ranks(command: Sequence[str], count: int) -> list[subprocess.Popen[bytes]]:
    """Start all ranks; rank 0 takes over the socket where they meet: on loopback alone, with a port that nobody else gets."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // count))
    ranks = []
    with bound_socket() as meeting:
        for rank in range(count):
            environment = {
                "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(meeting.getsockname()[1]),
                "OMP_NUM_THREADS": threads,
                PARENT_VARIABLE: str(os.getpid()),
                "GHN_MASTER_FD": str(meeting.fileno()),
            }
            ranks.append(subprocess.Popen(command, env=environment, pass_fds=[meeting.fileno()] if rank == 0 else []))
    return ranks


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Return (rank, exit code) of a rank that failed, rather one that was killed: the others may have failed for that."""
    codes = [(rank, process.poll() or 0) for rank, process in enumerate(ranks)]
    return min((item for item in codes if item[1]), key=lambda item: item[1] > 0, default=None)


def _raise_for(failure: tuple[int, int] | None, run: Path, asked: int) -> None:
    """Raise if a rank failed, or all stopped because they were asked to."""
    again = f"Run the same command again to resume from {run}"
    if asked and (failure is None or failure[1] == TrainingStoppedError.exit_code):
        raise TrainingStoppedError(f"stopped by signal {asked}, with a checkpoint. {again}")
    if failure is None:
        return
    rank, code = failure
    if asked and code < 0:
        raise TrainingError(f"rank {rank} did not stop within training.grace_s; the checkpoint before counts. {again}")
    how = f"ended with exit code {code}; its message is above" if code > 0 else f"was killed by signal {-code}"
    raise TrainingError(f"rank {rank} {how}. {again}")
