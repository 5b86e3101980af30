"""Scores of single networks, stored one by one under names made from what decides them: what is there is not done again."""

from __future__ import annotations

import json
from typing import Any

from ghn.errors import DataError
from pipelines.evaluation.pool import Job, Setup, run_jobs
from pipelines.machine import cores
from pipelines.part import Part
from pipelines.progress import Progress
from pipelines.storage import Store, open_store

Place = tuple[str, str, int]
"""Method, split, position in the split."""


def score_all(setup: Setup, results: str, processes: int | None, part: Part | None) -> dict[Place, dict[str, Any]]:
    """Return the results of all jobs (or those of a part), reading those that are stored and running the others.

    Args:
        setup: methods, networks and images.
        results: root of the store of scores.
        processes: at most so many (default: one for each processor that this process may use).
        part: which jobs; ``None`` for all.

    Raises:
        DataError: if a stored score can not be read.
        EnvironmentSetupError: if a process ends before its time.

    """
    store, keys = open_store(results), _keys(setup, part)
    stored = set(store.list())
    found = {_place(job): _read(store, key) for job, key in keys.items() if key in stored}
    missing = [job for job in keys if _place(job) not in found]
    with Progress("evaluate", len(keys), unit="score", initial=len(found)) as progress:

        def keep(job: Job, result: dict[str, Any]) -> None:
            store.write(keys[job], json.dumps(result).encode())
            found[_place(job)] = result
            progress.update(split=job.split, method=job.method, top1=round(result["scores"][-1]["top1"], 1))

        if missing:
            wanted = processes or cores()
            run_jobs(setup, missing, min(wanted, len(missing)), keep)
    return {_place(job): found[_place(job)] for job in keys}


def _keys(setup: Setup, part: Part | None) -> dict[Job, str]:
    """Return all jobs (or those of a part), each with the name of its score."""
    settings = setup.images.settings
    measured = {key: setup.described[key] for key in ("manifest", "split", "count", "size")}
    measured |= {"mean": settings.mean, "std": settings.std, "evaluated_side": settings.evaluated_side}
    keys: dict[Job, str] = {}
    for name, split in setup.splits.items():
        members = range(len(split.architectures))
        for position in members if part is None else members[part.number - 1 :: part.count]:
            for method in setup.methods.values():
                if method.networks is None or position < method.networks:
                    digest = method.digest({"images": measured, "networks": split.manifest, "seed": setup.seed})
                    job = Job(method=method.name, split=name, position=position)
                    keys[job] = f"{method.name}-{digest}/{name}/{position:06d}.json"
    return keys


def _read(store: Store, key: str) -> dict[str, Any]:
    try:
        score: dict[str, Any] = json.loads(store.read(key))
    except ValueError as error:
        raise DataError(
            f"the score {store.url(key)} is damaged: {error}; remove it and run the same command"
        ) from error
    return score


def _place(job: Job) -> Place:
    return job.method, job.split, job.position
