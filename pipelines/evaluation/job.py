"""Evaluate a registered model (or a checkpoint) on splits of unseen architectures and on test images."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ghn import load_checkpoint
from ghn.errors import GHNError, InputError
from ghn.evaluation import BATCHNORM_POLICY, PREDICTED, Metric
from pipelines.evaluation.comparison import compare, read_evaluation
from pipelines.evaluation.inputs import DEFAULT_SPLITS, describe_images, manifest_digest, open_splits, read_test_images
from pipelines.evaluation.methods import (
    hypernetwork,
    image_facts,
    other_models,
    random_initialization,
    sgd,
)
from pipelines.evaluation.pool import Job, Setup, run_jobs
from pipelines.evaluation.published import published
from pipelines.evaluation.stored import EVALUATED_AT_TAG, store_evaluation, stored_evaluation
from pipelines.evaluation.summary import networks_of, summary_of
from pipelines.progress import Progress, emit
from pipelines.registry import CHAMPION, Model, fetch_model, find_version, open_registry
from pipelines.settings import ImageSettings
from pipelines.shards.writer import Part
from pipelines.storage import LocalStore, open_store

SCHEMA_VERSION = 2
_MANY_CLASSES = 50  # from here on top-5 is the measure, as in the paper on ImageNet


def evaluate(
    model: str,
    *,
    images: str,
    deepnets: str,
    out: Path,
    splits: Sequence[str] = DEFAULT_SPLITS,
    tracking_uri: str | None = None,
    networks: int | None = None,
    image_limit: int | None = None,
    image_split: str = "test",
    seed: int = 0,
    baselines: Sequence[str] = (),
    sgd_steps: int = 0,
    sgd_networks: int | None = None,
    processes: int | None = None,
    results: str | None = None,
    part: Part | None = None,
) -> dict[str, Any] | None:
    """Score every network of the splits with predicted parameters and with the baselines; write and return the evaluation.

    Each network's score is stored as soon as it is known, under a name made from everything that decides it: the same command
    goes on after a stop, and parts may run anywhere.

    Args:
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in the registry, or a checkpoint's path.
        images: root of an image shard set.
        deepnets: root of the architecture shard sets, or an official ``.hdf5`` file.
        out: JSON file to write; one line for each network goes to the ``.jsonl`` file beside it.
        splits: which of them.
        tracking_uri: of MLflow, for registered models; the evaluation goes to the version's run, too.
        networks: at most so many networks of each split, the first ones.
        image_limit: at most so many images, the first ones in stored order.
        image_split: ``test`` (or ``val``, to choose between models).
        seed: of random initializations and SGD.
        baselines: other models, as ``NAME=MODEL``.
        sgd_steps: train networks for so many steps, too, to say how many a prediction is worth (0: do not).
        sgd_networks: of each split, at most so many.
        processes: that score networks at the same time, with one thread each (default: one for each processor).
        results: root for the scores of single networks (default: a folder beside ``out``).
        part: score only this part of the networks, and return ``None``.

    Raises:
        InputError: if model, images and networks do not belong together.
        EnvironmentSetupError: if a process ends before its time.

    """
    with tempfile.TemporaryDirectory(prefix="ghn-evaluate-") as temporary:
        folder = Path(temporary)
        tested = fetch_model(model, tracking_uri, folder / "model")
        num_classes = load_checkpoint(tested.checkpoint).config.num_classes  # whole, and of a known kind
        settings = ImageSettings.model_validate(image_facts(tested.checkpoint))
        chosen = open_splits(deepnets, splits, networks=networks, num_classes=num_classes, image_size=settings.size)
        tests = read_test_images(images, image_split, settings, folder, image_limit)
        described = describe_images(images, image_split, tests)
        if described["classes"] > num_classes:
            raise InputError(
                f"{images} has {described['classes']} classes but the model {model} predicts for {num_classes}; "
                "evaluate it on images with as many classes at most"
            )
        methods = [hypernetwork(PREDICTED, tested), random_initialization()]
        methods += other_models(baselines, tracking_uri, folder / "baselines", settings)
        if sgd_steps:
            training = manifest_digest(images, "train")
            methods.append(sgd(sgd_steps, networks=sgd_networks, training_manifest=training, settings=settings))
        setup = Setup(
            methods={method.name: method for method in methods},
            splits=chosen,
            images=tests,
            training=images,
            training_settings=settings,
            seed=seed,
        )
        results = results or str(out.with_suffix(".results").resolve())
        found = _score_all(setup, described, results, processes, part)
    if part is not None:
        return None
    metric: Metric = "top5" if num_classes >= _MANY_CLASSES else "top1"
    records = networks_of(found, methods)
    evaluation: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": {"uri": model, **_version(tested)},
        "metric": metric,
        "chance": (5 if metric == "top5" else 1) * 100.0 / num_classes,
        "batchnorm": BATCHNORM_POLICY,
        "images": described,
        "architectures": {
            "url": deepnets,
            "manifests": {name: split.manifest for name, split in chosen.items()},
            "seed_of_random_initialization": seed,
        },
        "results": results,
        "methods": {method.name: {"kind": method.kind, **method.facts} for method in methods},
        "splits": summary_of(records, metric),
        "networks": records,
    }
    evaluation["published"] = published(
        described["set"] if image_split == "test" else None,
        {name: split["networks"] for name, split in evaluation["splits"].items()},
        whole_image_set=described["all"],
        official=deepnets.endswith((".hdf5", ".h5")),
    )
    evaluation |= _against_stored(tested, tracking_uri, evaluation)
    store = LocalStore(str(out.parent))
    store.write(out.with_suffix(".jsonl").name, "".join(json.dumps(row) + "\n" for row in records).encode())
    store.write(out.name, (json.dumps(evaluation, indent=1) + "\n").encode())
    if tested.name and not store_evaluation(tested, tracking_uri, evaluation):
        emit("not_stored", model=tested.label, reason="the registry holds an evaluation of more networks or images")
    means = {name: round(row["scores"][PREDICTED][metric]["mean"], 2) for name, row in evaluation["splits"].items()}
    emit("evaluated", out=str(out), metric=metric, **means)
    return evaluation


def _score_all(
    setup: Setup, images: Mapping[str, Any], results: str, processes: int | None, part: Part | None
) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the results of all jobs (or those of a part), reading those that are stored and running the others."""
    store = open_store(results)
    measured = {key: images[key] for key in ("manifest", "split", "count", "size")}
    measured |= {"mean": setup.images.settings.mean, "std": setup.images.settings.std}
    measured["evaluated_side"] = setup.images.settings.evaluated_side
    keys: dict[Job, str] = {}
    for name, split in setup.splits.items():
        members = range(len(split.architectures))
        for position in members if part is None else members[part.number - 1 :: part.count]:
            for method in setup.methods.values():
                if method.networks is None or position < method.networks:
                    digest = method.digest({"images": measured, "networks": split.manifest, "seed": setup.seed})
                    keys[Job(method=method.name, split=name, position=position)] = (
                        f"{method.name}-{digest}/{name}/{position:06d}.json"
                    )
    stored = set(store.list())
    found = {_place(job): json.loads(store.read(key)) for job, key in keys.items() if key in stored}
    missing = [job for job in keys if _place(job) not in found]
    with Progress("evaluate", len(keys), unit="score", initial=len(found)) as progress:

        def keep(job: Job, result: dict[str, Any]) -> None:
            store.write(keys[job], json.dumps(result).encode())
            found[_place(job)] = result
            progress.update(split=job.split, method=job.method, top1=round(result["scores"][-1]["top1"], 1))

        if missing:
            wanted = processes or len(os.sched_getaffinity(0))
            run_jobs(setup, missing, min(wanted, len(missing)), keep)
    return {_place(job): found[_place(job)] for job in keys}


