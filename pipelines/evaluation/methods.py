"""What is compared on the same networks and images: predicted parameters, random initialization, other models, SGD."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ghn.checkpoint import read_metadata, weights_digest
from ghn.errors import InputError
from ghn.evaluation import PREDICTED, RANDOM
from ghn.graph import GRAPH_REVISION
from ghn.sgd import SGDSettings, step_grid
from pipelines.recipe import ImageSettings
from pipelines.registry import Model, fetch_model

SGD = "sgd"
_REVISION = 1  # of how a score is measured: another one makes older results invalid


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to get parameters.

    Attributes:
        name: its column in tables.
        kind: how.
        checkpoint: of the hypernetwork, for ``predicted``.
        facts: everything about it that decides its scores.
        steps: numbers of SGD steps that are measured.
        networks: of each split, the first so many; ``None``: all.

    """

    name: str
    kind: Literal["predicted", "random", "sgd"]
    checkpoint: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    networks: int | None = None

    def digest(self, data: Mapping[str, Any]) -> str:
        """Name scores by all that decides them: the method, and the ``data`` (images, networks, seed)."""
        whole = {"kind": self.kind, **self.facts, "data": dict(data), "graphs": GRAPH_REVISION, "revision": _REVISION}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def hypernetwork(name: str, model: Model) -> Method:
    """Return the method that predicts with a model."""
    return Method(
        name=name,
        kind="predicted",
        checkpoint=model.checkpoint,
        facts={"weights": weights_digest(model.checkpoint)},
    )


def random_initialization() -> Method:
    """Return the method of ordinary initialization."""
    return Method(name=RANDOM, kind="random")


def sgd(steps: int, *, networks: int | None, training_manifest: str, settings: ImageSettings) -> Method:
    """Return the method that trains each network for ``steps`` steps on images of these settings."""
    grid = step_grid(steps)
    facts = {"steps": list(grid), "training": training_manifest, **dataclasses.asdict(SGDSettings())}
    facts |= {"augment": settings.augment, "shuffle_window": settings.shuffle_window}
    return Method(name=SGD, kind="sgd", facts=facts, steps=grid, networks=networks)


def other_models(given: Sequence[str], tracking_uri: str | None, folder: Path, settings: ImageSettings) -> list[Method]:
    """Read ``NAME=MODEL`` baselines, such as ``ghn1=models:/ghn1-cifar10/3``.

    Raises:
        InputError: for a name that is taken or can not be one, a model that is not there, or one for images of other
            ``settings``.

    """
    methods: list[Method] = []
    for i, text in enumerate(given):
        name, equals, uri = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise InputError(f"baseline {text!r}: write NAME=MODEL, e.g. ghn1=models:/ghn1-cifar10/3")
        if name in (PREDICTED, RANDOM, SGD, *(method.name for method in methods)):
            raise InputError(f"baseline name {name!r} is taken; choose another one")
        model = fetch_model(uri, tracking_uri, folder / str(i))
        own = ImageSettings.model_validate(image_facts(model.checkpoint))
        for key in ("size", "mean", "std"):
            if getattr(own, key) != getattr(settings, key):
                raise InputError(
                    f"baseline {name} was trained on images with {key} {getattr(own, key)}, not {getattr(settings, key)} as the "
                    "model; compare models for the same images"
                )
        methods.append(hypernetwork(name, model))
    return methods


def image_facts(checkpoint: Path) -> dict[str, Any]:
    """Return the image settings (size, mean, std) that a checkpoint was trained with, as far as it says so."""
    facts: dict[str, Any] = read_metadata(checkpoint).get("recipe", {}).get("images", {})
    return facts
