"""Recipes: everything that a meta-training run is made of, in one TOML file, checked before anything starts.

A recipe is a name from ``pipelines/recipes`` or a path; ``section.key=value`` overrides follow. Unknown keys are errors.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ghn.errors import InputError
from ghn.hypernet.config import GHNConfig

RECIPES = Path(__file__).with_name("recipes")
_NOT_THE_RESULT = (
    *("processes", "zero_stage", "networks_at_once", "cost_model", "network_memory_gib", "max_skipped"),
    *("checkpoint_every", "keep_last", "keep_every", "export_every", "max_failed_checkpoints", "timeout_s", "grace_s"),
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ImageSettings(_Section):
    """Which image shards, and how images reach the networks.

    ``url`` is the root of an image shard set (its ``train`` split is used); ``size`` is in pixels.
    """

    url: str = "runs/shards/images"
    size: int = Field(default=32, ge=8, le=1024)
    batch: int = Field(default=64, ge=2, le=4096)
    per_network: bool = Field(default=False, description="an image batch for each network; as published: one for all")
    augment: Literal["none", "shift", "crop_flip", "imagenet"] = Field(
        default="crop_flip", description="'imagenet': random resized crop, flip and colour jitter"
    )
    evaluated_side: int | None = Field(
        default=None, ge=8, le=1024, description="shorter side of test images before the centre is cut out; None: size"
    )
    mean: list[float] = Field(default=[0.5, 0.5, 0.5], min_length=3, max_length=3)
    std: list[float] = Field(default=[0.5, 0.5, 0.5], min_length=3, max_length=3)
    shuffle_window: int = Field(default=8, ge=1, description="shards that are shuffled together")
    prefetch: int = Field(default=2, ge=0, le=64, description="shards that are read ahead of their turn")
    on_bad_shard: Literal["fail", "skip"] = "fail"


class ArchitectureSettings(_Section):
    """Which architecture shards; ``channels`` and ``fc_dims`` are drawn anew each time a network is used."""

    url: str = "runs/shards/deepnets"
    channels: list[int] | None = None
    fc_dims: list[int] | None = None
    shuffle_window: int = Field(default=8, ge=1)
    prefetch: int = Field(default=2, ge=0, le=64)
    on_bad_shard: Literal["fail", "skip"] = "fail"


class ModelSettings(_Section):
    """The hypernetwork; see :class:`ghn.GHNConfig`."""

    num_classes: int = Field(default=10, ge=2)
    hid: int = Field(default=32, ge=4)
    max_shape: list[int] = Field(default=[64, 64, 11, 11], min_length=4, max_length=4)
    hypernet: Literal["gatedgnn", "mlp"] = "gatedgnn"
    weight_norm: bool = True
    ve: bool = True
    layernorm: bool = True

    def config(self) -> GHNConfig:
        """Return the library's configuration; raises :class:`InputError` for impossible sizes."""
        return GHNConfig.from_json(self.model_dump())


class TrainingSettings(_Section):
    """Optimization, ranks and checkpoints; the defaults are those published for CIFAR-10, in steps instead of epochs."""

    steps: int = Field(default=210_000, ge=1)
    meta_batch: int = Field(default=8, ge=1, le=4096, description="architectures per step, over all ranks")
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    optimizer: Literal["adam", "adamw"] = "adam"
    schedule: Literal["step", "cosine"] = "step"
    milestones: list[float] = Field(default=[2 / 3, 5 / 6], description="fractions of the steps, for 'step'")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="fraction of the steps in which the rate rises")
    clip: float = Field(default=5.0, gt=0)
    network_clip: float | None = Field(default=None, gt=0, description="see ghn.meta_step; None as published")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of averaged weights, e.g. 0.999")
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32", description="'bfloat16': of the target networks; the hypernetwork stays in float32"
    )
    processes: int = Field(default=2, ge=1, le=64, description="ranks that `ghn train` starts on this host")
    zero_stage: Literal[0, 1, 2] = 1
    networks_at_once: int | None = Field(
        default=None, ge=1, description="networks of a rank that are predicted together; gradients are accumulated"
    )
    exact_sums: bool = Field(
        default=True, description="the same bits on any number of ranks (of equal threads); one network at a time"
    )
    cost_model: str | None = Field(default=None, description="file of `ghn calibrate`; None: two CPU cores")
    network_memory_gib: float | None = Field(
        default=None,
        gt=0,
        description="networks that need more by estimate are skipped; None: what a rank's memory allows",
    )
    checkpoint_every: int = Field(default=500, ge=1)
    keep_last: int = Field(default=1, ge=1, description="newest checkpoints that stay")
    keep_every: int | None = Field(default=None, ge=1, description="checkpoints at multiples of this step stay, too")
    export_every: int | None = Field(default=None, ge=1, description="steps between exported models")
    max_failed_checkpoints: int = Field(default=3, ge=0, description="in a row, before training stops")
    max_skipped: int = Field(default=1000, ge=0, description="networks that may be skipped before training stops")
    timeout_s: float = Field(default=1800.0, gt=0, description="for which a rank may be silent; longer than any step")
    grace_s: float = Field(default=25.0, gt=0, description="between a signal to stop and the end of a rank")

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        if self.precision == "float64" and self.zero_stage:
            raise ValueError("precision float64 needs zero_stage=0: ZeRO keeps weights in float32")
        return self


class Recipe(_Section):
    """A whole recipe."""

    name: str = "recipe"
    images: ImageSettings = ImageSettings()
    architectures: ArchitectureSettings = ArchitectureSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML (``null`` values are left out: they are the defaults)."""
        data = self.model_dump(exclude_none=True)
        lines = [f"name = {json.dumps(data.pop('name'))}"]
        for section, values in data.items():
            lines += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        return "\n".join(lines) + "\n"

    def digest(self) -> str:
        """SHA-256 of everything that decides the result; where shards lie, who computes and what is saved do not."""
        data = self.model_dump()
        for section in ("images", "architectures"):
            for key in ("url", "prefetch", "on_bad_shard"):
                del data[section][key]
        for key in _NOT_THE_RESULT:
            del data["training"][key]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply ``section.key=value`` overrides (TOML values; bare words are strings).

    Raises:
        InputError: for a missing file, bad TOML, an unknown or misspelt key (with the nearest known one), a value of
            the wrong type or out of range, or a model that can not be built.

    """
    path = Path(name)
    if not path.suffix and not path.is_file():  # a folder of that name is none
        path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise InputError(f"no recipe {name!r}: give a TOML file or one of {known}")
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path.name} is not TOML: {error}") from error
    data.setdefault("name", path.stem)
    for override in overrides:
        _override(data, override)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(f"recipe {path.name}: " + "; ".join(_explain(item) for item in error.errors())) from error
    recipe.model.config()
    return recipe


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not equals or not dot or not field:
        raise InputError(f"override {override!r}: write section.key=value, e.g. training.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    target = data.setdefault(section, {})
    if not isinstance(target, dict):
        raise InputError(f"override {override!r}: {section!r} is not a section")
    target[field] = parsed


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    where = ".".join(location)
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg']}"
    model: Any = Recipe
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    known = list(model.model_fields)
    near = difflib.get_close_matches(location[-1], known, n=1)
    return f"unknown key {where}" + (f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(known)}")
