"""Genotypes and architecture specifications: what a DeepNets-1M architecture *is*, as plain data.

Source: the paper's appendix A (search space) and the published generator's argument names, which are kept as JSON keys
so that specifications and the official ``*_meta.json`` files read alike.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ghn.errors import InputError

PARAMETER_FREE_OPS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect")
OPS = (
    *PARAMETER_FREE_OPS,
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_7x1_1x7",
    "conv_3x3",
    "conv_5x5",
    "conv_7x7",
    "msa",
    "cse",
)
"""The operations that a cell may apply to a state."""

NAMED_MODELS = ("torchvision:resnet50",)
"""Models that a specification may name; nothing else is ever imported on behalf of a specification."""

IMAGENET_IMAGE_SIZE = 224
"""Networks for images of this size (and larger) get the strided ImageNet stems."""

# Bounds that a specification from outside must keep, so that a typing error can not ask for a terabyte.
_LIMITS = {
    "n_cells": (1, 100),
    "C": (8, 2048),
    "C_mult": (1, 4),
    "ks": (1, 11),
    "stem_type": (0, 1),
    "fc_layers": (1, 2),
    "fc_dim": (1, 8192),
    "num_classes": (2, 100_000),
    "image_size": (8, 1024),
}
_MAX_STEPS = 16

Edge = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Genotype:
    """Two cells, each a list of ``2 * steps`` (operation, input state) edges and the states it concatenates.

    Examples:
        >>> cell = (("sep_conv_3x3", 0), ("skip_connect", 1))
        >>> Genotype(normal=cell, normal_concat=(2,), reduce=cell, reduce_concat=(2,)).ops == {"sep_conv_3x3", "skip_connect"}
        True

    """

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]

    def cell(self, reduction: bool) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
        """Return (edges, concatenated states) of the reduction cell or of the normal cell."""
        return (self.reduce, self.reduce_concat) if reduction else (self.normal, self.normal_concat)

    @functools.cached_property
    def ops(self) -> set[str]:
        """Names of all operations in either cell."""
        return {op for op, _ in self.normal + self.reduce}

    def validate(self) -> None:
        """Raise :class:`InputError` naming the first edge or state that can not exist."""
        for name, edges, concat in (
            ("normal", self.normal, self.normal_concat),
            ("reduce", self.reduce, self.reduce_concat),
        ):
            if not edges or len(edges) % 2:
                raise InputError(f"genotype.{name} has {len(edges)} edges; give two edges for each step")
            steps = len(edges) // 2
            if steps > _MAX_STEPS:
                raise InputError(f"genotype.{name} has {steps} steps; at most {_MAX_STEPS} are allowed")
            for i, (op, source) in enumerate(edges):
                if op not in OPS:
                    raise InputError(f"genotype.{name}[{i}]: unknown operation {op!r}; choose one of {', '.join(OPS)}")
                if not 0 <= source < 2 + i // 2:
                    raise InputError(f"genotype.{name}[{i}]: input {source} does not exist at step {i // 2}")
            if not concat:
                raise InputError(f"genotype.{name}_concat is empty; name at least one state")
            if len(concat) > steps:
                raise InputError(f"genotype.{name}_concat names {len(concat)} states; there are {steps}")
            for state in concat:
                if not 2 <= state < 2 + steps:
                    raise InputError(f"genotype.{name}_concat: state {state} is not made by a step")


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """A genotype plus everything needed to build the network.

    Attributes:
        genotype: the two cells.
        n_cells: number of cells; reduction cells sit at ``n_cells // 3`` and ``2 * n_cells // 3``.
        C: initial channels (a multiple of 8, so that attention has whole heads).
        C_mult: factor on the channels at each reduction cell.
        norm: ``"bnorm"`` or ``None``.
        preproc: whether each cell input passes a 1x1 ReLU-conv-norm first.
        ks: stem kernel size, odd.
        stem_type: 0 or 1; together with ``stem_pool`` and ``ks`` it has no effect in ViT networks.
        stem_pool: 3x3/2 max-pool behind stem 0.
        glob_avg: global average pooling in front of the classifier, else flattening.
        fc_layers: linear layers of the classifier, 1 or 2.
        fc_dim: width of the hidden linear layer.
        num_classes: width of the output.
        image_size: height and width of the input in pixels.

    Examples:
        >>> from ghn import sample_architectures
        >>> spec = sample_architectures("deep", 1, seed=0)[0].spec
        >>> ArchitectureSpec.from_json(spec.to_json()) == spec
        True

    """

    genotype: Genotype
    n_cells: int
    C: int
    C_mult: int
    norm: str | None
    preproc: bool
    ks: int
    stem_type: int
    stem_pool: bool
    glob_avg: bool
    fc_layers: int
    fc_dim: int
    num_classes: int = 10
    image_size: int = 32

    @functools.cached_property
    def is_vit(self) -> bool:
        """True for networks with any self-attention; they never reduce the spatial resolution."""
        return "msa" in self.genotype.ops

    @property
    def large_images(self) -> bool:
        """True when the ImageNet stems apply."""
        return self.image_size >= IMAGENET_IMAGE_SIZE

    @functools.cached_property
    def reductions(self) -> frozenset[int]:
        """Indices of the reduction cells."""
        return frozenset(i for i in (self.n_cells // 3, 2 * self.n_cells // 3) if i > 0)

    def validate(self) -> None:
        """Raise :class:`InputError` naming the field that is out of range."""
        self.genotype.validate()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _LIMITS:
                _check_limits("architecture", field.name, value)
            elif field.name in ("preproc", "stem_pool", "glob_avg") and not isinstance(value, bool):
                raise InputError(f"architecture field {field.name}={value!r}: give true or false")
        if self.norm not in ("bnorm", None):
            raise InputError(f"architecture field norm={self.norm!r}: give 'bnorm' or null")
        if self.C % 8:
            raise InputError(f"architecture field C={self.C}: give a multiple of 8")
        if self.ks % 2 == 0:
            raise InputError(f"architecture field ks={self.ks}: give an odd kernel size")
        one_state = all(len(concat) == 1 for concat in (self.genotype.normal_concat, self.genotype.reduce_concat))
        if not self.preproc and (not one_state or self.C_mult != 1):
            raise InputError("architecture field preproc=false needs C_mult=1 and one concatenated state per cell")

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON-ready data, with the official files' keys."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["genotype"] = {
            "normal": [list(edge) for edge in self.genotype.normal],
            "normal_concat": list(self.genotype.normal_concat),
            "reduce": [list(edge) for edge in self.genotype.reduce],
            "reduce_concat": list(self.genotype.reduce_concat),
        }
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str) -> ArchitectureSpec:
        """Read what :meth:`to_json` wrote (or one entry of an official ``nets`` list plus ``C``).

        Raises:
            InputError: for malformed JSON, a missing, unknown or wrongly typed field; the message names it.

        """
        data = _object(data)
        known = {field.name for field in dataclasses.fields(cls)}
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        ignored = {"num_nodes", "num_params"}  # statistics that the official files keep beside the arguments
        if unknown := sorted(set(data) - known - ignored):
            raise InputError(f"architecture specification has unknown fields: {', '.join(unknown)}")
        if missing := sorted(required - set(data)):
            raise InputError(f"architecture specification lacks: {', '.join(missing)}")
        fields = {key: value for key, value in data.items() if key in known and key != "genotype"}
        spec = cls(genotype=_genotype_from_json(data["genotype"]), **fields)
        spec.validate()
        return spec


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A network from another library, by name.

    Attributes:
        model: one of :data:`NAMED_MODELS`.
        num_classes: width of the output.
        image_size: height and width of the input in pixels.

    Raises:
        InputError: for another model, or a number out of range.

    Examples:
        >>> ModelSpec(model="torchvision:resnet50", num_classes=1000, image_size=224).to_json()
        {'model': 'torchvision:resnet50', 'num_classes': 1000, 'image_size': 224}

    """

    model: str
    num_classes: int = 10
    image_size: int = 32

    def __post_init__(self) -> None:
        if self.model not in NAMED_MODELS:
            raise InputError(f"unknown model {self.model!r}; named models are {', '.join(NAMED_MODELS)}")
        for name in ("num_classes", "image_size"):
            _check_limits("model specification", name, getattr(self, name))

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return dataclasses.asdict(self)