def _place(job: Job) -> tuple[str, str, int]:
    return job.method, job.split, job.position


def _version(model: Model) -> dict[str, Any]:
    return {"name": model.name, "version": model.version, "run_id": model.run_id} if model.name else {}


def _against_stored(model: Model, tracking_uri: str | None, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Compare with what is stored of the champion and of this version; say why where that can not be done."""
    if model.name is None:
        return {"champion": None, "previous": None}
    with open_registry(tracking_uri) as client:
        champion = find_version(client, model.name, CHAMPION)
        this = client.get_model_version(model.name, str(model.version))
        other = None if champion is None or champion.version == this.version else champion
        previous = this if EVALUATED_AT_TAG in this.tags else None
        return {
            "champion": other and _against(client, other, evaluation),
            "previous": previous and _against_itself(client, previous, evaluation),
        }


def _against_itself(client: Any, version: Any, evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compare with the evaluation of before; where that is this one, not quite finished, with the one that it looked at."""
    with contextlib.suppress(GHNError):
        stored = stored_evaluation(client, version).model_extra or {}
        if stored.get("results") == evaluation["results"]:
            return stored.get("previous")
    return _against(client, version, evaluation)


def _against(client: Any, version: Any, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"version": int(version.version)}
    try:
        mine = read_evaluation(evaluation, "this evaluation")
        differences = compare(mine, stored_evaluation(client, version), ())
    except GHNError as error:
        return {**result, "not_compared": str(error)}
    return {**result, "differences": [{**vars(item), "text": str(item)} for item in differences]}
