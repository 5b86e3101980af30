"""Evaluations as `ghn evaluate` writes them, with chosen accuracies; and evaluating without other processes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from ghn import load_checkpoint
from pipelines.evaluation import job as evaluation_job
from pipelines.evaluation import pool, scores
from pipelines.evaluation.summary import summary_of

NETWORKS = 20


def evaluation(
    version: int, accuracies: Mapping[str, Sequence[float]], *, baseline: float = 10.0, run_id: str = "unknown"
) -> dict[str, Any]:
    """Return an evaluation of a version of ghn2-test with these accuracies on each split."""

    def score(value: float) -> dict[str, Any]:
        return {"top1": value, "top5": min(100.0, 2 * value), "failure": ""}

    facts = {"nodes": 9, "depth": 4, "width": 16.0, "parameters": 99}
    networks = [
        {"split": split, "index": i, "facts": facts, "scores": {"predicted": score(a), "random": score(baseline)}}
        for split, values in accuracies.items()
        for i, a in enumerate(values)
    ]
    return {
        "schema_version": 2,
        "model": {"uri": f"models:/ghn2-test/{version}", "name": "ghn2-test", "version": version, "run_id": run_id},
        "metric": "top1",
        "chance": 10.0,
        "batchnorm": "batch statistics",
        "images": {"url": "images", "manifest": "a1", "split": "test", "count": 256, "size": 16, "classes": 10},
        "architectures": {"url": "nets", "manifests": dict.fromkeys(accuracies, "b2")},
        "methods": {"predicted": {"kind": "predicted"}, "random": {"kind": "random"}},
        "splits": summary_of(networks, "top1"),
        "networks": networks,
        "published": None,
        "champion": None,
        "previous": None,
    }


def spread(mean: float, count: int = NETWORKS) -> list[float]:
    """Accuracies that differ between networks by more than any two models here do."""
    return [mean + (i - (count - 1) / 2) for i in range(count)]


@contextlib.contextmanager
def scored_here() -> Iterator[None]:
    """Score networks one after the other in this process, by the function that the processes of the pool call."""

    def run_jobs(
        setup: pool.Setup,
        jobs: Iterable[pool.Job],
        processes: int,
        on_result: Callable[[pool.Job, dict[str, Any]], None],
    ) -> None:
        load = functools.cache(load_checkpoint)
        for job in jobs:
            on_result(job, pool._score(job, setup, load))

    with mock.patch.object(scores, "run_jobs", run_jobs):
        yield


def evaluate(model: str, *, images: str, deepnets: str, **more: Any) -> dict[str, Any] | None:
    """Ask a question whose parts are given one by one, like the options of the command."""
    known = {field.name for field in dataclasses.fields(evaluation_job.Question)}
    asked = {name: more.pop(name) for name in known & more.keys()}
    question = evaluation_job.Question(model=model, images=images, deepnets=deepnets, **asked)
    return evaluation_job.evaluate(question, **more)