Spec = ArchitectureSpec | ModelSpec


def spec_from_json(data: Mapping[str, Any] | str) -> Spec:
    """Read either kind of specification; raises :class:`InputError` naming what is wrong."""
    data = _object(data)
    if "model" not in data:
        return ArchitectureSpec.from_json(data)
    if unknown := sorted(set(data) - {field.name for field in dataclasses.fields(ModelSpec)}):
        raise InputError(f"model specification has unknown fields: {', '.join(unknown)}")
    return ModelSpec(**data)


def _object(data: Any) -> Mapping[str, Any]:
    """Return the JSON object that data are, or that a text holds."""
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except json.JSONDecodeError as error:
            raise InputError(f"architecture specification is not JSON: {error}") from error
    if not isinstance(data, Mapping):
        raise InputError(f"architecture specification must be a JSON object, not {type(data).__name__}")
    return data


def _check_limits(what: str, field: str, value: Any) -> None:
    low, high = _LIMITS[field]
    if not _is_int(value) or not low <= value <= high:
        raise InputError(f"{what} field {field}={value!r}: give a whole number {low}..{high}")


def _genotype_from_json(data: Any) -> Genotype:
    keys = {field.name for field in dataclasses.fields(Genotype)}
    if not isinstance(data, Mapping) or set(data) != keys:
        raise InputError(f"architecture field genotype must be an object with exactly {', '.join(sorted(keys))}")

    def edges(name: str) -> tuple[Edge, ...]:
        value = data[name]
        if not isinstance(value, (list, tuple)):
            raise InputError(f"genotype.{name} must be a list of [operation, input] pairs")
        for pair in value:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not _is_int(pair[1]):
                raise InputError(f"genotype.{name}: {pair!r} is not an [operation, input] pair")
        return tuple((str(op), int(source)) for op, source in value)

    def states(name: str) -> tuple[int, ...]:
        value = data[name]
        if not isinstance(value, (list, tuple)) or not all(_is_int(state) for state in value):
            raise InputError(f"genotype.{name} must be a list of state numbers")
        return tuple(value)

    return Genotype(
        normal=edges("normal"),
        normal_concat=states("normal_concat"),
        reduce=edges("reduce"),
        reduce_concat=states("reduce_concat"),
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
