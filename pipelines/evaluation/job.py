"""Evaluate a registered model (or a checkpoint) on splits of unseen architectures and on test images."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghn import load_checkpoint
from ghn.errors import InputError
from ghn.evaluation import BATCHNORM_POLICY, PREDICTED, Metric
from ghn.space import EVALUATED_SPLITS
from pipelines.evaluation.comparison import SCHEMA_VERSION
from pipelines.evaluation.inputs import describe_images, is_official, manifest_digest, open_splits, read_test_images
from pipelines.evaluation.methods import hypernetwork, image_facts, other_models, random_initialization, sgd
from pipelines.evaluation.pool import Setup
from pipelines.evaluation.published import published
from pipelines.evaluation.scores import score_all
from pipelines.evaluation.stored import against_stored, store_evaluation
from pipelines.evaluation.summary import networks_of, summary_of
from pipelines.part import Part
from pipelines.progress import emit
from pipelines.recipe import ImageSettings
from pipelines.registry import Model, fetch_model
from pipelines.storage import LocalStore

_MANY_CLASSES = 50  # from here on top-5 is the measure, as in the paper on ImageNet


@dataclass(frozen=True, kw_only=True)
class Question:
    """What an evaluation asks; everything that decides its scores.

    Attributes:
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in the registry, or a checkpoint's path.
        images: root of an image shard set.
        deepnets: root of the architecture shard sets, or an official ``.hdf5`` file.
        splits: which of them.
        networks: at most so many networks of each split, the first ones.
        image_limit: at most so many images, the first ones in stored order.
        image_split: ``test`` (or ``val``, to choose between models).
        seed: of random initializations and SGD.
        baselines: other models, as ``NAME=MODEL``.
        sgd_steps: train networks for so many steps, too, to say how many a prediction is worth (0: do not).
        sgd_networks: of each split, at most so many.

    """

    model: str
    images: str
    deepnets: str
    splits: Sequence[str] = EVALUATED_SPLITS
    networks: int | None = None
    image_limit: int | None = None
    image_split: str = "test"
    seed: int = 0
    baselines: Sequence[str] = ()
    sgd_steps: int = 0
    sgd_networks: int | None = None


def evaluate(
    question: Question,
    *,
    out: Path,
    tracking_uri: str | None = None,
    processes: int | None = None,
    results: str | None = None,
    part: Part | None = None,
) -> dict[str, Any] | None:
    """Score every network of the splits with predicted parameters and with the baselines; write and return the evaluation.

    Each network's score is stored as soon as it is known, under a name made from everything that decides it: the same command
    goes on after a stop, and parts may run anywhere.

    Args:
        question: model, images, networks and baselines.
        out: JSON file to write; one line for each network goes to the ``.jsonl`` file beside it.
        tracking_uri: of MLflow, for registered models; the evaluation goes to the version's run, too.
        processes: that score networks at the same time, with one thread each (default: one for each processor).
        results: root for the scores of single networks (default: a folder beside ``out``).
        part: score only this part of the networks, and return ``None``.

    Raises:
        InputError: if model, images and networks do not belong together.
        DataError: if a stored score is damaged.
        EnvironmentSetupError: if a process ends before its time.

    """
    results = results or str(out.with_suffix(".results").resolve())
    with tempfile.TemporaryDirectory(prefix="ghn-evaluate-") as temporary:
        tested = fetch_model(question.model, tracking_uri, Path(temporary, "model"))
        setup = _set_up(question, tested, tracking_uri, Path(temporary))
        found = score_all(setup, results, processes, part)
    if part is not None:
        return None
    records = networks_of(found, list(setup.methods.values()))
    evaluation = {**_content(question, tested, setup, records), "results": results}
    evaluation |= against_stored(tested, tracking_uri, evaluation)
    store = LocalStore(str(out.parent))
    store.write(out.with_suffix(".jsonl").name, "".join(json.dumps(row) + "\n" for row in records).encode())
    store.write(out.name, (json.dumps(evaluation, indent=1) + "\n").encode())
    if tested.name and not store_evaluation(tested, tracking_uri, evaluation):
        emit("not_stored", model=tested.label, reason="the registry holds an evaluation of more networks or images")
    metric = evaluation["metric"]
    means = {name: round(row["scores"][PREDICTED][metric]["mean"], 2) for name, row in evaluation["splits"].items()}
    emit("evaluated", out=str(out), metric=metric, **means)
    return evaluation


def _set_up(question: Question, tested: Model, tracking_uri: str | None, folder: Path) -> Setup:
    """Read model, networks and images, and see whether they belong together."""
    num_classes = load_checkpoint(tested.checkpoint).config.num_classes  # whole, and of a known kind
    settings = ImageSettings.model_validate(image_facts(tested.checkpoint))
    sizes = {"num_classes": num_classes, "image_size": settings.size}
    splits = open_splits(question.deepnets, question.splits, networks=question.networks, **sizes)
    tests = read_test_images(question.images, question.image_split, settings, folder, question.image_limit)
    described = describe_images(question.images, question.image_split, tests)
    if described["classes"] > num_classes:
        raise InputError(
            f"{question.images} has {described['classes']} classes but the model {question.model} predicts for "
            f"{num_classes}; evaluate it on images with as many classes at most"
        )
    methods = [hypernetwork(PREDICTED, tested), random_initialization()]
    methods += other_models(question.baselines, tracking_uri, folder / "baselines", settings)
    if question.sgd_steps:
        training = manifest_digest(question.images, "train")
        methods.append(
            sgd(question.sgd_steps, networks=question.sgd_networks, training_manifest=training, settings=settings)
        )
    return Setup(
        methods={method.name: method for method in methods},
        splits=splits,
        images=tests,
        described=described,
        num_classes=num_classes,
        training=question.images,
        training_settings=settings,
        seed=question.seed,
    )


def _content(question: Question, tested: Model, setup: Setup, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was measured and how, and what came out, as JSON-ready data."""
    metric: Metric = "top5" if setup.num_classes >= _MANY_CLASSES else "top1"
    splits = summary_of(records, metric)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"uri": question.model, **_registered(tested)},
        "metric": metric,
        "chance": (5 if metric == "top5" else 1) * 100.0 / setup.num_classes,
        "batchnorm": BATCHNORM_POLICY,
        "images": setup.described,
        "architectures": {
            "url": question.deepnets,
            "manifests": {name: split.manifest for name, split in setup.splits.items()},
            "seed_of_random_initialization": question.seed,
        },
        "methods": {method.name: {"kind": method.kind, **method.facts} for method in setup.methods.values()},
        "splits": splits,
        "networks": records,
        "published": published(
            setup.described["set"] if question.image_split == "test" else None,
            {name: split["networks"] for name, split in splits.items()},
            whole_image_set=setup.described["all"],
            official=is_official(question.deepnets),
        ),
    }


def _registered(model: Model) -> dict[str, Any]:
    return {"name": model.name, "version": model.version, "run_id": model.run_id} if model.name else {}
