"""Score networks in several processes, one thread in each, so that scores do not depend on how many there are."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ghn.checkpoint import load_checkpoint
from ghn.errors import EnvironmentSetupError, GHNError, first_line
from ghn.evaluation import Score, network_facts, score_predicted, score_random
from ghn.sgd import SGDSettings, sgd_scores
from pipelines.evaluation.inputs import EvaluatedImages, Split, training_images
from pipelines.evaluation.methods import Method
from pipelines.process import die_with, tune_process
from pipelines.recipe import ImageSettings


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every process needs.

    Attributes:
        methods: by name.
        splits: the networks, by split.
        images: that they are scored on.
        described: what an evaluation says about those.
        num_classes: that the model predicts for.
        training: root of the shard set for SGD.
        training_settings: how its images are prepared.
        seed: of random initializations and SGD.

    """

    methods: Mapping[str, Method]
    splits: Mapping[str, Split]
    images: EvaluatedImages
    described: Mapping[str, Any]
    num_classes: int
    training: str
    training_settings: ImageSettings
    seed: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """Score one network, at a position of a split, with one method."""

    method: str
    split: str
    position: int

    @property
    def label(self) -> str:
        """A name for messages."""
        return f"{self.split}[{self.position}] ({self.method})"


def run_jobs(
    setup: Setup, jobs: Iterable[Job], processes: int, on_result: Callable[[Job, dict[str, Any]], None]
) -> None:
    """Run jobs, each in the next process that is free; results come in the order in which they are ready.

    Args:
        setup: handed to every process once.
        jobs: in the order in which they start.
        processes: how many (at least 1).
        on_result: gets a job with its result: ``facts`` and ``scores``, one or, for SGD, one for each number of steps.

    Raises:
        EnvironmentSetupError: if a process ends before its time.

    """
    context = multiprocessing.get_context("spawn")
    waiting = iter(jobs)
    working: dict[Connection, tuple[Any, Job]] = {}
    started: list[Any] = []

    def give(connection: Connection, process: Any) -> None:
        job = next(waiting, None)
        if job is None:
            connection.close()
        else:
            working[connection] = (process, job)
            with contextlib.suppress(OSError):  # of a process that has ended: it shows when its answer is read
                connection.send(job)

    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, setup, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            started.append(process)
            give(ours, process)
        while working:
            ready: list[Any] = wait(list(working))
            for connection in ready:
                process, job = working.pop(connection)
                try:
                    result = connection.recv()
                except (EOFError, OSError):
                    process.join(timeout=10)
                    raise EnvironmentSetupError(
                        f"the process that evaluated {job.label} ended with exit code {process.exitcode} (-9: killed, often "
                        "for memory); run the same command again, perhaps with fewer --processes: what was done stays"
                    ) from None
                if isinstance(result, GHNError):
                    raise result
                on_result(job, result)
                give(connection, process)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _work(connection: Connection, setup: Setup, parent: int) -> None:
    """Do jobs until no more come; errors in the input are sent as results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    die_with(parent)
    tune_process()  # what becomes of freed memory is each process's own matter
    torch.set_num_threads(1)
    load = functools.cache(load_checkpoint)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            result: Any = _score(job, setup, load)
        except GHNError as error:
            result = error
        connection.send(result)


def _score(job: Job, setup: Setup, load: Callable[[Any], Any]) -> dict[str, Any]:
    """Score one network; running out of memory and the like is its failure, not that of the evaluation."""
    method, architecture = setup.methods[job.method], setup.splits[job.split].architectures[job.position]
    seed = setup.seed + architecture.index
    count = max(1, len(method.steps))
    try:
        if method.kind == "predicted":
            scores = [score_predicted(load(method.checkpoint), architecture, setup.images)]
        elif method.kind == "random":
            scores = [score_random(architecture, setup.images, seed)]
        else:
            batch = SGDSettings().batch
            batches = training_images(setup.training, setup.training_settings, batch=batch, seed=setup.seed)
            scores = sgd_scores(architecture, batches, setup.images, method.steps, seed=seed)
    except (RuntimeError, MemoryError) as error:
        failure = f"{type(error).__name__}: {first_line(error)}"[:200]
        scores = [Score(top1=0.0, top5=0.0, failure=failure)] * count
    return {
        "split": job.split,
        "index": architecture.index,
        "facts": dataclasses.asdict(network_facts(architecture)),
        "scores": [dataclasses.asdict(item) for item in scores],
    }
